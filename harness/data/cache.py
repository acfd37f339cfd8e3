"""The frame cache of a data set: filled once by ``tvrbench data cache``, then read instead of decoding.

It stores the frames that a sampler picks, resized and cropped or, for augmentations at native resolution, unchanged. A
clip is used only while its video file is unchanged, and a store only with its own sampler, size, decoder and library
versions.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import file_sha256, file_stat
from tvrbench.harness.core.rendezvous import usable_cores
from tvrbench.harness.data.cache_store import FORMAT, ClipEntry, FileStamp, FrameStore, open_writer, read_key
from tvrbench.harness.data.disk import check_space
from tvrbench.harness.data.types import (
    NATIVE,
    Clip,
    Frames,
    FrameSpec,
    Progress,
    RetrievalDataset,
    VideoFault,
    VideoFiles,
)

FOLDER = "TVRBENCH_FRAME_CACHE"  # environment variable: the folder of caches, by default in the data set's root
_Decoded = tuple[FileStamp, Frames | None]  # no frames: the cached ones are right, only the file's times are new


@dataclass(frozen=True, kw_only=True)
class FillReport:
    """The result of filling a cache.

    Attributes:
        folder: of the store.
        added: decoded clips, including those of changed videos.
        kept: clips that were already cached.
        faults: videos that cannot be decoded.
        bytes: size of the pixels in the store; ``wasted`` of them belong to replaced clips.
    """

    folder: Path
    added: int
    kept: int
    faults: tuple[VideoFault, ...]
    bytes: int
    wasted: int


class CachedFrames:
    """Reads the clips of one FrameSpec from a store.

    Args:
        dataset: the data set, which finishes clips (augments, resizes, pads).
        spec: the frames that ``clip`` returns.
        store: frames under ``spec.plain`` or ``spec.native``.
    """

    def __init__(self, dataset: VideoFiles, spec: FrameSpec, store: FrameStore) -> None:
        self._dataset, self._spec, self._store = dataset, spec, store
        self._verified: set[str] = set()
        self._compared: dict[str, tuple[tuple[int, int, int], bool]] = {}

    def clip(self, video_id: str, seed: int) -> Clip | None:
        """Return the clip, bit for bit as the data set's ``frames``; None if it is not cached, or its video changed.

        Raises:
            UsageError: the video file is missing, or the cache is damaged.
        """
        entry = self._store.entries.get(video_id)
        if entry is None or not self._unchanged(video_id, entry.source):
            return None
        frames = self._store.frames(entry)
        if video_id not in self._verified:
            if _sha256(frames) != entry.sha256:
                message = f"the frame cache {self._store.folder} is damaged at {video_id}; remove the folder"
                raise UsageError(message, code="cache.damaged", folder=str(self._store.folder), video=video_id)
            self._verified.add(video_id)
        return self._dataset.finish(video_id, frames, self._spec, seed)

    def _unchanged(self, video_id: str, source: FileStamp) -> bool:
        """True if the video file is the one that was decoded; a file with other times is hashed to find out."""
        path = self._dataset.video_path(video_id)
        stat = file_stat(path)
        if stat != source.stat and self._compared.get(video_id, (None,))[0] != stat:
            same = stat[0] == source.size and file_sha256(path) == source.sha256
            self._compared[video_id] = stat, same
            if not same:
                warnings.warn(f"{path} changed since it was cached; it is decoded again", stacklevel=2)
        return stat == source.stat or self._compared[video_id][1]


def open_cache(dataset: RetrievalDataset, spec: FrameSpec) -> CachedFrames | None:
    """Return the cache that can serve ``spec``; None if there is none."""
    if not isinstance(dataset, VideoFiles) or spec.draws:
        return None
    for stored in (spec.native,) if spec.augments_native else (spec.plain, spec.native):
        folder, key = _place(dataset, stored)
        if (folder / "key.json").is_file():
            return CachedFrames(dataset, spec, FrameStore(folder, key))
    return None


def whole_videos(dataset: RetrievalDataset, video_ids: Sequence[str]) -> set[str]:
    """Return the videos that were found whole when some cache was filled, and whose file has the same size and times.

    Filling decodes whole files, so these videos need no check before a run, whichever frames the run uses.
    """
    if not isinstance(dataset, VideoFiles):
        return set()
    checked_with = dataset.pixel_versions(FrameSpec(decoder="pyav"))  # PyAV checks files, whatever the decoder
    stats: dict[str, set[tuple[int, int, int]]] = {}
    for path in sorted(_base(dataset).glob("*/key.json")):
        key = read_key(path.parent)
        versions = key.get("versions") if isinstance(key, dict) and key.get("dataset") == dataset.name else None
        if isinstance(versions, dict) and key.get("format") == FORMAT and checked_with.items() <= versions.items():
            for entry in FrameStore(path.parent, key).entries.values():
                stats.setdefault(entry.video, set()).add(entry.source.stat)
    whole = set()
    for video_id in stats.keys() & set(video_ids):
        with suppress(UsageError, OSError):  # a video without a file, which the check before the run reports
            if file_stat(dataset.video_path(video_id)) in stats[video_id]:
                whole.add(video_id)
    return whole


def fill_cache(
    dataset: RetrievalDataset,
    spec: FrameSpec,
    video_ids: Sequence[str],
    *,
    progress: Progress | None = None,
    workers: int | None = None,
) -> FillReport:
    """Decode the videos that are not yet cached, in parallel; may be interrupted at any time and run again.

    Args:
        dataset: the data set.
        spec: the frames to cache: without augmentation, of a crop's size or ``NATIVE``.
        video_ids: the videos.
        progress: called with (done, all) after each video.
        workers: threads; all cores by default.

    Raises:
        UsageError: the sampler is random, the data set's videos are not files, the disk is too small, or another
            process is filling the same store.
    """
    if spec.draws:
        message = f"sampler {spec.sampler} picks other frames in every epoch, so they cannot be cached; choose another"
        raise UsageError(message, code="cache.random-sampler", sampler=spec.sampler)
    if not isinstance(dataset, VideoFiles):
        message = f"the videos of data set {dataset.name} are not files, so their frames cannot be cached"
        raise UsageError(message, code="dataset.no-files", dataset=dataset.name)
    folder, key = _place(dataset, spec)
    clip_bytes = None if spec.size == NATIVE else spec.frames * 3 * spec.size**2
    added, kept, faults, new_bytes = 0, 0, list[VideoFault](), 0
    with open_writer(folder, key) as (store, writer):
        _check_space(folder, sum(v not in store.entries for v in video_ids) * (clip_bytes or 0))
        results = _decode_all(dataset, spec, store, video_ids, workers or usable_cores())
        for done, (video_id, result) in enumerate(zip(video_ids, results, strict=True), start=1):
            match result:
                case VideoFault():
                    faults.append(result)
                case None:
                    kept += 1
                case source, None:
                    kept += 1
                    writer.renew(store.entries[video_id], source)
                case source, frames:
                    added += 1
                    new_bytes += frames.nbytes
                    writer.add(video_id, frames, _sha256(frames), source)
                    if clip_bytes is None and added % 32 == 1:
                        _check_space(folder, (len(video_ids) - done) * new_bytes // added)
            if progress is not None:
                progress(done, len(video_ids))
    store = FrameStore(folder, key)
    return FillReport(folder=folder, added=added, kept=kept, faults=tuple(faults), bytes=store.end, wasted=store.wasted)


def _decode_all(
    dataset: VideoFiles, spec: FrameSpec, store: FrameStore, video_ids: Sequence[str], workers: int
) -> Iterator[_Decoded | VideoFault | None]:
    """Yield results in the order of the videos; at most a few more than there are threads are in memory."""
    pending: deque[Future[_Decoded | VideoFault | None]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for video_id in video_ids:
            pending.append(pool.submit(_decode, dataset, spec, store.entries.get(video_id), video_id))
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _decode(
    dataset: VideoFiles, spec: FrameSpec, entry: ClipEntry | None, video_id: str
) -> _Decoded | VideoFault | None:
    """Decode a video; None if it is cached and its file is unchanged."""
    path = Path(f"{video_id}.mp4")
    try:
        path = dataset.video_path(video_id)
        stat = file_stat(path)
        if entry is not None and stat == entry.source.stat:
            return None
        source = FileStamp.of(path)
        if entry is not None and source.sha256 == entry.source.sha256:
            return source, None
        frames = dataset.stored_frames(video_id, spec)
        if file_stat(path) != stat:
            message = f"video {path} changed while it was read; run the command again"
            raise UsageError(message, code="video.changed", video=str(path))
    except (UsageError, OSError) as error:
        return VideoFault.of(video_id, path, error)
    return source, frames


def _check_space(folder: Path, needed: int) -> None:
    check_space(folder, needed, "the frame cache", f"free some space, or set another folder in {FOLDER}")


def _place(dataset: VideoFiles, spec: FrameSpec) -> tuple[Path, Mapping[str, Any]]:
    """Return the folder of the store for a spec, and its key."""
    key = {
        "format": FORMAT,
        "dataset": dataset.name,
        "sampler": spec.sampler,
        "frames": spec.frames,
        "size": spec.size,
        "decoder": spec.decoder,
        "versions": dict(dataset.pixel_versions(spec)),
        # Where a data set cuts its videos, the frames in the cut are found by their times (once: by their numbers).
        "first_seconds": None if dataset.first_seconds is None else f"{dataset.first_seconds:g} s by time",
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:10]
    return _base(dataset) / f"{spec.sampler}-{spec.frames}x{spec.size or 'native'}-{spec.decoder}-{digest}", key


def _base(dataset: VideoFiles) -> Path:
    own = os.environ.get(FOLDER)
    return Path(own).expanduser() / dataset.name if own else dataset.root / "frame-cache"


def _sha256(frames: Frames) -> str:
    digest = hashlib.sha256(f"{frames.shape}\n".encode())
    for frame in frames:  # frame by frame, so that a native clip is not copied as a whole
        digest.update(frame.tobytes())
    return digest.hexdigest()
