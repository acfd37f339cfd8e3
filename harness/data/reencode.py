"""A copy of a data set with every video written anew, as the papers prepare theirs: ``tvrbench data reencode``.

    <folder>/videos/**            the new videos, under the paths of the old ones
    <folder>/...                  copies of the annotation files
    <folder>/reencode.json        the manifest: settings, encoder, and each video with its source
    <folder>/.reencode.journal    a line per new video, which the end of the command adds to the manifest

A video has its name only once it is whole and on the disk, and its line is written right after. A killed command
leaves at most one hidden draft per thread, which the next one replaces.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_path, atomic_write, file_sha256, file_stat, sole_writer
from tvrbench.harness.core.rendezvous import usable_cores
from tvrbench.harness.data.cache_store import FileStamp
from tvrbench.harness.data.disk import check_space
from tvrbench.harness.data.types import Progress, Reencoding, RetrievalDataset, VideoFault, VideoFiles

FORMAT = "tvrbench-reencode-1"
MANIFEST, JOURNAL, LOCK = "reencode.json", ".reencode.journal", ".reencode.lock"
_CHECK_EVERY = 32  # videos between two looks at the free space


@dataclass(frozen=True, kw_only=True)
class NewVideo:
    """One video of the copy, as in the manifest.

    Attributes:
        file: its path in the copy, with ``/``.
        source: size, times and SHA-256 of the file that it was made from.
        size: in bytes.
        sha256: of its bytes.
        frames, width, height: of its pictures.
    """

    file: str
    source: FileStamp
    size: int
    sha256: str
    frames: int
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class ReencodeReport:
    """The result of `reencode_videos`.

    Attributes:
        folder: of the copy.
        added: videos that were written.
        kept: videos that were there already, from an unchanged source.
        faults: videos that cannot be used.
        source_bytes, bytes: of the wanted videos, before and after.
        encoder: its name, settings and library versions.
    """

    folder: Path
    added: int
    kept: int
    faults: tuple[VideoFault, ...]
    source_bytes: int
    bytes: int
    encoder: Mapping[str, str]


def reencode_videos(
    dataset: RetrievalDataset,
    folder: Path,
    settings: Reencoding,
    video_ids: Sequence[str],
    *,
    progress: Progress | None = None,
    workers: int | None = None,
) -> ReencodeReport:
    """Copy a data set, its videos written anew in parallel; may be killed at any time and run again.

    Args:
        dataset: the data set.
        folder: of the copy: new, empty, or from an earlier command with the same settings and encoder.
        settings: frame rate and size.
        video_ids: the videos.
        progress: called with (done, all) after each file.
        workers: threads; all cores by default.

    Raises:
        UsageError: the data set's videos are not files; a folder inside the data set's own, with other content or with
            other settings; one that cannot be written; a full disk; or another process at work in it.
    """
    if not isinstance(dataset, VideoFiles):
        message = f"the videos of data set {dataset.name} are not files, so they cannot be re-encoded"
        raise UsageError(message, code="dataset.no-files", dataset=dataset.name)
    _check_folder(dataset, folder)
    encoder = dict(dataset.encoder_facts())
    head = {"format": FORMAT, "dataset": dataset.name, "settings": asdict(settings), "encoder": encoder}
    sources, faults = _sources(dataset, video_ids)
    done, added = list[NewVideo](), 0
    with _write_errors(folder), _locked(folder), _open_manifest(folder, head) as (before, journal):
        check_space(folder, 0, "the re-encoded data set")
        for path in dataset.annotation_files():
            if path.name != MANIFEST:  # that of the copy, where the data set is one itself
                with atomic_path(folder / path.relative_to(dataset.root)) as draft:
                    shutil.copyfile(path, draft)
        work = _Work(dataset=dataset, folder=folder, settings=settings, before=before, journal=journal)
        pool = ThreadPoolExecutor(workers or usable_cores())  # FFmpeg releases Python's global lock
        try:
            for number, result in enumerate(pool.map(work.carry_out, sources.items()), start=1):
                if isinstance(result, VideoFault):
                    faults.append(result)
                else:
                    done.append(result[0])
                    added += result[1]
                if number % _CHECK_EVERY == 0:
                    mean = sum(video.size for video in done) // max(1, len(done))
                    check_space(folder, mean * (len(sources) - number), "the re-encoded data set")
                if progress is not None:
                    progress(number, len(sources))
        finally:
            pool.shutdown(cancel_futures=True)  # so that an interrupt does not wait for thousands of videos
    return ReencodeReport(
        folder=folder,
        added=added,
        kept=len(done) - added,
        faults=tuple(faults),
        source_bytes=sum(video.source.size for video in done),
        bytes=sum(video.size for video in done),
        encoder=encoder,
    )


@dataclass(frozen=True, kw_only=True)
class _Work:
    """Writes one video; threads share it."""

    dataset: VideoFiles
    folder: Path
    settings: Reencoding
    before: Mapping[str, NewVideo]
    journal: BinaryIO

    def carry_out(self, source: tuple[Path, str]) -> tuple[NewVideo, bool] | VideoFault:
        """Return the video and whether it was written, not kept since its source is unchanged; or the source's fault.

        Raises:
            OSError: the new file cannot be written.
            UsageError: it would replace its source.
        """
        path, video_id = source
        file = _new_path(self.dataset, path, video_id)
        target, old = self.folder / file, self.before.get(file.as_posix())
        try:
            stat = file_stat(path)
            if old is not None and not (target.is_file() and target.stat().st_size == old.size):
                old = None  # removed or damaged since
            if old is not None and old.source.stat == stat:
                return old, False
            stamp = FileStamp.of(path)
        except (UsageError, OSError) as error:
            return VideoFault.of(video_id, path, error)
        if old is not None and old.source.sha256 == stamp.sha256:
            return self._noted(replace(old, source=stamp)), False
        if target.exists() and target.samefile(path):
            message = f"{target} is the source itself, through a link; choose a folder without links to {path.parent}"
            raise UsageError(message, code="reencode.own-source", path=str(target))
        draft_name = f".part-{hashlib.sha256(file.as_posix().encode()).hexdigest()[:16]}{target.suffix}"
        try:
            with atomic_path(target, draft_name=draft_name) as draft:
                facts = self.dataset.reencode(video_id, draft, self.settings)
                if file_stat(path) != stat:
                    message = f"video {path} changed while it was read; run the command again"
                    raise UsageError(message, code="video.changed", video=str(path))
                size, sha256 = draft.stat().st_size, file_sha256(draft)
        except UsageError as error:
            return VideoFault.of(video_id, path, error)
        return self._noted(NewVideo(file=file.as_posix(), source=stamp, size=size, sha256=sha256, **facts)), True

    def _noted(self, video: NewVideo) -> NewVideo:
        self.journal.write(json.dumps(asdict(video)).encode() + b"\n")  # unbuffered, so that lines stay whole
        return video


def _check_folder(dataset: VideoFiles, folder: Path) -> None:
    """Raise UsageError for a folder that the copy must not, or cannot safely, be written to."""
    own, sources = folder.resolve(), (dataset.root.resolve(), (dataset.root / "videos").resolve())
    if any(own.is_relative_to(source) for source in sources):
        message = f"--to {folder} lies inside the data set {dataset.root}; choose a folder outside of it"
        raise UsageError(message, code="reencode.inside-source", path=str(folder))
    if folder.exists() and not folder.is_dir():
        message = f"--to {folder} is not a folder; choose another"
        raise UsageError(message, code="reencode.not-a-folder", path=str(folder))
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    if MANIFEST not in names and not all(name.startswith(".reencode") for name in names):
        message = f"--to {folder} is not empty, and tvrbench data reencode did not write it; choose a new folder"
        raise UsageError(message, code="reencode.not-empty", path=str(folder))


def _sources(dataset: VideoFiles, video_ids: Sequence[str]) -> tuple[dict[Path, str], list[VideoFault]]:
    """Return the file of each video, once where several ids are parts of it, and the faults of those without."""
    sources, faults = dict[Path, str](), list[VideoFault]()
    for video_id in video_ids:
        try:
            sources.setdefault(dataset.video_path(video_id), video_id)
        except UsageError as error:
            faults.append(VideoFault.of(video_id, Path(video_id), error))
    return sources, faults


def _new_path(dataset: VideoFiles, path: Path, video_id: str) -> Path:
    """Return the path in the copy: with .mp4 in place of its suffix, unless the suffix is part of the video's id."""
    relative = path.relative_to(dataset.root)
    return relative if path.suffix in video_id else relative.with_suffix(".mp4")


@contextmanager
def _open_manifest(folder: Path, head: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, NewVideo], BinaryIO]]:
    """Yield the videos of earlier commands and the journal; the manifest holds both in the end, even after an error.

    Raises:
        UsageError: the manifest is damaged, or of other settings.
    """
    before = _read_manifest(folder / MANIFEST, head)
    before = _fold_journal(folder, head, before)
    with (folder / JOURNAL).open("ab", buffering=0) as journal:
        try:
            yield before, journal
        finally:
            _fold_journal(folder, head, before)


def _read_manifest(path: Path, head: Mapping[str, Any]) -> dict[str, NewVideo]:
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found = {key: document.get(key) for key in head}
        videos = [_new_video(fields) for fields in document["videos"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        message = f"{path} is damaged, or no manifest of tvrbench data reencode; choose another folder"
        raise UsageError(message, code="reencode.manifest", path=str(path)) from error
    if changed := [key for key in head if found[key] != head[key]]:
        was, now = (json.dumps(facts[changed[0]]) for facts in (found, head))
        message = f"{path.parent} was written with {changed[0]} {was}, not {now}; choose another folder"
        raise UsageError(message, code="reencode.other-settings", path=str(path), changed=changed)
    return {video.file: video for video in videos}


def _fold_journal(folder: Path, head: Mapping[str, Any], videos: Mapping[str, NewVideo]) -> dict[str, NewVideo]:
    """Add the whole lines of the journal to the manifest, remove the journal, and return all videos."""
    journal, merged = folder / JOURNAL, dict(videos)
    for line in journal.read_bytes().splitlines() if journal.exists() else ():
        try:
            video = _new_video(json.loads(line))
        except (ValueError, TypeError, KeyError):  # cut off by a kill; its video is written again
            continue
        merged[video.file] = video
    document = {**head, "videos": [asdict(video) for _, video in sorted(merged.items())]}
    atomic_write(folder / MANIFEST, f"{json.dumps(document, indent=1)}\n".encode())
    journal.unlink(missing_ok=True)
    return merged


def _new_video(fields: Mapping[str, Any]) -> NewVideo:
    return NewVideo(**{**fields, "source": FileStamp(**fields["source"])})


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    message = f"another process is writing to {folder}; wait for it to end"
    with sole_writer(folder / LOCK, UsageError(message, code="reencode.busy", folder=str(folder))):
        yield


@contextmanager
def _write_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = (
            f"{error.filename or folder} cannot be read or written ({error.strerror or error}); finished videos are "
            "kept: solve the problem, then run the command again"
        )
        raise UsageError(message, code="reencode.write", path=str(error.filename or folder)) from error
