"""Encode the videos of a folder into an index: what is new or has changed, and nothing twice."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tvrbench.harness.core.errors import CheckFailed, UsageError
from tvrbench.harness.core.memory import is_out_of_memory
from tvrbench.harness.core.rendezvous import usable_cores
from tvrbench.harness.data.cache_store import FileStamp
from tvrbench.harness.data.types import Clip, FrameSpec, Progress
from tvrbench.harness.search.encoder import Encoder, ModelSource
from tvrbench.harness.search.files import VideoFolder, find_changes, stat_of
from tvrbench.harness.search.index import (
    MANIFEST,
    Header,
    IndexEntry,
    IndexWriter,
    VideoIndex,
    check_root,
    locked,
    open_index,
)


@dataclass(frozen=True, kw_only=True)
class EmbedReport:
    """What was done to an index.

    Attributes:
        index: its folder.
        videos: that it holds now.
        encoded, reused, kept: of them: encoded now, moved or touched and so not encoded again, and unchanged.
        removed: files that are gone from the folder.
        failed: files that could not be encoded, now or before, with the reason.
    """

    index: Path
    videos: int
    encoded: int
    reused: int
    kept: int
    removed: int
    failed: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Read:
    """A file that was read: its clip, or the row of an index that holds the same content, or a fault."""

    file: str
    stamp: FileStamp | None = None
    clip: Clip | None = None
    same: IndexEntry | None = None
    error: str | None = None
    seconds: float | None = None

    def entry(self, error: str | None = None) -> IndexEntry:
        assert self.stamp is not None, "only a file that was read whole has an entry"
        return IndexEntry(file=self.file, stamp=self.stamp, error=error or self.error, seconds=self.seconds)


def embed_folder(
    dataset: VideoFolder, base: Path, encoder: Encoder, source: ModelSource, *, batch: int, progress: Progress
) -> EmbedReport:
    """Bring the index of this model up to date; may be stopped at any time and called again.

    Args:
        dataset: the folder.
        base: holds the indexes of this folder, one for each model.
        encoder: the model.
        source: where it was read from, for the manifest.
        batch: videos encoded at a time.
        progress: called with (done, all) files.

    Raises:
        UsageError: there is no video, the index cannot be written, is being written, or belongs to another folder.
    """
    folder = base / encoder.identity.name
    if next(dataset.file_paths(), None) is None:
        message = f"there is no video file in {dataset.root}: name a folder that holds some, at any depth"
        raise UsageError(message, code="index.no-videos", folder=str(dataset.root))
    with locked(folder):
        old = open_index(folder) if (folder / MANIFEST).is_file() else None
        if old is not None:
            check_root(old, dataset.root)
        changes = find_changes(dataset, old)
        wanted, failed = changes.new + changes.changed, dict[str, str]()
        counts = {"encoded": 0, "reused": 0}
        if changes or old is None:
            header = Header(
                model=encoder.identity,
                source=source.absolute(),
                root=os.path.relpath(dataset.root.resolve(), folder.resolve()),
                array="",
            )
            width = encoder.model.clip.arch.embed_dim
            with IndexWriter(folder, header, old, changes.kept, len(wanted), width) as writer:
                counts, failed = _add_all(writer, dataset, encoder, old, wanted, batch, progress)
        os.utime(folder / MANIFEST, ns=(time.time_ns(),) * 2)  # the index that was asked for last is the newest
    failed |= {entry.file: entry.error for entry in changes.kept if entry.error is not None}
    kept = sum(entry.row is not None for entry in changes.kept)
    return EmbedReport(
        index=folder,
        videos=sum(counts.values()) + kept,
        kept=kept,
        removed=len(changes.gone),
        failed=dict(sorted(failed.items())),
        **counts,
    )


def check_some(report: EmbedReport) -> None:
    """Raise CheckFailed if an index holds no video."""
    if not report.videos:
        message = f"none of the {len(report.failed)} videos can be encoded; replace them, and run the command again"
        raise CheckFailed(message, code="index.all-failed", failed=len(report.failed))


def _add_all(
    writer: IndexWriter,
    dataset: VideoFolder,
    encoder: Encoder,
    old: VideoIndex | None,
    files: Sequence[str],
    batch: int,
    progress: Progress,
) -> tuple[dict[str, int], dict[str, str]]:
    """Read and encode files; returns how many were encoded and reused, and the faults."""
    failed, counts, waiting = dict[str, str](), {"encoded": 0, "reused": 0}, list[_Read]()

    def flush() -> None:
        for read, error in _encode(writer, encoder, waiting):
            failed[read.file] = error
        counts["encoded"] += sum(read.file not in failed for read in waiting)
        waiting.clear()
        writer.commit()

    for done, read in enumerate(_read_all(dataset, encoder.spec, old, files, batch), start=1):
        if read.clip is not None:
            waiting.append(read)
        elif read.same is not None and old is not None:
            counts["reused"] += 1
            writer.add(replace(read.entry(), seconds=read.same.seconds), old.features[read.same.row])
        else:
            failed[read.file] = read.error or ""
            if read.stamp is not None:
                writer.add(read.entry(), None)
        if len(waiting) == batch:
            flush()
        progress(done, len(files))
    if waiting:
        flush()
    return counts, failed


def _encode(writer: IndexWriter, encoder: Encoder, reads: Sequence[_Read]) -> Iterator[tuple[_Read, str]]:
    """Encode and add a batch; yield those whose features cannot be ranked, with the reason."""
    try:
        features = encoder.encode_clips([read.clip for read in reads if read.clip is not None])
    except (RuntimeError, MemoryError) as failure:
        if not is_out_of_memory(failure):
            raise
        message = f"{len(reads)} videos at a time do not fit into the memory of the device; give a smaller --batch"
        raise UsageError(message, code="embed.memory", batch=len(reads)) from None
    for read, feature in zip(reads, features, strict=True):
        if np.isfinite(feature).all() and feature.any():
            writer.add(read.entry(), feature)
        else:
            error = "the model gives it a feature that is not finite, or zero"
            writer.add(read.entry(error), None)
            yield read, error


def _read_all(
    dataset: VideoFolder, spec: FrameSpec, old: VideoIndex | None, files: Sequence[str], ahead: int
) -> Iterator[_Read]:
    """Yield files in order, read in threads; at most ``ahead`` more than there are threads are in memory."""
    same = {entry.stamp.sha256: entry for entry in old.encoded} if old else {}
    workers = usable_cores()
    pending: deque[Future[_Read]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for file in files:
            pending.append(pool.submit(_read, dataset, spec, same, file))
            if len(pending) > workers + ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(dataset: VideoFolder, spec: FrameSpec, same: Mapping[str, IndexEntry], file: str) -> _Read:
    path, stamp = dataset.root / file, None
    try:
        stamp = FileStamp.of(path)
        if stamp.sha256 in same:
            return _Read(file=file, stamp=stamp, same=same[stamp.sha256])
        clip, seconds = dataset.file_clip(path, spec), dataset.file_seconds(path)
    except Exception as error:  # noqa: BLE001 - whatever one file does to a decoder, the others are to be encoded
        return _Read(file=file, stamp=stamp, error=_reason(error, path))
    if stat_of(path) != stamp.stat:
        return _Read(file=file, error="it changed while it was read; run the command again")
    return _Read(file=file, stamp=stamp, clip=clip, seconds=seconds)


def _reason(error: Exception, path: Path) -> str:
    """An error without the path, which is printed before it."""
    if isinstance(error, UnicodeEncodeError):
        return "its name holds bytes that are no text; rename it"
    text = str(error) if isinstance(error, UsageError | OSError) else f"{type(error).__name__}: {error}"
    return text.removeprefix("video ").removeprefix(str(path)).removeprefix(":").strip() or type(error).__name__
