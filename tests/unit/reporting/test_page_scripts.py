"""What the page's script computes, without a browser, in node; and the page's size."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting import templates
from tvrbench.harness.reporting.pages.efficiency import write_efficiency
from tvrbench.harness.reporting.pages.report import write_report

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
SCALES = Path(templates.__file__).with_name("page_scales.js.j2")
LARGEST = 400_000  # bytes without pictures


def computed(expression: str) -> Any:
    """The value of an expression over the functions of the script; skipped where node is not installed."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    code = f"{SCALES.read_text()}\nconsole.log(JSON.stringify({expression}))"
    return json.loads(subprocess.run([node, "-e", code], capture_output=True, check=True, text=True).stdout)


class TestScales:
    @pytest.mark.parametrize(
        ("values", "log", "ticks"),
        [
            ([10, 50], False, [10, 20, 30, 40, 50]),
            ([0.02, 0.18], False, [0.05, 0.1, 0.15]),
            ([-4, 4], False, [-4, -2, 0, 2, 4]),
            ([1, 1000], True, [1, 10, 100, 1000]),
            ([0, 10, 1000], True, [0, 10, 100, 1000]),
        ],
    )
    def test_ticks_are_round_and_inside(self, values: list[float], log: bool, ticks: list[float]) -> None:
        found = computed(f"scaleOf({values}, 0, 300, 90, {json.dumps(log)}).ticks")
        assert found == pytest.approx(ticks)

    def test_a_scale_of_what_is_never_negative_starts_at_zero_at_the_least(self) -> None:
        places = computed("((s) => [s.at(0), s.at(1), s.at(10)])(scaleOf([1, 10], 0, 100, 90, false))")
        assert places[0] <= 0 < places[1] < places[2] < 100
        assert computed("scaleOf([0.5, 10], 0, 100, 90, false).at(0)") == 0

    def test_one_value_alone_has_a_place(self) -> None:
        for value in (0, 3, -2):
            assert 0 <= computed(f"scaleOf([{value}], 0, 100, 90, false).at({value})") <= 100

    def test_less_cost_and_more_accuracy_is_the_frontier(self) -> None:
        points = [{"x": x, "y": y} for x, y in ((1, 5), (2, 4), (3, 9), (3, 8), (4, 9))]
        found = computed(f"frontier({json.dumps(points)}, {{better: 'min'}}, {{better: 'max'}})")
        assert [(p["x"], p["y"]) for p in found] == [(1, 5), (3, 9)]
        found = computed(f"frontier({json.dumps(points)}, {{better: 'max'}}, {{better: 'max'}})")
        assert [(p["x"], p["y"]) for p in found] == [(4, 9)]

    def test_a_name_finds_a_free_place_or_none(self) -> None:
        place = computed("freePlace([50, 50], 20, 10, [0, 0, 100, 100], [[40, 40, 60, 60]])")["place"]
        assert place[0] >= 60 or place[2] <= 40 or place[1] >= 60 or place[3] <= 40
        assert computed("freePlace([50, 50], 20, 10, [0, 0, 100, 100], [[0, 0, 100, 100]])") is None


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["standin/uniform", "standin/training-free", "efficiency"])
def test_a_page_is_small_without_its_pictures(protocol: str, tmp_path: Path, no_pictures: None) -> None:
    store = RecordStore(ROOT / "results")
    if not (ROOT / "results" / "records" / protocol.replace("/", "__")).is_dir():
        pytest.skip("the committed records are not here")
    files = write_efficiency(store, tmp_path) if protocol == "efficiency" else write_report(protocol, store, tmp_path)
    page = files[0].with_name("page.html").read_text()
    assert len(page.encode()) < LARGEST
