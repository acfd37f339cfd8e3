"""The options of ``tvrbench data``, a class for each of its commands. Imports nothing heavy, for the sake of --help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg, subcommand

Dataset = Annotated[Positional[str], arg(metavar="DATASET", help="A data set (tvrbench list datasets).")]
Root = Annotated[Path | None, arg(help="Its folder: annotations and a folder videos.")]
Splits = Annotated[
    UseAppendAction[tuple[str, ...]], arg(name="split", metavar="SPLIT", help="Only this split; may be repeated.")
]
Sampler = Annotated[str, arg(help="How frames are picked: tempme, clip4clip or centerclip.")]
Frames = Annotated[int, arg(help="Frames a video; DiDeMo and ActivityNet are run with 64.")]
Size = Annotated[int, arg(help="Side of the square crop in pixels.")]
Decoder = Annotated[str | None, arg(help="pyav or torchcodec; pyav unless TVRBENCH_DECODER names another.")]
Json = Annotated[bool, arg(name="json", help="Print one JSON document.")]


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Decode every video: which are absent, broken, or last too long or too short, and the frames' fingerprint."""

    dataset: Dataset
    root: Root = None
    splits: Splits = ()
    sampler: Sampler = "tempme"
    frames: Frames = 12
    size: Size = 224
    decoder: Decoder = None
    missing_list: Annotated[Path, arg(help="File for the ids of absent videos.")] = Path("missing-videos.txt")
    report: Annotated[
        Path | None, arg(help="File for all that was found about each video, as JSON, for tvrbench data compare.")
    ] = None
    as_json: Json = False

    def run(self) -> None:
        """Do it; see `tvrbench.harness.cli.data.verify_dataset`."""
        from tvrbench.harness.cli.data import frame_spec, verify_dataset

        verify_dataset(
            self.dataset,
            self.root,
            splits=self.splits,
            spec=frame_spec(self.sampler, self.frames, self.size, False, self.decoder),
            missing_list=self.missing_list,
            report_path=self.report,
            as_json=self.as_json,
        )


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Explain why two copies of a data set do not give the same frames."""

    a: Annotated[Positional[Path], arg(metavar="A", help="A report that tvrbench data verify --report wrote.")]
    b: Annotated[Positional[Path], arg(metavar="B", help="Another one, of another copy of the same data set.")]
    as_json: Json = False

    def run(self) -> None:
        """Do it; see `tvrbench.harness.cli.data.compare_data`."""
        from tvrbench.harness.cli.data import compare_data

        compare_data(self.a, self.b, self.as_json)


@dataclass(frozen=True, kw_only=True)
class Decoders:
    """Decode videos with PyAV and with torchcodec: the same frames and pixels? And how fast is each?"""

    dataset: Dataset
    root: Root = None
    splits: Splits = ()
    limit: Annotated[int, arg(help="How many of the videos that are there are decoded.")] = 50
    sampler: Sampler = "tempme"
    frames: Frames = 12
    size: Size = 224
    as_json: Json = False

    def run(self) -> None:
        """Do it; see `tvrbench.harness.cli.data_decoders.show_decoders`."""
        from tvrbench.harness.cli.data import frame_spec
        from tvrbench.harness.cli.data_decoders import show_decoders

        spec = frame_spec(self.sampler, self.frames, self.size, False, "pyav")
        show_decoders(self.dataset, self.root, splits=self.splits, spec=spec, limit=self.limit, as_json=self.as_json)


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Decode every video once and keep the frames; goes on where it was interrupted."""

    dataset: Dataset
    root: Root = None
    splits: Splits = ()
    sampler: Sampler = "tempme"
    frames: Frames = 12
    size: Size = 224
    native: Annotated[
        bool, arg(help="Keep frames as large as they are in the videos, for augmentations that need that.")
    ] = False
    decoder: Decoder = None
    as_json: Json = False

    def run(self) -> None:
        """Do it; see `tvrbench.harness.cli.data.cache_frames`."""
        from tvrbench.harness.cli.data import cache_frames, frame_spec

        spec = frame_spec(self.sampler, self.frames, self.size, self.native, self.decoder)
        cache_frames(self.dataset, self.root, splits=self.splits, spec=spec, as_json=self.as_json)


@dataclass(frozen=True, kw_only=True)
class Download:
    """Fetch the published files of a data set; goes on where it broke off, and says what has to be done by hand.

    The published addresses were never tried when this was written, and no checksum of those files is known: the
    annotation is held against the published splits, and of the videos tvrbench data verify tells what they are.
    """

    dataset: Dataset
    root: Root = None
    videos: Annotated[bool, arg(help="Fetch and unpack the videos too, where they are published.")] = False
    url: Annotated[str | None, arg(help="Fetch this instead of the published files.")] = None
    sha256: Annotated[str | None, arg(help="What the file at --url must have.")] = None
    file: Annotated[str | None, arg(name="name", help="Name for the file at --url.")] = None
    unpack: Annotated[bool, arg(help="Take the videos out of the archive at --url.")] = False

    def run(self) -> None:
        """Do it; see `tvrbench.harness.cli.data.download_data`."""
        from tvrbench.harness.cli.data import download_data

        download_data(
            self.dataset,
            self.root,
            url=self.url,
            sha256=self.sha256,
            file=self.file,
            unpack=self.unpack,
            videos=self.videos,
        )


DataCommand = (
    Annotated[Verify, subcommand("verify")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Decoders, subcommand("decoders")]
    | Annotated[Cache, subcommand("cache")]
    | Annotated[Download, subcommand("download")]
)
