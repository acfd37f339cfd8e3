"""Scatter plots: printable, the same for the same points, and no label on another label, a point, a bar or outside."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from tvrbench.harness.reporting.figures import scatter
from tvrbench.harness.reporting.figures.axes import Point, frontier, lines
from tvrbench.harness.reporting.figures.labels import place_labels
from tvrbench.harness.reporting.figures.scatter import pareto
from tvrbench.harness.reporting.figures.style import COLORS, png

pytestmark = pytest.mark.unit


def point(label: str, cost: float, recall: float, half: float = 3.0) -> Point:
    return Point(label=label, cost=cost, recall=recall, interval=(recall - half, recall + half))


TWELVE = [
    point("zero_shot", 52.96, 31.2),
    point("clip4clip", 52.96, 43.1),
    point("lora", 52.96, 43.7),
    point("tempme (tuning=lora)", 34.76, 46.1),
    point("tempme (tuning=full)", 34.76, 46.5),
    point("tempme (r=0, clip_ratio=0.0, intra_ratio=0.0)", 54.16, 46.6),
    point("centerclip", 35.81, 43.6),
    point("vidtome (mode=unmerge)", 47.24, 42.0),
    point("vidtome (mode=persistent)", 41.61, 41.0),
    point("tome", 34.7, 42.9),
    point("frame_subsample", 26.5, 40.2),
    point("token_sampling", 35.0, 41.2),
]


class TestFigure:
    def draw(self, points: list[Point], **options: Any) -> Image.Image:
        shown: dict[str, Any] = {
            "title": "R@1 against compute",
            "notice": "Embedded stand-in",
            "cost_label": "GMACs",
            "chance": 0.1,
        }
        return Image.open(io.BytesIO(pareto(points, **(shown | options))))

    @pytest.mark.parametrize("points", [TWELVE[:1], TWELVE[:3], TWELVE, [Point(label="$x_$", cost=0.0, recall=0.0)]])
    def test_it_is_printable_and_shows_something(self, points: list[Point]) -> None:
        image = self.draw(points)
        assert image.info["dpi"][0] == pytest.approx(220, abs=1)
        assert image.width >= 7 * 200
        assert {key for key in image.info if key != "dpi"} == set()
        colors = image.convert("RGB").getcolors(1 << 24) or []
        assert sum(count for count, color in colors if color != (255, 255, 255)) > 0.01 * image.width * image.height

    def test_what_is_on_it_depends_on_the_records(self) -> None:
        assert pareto_bytes(TWELVE[:3]) != pareto_bytes(TWELVE[1:4])
        assert pareto_bytes(TWELVE) == pareto_bytes(TWELVE)

    @pytest.mark.parametrize("points", [TWELVE[:3], TWELVE[:4], TWELVE])
    def test_no_label_covers_a_point_a_bar_or_another_label(
        self, points: list[Point], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = watch_labels(monkeypatch)
        self.draw(points)
        (labels,) = seen
        assert_apart(labels)

    def test_a_label_away_from_its_point_is_joined_to_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = watch_labels(monkeypatch)
        self.draw(TWELVE[:1])
        self.draw([*(point(f"method_{i}", 50.0 + 0.5 * i, 40.0 + 0.3 * i) for i in range(6)), point("far", 80, 60)])
        alone, crowd = (labels.leaders for labels in seen)
        assert alone == 0
        assert 1 <= crowd <= 6

    def test_points_of_one_cost_stand_side_by_side_and_others_on_their_value(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        drawn: list[npt.NDArray[np.float64]] = []
        place = scatter.side_by_side

        def watch(axes: Any, points: Any) -> npt.NDArray[np.float64]:
            spots = place(axes, points)
            drawn.append(axes.transData.inverted().transform(spots)[:, 0])
            return spots

        monkeypatch.setattr(scatter, "side_by_side", watch)
        self.draw(TWELVE[:4])
        zero_shot, clip4clip, lora, tempme = drawn[0]
        assert zero_shot == pytest.approx(52.96)
        assert tempme == pytest.approx(34.76)
        assert clip4clip < 52.96 < lora
        assert lora - clip4clip < 0.05 * (52.96 - 34.76)

    def test_the_frontier_holds_what_nothing_beats(self) -> None:
        assert [p.label for p in frontier(TWELVE)] == [
            "frame_subsample",
            "tome",
            "tempme (tuning=full)",
            "tempme (r=0, clip_ratio=0.0, intra_ratio=0.0)",
        ]
        assert frontier([]) == []
        assert [p.label for p in frontier(TWELVE, "max")] == ["tempme (r=0, clip_ratio=0.0, intra_ratio=0.0)"]

    def test_costs_far_apart_get_a_logarithmic_axis_with_zero_at_its_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[tuple[str, list[str], npt.NDArray[np.float64]]] = []
        place = scatter.side_by_side

        def watch(axes: Any, points: Any) -> npt.NDArray[np.float64]:
            spots = place(axes, points)
            seen.append((axes.get_xscale(), [t.get_text() for t in axes.get_xticklabels()], spots))
            return spots

        monkeypatch.setattr(scatter, "side_by_side", watch)
        self.draw([point("a", 0.0, 30.0), point("b", 0.5, 40.0), point("c", 86.0, 45.0)])
        self.draw([point("a", 40.0, 30.0), point("b", 50.0, 40.0)])
        (scale, ticks, spots), (linear, _, _) = seen
        assert (scale, linear) == ("log", "linear")
        assert ticks[0] == "0"
        assert (np.diff(spots[:, 0]) > 100).all()

    def test_labels_keep_off_the_line_of_fewer_frames(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = watch_labels(monkeypatch)
        frames = [
            Point(label=f"{keep} of 12 frames", cost=4.4 * keep, recall=34 + keep, line="fewer") for keep in (2, 6, 12)
        ]
        self.draw([*frames, point("tempme", 34.76, 46.1)], better="min")
        (labels,) = seen
        assert_apart(labels)
        assert len(labels.lines) > 10
        assert {name: len(line) for name, line in lines([*frames, point("x", 1.0, 1.0)]).items()} == {"fewer": 3}
        assert lines(frames[:1]) == {}

    @given(
        st.lists(st.tuples(st.floats(150, 1400), st.floats(120, 900)), min_size=1, max_size=8, unique=True),
        st.integers(2, 20),
    )
    @settings(max_examples=15, deadline=None)
    def test_labels_of_any_few_points_find_room(self, places: list[tuple[float, float]], length: int) -> None:
        spots = np.array(places)
        bars = [Bbox.from_bounds(x - 13, y - 13, 26, 26) for x, y in places]
        axes = Figure(figsize=(7.2, 4.9), dpi=220).add_axes((0, 0, 1, 1))
        texts = place_labels(axes, ["x" * length] * len(places), spots, bars, [])
        assert_apart(Labels(texts, bars, [], axes.get_window_extent(), 0))


def pareto_bytes(points: list[Point]) -> bytes:
    return pareto(points, title="t", notice=None, cost_label="GMACs", chance=None)


class Labels:
    """Placed labels and what they must not cover."""

    def __init__(
        self, texts: Sequence[Text], bars: Sequence[Bbox], lines: Sequence[Bbox], frame: Bbox, leaders: int
    ) -> None:
        self.boxes = [text.get_window_extent() for text in texts]
        self.bars, self.lines, self.frame, self.leaders = bars, lines, frame, leaders


def watch_labels(monkeypatch: pytest.MonkeyPatch) -> list[Labels]:
    seen: list[Labels] = []

    def watch(axes: Any, names: Any, spots: Any, bars: Any, lines: Any) -> list[Text]:
        before = len(axes.lines)
        texts = place_labels(axes, names, spots, bars, lines)
        seen.append(Labels(texts, bars, lines, axes.get_window_extent(), len(axes.lines) - before))
        return texts

    monkeypatch.setattr(scatter, "place_labels", watch)
    return seen


def assert_apart(labels: Labels) -> None:
    for i, box in enumerate(labels.boxes):
        covered = [
            other
            for other in (*labels.boxes[:i], *labels.bars, *labels.lines)
            if (shared := Bbox.intersection(box, other)) is not None and shared.width * shared.height > 0
        ]
        assert covered == []
        assert (box.p0 >= labels.frame.p0).all()
        assert (box.p1 <= labels.frame.p1).all()


def test_a_file_keeps_each_color_of_the_palette_beside_a_dark_picture() -> None:
    figure = Figure(figsize=(2, 2), dpi=220)
    picture = figure.add_axes((0, 0.2, 1, 0.8))
    picture.imshow(np.random.default_rng(0).integers(0, 80, (300, 300, 3)), interpolation="nearest", aspect="auto")
    marks = figure.add_axes((0, 0, 1, 0.2))
    marks.barh(range(len(COLORS)), 0.01, color=COLORS)
    marks.set_xlim(0, 1)
    for axes in (picture, marks):
        axes.set_axis_off()
    saved = np.asarray(Image.open(io.BytesIO(png(figure))).convert("RGB"), dtype=int)[352:]
    for color in COLORS:
        wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
        assert np.abs(saved - wanted).max(axis=-1).min() <= 16, color
