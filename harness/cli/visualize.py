"""``tvrbench picture``: what needs models and videos as well as records: token pictures, and a gallery of queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from tvrbench.harness.cli.showing import Shown, shown_model
from tvrbench.harness.config.protocol import load_protocol
from tvrbench.harness.core.console import print_json, say
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_write
from tvrbench.harness.core.progress import Bar
from tvrbench.harness.data.frame_loader import normalize
from tvrbench.harness.evaluation.evaluate import encode_texts, encode_videos
from tvrbench.harness.evaluation.metrics import cosine_scores, retrieval_metrics
from tvrbench.harness.profiling.plan import parse_method_choice
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.figures.all_figures import heading
from tvrbench.harness.reporting.figures.gallery import GALLERY, Searched, Strips, gallery_page
from tvrbench.harness.reporting.figures.token_map import TOKENS, Frames, Merged, token_picture
from tvrbench.harness.runs.context import RunContext, open_context

# VidToMe takes its merges back after attention by default, so nothing would be seen of them.
TOKEN_METHODS = ("tempme", "tome", "centerclip", "vidtome:mode=persistent")
GALLERY_METHODS = ("tempme", "frame_subsample")
_BATCH = 32

Ranks = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What was asked for; see ``tvrbench picture --help``."""

    kind: Literal["tokens", "gallery"]
    protocol: str
    methods: tuple[str, ...]
    seed: int
    video: str | None
    queries: int
    data: Path | None
    weights: str | None
    device: str
    results: Path
    reports: Path


def make_picture(request: Request, as_json: bool) -> None:
    """Write ``tokens.png`` or ``gallery.html`` into the protocol's report.

    Raises:
        UsageError: an unknown name, a video that is not in the test split, data that cannot be read, or a folder that
            cannot be written to.
    """
    prepared = open_context(load_protocol(request.protocol), request.data, request.weights)
    folder = request.reports.joinpath(*prepared.protocol.name.split("/"))
    scope = ReportContext(protocol=prepared.protocol.name, dataset=prepared.dataset.name, folder=folder)
    if scope.notice:
        say(scope.notice)
    name, data = _tokens(request, prepared, scope) if request.kind == "tokens" else _gallery(request, prepared, scope)
    atomic_write(folder / name, data)
    if as_json:
        print_json({"file": str(folder / name)})
    else:
        say(f"picture: {folder / name}")


def _models(request: Request, prepared: RunContext, default: tuple[str, ...]) -> list[Shown]:
    store = RecordStore(request.results)
    wanted = request.methods or default
    shown = [shown_model(prepared, store, parse_method_choice(name), request.seed, request.device) for name in wanted]
    for one in shown:
        say(f"{one.label}: {one.origin}")
    return shown


def _tokens(request: Request, prepared: RunContext, scope: ReportContext) -> tuple[str, bytes]:
    test = prepared.test
    video = request.video if request.video is not None else test.video_ids[0]
    if video not in test.video_ids:
        raise UsageError(f"--video {video}: {test.name} of {prepared.dataset.name} has no such video")
    shown = _models(request, prepared, TOKEN_METHODS)
    frames, mask = prepared.dataset.frames(video, shown[0].spec)[:2]
    captions = [c for c, v in zip(test.captions, test.caption_video, strict=True) if test.video_ids[v] == video]
    data = token_picture(
        frames[mask],
        [_merged(one, frames, mask) for one in shown],
        title=heading(f"Which patches share a token: {video}", scope),
        caption=f"“{captions[0]}”" if captions else "",
        notice=scope.notice,
    )
    return TOKENS, data


def _merged(shown: Shown, frames: Frames, mask: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Merged:
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


def _gallery(request: Request, prepared: RunContext, scope: ReportContext) -> tuple[str, bytes]:
    if len(request.methods or GALLERY_METHODS) != 2:
        raise UsageError(f"a gallery holds two methods against each other, not {len(request.methods)}: name two")
    if request.queries < 1:
        raise UsageError(f"--queries {request.queries}: at least one query must be shown")
    shown = _models(request, prepared, GALLERY_METHODS)
    one, other = _searched(shown, prepared, request)
    spec = shown[0].spec

    def frames_of(video: int) -> Frames:
        frames, mask = prepared.dataset.frames(prepared.test.video_ids[video], spec)[:2]
        kept: Frames = frames[mask]
        return kept

    page = gallery_page(one, other, prepared.test, Strips(frames_of), scope, queries=request.queries)
    return GALLERY, page.encode()


def _searched(shown: Sequence[Shown], prepared: RunContext, request: Request) -> list[Searched]:
    """Scores and ranks of every caption of the test split with each model, held against the records' ranks."""
    test, found, store = prepared.test, [], RecordStore(request.results)
    for one in shown:
        text_TE = encode_texts(one.model, test.captions, prepared.tokenizer, prepared.protocol.words)
        with Bar(len(test.video_ids)) as bar:
            bar.begin(f"{one.label}: encoding videos")
            video_VE = encode_videos(one.model, test.video_ids, prepared.loader(one.spec), _BATCH, bar.update)
        scores_TV = cosine_scores(text_TE, video_VE)
        ranks_T = retrieval_metrics(scores_TV, test.caption_video)["t2v"]["ranks"]
        told = beside_records(
            ranks_T, store, prepared.protocol.name, parse_method_choice(one.label).method, request.seed
        )
        origin = "; ".join(part for part in (one.origin, told) if part)
        say(f"{one.label}: {told or 'no record holds ranks to hold these against'}")
        found.append(Searched(label=one.label, origin=origin, scores_TV=scores_TV, ranks_T=ranks_T))
    return found


def beside_records(ranks_T: Ranks, store: RecordStore, protocol: str, method: str, seed: int) -> str | None:
    """Whether these are the ranks that the protocol's report is made of; None where no record holds any."""
    differing = [
        int(np.sum(recorded != ranks_T.astype(recorded.dtype)))
        for record in store.find(protocol, method=method, seed=seed, status="completed")
        if record["per_query_ranks_path"] is not None and "checkpoint" not in record
        if len(recorded := store.load_ranks(record)["t2v"]) == len(ranks_T)
    ]
    if not differing:
        return None
    fewest = min(differing)
    return f"{fewest} of {len(ranks_T)} ranks differ from the record's" if fewest else "the record's own ranks"
