"""``tvrbench data``: download, verify and re-encode data sets, compare copies or decoders, cache decoded frames.

Heavy modules are imported where they are used, so that ``--help`` does not wait for torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg, subcommand

from tvrbench.harness.cli.data_demo import Demo
from tvrbench.harness.cli.data_options import (
    RESUME_HINT,
    OnDataset,
    OnFrames,
    check_usable,
    print_faults,
    progress_bar,
)
from tvrbench.harness.cli.data_reencode import Reencode
from tvrbench.harness.cli.data_verify import Verify
from tvrbench.harness.core import registry
from tvrbench.harness.core.console import print_json, print_table, say
from tvrbench.harness.core.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from tvrbench.harness.data.types import RetrievalDataset, Source, VideoFiles

SHOWN = 20  # differing videos that are printed; --json prints all
UNTESTED = (
    "the URLs are copied from the projects' pages and untested: if one has moved, set another with --url; the "
    "annotation is compared with the published splits"
)
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Explain why two copies of a data set give different frames.

    Attributes:
        a: A report that tvrbench data verify --report wrote.
        b: A report of another copy of the same data set.
        as_json: Print one JSON document.
    """

    a: Annotated[Positional[Path], arg(metavar="A")]
    b: Annotated[Positional[Path], arg(metavar="B")]
    as_json: Annotated[bool, arg(name="json")] = False

    def run(self) -> None:
        """Print the comparison."""
        from tvrbench.harness.data.compare import compare_reports, read_report

        comparison = compare_reports(read_report(self.a), read_report(self.b))
        if self.as_json:
            print_json(asdict(comparison))
            return
        words = {None: None, True: "same", False: "DIFFERENT"}
        rows = [[s["name"], words[s["annotation"]], words[s["frames"]]] for s in comparison.splits]
        print_table(rows, ["split", "annotation", "frames"])
        for sentence in comparison.findings:
            print(f"- {sentence}")
        for video in comparison.differences[:SHOWN]:
            levels = "" if video.gray_levels is None else f", {video.gray_levels:.1f} gray levels"
            print(f"{video.video_id}: {video.kind}: {video.detail}{levels}")
        if (hidden := len(comparison.differences) - SHOWN) > 0:
            say(f"{hidden} more videos differ; --json lists them all")


@dataclass(frozen=True, kw_only=True)
class Decoders(OnFrames):
    """Compare frame numbers, pixels and speed of PyAV and another decoder.

    Attributes:
        limit: Number of existing videos to decode.
        decoder: What is compared with PyAV: torchcodec or torchcodec-cuda.
    """

    limit: int = 50
    decoder: str = "torchcodec"

    def run(self) -> None:
        """Print the comparison."""
        from tvrbench.harness.data.compare_decoders import compare_decoders
        from tvrbench.harness.data.types import VideoFiles

        if self.limit < 1:
            raise UsageError(f"--limit {self.limit} is out of range: give at least 1", code="option.range")
        spec, dataset = self.spec(decoder="pyav"), self.open()
        if not isinstance(dataset, VideoFiles):
            message = f"the videos of data set {self.dataset} are not files, so they need no decoder"
            raise UsageError(message, code="dataset.no-files", dataset=self.dataset)
        dataset.pixel_versions(replace(spec, decoder=self.decoder))
        existing = [v for v in self.video_ids(dataset) if _exists(dataset, v)][: self.limit]
        with progress_bar(f"decoding {len(existing)} videos of {self.dataset} twice") as bar:
            result = compare_decoders(dataset, spec, existing, other=self.decoder, progress=bar.reach)
        if self.as_json:
            print_json(asdict(result))
            return
        speeds = {name: round(speed) for name, speed in result.frames_per_s.items()}
        libraries = {name: ", ".join(map(" ".join, each.items())) for name, each in result.versions.items()}
        rows = [[name, speeds.get(name), libraries[name]] for name in result.decoders]
        print_table(rows, ["decoder", "frames/s", "libraries"])
        same = f"{result.same_indices} have the same frame numbers in both, and {result.same_pixels} the same pixels"
        print(f"of {result.videos} videos, {same}")
        print(f"pixel difference: mean {result.mean:.4f}, maximum {result.largest}, of 255")
        for reason in result.refused:
            say(f"refused by {reason}")


@dataclass(frozen=True, kw_only=True)
class Cache(OnFrames):
    """Decode every video once and cache its frames; an interrupted command resumes.

    Attributes:
        native: Cache frames at native resolution, for augmentations that need it.
        decoder: pyav, torchcodec or torchcodec-cuda; by default TVRBENCH_DECODER, or pyav.
    """

    native: bool = False
    decoder: str | None = None

    def run(self) -> None:
        """Raise CheckFailed if a video is missing or broken; the others are cached."""
        from tvrbench.harness.data.cache import fill_cache

        spec, dataset = self.spec(native=self.native, decoder=self.decoder), self.open()
        with progress_bar(f"caching frames of {self.dataset}", RESUME_HINT) as bar:
            result = fill_cache(dataset, spec, self.video_ids(dataset), progress=bar.reach)
        if self.as_json:
            faults = [asdict(fault) | {"path": str(fault.path)} for fault in result.faults]
            print_json(asdict(result) | {"folder": str(result.folder), "faults": faults})
        else:
            mean = (result.bytes - result.wasted) / max(1, result.added + result.kept)
            size = f"{result.bytes / 2**30:.2f} GiB, {mean / 2**20:.2f} MiB per video"
            print(f"{result.folder}: {result.added} videos decoded, {result.kept} already cached, {size}")
            if result.wasted:
                print(f"{result.wasted / 2**30:.2f} GiB belong to replaced clips")
            if self.native:
                print("frames have native resolution: they are augmented and resized whenever they are read")
            print_faults(result.faults)
        check_usable(self.dataset, result.faults)


@dataclass(frozen=True, kw_only=True)
class Download(OnDataset):
    """Download the published files of a data set, and print the steps that must be done by hand.

    An interrupted download resumes. The published URLs are untested, and the checksums of those files are unknown: the
    annotation is compared with the published splits, and tvrbench data verify checks the videos.

    Attributes:
        videos: Download and unpack the videos too, where they are published.
        url: Download this instead of the published files.
        sha256: Expected checksum of the file at --url.
        file: Name for the file at --url.
        unpack: Unpack the videos of the archive at --url.
    """

    videos: bool = False
    url: str | None = None
    sha256: str | None = None
    file: Annotated[str | None, arg(name="name")] = None
    unpack: bool = False

    def run(self) -> None:
        """Raise CheckFailed if the downloaded annotation is not the published one."""
        from tvrbench.harness.data.types import Source

        cls = registry.lookup(self.dataset, "datasets")
        sources: tuple[Source, ...] = getattr(cls, "sources", ())
        access: str = getattr(cls, "access", "")
        if self.url is not None:
            sources = (Source(url=self.url, sha256=self.sha256, videos=self.unpack),)
        elif self.sha256 or self.file or self.unpack:
            raise UsageError("--sha256, --name and --unpack belong to a file at --url; add it", code="option.needs-url")
        if not sources:
            message = access or f"data set {self.dataset} has no file to download; set one with --url"
            raise UsageError(message, code="download.by-hand", dataset=self.dataset)
        if self.root is None:
            message = f"there is no folder for the files of {self.dataset}; set one with --root"
            raise UsageError(message, code="option.missing-root")
        if self.url is None:
            say(UNTESTED)
        for source in sources:
            if source.videos and not (self.videos or self.url):
                say(f"the videos are left out: give --videos to download {source.url}")
            else:
                _download(source, self.root, self.file)
        if self.url is None:
            if access:
                say(access)
            _check_splits(self.open(), [source.name for source in sources if not source.videos])


def _download(source: Source, root: Path, file: str | None) -> None:
    from tvrbench.harness.data.download import download
    from tvrbench.harness.data.unpack import is_archive, unpack_videos

    packed = source.videos or (file or source.name).endswith(ARCHIVES)

    def reject(path: Path) -> str | None:
        return "not an archive (perhaps a web page)" if packed and not is_archive(path) else None

    with progress_bar(f"downloading {source.url}", RESUME_HINT) as bar:
        result = download(source.url, root, name=file, sha256=source.sha256, progress=bar.reach, reject=reject)
    known = "as expected" if result.checked else "NOT VERIFIED: its checksum is unknown"
    print(f"{result.path}: {result.size:,} bytes, SHA-256 {result.sha256} ({known})")
    if source.videos:
        with progress_bar(f"unpacking {result.path}", RESUME_HINT) as bar:
            count = unpack_videos(result.path, root / "videos", bar.reach)
        print(f"{root / 'videos'}: {count} videos; {result.path.name} is no longer needed")
        say("run tvrbench data verify to check the videos")


def _check_splits(dataset: RetrievalDataset, files: Sequence[str]) -> None:
    """Open every split; CheckFailed if one is not as published."""
    wrong = []
    for name in dataset.split_names:
        try:
            split = dataset.split(name)
            print(f"{name}: {len(split.video_ids):,} videos, {len(split.captions):,} captions")
        except UsageError as error:
            wrong.append(name)
            say(str(error))
    if wrong:
        problem = f"{', '.join(wrong)} cannot be read from {', '.join(files)} in {dataset.root}"
        remedy = "remove the wrong files before you run the same command, which keeps existing files"
        message = f"{dataset.name}: {problem}; {remedy}"
        raise CheckFailed(message, code="data.wrong-splits", dataset=dataset.name, splits=wrong)


def _exists(dataset: VideoFiles, video_id: str) -> bool:
    try:
        return dataset.video_path(video_id).is_file()
    except UsageError:  # missing or ambiguous, which data verify reports
        return False


DataCommand = (
    Annotated[Verify, subcommand("verify")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Decoders, subcommand("decoders")]
    | Annotated[Cache, subcommand("cache")]
    | Annotated[Download, subcommand("download")]
    | Annotated[Reencode, subcommand("reencode")]
    | Annotated[Demo, subcommand("demo")]
)


def data(command: Annotated[DataCommand, arg(name="")]) -> None:
    """Download, verify and re-encode data sets, compare two copies, keep decoded frames."""
    command.run()
