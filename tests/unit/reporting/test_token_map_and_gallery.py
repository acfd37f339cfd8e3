"""Token pictures and the gallery: what they show of traces and ranks, and that captions and names stay text."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colors
from PIL import Image

from tvrbench.datasets.standin.dataset import StandIn
from tvrbench.harness.data.types import Split
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.figures.gallery import Frames, Searched, disagreements, gallery_page, strip
from tvrbench.harness.reporting.figures.style import COLORS
from tvrbench.harness.reporting.figures.token_map import Merged, token_map
from tvrbench.harness.reporting.pages.html import source_hash

pytestmark = pytest.mark.unit

HOSTILE = "</h2><script>alert(1)</script><img src=x onerror=alert(1)> \u202e{{ 7 * 7 }} $x_$ & \"'"
# Two frames of 2 x 2 patches: one token over both frames, one of two patches, two of one, one patch dropped.
TOKENS_TP = np.array([[0, 0, 5, 5], [0, 7, 9, -1]])


def merged(label: str = "tempme") -> Merged:
    return Merged(label=label, origin="trained: a.safetensors", token_TP=TOKENS_TP, leaving=6)


def frames(count: int = 2, value: int = 0) -> Frames:
    return np.full((count, 3, 32, 32), value, dtype=np.uint8)


class TestTokenPicture:
    def test_the_largest_tokens_lead_and_single_patches_are_none(self) -> None:
        assert merged().largest == [0, 5]
        many = replace(merged(), token_TP=np.repeat(np.arange(20), 2).reshape(10, 4))
        assert many.largest == list(range(len(COLORS)))

    def test_the_summary_counts(self) -> None:
        assert merged().summary == (
            "8 patches in 4 tokens (6 leave, class tokens included), 2 hold several, 1 patches dropped"
        )
        plain = replace(merged(), token_TP=np.arange(8).reshape(2, 4))
        assert plain.summary.endswith("none holds several")

    def draw(self, *methods: Merged, notice: str | None = None, caption: str = "a clip") -> np.ndarray:
        data = token_map(frames(), methods, title="t", caption=caption, notice=notice)
        assert data == token_map(frames(), methods, title="t", caption=caption, notice=notice)
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)

    def share(self, picture: np.ndarray, color: str) -> int:
        wanted = np.array(colors.to_rgb(color)) * 255
        return int((np.abs(picture - wanted).max(axis=-1) < 3).sum())

    def test_each_large_token_has_its_color_in_every_frame_it_reaches(self) -> None:
        picture = self.draw(merged())
        first, second, none = (self.share(picture, color) for color in COLORS[:3])
        assert first > 500
        assert second > 500
        assert none == 0
        # Token 0 reaches into the second frame, so its color stands in both.
        half = picture.shape[1] // 6
        assert self.share(picture[:, half:], COLORS[0]) > 100
        assert self.share(picture[:, half + 40 :], COLORS[1]) == 0

    def test_hatching_is_explained_where_something_is_hatched(self) -> None:
        whole = replace(merged(), token_TP=np.abs(TOKENS_TP))
        ends = [np.flatnonzero((self.draw(one)[-40:] < 200).any(axis=(0, 2)))[-1] for one in (merged(), whole)]
        assert ends[0] > ends[1] + 50  # the longer line

    def test_every_method_adds_a_strip_and_the_notice_is_red(self) -> None:
        one, two = self.draw(merged()), self.draw(merged("a"), merged("b"), notice=StandIn.notice)
        assert two.shape[0] > 1.3 * one.shape[0]
        assert self.share(two, "#B3261E") > 300
        assert self.share(one, "#B3261E") == 0

    def test_hostile_captions_are_drawn_as_text(self) -> None:
        assert self.draw(merged(HOSTILE), caption=HOSTILE * 20).shape[1] == self.draw(merged()).shape[1]

    @given(st.integers(1, 13), st.integers(1, 3), st.integers(0, 10**6))
    @settings(max_examples=6, deadline=None)
    def test_any_trace_can_be_drawn(self, count: int, side: int, seed: int) -> None:
        tokens = np.random.default_rng(seed).integers(-1, 6, (count, side * side))
        method = replace(merged(), token_TP=tokens)
        assert token_map(frames(count), [method], title="t", caption="", notice=None).startswith(b"\x89PNG")


SPLIT = Split(
    name="test-1ka",
    video_ids=tuple(f"video{i}" for i in range(8)),
    captions=(HOSTILE, *(f"caption {i}" for i in range(1, 8))),
    caption_video=tuple(range(8)),
)


def searched(label: str, ranks: list[float]) -> Searched:
    """Scores that give every caption's own video the rank asked for, others in the split's order."""
    scores = np.tile(8 - np.arange(8.0), (8, 1))
    for query, rank in enumerate(ranks):
        others = [v for v in range(8) if v != query]
        order = [*others[: int(rank) - 1], query, *others[int(rank) - 1 :]]
        scores[query, order] = 8 - np.arange(8.0)
    return Searched(label=label, origin="not trained", scores_TV=scores, ranks_T=np.array(ranks))


def gallery(one: list[float], other: list[float], standin: bool = True, **options: int) -> str:
    scope = ReportContext(protocol="standin/uniform", dataset="standin" if standin else "msrvtt", folder=Path())
    return gallery_page(
        searched("a", one), searched("b", other), SPLIT, lambda video: frames(12, 20 * video), scope, **options
    )


class TestGallery:
    ONE, OTHER = [1, 6, 2, 1, 8, 1, 1, 1], [8, 1, 3, 1, 1, 1, 1, 7]

    def test_queries_are_sorted_by_disagreement_in_turns(self) -> None:
        found = disagreements(np.array(self.ONE, dtype=float), np.array(self.OTHER, dtype=float), 10)
        assert found == [0, 4, 7, 1, 2]
        assert disagreements(np.ones(4), np.ones(4), 10) == []

    @given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=30), st.integers(1, 12))
    @settings(max_examples=50, deadline=None)
    def test_none_that_both_rank_alike_and_none_twice(self, pairs: list[tuple[int, int]], count: int) -> None:
        one, other = (np.array(ranks, dtype=float) for ranks in zip(*pairs, strict=True))
        found = disagreements(one, other, count)
        assert len(found) == min(count, int((one != other).sum()))
        assert len(set(found)) == len(found)
        assert all(one[q] != other[q] for q in found)

    def test_hits_and_misses_are_told_with_the_right_video_framed(self) -> None:
        page = gallery(self.ONE, self.OTHER)
        cards = re.findall(r"<article.*?</article>", page, re.DOTALL)
        assert len(cards) == 5
        assert "a: rank 1, hit" in cards[0]
        assert "b: rank 8, miss" in cards[0]
        right = [
            re.sub(r"<.*?>|\s+", " ", item) for item in re.findall(r'<li class="right">(.*?)</li>', cards[0], re.S)
        ]
        assert [" ".join(item.split()) for item in right] == [
            "1. video0, 8.000 ✓ right",
            "rank 8: video0, 1.000 ✓ right",
        ]
        assert len(re.findall("<li", cards[0])) == 5 + 6

    def test_each_video_is_embedded_once(self) -> None:
        page = gallery(self.ONE, self.OTHER)
        used = set(re.findall(r'class="strip (s\d+)"', page))
        defined = re.findall(r'\.(s\d+) \{ background-image: url\("data:image/jpeg;base64,', page)
        assert set(defined) == used
        assert len(defined) == len(used) <= 8

    def test_captions_are_text_and_nothing_runs_or_is_fetched(self) -> None:
        page = gallery(self.ONE, self.OTHER)
        assert "<script" not in page
        assert "<img" not in page
        assert "\u202e" not in page
        heading = unescape(re.findall(r"<h2[^>]*>(.*?)</h2>", page)[0])
        assert heading.startswith("“</h2><script>alert(1)</script>")
        assert "{{ 7 * 7 }}" in heading
        style = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)[0]
        assert f"style-src '{source_hash(style)}'" in page
        assert "default-src 'none'" in page
        assert not re.findall(r'(?:href|src)="(?!data:)', page)

    def test_the_stand_in_is_named_once(self) -> None:
        page = gallery(self.ONE, self.OTHER)
        assert page.count(StandIn.notice) == 1
        assert "stand-in" not in gallery(self.ONE, self.OTHER, standin=False)

    def test_where_nothing_differs_the_page_says_so(self) -> None:
        assert "rank every query alike" in gallery(self.ONE, self.ONE)

    def test_a_strip_shows_the_first_and_the_last_frame(self) -> None:
        ramp = np.stack([np.full((3, 32, 32), value, dtype=np.uint8) for value in np.linspace(0, 250, 12)])
        image = np.asarray(Image.open(io.BytesIO(strip(ramp))).convert("L")).astype(int)
        assert image[:, :40].max() < 6
        assert image[:, -40:].min() > 244
        assert image.shape[1] == 4 * image.shape[0]
