"""Queries of an index: a text, a picture or a video, and the videos that are closest to it."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import Clip, Frames, FrameSpec
from tvrbench.harness.evaluation.last_stage import exact_scorer
from tvrbench.harness.evaluation.two_stage import coarse_factors
from tvrbench.harness.models.scorer import Scorer
from tvrbench.harness.search.encoder import Encoder, Features, ModelSource, load_encoder
from tvrbench.harness.search.files import VideoFolder
from tvrbench.harness.search.index import BLOCK, IndexEntry, VideoIndex, rows_of
from tvrbench.harness.search.text import encodable

PICTURES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")  # formats that run no other program
MOST_PIXELS, MOST_ASPECT = 8192**2, 50


@dataclass(frozen=True, kw_only=True)
class Query:
    """An encoded query.

    Attributes:
        kind: of what is searched by.
        text: the words, or the name of the file.
        feature: [1, E].
        cut: True if words beyond the model's context were left out.
        frames: uint8 [t, 3, S, S] of a picture or video.
    """

    kind: Literal["text", "image", "video"]
    text: str
    feature: Features
    cut: bool = False
    frames: Frames | None = None


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A video found.

    Attributes:
        rank: from 1.
        score: with the query; a cosine unless ``cosine`` is False.
    """

    rank: int
    score: float
    entry: IndexEntry
    cosine: bool = True


def load_index_encoder(index: VideoIndex, device: str, moved: ModelSource | None = None) -> Encoder:
    """Load the model of an index.

    Args:
        index: names its model.
        device: to run it on.
        moved: its files if they have moved.

    Raises:
        UsageError: as ``load_encoder``; or another model than that of the index.
    """
    header = index.header
    given = {name: value for name, value in asdict(moved or ModelSource()).items() if value is not None}
    try:
        encoder = load_encoder(replace(header.source, **given), header.model.settings(), device)
    except UsageError as error:
        where = f"the model of the index {index.folder} cannot be loaded"
        message = f"{where}: {error}; if its files have moved, give --weights or --checkpoint"
        raise UsageError(message, code="index.model", cause=error.code) from None
    if differing := header.model.differences(encoder.identity):
        message = (
            f"the index {index.folder} was made by another model (it differs in {', '.join(differing)}): give the "
            "files that it was made with, or run tvrbench embed again"
        )
        raise UsageError(message, code="index.other-model", differing=differing)
    return encoder


def text_query(encoder: Encoder, text: str) -> Query:
    """Encode words; errors as ``Encoder.encode_query``."""
    feature, cut = encoder.encode_query(text)
    return Query(kind="text", text=text, feature=feature, cut=cut)


def image_query(encoder: Encoder, dataset: VideoFolder, path: Path) -> Query:
    """Encode a picture as a video that shows nothing else: every method takes T frames, and all are this one.

    Raises:
        UsageError: no picture, or one of an extreme size.
    """
    stored = read_picture(path)[None]
    pixels, mask = dataset.finish("picture", stored, encoder.spec, 0)
    clip = np.repeat(pixels[:1], encoder.spec.frames, axis=0), np.ones_like(mask)
    return _of_clip(encoder, "image", path, clip, pixels[:1])


def video_query(encoder: Encoder, dataset: VideoFolder, path: Path) -> Query:
    """Encode a video file; UsageError for a bad one."""
    pixels, mask = dataset.file_clip(path, encoder.spec)
    return _of_clip(encoder, "video", path, (pixels, mask), pixels[mask])


def search(index: VideoIndex, feature: Features, top: int, scorer: Scorer | None = None) -> list[Hit]:
    """The videos of highest score with a feature [1, E], equal ones in order of their names.

    Features are read a block at a time, and each score is exact (``coarse_factors``), as in an evaluation.

    Args:
        index: the videos.
        feature: of the query.
        top: number of videos.
        scorer: of the model, for a text: where its coarse score is no cosine, that score ranks. None for cosines.

    Raises:
        UsageError: an index without videos, or a damaged one.
    """
    entries = index.encoded
    if not entries:
        message = f"the index {index.folder} holds no video yet: run tvrbench embed"
        raise UsageError(message, code="index.empty", folder=str(index.folder))
    rows, exact = rows_of(entries), exact_scorer(scorer or Scorer(), "cpu")
    try:
        parts = [_scores(exact, feature, block) for block in _blocks(index.features[: max(rows) + 1])]
    except ValueError as error:
        message = f"the index {index.folder} is damaged ({error}): remove that folder and run tvrbench embed again"
        raise UsageError(message, code="index.damaged", folder=str(index.folder)) from None
    scores: npt.NDArray[np.float64] = np.concatenate(parts)[rows]
    best = np.argsort(-scores, kind="stable")[:top].tolist()
    found = enumerate(best, start=1)
    return [Hit(rank=rank, score=float(scores[i]), entry=entries[i], cosine=exact.cosine) for rank, i in found]


def _scores(scorer: Scorer, feature: Features, block: Features) -> npt.NDArray[np.float64]:
    """The coarse scores [V], without the temperature, of a query [1, E] with videos [V, E]."""
    query_1E, gallery_VE = (torch.from_numpy(part.astype(np.float64)) for part in (feature, block))
    query, gallery = coarse_factors(scorer, query_1E, gallery_VE, "cpu")
    scores: npt.NDArray[np.float64] = query[0] @ gallery.T
    return scores


def read_picture(path: Path) -> Frames:
    """A picture file as RGB uint8 [3, H, W], upright; transparency is ignored, as CLIP's preprocessing does.

    Raises:
        UsageError: no such file, no picture, or one of an extreme size.
    """
    if not path.is_file():
        raise UsageError(f"there is no picture {path}; name a file", code="query.image-missing", path=str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large pictures, whose size is checked here
            with Image.open(path, formats=_formats()) as opened:
                width, height = opened.size
                if width * height > MOST_PIXELS or max(width, height) > MOST_ASPECT * min(width, height):
                    message = f"the picture {path} has {width} x {height} pixels; crop or resize it"
                    raise UsageError(message, code="query.image-size", width=width, height=height)
                upright = ImageOps.exif_transpose(opened).convert("RGB")
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged file raises almost anything
        message = f"{path} is not a picture that can be read ({error}); use JPEG, PNG or WebP"
        raise UsageError(message, code="query.image", path=str(path)) from None
    return np.ascontiguousarray(np.asarray(upright).transpose(2, 0, 1))


def shown_frames(dataset: VideoFolder, spec: FrameSpec, entry: IndexEntry) -> Frames | None:
    """Frames of a hit, uint8 [t, 3, S, S], without padding; None if the file cannot be read any more."""
    try:
        pixels, mask = dataset.file_clip(dataset.root / entry.file, spec)
    except (UsageError, OSError):
        return None
    kept: Frames = pixels[mask]
    return kept


def _of_clip(encoder: Encoder, kind: Literal["image", "video"], path: Path, clip: Clip, frames: Frames) -> Query:
    return Query(kind=kind, text=path.name, feature=encoder.encode_clips([clip]), frames=frames)


def _blocks(features: Features) -> list[Features]:
    return [features[start : start + BLOCK] for start in range(0, len(features), BLOCK)]


def _formats() -> list[str]:
    Image.init()
    return [name for name in PICTURES if name in Image.OPEN]


def hit_json(hit: Hit, root: Path) -> dict[str, Any]:
    """A hit as plain data."""
    entry = hit.entry
    shown = {"rank": hit.rank, "score": hit.score, "file": entry.file, "path": encodable(str(root / entry.file))}
    return shown | {"seconds": entry.seconds}
