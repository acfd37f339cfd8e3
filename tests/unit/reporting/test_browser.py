"""``page.html`` in headless Chromium: chart, keyboard, phone width, no network, no script, both schemes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chromium import (
    Open,
    assert_names_apart,
    color_of,
    column,
    contrast,
    labels,
    luminance,
    numbers,
)
from records import make_record
from report_records import report, write_unchecked

from tvrbench.datasets.standin.dataset import StandIn
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.figures.axes import Point, frontier

pytestmark = [pytest.mark.unit, pytest.mark.slow]

HOSTILE = "x</script><script>window.pwned=1</script><img src=x onerror='window.pwned=1'>"
# name, R@1, GMACs, videos/s (None: not measured), trainable parameters
METHODS = (
    ("zero_shot", 31.2, 52.96, 330.0, 0),
    ("clip4clip", 43.1, 52.96, 280.0, 86_000_000),
    ("tempme", 46.1, 34.76, 232.5, 507_648),
    ("tome", 42.9, 34.70, None, 490_000),
    (HOSTILE, 40.2, 26.50, 476.0, 490_000),
)
RIVAL = tuple((keep, 30.0 + keep, 4.4 * keep, 2880.0 / keep) for keep in (2, 4, 8, 12))


def priced_record(name: str, r1: float, gmacs: float, videos_per_s: float | None, trainable: int) -> dict[str, Any]:
    record = make_record(name, r1)
    values = {"gmacs_video": gmacs, "throughput": videos_per_s, "params_trainable": trainable}
    for m in record["cost"]:
        m["value"] = values.get(m["name"], m["value"])
        if m["value"] is None:
            m["conditions"] = {"reason": "no clock"}
    record["metrics"]["intervals"]["t2v"]["R1"] = [r1 - 3, r1 + 3]
    return record


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    store = RecordStore(folder / "results")
    records = [priced_record(*method) for method in METHODS]
    for keep, r1, gmacs, videos_per_s in RIVAL:
        record = priced_record("frame_subsample", r1, gmacs, videos_per_s, 490_000)
        record["method"]["options"]["keep"] = keep
        records.append(record)
    write_unchecked(store, *records)
    return report(store, folder) / "page.html"


class TestChart:
    def test_every_method_with_both_numbers_is_a_point(self, opened: Open) -> None:
        page = opened()
        assert len(labels(page)) == len(METHODS) + len(RIVAL)
        page.select_option("#cost", "throughput_inference")
        assert len(labels(page)) == len(METHODS) + len(RIVAL) - 1
        assert page.locator("#legend .absent").inner_text() == "Not measured: tome."
        assert page.locator("#status").inner_text().startswith("Chart of T→V R@1 (%) against ")

    @pytest.mark.parametrize(("cost", "better"), [("gmacs_video_inference", "min"), ("throughput_inference", "max")])
    def test_the_frontier_is_that_of_the_printed_picture(self, opened: Open, cost: str, better: Any) -> None:
        page = opened()
        page.select_option("#cost", cost)
        index = 2 if better == "min" else 3
        rows = [(m[0], m[1], m[index]) for m in METHODS if m[index] is not None]
        rows += [(f"frame_subsample (keep={keep})", r1, (g, s)[index - 2]) for keep, r1, g, s in RIVAL]
        found = frontier([Point(label=name, recall=r1, cost=cost or 0.0) for name, r1, cost in rows], better)
        shown = {text.partition(": T→V")[0] for text in labels(page) if "on the frontier" in text}
        assert shown == {point.label for point in found}
        assert len(shown) > 1
        assert page.locator("#plot path.frontier").count() == 1

    def test_fewer_frames_are_a_line_and_say_how_many(self, opened: Open) -> None:
        page = opened()
        path = page.locator("#plot path.rival").get_attribute("d")
        assert path.count("L") == len(RIVAL) - 1
        assert "12 frames" in page.locator("#plot svg").text_content()

    def test_pointing_and_focus_show_the_numbers_and_escape_hides_them(self, opened: Open) -> None:
        page = opened()
        tip = page.locator("#tip")
        point = page.locator('#plot a[data-label="tempme"]')
        point.hover()
        assert tip.is_visible()
        text = tip.inner_text()
        assert "46.1, 95 % interval 43.1 to 49.1" in text
        assert "34.76" in text
        assert StandIn.notice not in text  # the banner says it
        page.keyboard.press("Escape")
        assert not tip.is_visible()
        page.mouse.move(0, 0)
        page.locator("#log").focus()
        page.keyboard.press("Tab")
        assert tip.is_visible()
        ring = page.locator("#plot a:focus .ring")
        assert ring.evaluate("ring => getComputedStyle(ring).stroke") != "none"

    def test_enter_leads_to_the_row(self, opened: Open) -> None:
        page = opened()
        page.locator('#plot a[data-label="tempme"]').focus()
        page.keyboard.press("Enter")
        assert page.locator("#table-main tr:target th").inner_text() == "tempme"

    def test_a_first_tap_shows_the_numbers_and_a_second_one_leads_on(self, opened: Open) -> None:
        page = opened(375, 740, has_touch=True)
        point = page.locator('#plot a[data-label="zero_shot"]')
        point.tap()
        assert "zero_shot" in page.locator("#tip").inner_text()
        assert page.locator("#tip").is_visible()
        assert page.locator("tr:target").count() == 0
        point.tap()
        assert page.locator("tr:target th").inner_text() == "zero_shot"

    def test_a_logarithmic_axis_shows_zero(self, opened: Open) -> None:
        page = opened()
        page.select_option("#cost", "params_trainable_inference")
        assert page.locator("#log").is_checked()
        text = page.locator("#plot svg").text_content()
        assert "log scale" in text
        assert "0" in page.locator("#plot text.tick").all_text_contents()
        places = page.locator("#plot a .hit").evaluate_all("all => all.map(c => Number(c.getAttribute('cx')))")
        assert len(places) == len(METHODS) + len(RIVAL)
        assert all(place > 0 for place in places)

    def test_names_cover_neither_points_nor_each_other(self, opened: Open) -> None:
        for width in (1280, 375):
            page = opened(width)
            assert_names_apart(page, lambda points, width=width: points - 1 if width > 1000 else 5)


class TestReaders:
    @pytest.mark.parametrize("width", [375, 768, 1280])
    def test_the_page_never_scrolls_sideways(self, opened: Open, width: int) -> None:
        page = opened(width, 740)
        page.locator("summary").evaluate_all("all => all.forEach(summary => summary.parentElement.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.locator("#plot svg").bounding_box()["width"] <= width

    def test_turning_the_phone_draws_anew(self, opened: Open) -> None:
        page = opened(375, 740)
        page.set_viewport_size({"width": 740, "height": 375})
        page.wait_for_function("document.querySelector('#plot svg').viewBox.baseVal.width > 600")

    def test_without_script_the_table_and_a_still_picture_are_there(self, opened: Open) -> None:
        page = opened(java_script_enabled=False)
        assert page.locator("#still img").is_visible()
        assert not page.locator("#explorer").is_visible()
        assert page.locator("#table-main tbody tr:not(.group)").count() == len(METHODS) + len(RIVAL) + 1
        assert page.locator("#table-main th button").count() == 0

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_stands_out_in_both_schemes(self, opened: Open, scheme: str) -> None:
        page = opened(color_scheme=scheme)
        paper = color_of(page, "body", "backgroundColor")
        assert (luminance(paper) < 0.05) == (scheme == "dark")
        for selector in ("h1", ".caption", "#table-main tbody td", ".files a", "nav a"):
            assert contrast(color_of(page, selector, "color"), paper) >= 4.5
        notice = (color_of(page, ".notice", "color"), color_of(page, ".notice", "backgroundColor"))
        assert contrast(*notice) >= 4.5
        for mark in page.locator("#plot .mark").all():
            fill = numbers(mark.evaluate("mark => getComputedStyle(mark).fill"))
            assert contrast(fill, paper) >= 3

    def test_hostile_names_are_shown_and_do_nothing(self, opened: Open) -> None:
        page = opened()
        page.locator(f"#plot a[data-label^={json.dumps(HOSTILE[:4])}]").hover()
        assert HOSTILE in page.locator("#tip").inner_text()
        assert HOSTILE in column(page, "method")
        assert page.evaluate("window.pwned") is None
