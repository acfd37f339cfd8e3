"""Options and output that the commands of ``tvrbench data`` share. Imports nothing heavy, for the sake of --help."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, UseAppendAction, arg

from tvrbench.harness.core.errors import CheckFailed, UsageError
from tvrbench.harness.core.signals import Interrupted

if TYPE_CHECKING:
    from tvrbench.harness.core.progress import Bar
    from tvrbench.harness.data.types import FrameSpec, RetrievalDataset, VideoFault

RESUME_HINT = "finished videos and downloaded bytes are kept; run the same command to resume"
MAX_FRAMES, MAX_SIZE = 1_024, 2_048


@dataclass(frozen=True, kw_only=True)
class OnDataset:
    """Options of the commands that open a data set.

    Attributes:
        dataset: A data set (tvrbench list datasets).
        root: Its folder, with annotations and a folder videos.
    """

    dataset: Annotated[Positional[str], arg(metavar="DATASET")]
    root: Path | None = None

    def open(self) -> RetrievalDataset:
        """Return the data set; UsageError for an unknown name or a wrong folder."""
        from tvrbench.harness.data.open import open_dataset

        return open_dataset(self.dataset, self.root)


@dataclass(frozen=True, kw_only=True)
class OnVideos(OnDataset):
    """Options of the commands that read the videos of splits.

    Attributes:
        splits: Only this split; may be repeated.
        as_json: Print one JSON document.
    """

    splits: Annotated[UseAppendAction[tuple[str, ...]], arg(name="split", metavar="SPLIT")] = ()
    as_json: Annotated[bool, arg(name="json")] = False

    def video_ids(self, dataset: RetrievalDataset) -> list[str]:
        """Return the videos of the splits, each once."""
        from tvrbench.harness.data.open import splits_of

        parts = [dataset.split(name) for name in self.splits or splits_of(dataset)]
        return list(dict.fromkeys(video_id for part in parts for video_id in part.video_ids))


@dataclass(frozen=True, kw_only=True)
class OnFrames(OnVideos):
    """Options of the commands that decode frames.

    Attributes:
        sampler: Frame sampler: tempme, clip4clip or centerclip.
        frames: Frames per video; DiDeMo and ActivityNet use 64.
        size: Side of the square crop in pixels.
    """

    sampler: str = "tempme"
    frames: int = 12
    size: int = 224

    def spec(self, *, native: bool = False, decoder: str | None = None) -> FrameSpec:
        """Return the frames; UsageError for numbers that would fill the memory."""
        from tvrbench.harness.data.types import NATIVE, FrameSpec

        if not 1 <= self.frames <= MAX_FRAMES or not 1 <= self.size <= MAX_SIZE:
            limits = f"use 1 to {MAX_FRAMES:,} frames of 1 to {MAX_SIZE:,} pixels"
            message = f"--frames {self.frames} --size {self.size} is out of range: {limits}"
            raise UsageError(message, code="option.range", frames=self.frames, size=self.size)
        chosen = {} if decoder is None else {"decoder": decoder}
        return FrameSpec(sampler=self.sampler, frames=self.frames, size=NATIVE if native else self.size, **chosen)


@contextmanager
def progress_bar(title: str, hint: str | None = None) -> Iterator[Bar]:
    """Show progress; Ctrl-C ends the command with a hint on how to continue."""
    from tvrbench.harness.core.progress import Bar

    try:
        with Bar() as bar:
            bar.begin(title)
            yield bar
    except KeyboardInterrupt as stop:
        if hint is None:
            raise
        raise Interrupted(stop.number if isinstance(stop, Interrupted) else signal.SIGINT, how=hint) from None


def print_faults(faults: Sequence[VideoFault]) -> None:
    """Print a line for each file that is there and cannot be used."""
    for fault in faults:
        if fault.kind != "missing":
            print(f"{fault.path}: {fault.kind}: {fault.detail}")


def check_usable(dataset: str, faults: Sequence[VideoFault]) -> None:
    """Raise CheckFailed, with their numbers, if videos are missing or broken."""
    if faults:
        missing = sum(fault.kind == "missing" for fault in faults)
        counts = {"missing": missing, "corrupt": len(faults) - missing}
        parts = f"{missing} videos are missing and {counts['corrupt']} cannot be decoded"
        raise CheckFailed(f"{dataset}: {parts}; replace them", code="data.unusable-videos", dataset=dataset, **counts)
