"""The answer as a page: it fetches nothing, shows names as text, and fits a phone."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from chromium import color_of, contrast, launched, watched

from tvrbench.harness.core.text import printable
from tvrbench.harness.data.cache_store import FileStamp
from tvrbench.harness.data.types import Frames
from tvrbench.harness.search.index import IndexEntry
from tvrbench.harness.search.page import search_page
from tvrbench.harness.search.query import Hit, Query
from tvrbench.harness.search.text import clock, encodable

pytestmark = pytest.mark.unit
HOSTILE = '"><script>alert(1)</script><img src=https://example.org/x onerror=alert(1)>'
NAMES = (
    f"{HOSTILE}.mp4".replace("/", "∕"),
    "esc\x1b[31m\u202e\u2066\udcff:.mp4",
    "long" * 60 + ".mp4",
    "plain name.mp4",
)
STAMP = FileStamp(size=1, mtime_ns=1, ctime_ns=1, sha256="0")


def frames_of(hit: Hit) -> Frames | None:
    if hit.rank == 4:
        return None
    return np.random.default_rng(hit.rank).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)


def page_of(kind: str = "text", frames: Frames | None = None) -> str:
    query = Query(kind=kind, text=HOSTILE, feature=np.ones((1, 2)), frames=frames)  # type: ignore[arg-type]
    hits = [
        Hit(rank=rank, score=0.5, entry=IndexEntry(file=name, stamp=STAMP, row=0, seconds=seconds))
        for rank, (name, seconds) in enumerate(zip(NAMES, (None, 3.2, 3661.0, 59.9), strict=True), start=1)
    ]
    return search_page(query, hits, frames_of, HOSTILE, [HOSTILE], "../videos")


class Parts(HTMLParser):
    """The elements of a page, and the addresses in them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "poster")
        ]


@pytest.mark.parametrize("kind", ["text", "image", "video"])
def test_a_page_holds_everything_and_names_are_text(kind: str) -> None:
    frames = None if kind == "text" else np.zeros((1, 3, 16, 16), dtype=np.uint8)
    page = page_of(kind, frames)
    parts = Parts(page)
    links = [address for address in parts.addresses if not address.startswith("data:")]
    assert [unquote_to_bytes(link) for link in links] == [os.fsencode(f"../videos/{name}") for name in NAMES[:3]]
    assert all(re.fullmatch(r"\.\./videos/[A-Za-z0-9._~%-]+", link) for link in links)
    assert "script" not in parts.tags
    assert parts.tags.count("img") == 3 + (frames is not None)
    assert "url(" not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert not any(0xD800 <= ord(c) < 0xE000 or (ord(c) < 32 and c != "\n") for c in page)
    assert "esc\\x1b[31m\\u202e\\u2066\\udcff:.mp4" in page
    for length in ("0:03", "1:01:01", "1:00"):
        assert length in page


@pytest.mark.slow
def test_in_a_browser_it_fits_a_phone_and_the_dark(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(page_of("image", np.zeros((1, 3, 16, 16), dtype=np.uint8)), encoding="utf-8")
    with launched() as browser, watched(browser, file) as open_page:
        for width in (320, 1280):
            for scheme in ("light", "dark"):
                page = open_page(width, color_scheme=scheme)
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert contrast(color_of(page, ".score", "color"), color_of(page, "body", "backgroundColor")) >= 4.5
                assert page.locator("li img").evaluate_all("all => all.every(i => i.complete && i.naturalWidth > 0)")


def test_texts_for_terminals_and_json() -> None:
    assert printable("a é ☃\x1b]0;x\x07\x9b1m\u202e\udcff\n\t") == "a é ☃\\x1b]0;x\\x07\\x9b1m\\u202e\\udcff\\n\\t"
    assert encodable("é\udcff") == "é\\udcff"
    assert [clock(each) for each in (None, 0.4, 59.6, 3599.7)] == ["", "0:00", "1:00", "1:00:00"]
