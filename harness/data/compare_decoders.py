"""Compares two decoders on existing videos: frame numbers, pixels and speed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import FrameSpec, Progress, VideoFiles


@dataclass(frozen=True, kw_only=True)
class DecoderComparison:
    """The result of `compare_decoders`.

    Attributes:
        decoders: the two names.
        versions: of the libraries that decide the pixels, per decoder.
        videos: number of videos decoded by both.
        same_indices: number of videos with the same frame numbers.
        same_pixels: number of videos with the same pixels.
        largest: largest difference of a pixel, of 255.
        mean: mean difference over all pixels.
        frames_per_s: per decoder, in one thread, with resizing.
        refused: ``decoder: reason`` of each video that one of them refuses.
    """

    decoders: tuple[str, str]
    versions: Mapping[str, Mapping[str, str]]
    videos: int
    same_indices: int
    same_pixels: int
    largest: int
    mean: float
    frames_per_s: Mapping[str, float]
    refused: tuple[str, ...]


def compare_decoders(
    dataset: VideoFiles,
    spec: FrameSpec,
    video_ids: Sequence[str],
    *,
    other: str = "torchcodec",
    progress: Progress | None = None,
) -> DecoderComparison:
    """Decode each video with PyAV and another decoder in one thread; the first one alternates.

    Args:
        dataset: the data set.
        spec: the frames; its decoder is ignored.
        video_ids: the videos.
        other: the decoder that is compared with PyAV.
        progress: called with (done, all) after each video.

    Raises:
        UsageError: the other decoder is unknown or absent, an unknown sampler, or no video that both decode.
    """
    decoders = ("pyav", other)
    specs = {name: replace(spec, decoder=name) for name in decoders}
    versions = {name: dict(dataset.pixel_versions(specs[name])) for name in decoders}
    seconds = dict.fromkeys(decoders, 0.0)
    frames, same_indices, largest, means, refused = 0, 0, list[int](), list[float](), list[str]()
    for done, video_id in enumerate(video_ids, start=1):
        clips, taken = {}, {}
        for name in decoders if done % 2 else reversed(decoders):
            start = time.perf_counter()
            try:
                clips[name] = dataset.numbered_frames(video_id, specs[name])
            except UsageError as error:
                refused.append(f"{name}: {error}")
            taken[name] = time.perf_counter() - start
        if len(clips) == len(decoders):
            (a, _, numbers_a), (b, _, numbers_b) = (clips[name] for name in decoders)
            difference = np.abs(a.astype(np.int16) - b.astype(np.int16))
            same_indices += numbers_a == numbers_b
            largest.append(int(difference.max()))
            means.append(float(difference.mean()))
            if len(means) > 1:  # the first video also loads libraries
                frames += len(numbers_a)
                seconds = {name: seconds[name] + taken[name] for name in decoders}
        if progress is not None:
            progress(done, len(video_ids))
    if not means:
        message = f"no video of {dataset.name} in {dataset.root} can be decoded by both {' and '.join(decoders)}"
        raise UsageError(message, code="decoder.nothing-to-compare", dataset=dataset.name, refused=refused)
    return DecoderComparison(
        decoders=decoders,
        versions=versions,
        videos=len(means),
        same_indices=same_indices,
        same_pixels=largest.count(0),
        largest=max(largest),
        mean=float(np.mean(means)),
        frames_per_s={name: frames / seconds[name] for name in decoders} if frames else {},
        refused=tuple(refused),
    )
