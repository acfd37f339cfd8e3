"""Batches on a GPU: copied from pinned memory on a stream of their own while the GPU computes on the batch before.

Pinned memory comes from torch's own allocator, which keeps a block from its next owner until the copies out of it have
ended. On a CPU nothing here copies or waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from contextlib import closing
from typing import TypeVar, cast

import torch
from torch import Tensor

from tvrbench.harness.core.errors import UsageError

IN_FLIGHT = 2  # batches that the GPU has been given and has not finished; bounds the memory of those still waiting
Batch = TypeVar("Batch", bound=tuple[Tensor, ...])


def prefetch(batches: Generator[Batch, None, None], device: torch.device) -> Generator[Batch, None, None]:
    """Yield the same batches on a CUDA device; the copy of the next one begins before a batch is handed out.

    The host waits in one place alone: while the GPU still has ``IN_FLIGHT`` batches to compute on.

    Args:
        batches: tensors in pinned memory, which belong to this function from then on; closed with it.
        device: a CUDA device, whose current stream computes on the batches.

    Raises:
        UsageError: of ``batches``, in place of the batch that it belongs to.
    """
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    used = deque[torch.cuda.Event]()

    def start(batch: Batch | None) -> tuple[Batch, torch.cuda.Event] | None:
        if batch is None:
            return None
        while len(used) >= IN_FLIGHT:
            used.popleft().synchronize()
        with torch.cuda.stream(copies):
            moved = tuple(tensor.to(device, non_blocking=True) for tensor in batch)
            return cast(Batch, moved), _event(copies)

    with closing(batches):
        ahead = start(next(batches, None))
        while ahead is not None:
            (batch, copied), fault = ahead, None
            try:
                ahead = start(next(batches, None))
            except UsageError as error:  # of the next batch: this one is whole
                ahead, fault = None, error
            computing = torch.cuda.current_stream(device)
            computing.wait_event(copied)
            for tensor in batch:
                tensor.record_stream(computing)  # its memory is not given to the next copy before it was used
            yield batch
            del batch
            used.append(_event(computing))
            if fault is not None:
                raise fault


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor on a device, in the order of the device's work; the host does not wait."""
    pinned = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    return pinned.to(device, non_blocking=True)


def to_cpu(tensor: Tensor) -> Tensor:
    """A tensor on the CPU, whose values are there once ``wait_for`` has returned or a later ``recorded`` has come."""
    return tensor.to("cpu", non_blocking=True)


def recorded(device: torch.device) -> torch.cuda.Event | None:
    """The end of all that a device was given to do so far; None where the host does it itself."""
    return _event(torch.cuda.current_stream(device)) if device.type == "cuda" else None


def wait_for(device: torch.device) -> None:
    """Wait for all that a device was given to do."""
    if (end := recorded(device)) is not None:
        end.synchronize()


def _event(stream: torch.cuda.Stream) -> torch.cuda.Event:
    """An event at this place of a stream; waiting for it leaves the core to the threads that decode."""
    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    event.record(stream)
    return event
