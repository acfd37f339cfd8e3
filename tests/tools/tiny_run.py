"""One whole run on synthetic clips and a tiny CLIP: in the test's process, or as a script that tests kill and stop.

    python tests/tools/tiny_run.py --weights FILE --results DIR [--method lora] [--steps 8] [--resume] ...

The last line on stderr is what `tvrbench` would print, and the exit code is the one it would end with.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file

from tvrbench.harness.config.protocol import load_protocol
from tvrbench.harness.core.console import run_guarded
from tvrbench.harness.core.distributed import dist_info, process_group
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.signals import Interrupted, SignalHandler
from tvrbench.harness.data.types import FrameSpec, Split, VideoFault
from tvrbench.harness.models.backbone.weights import load_weights
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.regression.signature import same_randomness, save_tiny_weights
from tvrbench.harness.runs.config import RunConfig
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.runs.runner import Session, run
from tvrbench.harness.runs.settings import RunSettings

VIDEOS = 20
Log = list[dict[str, Any]]


def make_weights(path: Path) -> None:
    """Write random weights of the tiny CLIP, always the same."""
    with same_randomness():
        save_tiny_weights(path)


class Clips:
    """Synthetic clips: pixels depend on the id and, if the spec draws at random, on the seed."""

    name = "tiny"
    bad: str | None = None

    def frames(
        self, video_id: str, spec: FrameSpec, seed: int = 0
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Pixels [T, 3, size, size] and mask [T]; UsageError for the bad video."""
        if video_id == self.bad:
            raise UsageError(f"{video_id}.mp4: cannot be decoded", code="video.undecodable", video=video_id)
        generator = np.random.default_rng([int(video_id[1:]), seed if spec.random else 0])
        pixels = generator.integers(0, 256, (spec.frames, 3, spec.size, spec.size), dtype=np.uint8)
        return pixels, np.arange(spec.frames) < 9 + int(video_id[1:]) % 4

    def check_videos(self, video_ids: tuple[str, ...], *, progress: object = None) -> list[VideoFault]:
        """No video is bad."""
        return []


class Digits:
    """A tokenizer: one id per digit of a caption's number."""

    name = "digits"

    def __call__(self, captions: Sequence[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode a batch: [B, 5] ids and mask."""
        numbers = [caption.split()[-1].zfill(3) for caption in captions]
        ids = torch.tensor([[500, *(3 + int(digit) for digit in number), 511] for number in numbers])
        return ids, torch.ones_like(ids, dtype=torch.bool)


def _split(name: str, videos: int, first: int, captions: int) -> Split:
    return Split(
        name=name,
        video_ids=tuple(f"v{first + i}" for i in range(videos)),
        captions=tuple(f"caption {first + i}" for i in range(videos * captions)),
        caption_video=tuple(i // captions for i in range(videos * captions)),
    )


def tiny_context(
    weights: Path,
    *,
    steps: int = 8,
    batch: int = 4,
    factors: tuple[float, ...] = (1.0,),
    search: Mapping[str, Any] = MappingProxyType({"lr_search_share": 1.0}),
    test_videos: int = 9,
    recipe: Mapping[str, Any] | None = None,
) -> RunContext:
    """A protocol of a handful of steps, ready to run; ``search`` and ``recipe`` set more of protocol and recipe."""
    protocol = load_protocol("standin/uniform")
    overrides = dict(protocol.recipe_overrides) | {"steps": steps, "batch_size": batch, "pair_scenes": False}
    return RunContext(
        protocol=replace(
            protocol,
            name="tiny/uniform",
            recipe_overrides=overrides | dict(recipe or {}),
            lr_factors=factors,
            held_out=5,
            **search,
        ),
        dataset=Clips(),  # type: ignore[arg-type]
        train=_split("train", VIDEOS, 0, 2),
        test=_split("test", test_videos, 100, 1),
        skipped=(),
        weights=load_weights(weights),
        weights_spec=str(weights),
        tokenizer=Digits(),
    )


class Quiet:
    """A progress reporter that keeps and prints logged lines and waits at every update, so that a step takes time."""

    def __init__(self, wait_s: float = 0.0) -> None:
        self.wait_s = wait_s
        self.lines: list[str] = []

    def update(self, work: int, note: str = "") -> None:
        """Wait."""
        time.sleep(self.wait_s)

    def log(self, text: str) -> None:
        """Keep the line; the first process also prints it."""
        self.lines.append(text)
        if dist_info().first:
            print(text, file=sys.stderr, flush=True)


class ActAt(Quiet):
    """Acts at the n-th training step, or at the n-th update of any kind.

    Attributes:
        steps: every step reported so far, for example ``3/6``.
    """

    def __init__(self, at: int | None = None, act: Callable[[], None] | None = None, *, updates: bool = False) -> None:
        super().__init__()
        self.at, self.act, self.updates = at, act or send(signal.SIGTERM), updates
        self.heard = 0
        self.steps: list[str] = []

    def update(self, work: int, note: str = "") -> None:
        """Count, and act if it is time to."""
        is_step = note.startswith("step")
        self.steps += [note.split()[1]] if is_step else []
        self.heard += self.updates or is_step
        if self.heard == self.at and (self.updates or is_step):
            self.act()


def send(number: signal.Signals) -> Callable[[], None]:
    """A function that sends a signal to its own process."""
    return lambda: os.kill(os.getpid(), number)


def run_out_of_memory() -> None:
    """Raise MemoryError."""
    raise MemoryError


def session(folder: Path, progress: Any, signals: SignalHandler, **settings: Any) -> Session:
    """The session of a command with its records in ``folder``; ``settings`` are fields of ``RunSettings``."""
    wanted = RunSettings(protocol="tiny/uniform", results=folder, **settings)
    return Session(settings=wanted, store=RecordStore(folder), progress=progress, signals=signals, command="test")


def run_in(folder: Path, context: RunContext, config: RunConfig, progress: Any = None, **settings: Any) -> Path | None:
    """Do one run as a command does."""
    with SignalHandler() as signals:
        return run(context, config, session(folder, progress or Quiet(), signals, **settings))


def stop_run(
    folder: Path, context: RunContext, config: RunConfig, at: int, *, updates: bool = False, **settings: Any
) -> ActAt:
    """Start a run and stop it with SIGTERM at its n-th step (or update)."""
    progress = ActAt(at, updates=updates)
    with pytest.raises(Interrupted):
        run_in(folder, context, config, progress, **settings)
    return progress


def only(folder: Path, pattern: str) -> Path:
    """The one file below a folder that matches."""
    (path,) = folder.rglob(pattern)
    return path


def record_of(folder: Path) -> dict[str, Any]:
    """The one record below a folder."""
    record: dict[str, Any] = json.loads(only(folder, "*.json").read_text())
    return record


def saved_steps(folder: Path) -> int:
    """Steps in the one saved state below a folder."""
    return len(torch.load(only(folder, "*.training"), weights_only=True)["state"]["training"]["losses"])


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], Log]:
    """Final weights, metrics and log of the one run below a folder, without times and resumptions."""
    log = [json.loads(line) for line in only(folder, "*.jsonl").read_text().splitlines()]
    metrics = record_of(folder)["metrics"]
    metrics["training"].pop("resumed_at", None)
    kept = ("phase", "step", "loss", "lr", "grad_norm")
    return load_file(only(folder, "*.safetensors")), metrics, [{key: line[key] for key in kept} for line in log]


def assert_same(one: Path, other: Path) -> None:
    """Compare two runs bit for bit."""
    (weights, metrics, log), (other_weights, other_metrics, other_log) = outcome(one), outcome(other)
    assert metrics == other_metrics
    assert log == other_log
    assert_equal(weights, other_weights)


def assert_equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    """Compare two state dicts bit for bit."""
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def main() -> None:
    """Do the run that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="made if they are missing")
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--method", default="lora")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--factors", default="1.0")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--every", type=float, default=600.0, help="seconds between two saves")
    parser.add_argument("--micro-batch-size", type=int)
    parser.add_argument("--selection", default="last")
    parser.add_argument("--save-embeddings", action="store_true")
    parser.add_argument("--options", type=json.loads, default={}, help="of the method, as JSON")
    parser.add_argument("--wait", type=float, default=0.0, help="seconds that every step waits")
    parser.add_argument("--bad", help="id of a video that cannot be decoded")
    parser.add_argument("--dies", type=int, help="the process of this rank kills itself at its third step")
    parser.add_argument("--starves", type=int, help="the process of this rank runs out of memory at its third step")
    parser.add_argument("--stops", type=int, help="the last process gets SIGTERM at this step")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.weights.exists():
        make_weights(arguments.weights)
    factors = tuple(float(part) for part in arguments.factors.split(","))
    context = tiny_context(
        arguments.weights, steps=arguments.steps, batch=arguments.batch, factors=factors, test_videos=37
    )
    context.dataset.bad = arguments.bad  # type: ignore[attr-defined]
    with process_group("cpu"), SignalHandler() as signals:
        progress = Quiet(arguments.wait)
        if dist_info().rank == arguments.dies:
            progress = ActAt(3, send(signal.SIGKILL))
        elif dist_info().rank == arguments.starves:
            progress = ActAt(3, run_out_of_memory)
        elif arguments.stops is not None and dist_info().rank == dist_info().size - 1:
            progress = ActAt(arguments.stops)
        config = RunConfig(
            method=arguments.method,
            seed=arguments.seed,
            options=arguments.options,
            selection=arguments.selection,
            timing=False,
        )
        settings = {
            "resume": arguments.resume,
            "save_interval_min": arguments.every / 60,
            "micro_batch_size": arguments.micro_batch_size,
            "save_embeddings": arguments.save_embeddings,
        }
        run(context, config, session(arguments.results, progress, signals, **settings))


if __name__ == "__main__":
    sys.exit(run_guarded(main))
