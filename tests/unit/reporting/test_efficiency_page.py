"""``page.html`` of the report of costs: self-contained, its numbers those of the tables, and in headless Chromium."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from bench_records import GPU, counts, ratio, save, speed
from chromium import Open, assert_names_apart, color_of, contrast, labels
from records import csv_rows

from tvrbench.harness.records.record import Measurement
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.pages.efficiency import write_efficiency
from tvrbench.harness.reporting.pages.html import source_hash
from tvrbench.harness.reporting.tables.markdown import slug

pytestmark = pytest.mark.unit

HOSTILE = "</script><script>window.pwned=1</script><img src=x onerror='window.pwned=1'>"
CPU_TABLE = "cost/ViT-B-16.cpu-fp32"
ANCHOR = slug(CPU_TABLE)


def memory(value: float, **said: Any) -> Measurement:
    return Measurement("peak_process_memory", value, "MiB", (), {"what": "inference", "batch": 4} | said)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("costs")
    save(root, "lora", [*counts(200.0, 2364, 491520), speed(5.0), *ratio(1.0, 1.0), memory(1100)])
    for keep in (4, 8):
        cost = [
            *counts(200.0 * keep / 12, 197 * keep, 491520),
            speed(60.0 / keep),
            *ratio(12 / keep, 12 / keep),
            memory(1000),
        ]
        save(root, "frame_subsample", cost, keep=keep)
    tempme = [*counts(100.0, 127, 507648), speed(8.0), *ratio(1.5, 2.0), memory(1200, lower_bound=True)]
    save(root, "tempme", tempme)
    bad = [*counts(130.0, 600, 123e6), speed(99.0, invalid=HOSTILE), memory(1500)]  # type: ignore[arg-type]
    save(root, "centerclip", bad)
    save(root, "random", [*counts(0.0, 0), speed(999.0), Measurement.missing("speedup", "x", "runs no encoder")])
    for method, gmacs in (("lora", 200.0), ("tempme", 100.0)):
        energy = Measurement("energy_video", gmacs / 10, "J/video")
        cost = [*counts(gmacs, 2364), speed(50.0, device="cuda:0"), energy]
        save(root, method, cost, device=f"{GPU}{HOSTILE}", hash="bbbbbbbb")
    write_efficiency(RecordStore(root), root / "reports")
    return root / "reports" / "efficiency"


def chart(folder: Path) -> dict[str, Any]:
    text = (folder / "page.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="chart-data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


class TestFile:
    def test_it_fetches_nothing_and_names_its_script(self, folder: Path) -> None:
        text = (folder / "page.html").read_text(encoding="utf-8")
        assert "](page.html)" in (folder / "README.md").read_text(encoding="utf-8")
        assert all(address.startswith("data:image/png") for address in re.findall(r'<img src="([^"]*)"', text))
        scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
        assert len(scripts) == 1
        assert f"script-src '{source_hash(scripts[0])}'" in text
        for target in re.findall(r'href="([^"#]*)"', text):
            assert target == "data:," or (folder / target).is_file()

    def test_what_others_wrote_is_text(self, folder: Path) -> None:
        text = (folder / "page.html").read_text(encoding="utf-8")
        assert "window.pwned" in text
        assert "<script>window.pwned" not in text
        assert "<img src=x" not in text

    def test_points_are_the_numbers_of_the_table(self, folder: Path) -> None:
        found = {
            m["label"]: m["points"]
            for group in chart(folder)["groups"]
            for m in group["methods"]
            if "CPU" in group["name"]
        }
        rows = {row["method"]: row for row in csv_rows(folder, CPU_TABLE)}
        for name, costs in found.items():
            assert costs["gmacs_video_inference"][0] == pytest.approx(float(rows[name]["gmacs_video"]))
            assert costs["output_tokens_inference"][0] == float(rows[name]["output_tokens"])
            assert costs["params_trainable_inference"][0] == pytest.approx(float(rows[name]["params_trainable"]) / 1e6)
        value, low, high = found["tempme"]["throughput_inference"]
        assert value == pytest.approx(1000 / 8)
        assert low == pytest.approx(1000 / (8 * 1.01))
        assert high == pytest.approx(1000 / (8 * 0.99))
        assert found["tempme"]["speedup_comparison"] == pytest.approx([1.5, 1.425, 1.575])
        assert found["tempme"]["peak_process_memory_inference"] == [1200.0, None, None, True]

    def test_what_is_not_valid_or_encodes_nothing_is_no_point(self, folder: Path) -> None:
        group = next(group for group in chart(folder)["groups"] if "CPU" in group["name"])
        methods = {m["label"]: m for m in group["methods"]}
        assert "throughput_inference" not in methods["centerclip"]["points"]
        assert "random" not in methods

    def test_the_line_of_fewer_frames_ends_in_all_of_them(self, folder: Path) -> None:
        group = next(group for group in chart(folder)["groups"] if "CPU" in group["name"])
        line = {m["label"]: (m["keep"], m["short"]) for m in group["methods"] if m["line"] is not None}
        assert line == {
            "frame_subsample (keep=4)": (4, "4 frames"),
            "frame_subsample (keep=8)": (8, "8 frames"),
            "lora": (12, None),
        }

    def test_points_lead_to_their_rows(self, folder: Path) -> None:
        text = (folder / "page.html").read_text(encoding="utf-8")
        for group in chart(folder)["groups"]:
            for method in group["methods"]:
                line = next(part for part in text.split("<tr") if f'id="{method["row"]}"' in part)
                assert re.search(rf">{re.escape(method['label'])}( \*)?</th>", line)


@pytest.fixture
def page_file(folder: Path) -> Path:
    return folder / "page.html"


@pytest.mark.slow
class TestBrowser:
    def test_any_cost_is_shown_against_any_other_device_by_device(self, opened: Open) -> None:
        page = opened()
        assert page.locator("#group option").all_inner_texts()[0].startswith("ViT-B/16, Some GPU")
        assert any("energy" in option for option in page.locator("#cost option").all_inner_texts())
        assert page.locator("#accuracy").input_value() == "throughput_inference"  # no speed-up was measured there
        page.select_option("#group", "1")
        assert len(labels(page)) == 4  # centerclip's speed-up was not measured
        assert page.locator("#plot path.rival").get_attribute("d").count("L") == 2
        assert not any("energy" in option for option in page.locator("#cost option").all_inner_texts())
        page.select_option("#accuracy", "params_trainable_inference")
        page.select_option("#cost", "peak_process_memory_inference")
        assert len(labels(page)) == 5
        assert page.locator("#logup").is_checked()  # 0.49 to 123 million
        assert any("at least 1,200" in label for label in labels(page))
        places = page.locator("#plot a .hit").evaluate_all("all => all.map(c => Number(c.getAttribute('cy')))")
        height = page.locator("#plot svg").evaluate("svg => svg.viewBox.baseVal.height")
        assert all(30 < place < height - 40 for place in places)

    def test_less_is_lower_and_a_speed_up_rises(self, opened: Open) -> None:
        page = opened()
        page.select_option("#group", "1")
        page.select_option("#accuracy", "speedup_comparison")
        place = {
            name: float(page.locator(f'#plot a[data-label="{name}"] .hit').get_attribute("cy"))
            for name in ("lora", "tempme")
        }
        assert place["tempme"] < place["lora"]
        assert "better" in page.locator("#plot text.heading").text_content()

    def test_groups_sort_with_missing_and_invalid_ones_last(self, opened: Open) -> None:
        page = opened()
        header = page.locator(f'#table-{ANCHOR} th[data-key="speedup"] button')
        for reduced, fewer in ((["tempme", "centerclip"], [4, 8]), (["tempme", "centerclip"], [8, 4])):
            header.click()
            rows = page.locator(f"#table-{ANCHOR} tbody tr:not(.group) th").all_inner_texts()
            assert rows[-4:] == [*reduced, *(f"frame_subsample (keep={keep})" for keep in fewer)]

    def test_the_keyboard_reaches_a_point_and_its_row(self, opened: Open) -> None:
        page = opened()
        page.select_option("#group", "1")
        page.locator('#plot a[data-label="tempme"]').focus()
        assert page.locator("#tip").is_visible()
        page.keyboard.press("Enter")
        assert page.locator("tr:target th").inner_text() == "tempme"

    @pytest.mark.parametrize("width", [390, 1280])
    def test_it_fits_and_names_keep_apart(self, opened: Open, width: int) -> None:
        page = opened(width, 800)
        page.select_option("#group", "1")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert_names_apart(page, lambda points: points - 1)

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_stands_out(self, opened: Open, scheme: Any) -> None:
        page = opened(color_scheme=scheme)
        paper = color_of(page, "body", "backgroundColor")
        for selector in ("h1", ".caption", ".notes li", "tbody td", "nav a"):
            assert contrast(color_of(page, selector, "color"), paper) >= 4.5

    def test_without_script_every_table_is_there(self, opened: Open) -> None:
        page = opened(java_script_enabled=False)
        assert not page.locator("#explorer").is_visible()
        assert page.locator(f"#table-{ANCHOR} tbody tr:not(.group)").count() == 6
        assert page.locator("figure img").first.is_visible()
