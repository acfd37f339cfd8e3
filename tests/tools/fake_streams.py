"""CUDA streams without a GPU: what is copied, waited for and handed out is written down in order, and values stay.

Tensors "on cuda" are the CPU's own here (``Fakes.install``); give ``moves=False`` where fake ones move by themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

CUDA = torch.device("cuda:0")


@dataclass(eq=False)
class FakeEvent:
    fakes: Fakes
    blocking: bool
    stream: str = ""

    def record(self, stream: FakeStream) -> None:
        self.stream = stream.name
        self.fakes.events += 1
        self.fakes.log.append(("record", stream.name))

    def synchronize(self) -> None:
        self.fakes.waited.append(self)
        self.fakes.log.append(("host waits", self.stream))


@dataclass
class FakeStream:
    fakes: Fakes
    name: str

    def wait_event(self, event: FakeEvent) -> None:
        self.fakes.log.append((f"{self.name} waits", event.stream))


@dataclass
class Fakes:
    """What was asked of streams: ``log`` in order, events the host ``waited`` for, and what was ``pinned``."""

    log: list[Any] = field(default_factory=list)
    waited: list[FakeEvent] = field(default_factory=list)
    pinned: list[tuple[int, ...]] = field(default_factory=list)
    events: int = 0
    stream: str = "compute"

    @contextmanager
    def within(self, stream: FakeStream) -> Iterator[None]:
        before, self.stream = self.stream, stream.name
        yield
        self.stream = before

    def install(self, patch: pytest.MonkeyPatch, *, moves: bool = True) -> Fakes:
        """Put these in the place of torch's."""
        patch.setattr(torch.cuda, "Stream", lambda device=None: FakeStream(self, "copy"))
        patch.setattr(torch.cuda, "Event", lambda blocking=False: FakeEvent(self, blocking))
        patch.setattr(torch.cuda, "current_stream", lambda device=None: FakeStream(self, self.stream))
        patch.setattr(torch.cuda, "stream", self.within)
        patch.setattr(Tensor, "record_stream", lambda tensor, stream: self.log.append(("kept for", stream.name)))
        patch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
        if moves:
            self._keep_tensors_on_the_cpu(patch)
        return self

    def _keep_tensors_on_the_cpu(self, patch: pytest.MonkeyPatch) -> None:
        to, empty = Tensor.to, torch.empty

        def moved(tensor: Tensor, *given: Any, **options: Any) -> Tensor:
            if given and torch.device("cuda").type in str(given[0]):
                assert options.get("non_blocking"), "the host would wait for this copy"
                self.log.append(("copied on", self.stream))
                return to(tensor, copy=True)
            return to(tensor, *given, **options)

        def allocated(*shape: Any, pin_memory: bool = False, **options: Any) -> Tensor:
            out = empty(*shape, **options)
            if pin_memory:
                self.pinned.append(tuple(out.shape))
            return out

        patch.setattr(Tensor, "to", moved)
        patch.setattr(torch, "empty", allocated)
