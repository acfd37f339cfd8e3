"""``tvrbench embed``: encode the videos of a folder, for ``tvrbench search``. Imports no torch by itself."""

from __future__ import annotations

import signal
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from tvrbench.harness.config.protocol import Activation
from tvrbench.harness.core.console import print_json, say
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.options import Assignments, Device, Json, parse_assignments, pick_device
from tvrbench.harness.core.signals import Interrupted
from tvrbench.harness.core.text import printable

RESUME_HINT = "encoded videos are kept; run the same command to resume"


@dataclass(frozen=True, kw_only=True)
class Embed:
    """Encode the videos below a folder into an index, which tvrbench search searches.

    Only new and changed files are encoded, and deleted ones dropped: run the command again whenever the folder has
    changed, or after it was stopped. A video that cannot be read is named and left out, and tried again once its file
    changes. Each model has an index of its own.

    Attributes:
        folder: Folder of videos, at any depth; hidden files do not count.
        method: A method or baseline (tvrbench list methods); by default the one that the checkpoint names, or CLIP as
            it was pre-trained.
        weights: CLIP weights: openai (the default), an open_clip tag, a file or folder, random:SEED, or a data set
            that ships weights, for example standin.
        checkpoint: A trained model: of a run, a folder of tvrbench export, or released by a paper.
        backbone: ViT-B-32 (the default for openai and random weights), ViT-B-16 or ViT-L-14.
        activation: quick_gelu or gelu, where no config beside the weights says it.
        assignments: A method option, for example --set r=2; may be repeated.
        frames: Frames per video; by default the checkpoint's, or 12.
        sampler: Frame sampler: tempme, clip4clip or centerclip.
        decoder: pyav, torchcodec or torchcodec-cuda; by default TVRBENCH_DECODER, or pyav.
        precision: Of the stored features; float16 takes half the space.
        index: Folder for the index, if not .tvrbench in the folder of videos.
        batch: Videos encoded at a time.
        device: Where to run; auto uses a GPU if there is one.
    """

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    method: str | None = None
    weights: str | None = None
    checkpoint: Path | None = None
    backbone: str | None = None
    activation: Activation | None = None
    assignments: Assignments = ()
    frames: int | None = None
    sampler: str = "tempme"
    decoder: str | None = None
    precision: Literal["float32", "float16"] = "float32"
    index: Path | None = None
    batch: int = 32
    device: Device = "auto"
    as_json: Json = False

    def run(self) -> None:
        """Bring the index up to date; CheckFailed if no video can be encoded."""
        if self.batch < 1:
            raise UsageError(f"--batch {self.batch} encodes nothing; give 1 or more", code="option.range")
        from tvrbench.harness.core.numerics import set_numerics
        from tvrbench.harness.core.progress import Bar
        from tvrbench.harness.data.types import FrameSpec
        from tvrbench.harness.search.embed import check_some, embed_folder
        from tvrbench.harness.search.encoder import ModelSettings, ModelSource, load_encoder
        from tvrbench.harness.search.files import open_folder
        from tvrbench.harness.search.index import index_base
        from tvrbench.harness.search.text import encodable

        set_numerics()
        dataset = open_folder(self.folder)
        spec = FrameSpec(sampler=self.sampler)
        spec = spec if self.decoder is None else replace(spec, decoder=self.decoder)
        dataset.pixel_versions(spec)  # an unknown sampler or decoder is found before the model is loaded
        if spec.random:
            message = f"sampler {spec.sampler} draws frames at random, so no index can be kept; choose another"
            raise UsageError(message, code="embed.random-sampler", sampler=spec.sampler)
        source = ModelSource(
            weights=self.weights,
            checkpoint=None if self.checkpoint is None else str(self.checkpoint),
            backbone=self.backbone,
            activation=self.activation,
        )
        settings = ModelSettings(
            method=self.method,
            options=parse_assignments(self.assignments),
            frames=self.frames,
            sampler=spec.sampler,
            decoder=spec.decoder,
            precision=self.precision,
        )
        encoder = load_encoder(source, settings, pick_device(self.device))
        for note in encoder.notes:
            say(note)
        base = index_base(self.folder, self.index)
        try:
            with Bar() as bar:
                bar.begin(f"encoding videos of {printable(str(self.folder))}")
                report = embed_folder(dataset, base, encoder, source, batch=self.batch, progress=bar.reach)
        except KeyboardInterrupt:
            raise Interrupted(signal.SIGINT, how=RESUME_HINT) from None
        if self.as_json:
            failed = {encodable(file): encodable(error) for file, error in report.failed.items()}
            shown = {"index": encodable(str(report.index)), "failed": failed, "model": asdict(encoder.identity)}
            print_json(asdict(report) | shown)
        else:
            for file, error in report.failed.items():
                say(f"{printable(file)}: {printable(error)}")
            parts = f"{report.encoded} encoded now, {report.kept + report.reused} kept, {report.removed} dropped"
            print(f"{printable(str(report.index))}: {report.videos} videos ({parts})")
            if report.failed:
                say(f"{len(report.failed)} videos cannot be read and are left out")
        check_some(report)
