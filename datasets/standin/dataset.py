"""The embedded stand-in as a data set: MSR-VTT's adapter over files that are generated on first use."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from tvrbench.datasets.msrvtt import MSRVTT
from tvrbench.datasets.standin.generate import DEFAULT, MARKER, Clip, Settings, clips, generate
from tvrbench.harness.core.errors import UsageError


def cache_folder() -> Path:
    """The folder for generated data: ``$TVRBENCH_CACHE``, ``$XDG_CACHE_HOME/tvrbench``, or ``~/.cache/tvrbench``.

    Raises:
        UsageError: none of the three is known.
    """
    if own := os.environ.get("TVRBENCH_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "tvrbench"
    try:
        return Path.home() / ".cache" / "tvrbench"
    except RuntimeError as error:
        message = "there is no home folder for generated data; set TVRBENCH_CACHE to a folder"
        raise UsageError(message, code="standin.no-cache-folder") from error


class StandIn(MSRVTT):
    """Generated clips in MSR-VTT's layout; results do not transfer to MSR-VTT.

    Every clip shows two events, and its caption names both in order. ``test-1ka`` has two subsets of captions:
    ``order-free``, whose scene is shown in one order, and ``order-only``, whose scene is shown in both orders by two
    videos with the same frames. Clips of one scene share a number in ``Split.scenes``.

    Args:
        root: an empty or new folder, or one that already contains the stand-in; None for the user's cache folder.
        settings: how much to generate; anything but the default is for tests.

    Raises:
        UsageError: the folder contains something else, or cannot be written.
    """

    name = "standin"
    title = "the embedded stand-in"
    summary = "the embedded stand-in: small generated clips in MSR-VTT's layout; results do not transfer to MSR-VTT"
    wanted = "an empty or new folder, or one that already contains the stand-in"
    generated = True
    notice = "Embedded stand-in, not MSR-VTT: no ranking here carries over to MSR-VTT."
    stands_for = "msrvtt"
    split_names = ("test-1ka", "train-9k")
    # of what the default settings generate: 300 and 2,000 videos, one caption each
    expected_fingerprints = MappingProxyType(
        {
            "test-1ka": "86917291c7e72b82f3f197fcd1fbc06064626b4b00e9f9c8592d4507d65ce4fc",
            "train-9k": "5f8607ad10e51553190519075a294ca2ac103f1db7e14a42e2e2259c5f0d5312",
        }
    )
    weights_path: ClassVar[Path] = Path(__file__).parent / "clip.safetensors"

    def __init__(self, root: Path | None = None, *, settings: Settings = DEFAULT) -> None:
        root = cache_folder() / f"standin-{settings.digest[:12]}" if root is None else root
        generate(root, settings)
        super().__init__(root, expected=None if settings == DEFAULT else {})
        self.settings = settings

    @classmethod
    def is_generated(cls) -> bool:
        """True if the default clips are in the user's cache folder already."""
        return (cache_folder() / f"standin-{DEFAULT.digest[:12]}" / MARKER).is_file()

    def subsets(self, split_name: str, keys: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
        """Captions of the test split that need no order, and those that only the order distinguishes."""
        if split_name != "test-1ka":
            return {}
        order_only = {clip.key for clip in self._clips.values() if clip.order_only}
        return {
            "order-free": tuple(i for i, key in enumerate(keys) if key not in order_only),
            "order-only": tuple(i for i, key in enumerate(keys) if key in order_only),
        }

    def scenes(self, split_name: str, video_ids: Sequence[str]) -> tuple[int, ...]:
        """The scene that each video shows, in either order."""
        unknown = [video_id for video_id in video_ids if video_id not in self._clips]
        if unknown:
            message = f"{unknown[0]} of {split_name} is not a generated clip; remove the folder {self.root}"
            raise UsageError(message, code="standin.foreign-folder", root=str(self.root))
        return tuple(self._clips[video_id].scene_number for video_id in video_ids)

    @cached_property
    def _clips(self) -> dict[str, Clip]:
        return {clip.video_id: clip for clip in clips(self.settings)}

    @staticmethod
    def write_demo(folder: Path) -> int:
        """Write some clips into a folder, for a first search; returns their number."""
        from tvrbench.datasets.standin.demo import write_demo  # opening the data set does not need it

        return write_demo(folder)
