"""``tvrbench data decoders``: PyAV and torchcodec side by side on the videos at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from tvrbench.harness.core.console import print_json, print_table, say
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.progress import Bar
from tvrbench.harness.data.compare_decoders import compare_decoders
from tvrbench.harness.data.open import open_dataset
from tvrbench.harness.data.types import FrameSpec, VideoFiles


def show_decoders(
    name: str, root: Path | None, *, splits: tuple[str, ...], spec: FrameSpec, limit: int, as_json: bool
) -> None:
    """Decode up to ``limit`` of the videos that are there with both decoders, and say how their frames differ.

    Raises:
        UsageError: no such data set or split, torchcodec does not load, or no video can be decoded by both.
    """
    if limit < 1:
        raise UsageError(f"--limit {limit}: at least one video is wanted")
    dataset = open_dataset(name, root)
    if not isinstance(dataset, VideoFiles):
        raise UsageError(f"the videos of data set {name} are no files, so that no decoder can be chosen for them")
    dataset.pixel_versions(spec)
    listed = dict.fromkeys(v for split in splits or dataset.split_names for v in dataset.split(split).video_ids)
    there = [video_id for video_id in listed if _is_there(dataset, video_id)][:limit]
    with Bar() as bar:
        bar.begin(f"decoding {len(there)} videos of {name} twice")
        found = compare_decoders(dataset, spec, there, progress=bar.reach)
    if as_json:
        print_json(asdict(found))
        return
    rows = [
        [decoder, round(found.frames_per_s[decoder]) if found.frames_per_s else None, _listed(found.versions[decoder])]
        for decoder in found.decoders
    ]
    print_table(rows, ["decoder", "frames/s", "libraries"])
    print(f"same frame numbers in {found.same_indices} of {found.videos} videos, same pixels in {found.same_pixels}")
    print(f"pixels differ by {found.mean:.4f} of 255 on average and by {found.largest} at most")
    for reason in found.refused:
        say(f"refused by {reason}")


def _is_there(dataset: VideoFiles, video_id: str) -> bool:
    try:
        return dataset.video_path(video_id).is_file()
    except UsageError:  # missing, or there twice: for data verify to say
        return False


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
