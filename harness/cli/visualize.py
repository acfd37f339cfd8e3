"""``tvrbench visualize``: a token map of one video, and a gallery of queries. Both need models and videos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from tvrbench.harness.config.protocol import Activation
from tvrbench.harness.core.console import print_json, say
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_write
from tvrbench.harness.core.options import REPORTS, RESULTS, Device, Json, pick_device
from tvrbench.harness.core.registry import matching

if TYPE_CHECKING:  # --help must not wait for numpy and torch
    import numpy as np
    import numpy.typing as npt

    from tvrbench.harness.data.types import FrameSpec
    from tvrbench.harness.models.model import RetrievalModel
    from tvrbench.harness.reporting.data.context import ReportContext
    from tvrbench.harness.reporting.figures.gallery import Searched
    from tvrbench.harness.reporting.figures.token_map import Frames, Merged
    from tvrbench.harness.runs.config import RunConfig, RunFiles
    from tvrbench.harness.runs.context import RunContext

_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Visualize:
    """Draw figures that need models and videos: patches that share a token, or queries on which two methods disagree.

    Models come from runs/checkpoints: those of runs with the same options and seed. A method without a checkpoint
    runs untrained, and the figure says so.

    Attributes:
        kind: tokens writes tokens.png, gallery writes gallery.html, both into the protocol's report.
        protocol: For example standin/uniform, which needs no data.
        methods: Methods to show, each METHOD or "METHOD:key=value;key=value" with the options of its run. A gallery
            needs two; by default, tokens shows every token-reduction method that has a checkpoint, or all of them if
            none has.
        seed: Seed of the checkpoints.
        video: Id of the video in the token map; the first of the test split by default.
        queries: Number of queries in the gallery.
        data: Folder of the data set. The stand-in makes its own.
        weights: Other CLIP weights for untrained methods, as for tvrbench run.
        activation: Activation of those weights, where no config beside them says it.
        device: Where to run; auto uses a GPU if there is one.
        results: Folder of records and checkpoints.
        reports: Folder of reports.
    """

    kind: Positional[Literal["tokens", "gallery"]]
    protocol: Annotated[Positional[str], arg(metavar="PROTOCOL")]
    methods: Annotated[Positional[tuple[str, ...]], arg(metavar="METHOD")] = ()
    seed: int = 0
    video: str | None = None
    queries: int = 24
    data: Path | None = None
    weights: str | None = None
    activation: Activation | None = None
    device: Device = "auto"
    results: Path = RESULTS
    reports: Path = REPORTS
    as_json: Json = False

    def run(self) -> None:
        """Write ``tokens.png`` or ``gallery.html`` into the protocol's report.

        Raises:
            UsageError: an unknown name, a video that is not in the test split, data that cannot be read, or a folder
                that cannot be written to.
        """
        from tvrbench.harness.config.protocol import load_protocol
        from tvrbench.harness.core.numerics import set_numerics
        from tvrbench.harness.reporting.data.context import ReportContext
        from tvrbench.harness.runs.context import open_context

        if self.kind == "gallery" and len(self.methods) != 2:
            raise UsageError(
                f"a gallery compares two methods, not {len(self.methods)}; name two",
                code="visualize.gallery-methods",
                methods=self.methods,
            )
        if self.queries < 1:
            raise UsageError(
                f"--queries {self.queries} shows nothing; give 1 or more", code="option.range", option="queries"
            )
        set_numerics()
        protocol = load_protocol(self.protocol).on(None, self.weights)
        context = open_context(protocol, self.data, self.weights, activation=self.activation)
        folder = self.reports.joinpath(*context.protocol.name.split("/"))
        scope = ReportContext(protocol=context.protocol.name, dataset=context.dataset.name, folder=folder)
        if scope.notice:
            say(scope.notice)
        name, data = (_token_map if self.kind == "tokens" else _gallery)(self, context, scope)
        atomic_write(folder / name, data)
        if self.as_json:
            print_json({"file": str(folder / name)})
        else:
            say(f"written: {folder / name}")


@dataclass(frozen=True, kw_only=True)
class DisplayModel:
    """A model to show.

    Attributes:
        label: the method as the user wrote it.
        origin: its weights, in words.
        model: in evaluation mode.
        spec: how its videos are sampled.
        files: the paths of its run under the protocol.
    """

    label: str
    origin: str
    model: RetrievalModel
    spec: FrameSpec
    files: RunFiles


def load_for_display(options: Visualize, context: RunContext, name: str) -> DisplayModel:
    """Load a method as its run with these options and this seed trained it, or untrained if it left no checkpoint.

    Raises:
        UsageError: an unknown method, an option that does not fit, or a damaged checkpoint.
    """
    from tvrbench.harness.models.factory import load_model
    from tvrbench.harness.profiling.plan import parse_method_choice
    from tvrbench.harness.runs.config import new_model, recipe_of

    choice = parse_method_choice(name)
    config, files = _run_of(options, context, choice.method, choice.options)
    if files.checkpoint.is_file():
        model = load_model(
            choice.method, checkpoint=files.checkpoint, device=config.device, seed=config.seed, **choice.options
        )
        origin = f"trained: {files.checkpoint.name}"
    else:
        model = new_model(context, config)
        origin = "not trained: on the protocol's weights" if context.weights_spec else "not trained"
    spec = context.spec(recipe_of(context.protocol, config).sampler)
    say(f"{choice.label}: {origin}")
    return DisplayModel(label=choice.label, origin=origin, model=model.eval(), spec=spec, files=files)


def compare_with_record(ranks_T: npt.NDArray[np.floating[Any]], files: RunFiles) -> int | None:
    """The number of ranks that differ from those of the run's record; None if no record holds as many."""
    from tvrbench.harness.records.record import read_record

    record = read_record(files.record) if files.record.is_file() else None
    if record is None or record["per_query_ranks_path"] is None:
        return None
    recorded = files.store.load_ranks(record)["t2v"]
    return int((recorded != ranks_T.astype(recorded.dtype)).sum()) if len(recorded) == len(ranks_T) else None


def _run_of(
    options: Visualize, context: RunContext, method: str, given: Mapping[str, Any]
) -> tuple[RunConfig, RunFiles]:
    """The run of a method under the protocol, and its files."""
    from tvrbench.harness.records.store import RecordStore
    from tvrbench.harness.runs.config import RunConfig, RunFiles, RunKey

    config = RunConfig(method=method, seed=options.seed, device=pick_device(options.device), options=dict(given))
    name = RunKey.of(context, config).name
    return config, RunFiles(RecordStore(options.results), context.protocol.name, name)


def _token_map(options: Visualize, context: RunContext, scope: ReportContext) -> tuple[str, bytes]:
    from tvrbench.harness.reporting.figures.all_figures import heading
    from tvrbench.harness.reporting.figures.token_map import TOKENS, token_map

    test = context.test
    video = options.video if options.video is not None else test.video_ids[0]
    if video not in test.video_ids:
        raise UsageError(
            f"--video {video} is not in {test.name} of {context.dataset.name}; choose a video of that split",
            code="video.missing",
            video=video,
        )
    reducers = matching("methods", "baselines", group="token reduction")
    trained = [name for name in reducers if _run_of(options, context, name, {})[1].checkpoint.is_file()]
    names = options.methods or trained or reducers
    if not names:
        raise UsageError("no token-reduction method is registered; name the methods to show", code="visualize.methods")
    shown = [load_for_display(options, context, name) for name in names]
    frames, mask = context.dataset.frames(video, shown[0].spec)[:2]
    captions = [c for c, v in zip(test.captions, test.caption_video, strict=True) if test.video_ids[v] == video]
    data = token_map(
        frames[mask],
        [_merged(one, frames, mask) for one in shown],
        title=heading(f"Patches that share a token: {video}", scope),
        caption=f"“{captions[0]}”" if captions else "",
        notice=scope.notice,
    )
    return TOKENS, data


def _merged(shown: DisplayModel, frames: Frames, mask: npt.NDArray[np.bool_]) -> Merged:
    import torch

    from tvrbench.harness.reporting.figures.token_map import Merged

    device = shown.model.clip.logit_scale.device
    pixels_BT, mask_BT = torch.from_numpy(frames)[None], torch.from_numpy(mask)[None]
    with torch.inference_mode():
        _, trace = shown.model.encode_video(shown.model.normalize(pixels_BT, mask_BT), mask_BT.to(device), trace=True)
    token_TP, last = trace.token_BTP[0], shown.model.reducer.plan()[-1]
    leaving = trace.sequences * trace.tokens
    if last.packed:  # places, of which those without a token of their own hold no patch
        leaving = len(torch.unique(token_TP[token_TP >= 0])) + last.classes
    return Merged(
        label=shown.label,
        origin=shown.origin,
        token_TP=token_TP.cpu().numpy()[mask],
        leaving=leaving,
    )


def _gallery(options: Visualize, context: RunContext, scope: ReportContext) -> tuple[str, bytes]:
    from tvrbench.harness.reporting.figures.gallery import GALLERY, gallery_page

    shown = [load_for_display(options, context, name) for name in options.methods]
    one, other = (_searched(model, context) for model in shown)

    def frames_of(video: int) -> Frames:
        frames, mask = context.dataset.frames(context.test.video_ids[video], shown[0].spec)[:2]
        kept: Frames = frames[mask]
        return kept

    return GALLERY, gallery_page(one, other, context.test, frames_of, scope, queries=options.queries).encode()


def _searched(shown: DisplayModel, context: RunContext) -> Searched:
    """Scores and ranks of every caption of the test split, with the ranks compared with the record's."""
    from tvrbench.harness.core.progress import Bar
    from tvrbench.harness.evaluation.encode import encode_texts, encode_videos
    from tvrbench.harness.evaluation.metrics import cosine_scores, retrieval_metrics
    from tvrbench.harness.reporting.figures.gallery import Searched

    test, origin, scorer = context.test, shown.origin, shown.model.scorer
    if scorer.two_stage or not scorer.cosine:
        message = (
            f"{shown.label} ranks by more than the cosine of one vector each, which this gallery shows: leave it out"
        )
        raise UsageError(message, code="visualize.scorer", label=shown.label)
    text_TE = encode_texts(shown.model, test.captions, context.tokenizer, context.protocol.words).coarse
    with Bar(len(test.video_ids)) as bar:
        bar.begin(f"{shown.label}: encoding videos")
        video_VE = encode_videos(shown.model, test.video_ids, context.loader(shown.spec), _BATCH, bar.update).coarse
    scores_TV = cosine_scores(text_TE, video_VE)
    ranks_T = retrieval_metrics(scores_TV, test.caption_video)["t2v"]["ranks"]
    differing = compare_with_record(ranks_T, shown.files)
    if differing is None:
        say(f"{shown.label}: no record holds ranks to compare")
    else:
        origin += f"; {differing} of {len(ranks_T)} ranks differ from the record's"
        say(f"{shown.label}: {origin}")
    return Searched(label=shown.label, origin=origin, scores_TV=scores_TV, ranks_T=ranks_T)
