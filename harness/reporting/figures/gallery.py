"""``gallery.html``: queries on which two methods disagree most, with the videos that each finds for them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

    @property
    def recall(self) -> float:
        """R@1 in percent."""
        return 100.0 * float(np.mean(self.ranks_T <= 1))

    def top(self, query: int) -> list[int]:
        """The videos of highest score, highest first; equal scores in the split's order."""
        return [int(v) for v in np.argsort(-self.scores_TV[query], kind="stable")[:_TOP]]


class Strips:
    """Videos as JPEG strips of a few frames, each made once and numbered in order of first use.

    Args:
        frames_of: a video's frames, uint8 [T, 3, H, W], by its place in the split.
    """

    def __init__(self, frames_of: Callable[[int], Frames]) -> None:
        self._frames_of = frames_of
        self.made: dict[int, bytes] = {}

    def number(self, video: int) -> int:
        """The strip's number."""
        if video not in self.made:
            self.made[video] = strip(self._frames_of(video))
        return list(self.made).index(video)


def strip(frames: Frames) -> bytes:
    """Some frames, evenly spread over the video, side by side; JPEG."""
    places = np.linspace(0, len(frames) - 1, _FRAMES).round().astype(int)
    sheet = Image.new("RGB", (_FRAMES * _SIDE, _SIDE))
    for i, place in enumerate(places):
        sheet.paste(Image.fromarray(frames[place].transpose(1, 2, 0)).resize((_SIDE, _SIDE)), (i * _SIDE, 0))
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
    better, worse = [int(q) for q in order if gap[q] > 0], [int(q) for q in order if gap[q] < 0]
    turns: list[int] = []
    for place in range(max(len(better), len(worse))):
        turns += better[place : place + 1] + worse[place : place + 1]
    return turns[:count]


def gallery_page(
    one: Searched, other: Searched, split: Split, strips: Strips, scope: ReportContext, *, queries: int = 24
) -> str:
    """The page: fetches nothing, runs no script; captions and video ids are text.

    Args:
        one, other: the methods.
        split: whose captions are the queries.
        strips: pictures of its videos.
        scope: what the report is about.
        queries: shown at most.
    """
    chosen = disagreements(one.ranks_T, other.ranks_T, queries)
    cards = [_card(query, (one, other), split, strips) for query in chosen]
    environment = html_templates()
    addresses = [data_uri(jpeg, "image/jpeg") for jpeg in strips.made.values()]
    sheet = environment.get_template("gallery.css.j2").render(size=(_FRAMES * _SIDE, _SIDE))
    sheet += "".join(f'.s{i} {{ background-image: url("{address}"); }}\n' for i, address in enumerate(addresses))
    differing = int(np.sum(one.ranks_T != other.ranks_T))
    return environment.get_template("gallery.html.j2").render(
        title=f"Retrieval gallery, {scope.protocol}",
        notice=scope.notice,
        sheet=Markup(sheet),
        sheet_hash=source_hash(sheet),
        methods=[(m.label, m.origin, f"{m.recall:.1f}") for m in (one, other)],
        cards=cards,
        differing=differing,
        all=len(split.captions),
        top=_TOP,
        frames=_FRAMES,
    )


def _card(query: int, methods: Sequence[Searched], split: Split, strips: Strips) -> dict[str, Any]:
    right = split.caption_video[query]
    return {
        "caption": split.captions[query],
        "ahead": min(methods, key=lambda m: m.ranks_T[query]).label,
        "methods": [_answer(method, query, right, split, strips) for method in methods],
    }


def _answer(method: Searched, query: int, right: int, split: Split, strips: Strips) -> dict[str, Any]:
    rank, found = float(method.ranks_T[query]), method.top(query)
    shown = found if right in found else [*found, right]
    return {
        "label": method.label,
        "rank": f"{rank:g}",
        "verdict": "hit" if rank <= 1 else "tie at the top" if rank < 2 else "miss",
        "videos": [
            {
                "id": split.video_ids[video],
                "strip": strips.number(video),
                "place": found.index(video) + 1 if video in found else None,
                "score": f"{method.scores_TV[query, video]:.3f}",
                "right": video == right,
            }
            for video in shown
        ],
    }
