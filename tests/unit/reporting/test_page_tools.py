"""``page.html`` in headless Chromium: sorting, filter, groups, the view in the address, rows as LaTeX, policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from chromium import Open, color_of, column, contrast, labels, press

from tvrbench.harness.reporting.catalogue import metric, retrieval
from tvrbench.harness.reporting.figures.axes import Axis
from tvrbench.harness.reporting.figures.efficiency_chart import chart
from tvrbench.harness.reporting.pages.layout import Report, Section, write
from tvrbench.harness.reporting.tables.latex import fragment, latex_rows
from tvrbench.harness.reporting.tables.table import Cell, Column, Table, make_table, number_cell, text_column

pytestmark = [pytest.mark.unit, pytest.mark.slow]

HOSTILE = "x</script><img src=x onerror='window.pwned=1'>_$&"
BLANK = Cell(text="", value=None)
REFERENCE, TUNING, REDUCTION = "Reference", "Full fine-tuning", "Token <b>reduction</b>"
# group, name, R@1, GMACs (None: not counted)
ROWS = (
    (REFERENCE, "zero_shot", 31.2, 52.96),
    (TUNING, "clip4clip", 43.1, 53.0),
    (TUNING, "lora", 44.5, None),
    (REDUCTION, "tempme", 46.1, 34.76),
    (REDUCTION, "tome", 42.9, 34.70),
    (REDUCTION, HOSTILE, 9.5, 1026.5),
)
IN_ORDER = ["chance", *(name for _, name, _, _ in ROWS)]


def _table(name: str, **options: Any) -> Table:
    columns = [
        Column(
            key="method",
            header="Method",
            cell=lambda row: Cell(text=row[1], value=row[1]),
            left=True,
            chance=Cell(text="chance", value="chance"),
        ),
        Column(
            key="t2v_R1",
            header="R@1",
            cell=lambda row: Cell(text=f"{row[2]:.0f}", value=row[2], rankable=True),
            better="max",
            chance=Cell(text="0.1", value=0.1),
        ),
        Column(
            key="gmacs",
            header="GFLOPs",
            cell=lambda row: number_cell(row[3], "{:,.1f}".format) if row[3] else BLANK,
            better="min",
        ),
        text_column("remark", "remark", lambda row: f"about {row[1][:3]}"),
    ]
    return make_table(name, f"Table {name}", ["Said."], columns, ROWS, chance=REFERENCE, **options)


@pytest.fixture(scope="module")
def main() -> Table:
    return _table("main", group=lambda row: row[0], best=True)


@pytest.fixture(scope="module")
def page_file(main: Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    costs = (metric("gmacs_video"), metric("params_trainable"))
    axes, recalls = (
        [Axis(metric=shown, read=lambda _: None) for shown in these] for these in (costs, retrieval("t2v")[:2])
    )
    methods = [
        {
            "label": name,
            "row": f"row-main-{i}",
            "style": i,
            "line": None,
            "keep": None,
            "short": None,
            "points": {"t2v_R1": [r1, r1 - 2, r1 + 2], "t2v_R5": [r1 + 30], axes[1].key: [r1 * 1000]}
            | ({axes[0].key: [gmacs]} if gmacs else {}),
        }
        for i, (_, name, r1, gmacs) in enumerate(ROWS)
    ]
    words = {"interval": "interval", "bars": "Bars.", "warning": None}
    drawn = chart(axes, recalls, [{"name": "here", "methods": methods}], across=axes[0].key, words=words, frontier=True)
    sections = [
        Section(title="Further", blocks=[_table("further", folded=True)]),
        Section(title="Results", blocks=[main], page="first"),
        Section(title="Picture", blocks=[("Said.",)], page="first", chart=True),
    ]
    folder = tmp_path_factory.mktemp("tools")
    write(Report(title="A title", sections=sections, chart=drawn, notice="A notice."), folder)
    return folder / "page.html"


def words_of(page: Any) -> dict[str, list[str]]:
    """What the address says of the view."""
    return parse_qs(urlsplit(page.url).fragment)


def write_filter(page: Any, text: str) -> None:
    page.fill("#filter", text)
    page.wait_for_function(
        "text => (new URLSearchParams(location.hash.slice(1)).get('methods') ?? '') === text", arg=text.strip()
    )


def titles(page: Any) -> list[str]:
    """The groups whose titles are shown in the main table."""
    return list(page.locator("#table-main tr.group:not([hidden])").all_inner_texts())


class TestSorting:
    def test_rows_sort_within_their_groups_then_the_other_way_then_not(self, opened: Open) -> None:
        page = opened()
        press(page, "t2v_R1")
        best = ["chance", "zero_shot", "lora", "clip4clip", "tempme", "tome", HOSTILE]
        assert column(page, "method") == best
        press(page, "t2v_R1")
        assert column(page, "method") == ["chance", "zero_shot", "clip4clip", "lora", HOSTILE, "tome", "tempme"]
        assert page.locator("#table-main th[aria-sort]").get_attribute("aria-sort") == "ascending"
        press(page, "t2v_R1")
        assert column(page, "method") == IN_ORDER
        assert page.locator("th[aria-sort]").count() == 0
        assert titles(page) == [REFERENCE, TUNING, REDUCTION]

    def test_across_groups_the_rows_are_one_list_without_titles_and_gaps_last_both_ways(self, opened: Open) -> None:
        page = opened()
        page.check("#across")
        assert titles(page) == [REFERENCE, TUNING, REDUCTION]  # as long as nothing sorts
        press(page, "gmacs")
        by_cost = ["tome", "tempme", "zero_shot", "clip4clip", HOSTILE]
        assert column(page, "method") == ["chance", *by_cost, "lora"]
        press(page, "gmacs")
        assert column(page, "method") == ["chance", *by_cost[::-1], "lora"]
        assert titles(page) == []
        page.uncheck("#across")
        assert titles(page) == [REFERENCE, TUNING, REDUCTION]

    def test_text_sorts_by_its_letters_and_other_tables_stay(self, opened: Open) -> None:
        page = opened()
        page.locator("summary").click()
        press(page, "method", "further")
        assert column(page, "method", "further") == [
            "chance",
            "clip4clip",
            "lora",
            "tempme",
            "tome",
            HOSTILE,
            "zero_shot",
        ]
        assert column(page, "method") == IN_ORDER

    @pytest.mark.parametrize("key", ["Enter", "Space"])
    def test_the_keyboard_sorts(self, opened: Open, key: str) -> None:
        page = opened()
        page.locator("#table-main th button").nth(1).focus()
        page.keyboard.press(key)
        assert page.locator("#table-main th[aria-sort]").inner_text().startswith("R@1")
        assert page.locator("#status").inner_text() == "Sorted by R@1, descending."


class TestFilter:
    def test_rows_of_all_tables_points_and_titles_follow_the_words(self, opened: Open) -> None:
        page = opened()
        write_filter(page, "TEMP, zero")
        assert column(page, "method") == ["chance", "zero_shot", "tempme"]
        assert column(page, "method", "further") == ["chance", "zero_shot", "tempme"]
        assert titles(page) == [REFERENCE, REDUCTION]
        assert sorted(label.partition(":")[0] for label in labels(page)) == ["tempme", "zero_shot"]
        assert page.locator(".count").first.inner_text() == "3 of 7 rows shown."
        write_filter(page, " , ,")
        assert column(page, "method") == IN_ORDER
        assert not page.locator(".count").first.is_visible()

    def test_words_that_no_method_has_leave_the_reference_and_an_empty_chart(self, opened: Open) -> None:
        page = opened()
        write_filter(page, "nothing like it")
        assert column(page, "method") == ["chance"]
        assert labels(page) == []
        assert "No method" in page.locator("#plot").inner_text()

    def test_hidden_groups_take_rows_and_points_with_them(self, opened: Open) -> None:
        page = opened()
        page.get_by_label(TUNING).uncheck()
        page.get_by_label(REFERENCE).uncheck()
        assert titles(page) == [REDUCTION]
        assert column(page, "method") == ["tempme", "tome", HOSTILE]
        assert {label.partition(": ")[0] for label in labels(page)} == {"tempme", "tome", HOSTILE}
        assert column(page, "method", "further") == IN_ORDER  # a table without groups
        page.get_by_label(REFERENCE).check()
        assert column(page, "method")[:2] == ["chance", "zero_shot"]


class TestAddress:
    def test_a_view_comes_back_from_its_address_and_goes_with_reset(self, opened: Open) -> None:
        page = opened()
        write_filter(page, "o")
        page.get_by_label(REFERENCE).uncheck()
        page.check("#across")
        press(page, "t2v_R1")
        page.select_option("#accuracy", "t2v_R5")
        page.select_option("#cost", "params_trainable_inference")
        page.check("#log")
        assert words_of(page) == {
            "methods": ["o"],
            "hide": [REFERENCE],
            "across": ["1"],
            "sort.main": ["-t2v_R1"],
            "x": ["params_trainable_inference"],
            "y": ["t2v_R5"],
            "logx": ["1"],
        }
        other = opened(at="#" + urlsplit(page.url).fragment)
        for found in (page, other):
            assert column(found, "method") == ["lora", "tome", HOSTILE]
            assert found.locator("#cost").input_value() == "params_trainable_inference"
            assert found.locator("#log").is_checked()
        assert labels(other) == labels(page)
        other.locator("#reset").click()
        assert "#" not in other.url
        assert column(other, "method") == IN_ORDER
        assert labels(other) == labels(opened())

    def test_an_address_that_changes_changes_the_view_and_a_place_in_the_page_does_not(self, opened: Open) -> None:
        page = opened()
        page.evaluate("location.hash = 'methods=tome&sort.further=gmacs'")
        page.wait_for_function("document.querySelector('#filter').value === 'tome'")
        assert column(page, "method") == ["chance", "tome"]
        page.locator("nav a", has_text="Results").click()
        assert page.locator("#filter").input_value() == "tome"
        page.go_back()
        page.wait_for_function("location.hash.includes('methods')")
        assert column(page, "method") == ["chance", "tome"]

    @pytest.mark.parametrize(
        "words",
        [
            "hide=nobody&hide=__proto__&hide=%3Cb%3E",
            "sort.main=__proto__&sort.__proto__=method&sort.nothing=-t2v_R1&sort.main=-",
            "x=constructor&y=%3Cscript%3E&on=__proto__&logx=%27",
            "across=yes&unknown=1&=&&==",
            "methods=%E0%A4%A&=%",
            f"nothing={'a' * 50_000}",
            "sort.main=%3Cimg%20src=x%20onerror=alert(1)%3E",
        ],
    )
    def test_what_an_address_makes_up_is_left_out(self, opened: Open, words: str) -> None:
        page = opened(at=f"#{words}")
        if "methods" not in words:
            assert column(page, "method") == IN_ORDER
            assert len(labels(page)) == len(ROWS) - 1
        assert page.locator("th[aria-sort]").count() == 0
        assert page.locator("#cost").input_value() == "gmacs_video_inference"
        assert page.locator("#groups input:checked").count() == 3

    def test_words_of_an_address_are_text(self, opened: Open) -> None:
        page = opened(at="#methods=%3Cimg%20src%3Dx%20onerror%3D%27window.pwned%3D1%27%3E")
        assert page.locator("#filter").input_value() == "<img src=x onerror='window.pwned=1'>"
        assert page.evaluate("window.pwned") is None


class TestLatex:
    def test_a_row_and_the_rows_shown_go_to_the_clipboard(self, opened: Open, main: Table) -> None:
        page = opened(permissions=["clipboard-read", "clipboard-write"])
        lines = latex_rows(main)
        assert set(lines) <= set(fragment(main).splitlines())
        page.locator("#row-main-3 .copy").click()
        page.wait_for_selector(".done")
        assert page.evaluate("navigator.clipboard.readText()") == lines[4]
        assert lines[4] == r"tempme & \textbf{46} & 34.8 & about tem \\"
        write_filter(page, "tome, x<")
        page.locator("#table-main thead .copy").click()
        page.wait_for_function("document.querySelector('#status').textContent.includes('rows shown.')")
        assert page.evaluate("navigator.clipboard.readText()").split("\n") == [lines[0], lines[5], lines[6]]

    def test_without_a_clipboard_the_reader_copies_and_escape_leads_back(self, opened: Open, main: Table) -> None:
        page = opened()
        page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
        button = page.locator("#row-main-5 .copy")
        button.focus()
        page.keyboard.press("Enter")
        text = page.locator("#copy-text")
        assert text.input_value() == latex_rows(main)[6]
        assert text.evaluate("text => text.selectionEnd - text.selectionStart") == len(latex_rows(main)[6])
        page.keyboard.press("Escape")
        assert not page.locator("#copy-by-hand").is_visible()
        assert button.evaluate("button => button === document.activeElement")
        button.click()
        page.locator("#copy-close").click()
        assert not page.locator("#copy-by-hand").is_visible()

    def test_only_grouped_tables_offer_it(self, opened: Open) -> None:
        page = opened()
        assert page.locator("#table-main tbody .copy").count() == len(ROWS) + 1
        assert page.locator("#table-further .copy").count() == 0

    def test_the_address_of_a_view_is_copied(self, opened: Open) -> None:
        page = opened(permissions=["clipboard-read", "clipboard-write"])
        write_filter(page, "tome")
        page.locator("#link").click()
        page.wait_for_selector("#link.done")
        assert page.evaluate("navigator.clipboard.readText()") == page.url


class TestReaders:
    def test_first_sections_come_first(self, opened: Open) -> None:
        assert opened().locator("h2").all_inner_texts() == ["Results", "Picture", "Further"]

    def test_what_a_finger_presses_is_large_enough_on_a_phone(self, opened: Open) -> None:
        page = opened(390, 844, has_touch=True)
        pressed = (
            "#tools .check, #tools button, #filter, .controls select, .controls .check, thead th button, .copy, summary"
        )
        for element in page.locator(pressed).all():
            if element.is_visible():
                assert element.bounding_box()["height"] >= 40
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        region = page.locator(".scroll").first
        region.evaluate("region => region.scrollLeft = 200")
        names = page.locator("#row-main-3 th, #table-main tr.group span")
        assert all(box["x"] < 30 for box in (name.bounding_box() for name in names.all()))

    def test_everything_is_reached_by_keyboard_and_shows_its_focus(self, opened: Open) -> None:
        page = opened()
        seen = []
        for _ in range(60):
            page.keyboard.press("Tab")
            seen.append(
                page.evaluate(
                    "(() => { const e = document.activeElement, s = getComputedStyle(e);"
                    " return [e.id || e.getAttribute('class') || e.tagName, s.outlineStyle]; })()"
                )
            )
            if seen[-1][0] == "BODY":
                break
        names = [name for name, _ in seen]
        assert {"filter", "across", "link", "reset", "scroll", "copy", "accuracy", "cost", "log", "SUMMARY"} <= set(
            names
        )
        assert all(style != "none" for name, style in seen if name in {"filter", "across", "link", "copy", "cost"})

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_the_tools_stand_out(self, opened: Open, scheme: Any) -> None:
        page = opened(color_scheme=scheme)
        paper = color_of(page, "#tools", "backgroundColor")
        for selector in ("#tools .check", "#tools legend", "#link"):
            assert contrast(color_of(page, selector, "color"), paper) >= 4.5
        assert contrast(color_of(page, ".copy", "color"), color_of(page, "body", "backgroundColor")) >= 4.5
        assert contrast(color_of(page, "tr.group th", "color"), color_of(page, "body", "backgroundColor")) >= 4.5

    def test_every_control_has_a_name_and_every_id_is_there_once(self, opened: Open) -> None:
        page = opened()
        unnamed = page.locator("button, select, input, textarea").evaluate_all(
            "all => all.filter(e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)"
        )
        ids = page.locator("[id]").evaluate_all("all => all.map(e => e.id)")
        assert unnamed == []
        assert len(ids) == len(set(ids))

    def test_paper_has_no_tools_and_shows_folded_tables(self, opened: Open) -> None:
        page = opened()
        page.emulate_media(media="print")
        for selector in ("#tools", ".controls", "nav", ".copy >> nth=0"):
            assert not page.locator(selector).is_visible()
        assert page.locator("#table-further").bounding_box()["height"] > 50

    def test_without_script_tables_stand_in_order_and_nothing_waits_for_a_script(self, opened: Open) -> None:
        page = opened(java_script_enabled=False)
        assert column(page, "method") == IN_ORDER
        assert titles(page) == [REFERENCE, TUNING, REDUCTION]
        assert not page.locator("#tools").is_visible()
        assert page.locator("main button:visible, main input:visible, main select:visible").count() == 0
