"""``tvrbench data reencode``: a copy of a data set with the videos as the papers prepare them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from tvrbench.harness.cli.data_options import RESUME_HINT, OnVideos, check_usable, print_faults, progress_bar
from tvrbench.harness.core.console import print_json, say


@dataclass(frozen=True, kw_only=True)
class Reencode(OnVideos):
    """Copy a data set with every video re-encoded as CLIP4Clip and CenterCLIP do; an interrupted command resumes.

    The sources stay as they are. The copy has the annotation too, so that it can be used in place of the original.

    Attributes:
        to: Folder of the copy: a new one outside the data set, or that of an earlier command with the same options.
        fps: Frames per second.
        short_side: Pixels of the shorter side, an even number; the aspect is kept.
    """

    to: Path
    fps: float = 3.0
    short_side: int = 224

    def run(self) -> None:
        """Raise CheckFailed if a video is missing or broken; the others are copied."""
        from tvrbench.harness.data.reencode import MANIFEST, reencode_videos
        from tvrbench.harness.data.types import Reencoding

        settings, dataset = Reencoding(fps=self.fps, short_side=self.short_side), self.open()
        with progress_bar(f"re-encoding videos of {self.dataset}", RESUME_HINT) as bar:
            result = reencode_videos(dataset, self.to, settings, self.video_ids(dataset), progress=bar.reach)
        if self.as_json:
            faults = [asdict(fault) | {"path": str(fault.path)} for fault in result.faults]
            print_json(asdict(result) | {"folder": str(result.folder), "faults": faults})
        else:
            sizes = " of ".join(f"{size / 2**20:,.1f} MiB" for size in (result.bytes, result.source_bytes))
            print(f"{result.folder}: {result.added} videos re-encoded, {result.kept} already there, {sizes}")
            print(", ".join(f"{name} {value}" for name, value in result.encoder.items()))
            print_faults(result.faults)
            say(f"{result.folder / MANIFEST} names the source of each video; run with --data {result.folder}")
        check_usable(self.dataset, result.faults)
