"""``tvrbench visualize``: a token map of one video, and a gallery of queries. Both need models and videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from tyro.conf import Positional, arg

from tvrbench.harness.core.console import print_json, say
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_write
from tvrbench.harness.core.options import Device, Json, pick_device
from tvrbench.harness.core.registry import matching

if TYPE_CHECKING:  # these import torch, for which --help must not wait
    from tvrbench.harness.data.types import FrameSpec
    from tvrbench.harness.models.model import RetrievalModel
    from tvrbench.harness.records.store import RecordStore
    from tvrbench.harness.reporting.data.context import ReportContext
    from tvrbench.harness.reporting.figures.gallery import Searched
    from tvrbench.harness.reporting.figures.token_map import Frames, Merged
    from tvrbench.harness.runs.context import RunContext

_BATCH = 32
Ranks = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Visualize:
    """Draw figures that need models and videos: patches that share a token, or queries on which two methods disagree.

    Models come from results/checkpoints. A method without a checkpoint runs untrained, and the figure says so.

    Attributes:
        kind: tokens writes tokens.png, gallery writes gallery.html, both into the protocol's report.
        protocol: For example standin/uniform, which needs no data.
        methods: Methods to show, each METHOD or "METHOD:key=value;key=value". A gallery needs two; tokens shows every
            token-reduction method that has a checkpoint by default, or all of them if none has.
        seed: Seed of the checkpoints.
        video: Id of the video in the token map; the first of the test split by default.
        queries: Number of queries in the gallery.
        data: Folder of the data set. The stand-in makes its own.
        weights: Other CLIP weights for untrained methods.
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
    device: Device = "auto"
    results: Path = Path("results")
    reports: Path = Path("reports")
    as_json: Json = False

    def run(self) -> None:
        """Write ``tokens.png`` or ``gallery.html`` into the protocol's report.

        Raises:
            UsageError: an unknown name, a video that is not in the test split, data that cannot be read, or a folder
                that cannot be written to.
        """
        from tvrbench.harness.config.protocol import load_protocol
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
        context = open_context(load_protocol(self.protocol), self.data, self.weights)
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
        method: its name in the registry.
        label: the method as the user wrote it.
        origin: its weights, in words.
        model: in evaluation mode.
        spec: how its videos are sampled.
    """

    method: str
    label: str
    origin: str
    model: RetrievalModel
    spec: FrameSpec


def load_for_display(options: Visualize, context: RunContext, name: str) -> DisplayModel:
    """Load a method as its run under the protocol trained it, or untrained if there is no checkpoint of this seed.

    Options in ``name`` override those of the run.

    Raises:
        UsageError: an unknown method, an option that does not fit, or a damaged checkpoint.
    """
    from tvrbench.harness.models.factory import load_model
    from tvrbench.harness.profiling.plan import parse_method_choice
    from tvrbench.harness.runs.config import RunConfig, new_model, recipe_of

    choice, device = parse_method_choice(name), pick_device(options.device)
    config = RunConfig(method=choice.method, seed=options.seed, device=device, options=choice.options)
    checkpoint = _checkpoint(options.results, context.protocol.name, choice.method, options.seed)
    model: RetrievalModel
    if checkpoint is None:
        model = new_model(context, config)
        origin = "not trained: on the protocol's weights" if context.weights_spec else "not trained"
    else:
        model = load_model(choice.method, checkpoint=checkpoint, device=device, seed=options.seed, **choice.options)
        origin = f"trained: {checkpoint.name}{', with other options' if choice.options else ''}"
    spec = context.spec(recipe_of(context.protocol, config).sampler)
    say(f"{choice.label}: {origin}")
    return DisplayModel(method=choice.method, label=choice.label, origin=origin, model=model.eval(), spec=spec)


def compare_with_records(ranks_T: Ranks, store: RecordStore, protocol: str, method: str, seed: int) -> int | None:
    """The number of ranks that differ from the closest record of the protocol's report; None if no record has ranks."""
    differing = [
        int(np.sum(recorded != ranks_T.astype(recorded.dtype)))
        for record in store.find(protocol, method=method, seed=seed, status="completed")
        if record["per_query_ranks_path"] is not None and "checkpoint" not in record
        if len(recorded := store.load_ranks(record)["t2v"]) == len(ranks_T)
    ]
    return min(differing, default=None)


def _checkpoint(results: Path, protocol: str, method: str, seed: int) -> Path | None:
    """The model that a run of this method and seed saved last."""
    from tvrbench.harness.models.checkpoint import method_in
    from tvrbench.harness.records.store import RecordStore

    folder = results / "checkpoints" / RecordStore(results).folder(protocol).name
    named = (path for path in folder.glob(f"{method}-*.safetensors") if f"seed{seed}" in path.stem.split("-"))
    own = [path for path in named if method_in(path) == method]
    return max(own, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)


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
    trained = [name for name in reducers if _checkpoint(options.results, scope.protocol, name, options.seed)]
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

    from tvrbench.harness.data.frame_loader import normalize
    from tvrbench.harness.reporting.figures.token_map import Merged

    device = shown.model.clip.logit_scale.device
    pixels_BT, mask_BT = torch.from_numpy(frames)[None], torch.from_numpy(mask)[None]
    with torch.inference_mode():
        _, trace = shown.model.encode_video(normalize(pixels_BT, mask_BT, device), mask_BT.to(device), trace=True)
    return Merged(
        label=shown.label,
        origin=shown.origin,
        token_TP=trace.token_BTP[0].cpu().numpy()[mask],
        leaving=trace.sequences * trace.tokens,
    )


def _gallery(options: Visualize, context: RunContext, scope: ReportContext) -> tuple[str, bytes]:
    from tvrbench.harness.records.store import RecordStore
    from tvrbench.harness.reporting.figures.gallery import GALLERY, Strips, gallery_page

    shown = [load_for_display(options, context, name) for name in options.methods]
    one, other = _searched(shown, context, RecordStore(options.results), options.seed)

    def frames_of(video: int) -> Frames:
        frames, mask = context.dataset.frames(context.test.video_ids[video], shown[0].spec)[:2]
        kept: Frames = frames[mask]
        return kept

    page = gallery_page(one, other, context.test, Strips(frames_of), scope, queries=options.queries)
    return GALLERY, page.encode()


def _searched(shown: Sequence[DisplayModel], context: RunContext, store: RecordStore, seed: int) -> list[Searched]:
    """Scores and ranks of every caption of the test split with each model, compared with the records' ranks."""
    from tvrbench.harness.core.progress import Bar
    from tvrbench.harness.evaluation.evaluate import encode_texts, encode_videos
    from tvrbench.harness.evaluation.metrics import cosine_scores, retrieval_metrics
    from tvrbench.harness.reporting.figures.gallery import Searched

    test, searched = context.test, []
    for one in shown:
        text_TE = encode_texts(one.model, test.captions, context.tokenizer, context.protocol.words)
        with Bar(len(test.video_ids)) as bar:
            bar.begin(f"{one.label}: encoding videos")
            video_VE = encode_videos(one.model, test.video_ids, context.loader(one.spec), _BATCH, bar.update)
        scores_TV = cosine_scores(text_TE, video_VE)
        ranks_T = retrieval_metrics(scores_TV, test.caption_video)["t2v"]["ranks"]
        differing = compare_with_records(ranks_T, store, context.protocol.name, one.method, seed)
        origin = one.origin
        if differing is not None:
            origin += f"; {differing} of {len(ranks_T)} ranks differ from the record's"
        say(f"{one.label}: {origin}" if differing is not None else f"{one.label}: no record holds ranks to compare")
        searched.append(Searched(label=one.label, origin=origin, scores_TV=scores_TV, ranks_T=ranks_T))
    return searched
