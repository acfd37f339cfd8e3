"""The frame cache of a data set: filled once by ``tvrbench data cache``, then read in place of decoding.

What is kept are the frames that a sampler picks, resized and cropped, or, for augmentations of native-resolution
frames, as they are in the video. A clip is served only while its video file is the one it was decoded from, and a
store only to the sampler, size, decoder and library versions that it was made with.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.cache_store import (
    FORMAT,
    Entry,
    FrameStore,
    Stamp,
    StoreWriter,
    check_space,
    read_key,
    writing,
)
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

FOLDER = "TVRBENCH_FRAME_CACHE"  # environment variable: where caches are, if not beside the videos


@dataclass(frozen=True, kw_only=True)
class FillReport:
    """What filling a cache did.

    Attributes:
        folder: the store.
        added: clips decoded, those of changed videos among them.
        kept: clips that were there already.
        faults: videos that cannot be decoded, by name.
        bytes: size of the pixels in the store; ``wasted`` of them are of clips that were replaced.
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
        spec: what ``clip`` gives.
        store: frames under ``spec.plain`` or ``spec.native``.
    """

    def __init__(self, dataset: VideoFiles, spec: FrameSpec, store: FrameStore) -> None:
        self._dataset, self._spec, self._store = dataset, spec, store
        self._sound: set[str] = set()
        self._files: dict[str, tuple[tuple[int, int, int], bool]] = {}

    def clip(self, video_id: str, seed: int) -> Clip | None:
        """The clip, bit for bit as the data set's ``frames`` gives it; None if it is not there, or its video changed.

        Raises:
            UsageError: the video file is gone, or the cache is damaged.
        """
        entry = self._store.entries.get(video_id)
        if entry is None or not self._fresh(video_id, entry):
            return None
        frames = self._store.frames(entry)
        if video_id not in self._sound:
            if _sha256(frames) != entry.sha256:
                raise UsageError(f"the frame cache {self._store.folder} is damaged at {video_id}; remove the folder")
            self._sound.add(video_id)
        return self._dataset.finish(video_id, frames, self._spec, seed)

    def _fresh(self, video_id: str, entry: Entry) -> bool:
        """Whether the video file is the one that was decoded; a file with other times is read to find out."""
        path = self._dataset.video_path(video_id)
        look = _look(path)
        if look == entry.source.look:
            return True
        known = self._files.get(video_id)
        if known is None or known[0] != look:
            same = look[0] == entry.source.size and _file_sha256(path) == entry.source.sha256
            self._files[video_id] = known = (look, same)
            if not same:
                warnings.warn(f"{path} is not the file in the frame cache and is decoded anew", stacklevel=2)
        return known[1]


def open_cache(dataset: RetrievalDataset, spec: FrameSpec) -> CachedFrames | None:
    """The cache that serves ``spec``, or None where none was filled or none can serve it."""
    if not isinstance(dataset, VideoFiles) or spec.draws:
        return None
    for kept in (spec.native,) if spec.augments_native else (spec.plain, spec.native):
        folder, key = _place(dataset, kept)
        if (folder / "key.json").is_file():
            return CachedFrames(dataset, spec, FrameStore(folder, key))
    return None


def whole_videos(dataset: RetrievalDataset, video_ids: Sequence[str]) -> set[str]:
    """Those of the videos that filling some cache found whole, and whose file has the size and times it had then.

    Filling decodes all of a file, so that these need no check before a run, whichever frames the run takes.
    """
    if not isinstance(dataset, VideoFiles):
        return set()
    checked_with = dataset.pixel_versions(FrameSpec(decoder="pyav"))  # which looks files over, whatever the decoder
    looks: dict[str, set[tuple[int, int, int]]] = {}
    for path in sorted(_base(dataset).glob("*/key.json")):
        key = read_key(path.parent)
        versions = key.get("versions") if isinstance(key, dict) and key.get("dataset") == dataset.name else None
        if isinstance(versions, dict) and key.get("format") == FORMAT and checked_with.items() <= versions.items():
            for entry in FrameStore(path.parent, key).entries.values():
                looks.setdefault(entry.video, set()).add(entry.source.look)
    return {video for video in video_ids if _present_look(dataset, video) in looks.get(video, ())}


def fill_cache(
    dataset: RetrievalDataset,
    spec: FrameSpec,
    video_ids: Sequence[str],
    *,
    progress: Progress | None = None,
    workers: int | None = None,
) -> FillReport:
    """Decode the videos that are not in the store yet, in parallel; may be interrupted at any time and run again.

    Args:
        dataset: the data set.
        spec: what to keep: without augmentation, its size a crop's or ``NATIVE``.
        video_ids: the videos.
        progress: called with (done, all) after each video.
        workers: threads; all cores by default.

    Raises:
        UsageError: the frames of this sampler change with the seed, the data set's videos are no files, the disk is too
            small, or another process is filling the same store.
    """
    if spec.draws:
        raise UsageError(f"sampler {spec.sampler} draws other frames in every epoch, so there is nothing to keep")
    if not isinstance(dataset, VideoFiles):
        raise UsageError(f"the videos of data set {dataset.name} are no files, so their frames cannot be kept")
    folder, key = _place(dataset, spec)
    clip_bytes = None if spec.size == NATIVE else spec.frames * 3 * spec.size**2
    added, kept, faults, new_bytes = 0, 0, list[VideoFault](), 0
    with writing(folder, key) as (store, writer):
        absent = sum(v not in store.entries for v in video_ids)
        check_space(folder, absent * (clip_bytes or 0))
        jobs = _jobs(dataset, spec, store, video_ids, workers or os.cpu_count() or 1)
        for done, result in enumerate(jobs, start=1):
            if isinstance(result, VideoFault):
                faults.append(result)
            elif result.what == "kept":
                kept += 1
            else:
                new_bytes += result.write(writer)
                kept, added = kept + (result.what == "same"), added + (result.what == "new")
                if clip_bytes is None and result.what == "new" and added % 32 == 1:
                    check_space(folder, (len(video_ids) - done) * new_bytes // added)
            if progress is not None:
                progress(done, len(video_ids))
    store = FrameStore(folder, key)
    return FillReport(folder=folder, added=added, kept=kept, faults=tuple(faults), bytes=store.end, wasted=store.wasted)


@dataclass(frozen=True, kw_only=True)
class _Result:
    """What looking at one video came to: ``kept``, ``same`` (content, with other times) or ``new`` frames."""

    what: Literal["kept", "same", "new"]
    video: str
    entry: Entry | None = None
    source: Stamp | None = None
    frames: Frames | None = None
    sha256: str = ""

    def write(self, writer: StoreWriter) -> int:
        """Put it into the store; the bytes added."""
        assert self.source is not None, "only kept clips have none, and they are not written"
        if self.frames is None:
            assert self.entry is not None, "the clip of a file with other times is in the store"
            writer.renew(self.entry, self.source)
            return 0
        writer.add(self.video, self.frames, self.sha256, self.source)
        return self.frames.nbytes


def _jobs(
    dataset: VideoFiles, spec: FrameSpec, store: FrameStore, video_ids: Sequence[str], workers: int
) -> Iterator[_Result | VideoFault]:
    """Results in the order of the videos; only a few more are in memory than there are threads."""
    waiting: deque[Future[_Result | VideoFault]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for video_id in video_ids:
            waiting.append(pool.submit(_job, dataset, spec, store.entries.get(video_id), video_id))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _job(dataset: VideoFiles, spec: FrameSpec, entry: Entry | None, video_id: str) -> _Result | VideoFault:
    path = Path(f"{video_id}.mp4")
    try:
        path = dataset.video_path(video_id)
        look = _look(path)
        if entry is not None and look == entry.source.look:
            return _Result(what="kept", video=video_id)
        source = Stamp(size=look[0], mtime_ns=look[1], ctime_ns=look[2], sha256=_file_sha256(path))
        if entry is not None and source.sha256 == entry.source.sha256:
            return _Result(what="same", video=video_id, entry=entry, source=source)
        frames = dataset.stored_frames(video_id, spec)
        if _look(path) != look:
            raise UsageError(f"video {path} changed while it was read; run the command again")
    except (UsageError, OSError) as error:
        return VideoFault.of(video_id, path, error)
    return _Result(what="new", video=video_id, source=source, frames=frames, sha256=_sha256(frames))


def _place(dataset: VideoFiles, spec: FrameSpec) -> tuple[Path, Mapping[str, Any]]:
    """The folder of the store for a spec, and its key."""
    key = {
        "format": FORMAT,
        "dataset": dataset.name,
        "sampler": spec.sampler,
        "frames": spec.frames,
        "size": spec.size,
        "decoder": spec.decoder,
        "versions": dict(dataset.pixel_versions(spec)),
        "first_seconds": dataset.first_seconds,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:10]
    return _base(dataset) / f"{spec.sampler}-{spec.frames}x{spec.size or 'native'}-{spec.decoder}-{digest}", key


def _base(dataset: VideoFiles) -> Path:
    """The folder that holds the stores of a data set."""
    own = os.environ.get(FOLDER)
    return Path(own).expanduser() / dataset.name if own else dataset.root / "frame-cache"


def _present_look(dataset: VideoFiles, video_id: str) -> tuple[int, int, int] | None:
    """What the video's file looks like now; None where there is none, which is for the check to say."""
    try:
        return _look(dataset.video_path(video_id))
    except (UsageError, OSError):
        return None


def _look(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(frames: Frames) -> str:
    digest = hashlib.sha256(f"{frames.shape}\n".encode())
    for frame in frames:  # one after the other: a native clip is not copied whole
        digest.update(frame.tobytes())
    return digest.hexdigest()
