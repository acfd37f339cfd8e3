"""``gallery.html``: queries on which two methods disagree most, with the videos that each finds for them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from PIL import Image

from tvrbench.harness.data.types import Split
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.pages.html import data_uri, html_templates, source_hash

GALLERY = "gallery.html"
_TOP = 5
_FRAMES = 4
_SIDE = 84  # pixels of a frame in a strip
_QUALITY = 82

Frames = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Searched:
    """Retrieval with one method: scores of every caption and video, and the rank of each caption's own video."""

    label: str
    origin: str
    scores_TV: npt.NDArray[np.float64]
    ranks_T: npt.NDArray[np.float64]


def strip(frames: Frames, count: int = _FRAMES, side: int = _SIDE) -> bytes:
    """Some frames, evenly spread over the video, side by side in squares of ``side`` pixels; JPEG."""
    sheet = Image.new("RGB", (count * side, side))
    for i, place in enumerate(np.linspace(0, len(frames) - 1, count).round().astype(int)):
        sheet.paste(Image.fromarray(frames[place].transpose(1, 2, 0)).resize((side, side)), (i * side, 0))
    buffer = io.BytesIO()
    sheet.save(buffer, format="JPEG", quality=_QUALITY)
    return buffer.getvalue()


def disagreements(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64], count: int) -> list[int]:
    """Sort queries by the ratio of their ranks under two methods, alternating which method does better.

    Args:
        one, other: ranks [T].
        count: of queries; fewer come back where the methods differ on fewer.
    """
    gap = np.log(other) - np.log(one)
    order = np.argsort(-np.abs(gap), kind="stable")
    turns = chain.from_iterable(zip_longest(order[gap[order] > 0].tolist(), order[gap[order] < 0].tolist()))
    return [query for query in turns if query is not None][:count]


def gallery_page(
    one: Searched,
    other: Searched,
    split: Split,
    frames_of: Callable[[int], Frames],
    scope: ReportContext,
    *,
    queries: int = 24,
) -> str:
    """The page: fetches nothing, runs no script; captions and video ids are text.

    Args:
        one, other: the methods.
        split: whose captions are the queries.
        frames_of: a video's frames, uint8 [T, 3, H, W], by its place in the split; asked for once per video.
        scope: what the report is about.
        queries: shown at most.
    """
    methods = (one, other)
    numbers: dict[int, int] = {}  # of the strips, by video, in order of first use
    cards = [
        {
            "caption": split.captions[query],
            "ahead": min(methods, key=lambda m: m.ranks_T[query]).label,
            "methods": [_answer(method, query, split, numbers) for method in methods],
        }
        for query in disagreements(one.ranks_T, other.ranks_T, queries)
    ]
    environment = html_templates()
    sheet = environment.get_template("gallery.css.j2").render(size=(_FRAMES * _SIDE, _SIDE))
    for video, number in numbers.items():
        sheet += f'.s{number} {{ background-image: url("{data_uri(strip(frames_of(video)), "image/jpeg")}"); }}\n'
    return environment.get_template("gallery.html.j2").render(
        title=f"Retrieval gallery, {scope.protocol}",
        notice=scope.notice,
        sheet=Markup(sheet),
        sheet_hash=source_hash(sheet),
        methods=[(m.label, m.origin, f"{100.0 * float(np.mean(m.ranks_T <= 1)):.1f}") for m in methods],
        cards=cards,
        differing=int(np.sum(one.ranks_T != other.ranks_T)),
        all=len(split.captions),
        top=_TOP,
        frames=_FRAMES,
    )


def _answer(method: Searched, query: int, split: Split, numbers: dict[int, int]) -> dict[str, Any]:
    """The videos of highest score, equal scores in the split's order, and the right one if it is not among them."""
    rank, right = float(method.ranks_T[query]), split.caption_video[query]
    top = np.argsort(-method.scores_TV[query], kind="stable")[:_TOP].tolist()
    return {
        "label": method.label,
        "rank": f"{rank:g}",
        "verdict": "hit" if rank <= 1 else "tie at the top" if rank < 2 else "miss",
        "videos": [
            {
                "id": split.video_ids[video],
                "strip": numbers.setdefault(video, len(numbers)),
                "place": top.index(video) + 1 if video in top else None,
                "score": f"{method.scores_TV[query, video]:.3f}",
                "right": video == right,
            }
            for video in dict.fromkeys((*top, right))
        ],
    }
