"""The answer to a query as one HTML page that fetches nothing: a strip of frames for each video."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

from tvrbench.harness.core.text import printable
from tvrbench.harness.data.types import Frames
from tvrbench.harness.reporting.figures.gallery import strip
from tvrbench.harness.reporting.pages.html import html_page, html_templates
from tvrbench.harness.search.query import Hit, Query
from tvrbench.harness.search.text import clock

FRAMES, SIDE = 6, 128  # of a strip; pixels of a frame


def search_page(
    query: Query,
    hits: Sequence[Hit],
    frames_of: Callable[[Hit], Frames | None],
    about: str,
    notes: Sequence[str],
    folder: str,
) -> str:
    """The page.

    Args:
        query: as it was asked.
        hits: in order.
        frames_of: frames of a hit, uint8 [t, 3, S, S]; None if its file cannot be read.
        about: the model and the number of videos.
        notes: what to know about the answer.
        folder: of the videos, relative to the page, for its links.
    """

    def shown(hit: Hit) -> dict[str, Any]:
        frames = frames_of(hit)
        return {
            "rank": hit.rank,
            "file": printable(hit.entry.file),
            "link": quote(os.fsencode(f"{folder}/{hit.entry.file}")),  # a colon too, so it names no scheme
            "score": f"{'cosine' if hit.cosine else 'score'} {hit.score:.3f}",
            "length": clock(hit.entry.seconds),
            "strip": None if frames is None else strip(frames, FRAMES, SIDE),
        }

    return html_page(
        "search.html.j2",
        sheet=html_templates().get_template("search.css.j2").render(),
        title=f"“{query.text}”" if query.kind == "text" else f"{query.kind} {printable(query.text)}",
        notice=None,
        query_strip=None if query.frames is None else strip(query.frames, min(len(query.frames), FRAMES), SIDE),
        about=about,
        notes=notes,
        hits=[shown(hit) for hit in hits],
    )
