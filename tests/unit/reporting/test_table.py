"""The catalogue's metrics, and what a table does with cells: footnotes, bests, remarks, pieces of a line."""

from __future__ import annotations

import csv
from dataclasses import replace
from io import StringIO

import pytest

from tvrbench.harness.records.record import Measurement
from tvrbench.harness.reporting.catalogue import (
    CATALOGUE,
    COUNTS,
    DIRECTIONS,
    EXPECTED_R1,
    MEMORY,
    metric,
    recorded,
    retrieval,
    subset_metric,
)
from tvrbench.harness.reporting.pages import html
from tvrbench.harness.reporting.tables import markdown
from tvrbench.harness.reporting.tables.latex import fragment
from tvrbench.harness.reporting.tables.markdown import Code
from tvrbench.harness.reporting.tables.table import Cell, Column, Table, make_table, missing_cell, text_column

pytestmark = pytest.mark.unit


class TestCatalogue:
    def test_names_are_paths_in_records(self) -> None:
        for direction in DIRECTIONS:
            assert [m.name for m in retrieval(direction)] == [f"{direction}_{m.path[1]}" for m in retrieval(direction)]
        assert all(CATALOGUE[m.name] is not None for m in (EXPECTED_R1, *retrieval("t2v"), *MEMORY))
        assert subset_metric("order-only", "R5").path == ("subsets", "order-only", "t2v", "R5")
        assert subset_metric(None, "R1").path == ("t2v", "R1")

    def test_what_belongs_to_the_model_alone_is_counted(self) -> None:
        assert {"gmacs_video", "output_tokens", "params_trainable"} <= set(COUNTS)
        assert "throughput" not in COUNTS

    def test_values_print_scaled(self) -> None:
        assert metric("params_trainable").text(507_648) == "0.508"
        assert metric("output_tokens").text(2364) == "2,364"

    def test_memory_is_listed_by_meter_and_scenario_and_unknown_names_describe_themselves(self) -> None:
        kinds = (("peak_memory_nvml", "training"), ("peak_memory_nvml", "inference"), ("shared_memory", "training"))
        measured = [Measurement(name, 1.0, "MiB", conditions={"what": what}).to_json() for name, what in kinds]
        measured.append(Measurement("throughput", 1.0, "videos/s").to_json())
        listed = recorded([*measured, measured[0]], "memory")
        assert [(m.name, m.what) for m in listed] == list(kinds)
        assert len({m.key for m in listed}) == 3
        assert all("MiB" in m.label for m in listed)

    def test_an_unknown_name_without_a_unit_is_an_error(self) -> None:
        with pytest.raises(KeyError):
            metric("no_such_metric")


def made(*cells: Cell, better: str | None = "max", **options: object) -> Table:
    column = Column("x", "x", lambda i: cells[i], better=better)  # type: ignore[arg-type]
    label = text_column("row", "row", lambda i: f"row {i}")
    return make_table("t", "Title", ("One.", None, "Two.", "Three."), [label, column], range(len(cells)), **options)


class TestTable:
    def test_each_reason_is_one_footnote_numbered_in_order(self) -> None:
        table = made(missing_cell("no GPU"), missing_cell("no <clock>"), missing_cell("no GPU"), missing_cell(None))
        assert [row[1].text for row in table.rows] == ["– (1)", "– (2)", "– (1)", "–"]
        assert table.footnotes == ("no GPU.", "no <clock>.")
        assert "- (2) no &lt;clock&gt;." in table.to_markdown()
        assert r"no \textless{}clock\textgreater{}" in fragment(table)

    def test_two_sentences_are_the_caption_and_the_rest_are_remarks(self) -> None:
        table = made(Cell(text="1", value=1.0), note="Notice.")
        assert (table.caption, table.remarks) == ("One. Two.", ("Three.",))
        assert table.to_csv() == "row,x,note\nrow 0,1.0,Notice.\n"

    @pytest.mark.parametrize("text", ["=1+1", "+x", "-x", "@x", "\x1b[31m=x", "\u202e=x", "a\nb\x00"])
    def test_no_text_of_a_csv_is_a_formula_or_moves_the_rest(self, text: str) -> None:
        table = made(Cell(text=text, value=text), note=text, group=lambda _: text)
        (row,) = csv.DictReader(StringIO(table.to_csv()))
        for key in ("x", "group", "note"):
            assert row[key].isprintable()
            assert row[key][0] not in "=+-@"

    @pytest.mark.parametrize(("better", "bold"), [("max", ["2.0"]), ("min", ["1.0", "1.0"]), (None, [])])
    def test_the_best_rankable_cells_are_bold(self, better: str | None, bold: list[str]) -> None:
        cells = [Cell(text=f"{v:.1f}", value=v, rankable=True) for v in (1.01, 2.0, 0.99)]
        cells.append(replace(cells[1], text="9.0", value=9.0, rankable=False))
        table = made(*cells, better=better, best=True)
        assert [row[1].text for row in table.rows if row[1].bold] == bold

    def test_what_is_too_much_for_a_page_is_in_the_csv_alone(self) -> None:
        beside = Column("y", "y", lambda i: Cell(text=f"<{i}>", value=i), csv_only=True)
        table = make_table("t", "Title", (), [text_column("row", "row", str), beside], [1, 2])
        assert [column.key for column in table.columns] == ["row"]
        assert "&lt;" not in table.to_markdown()
        assert table.to_csv() == "row,y\n1,1\n2,2\n"

    def test_marks_have_one_footnote_each_and_reasons_are_in_the_csv(self) -> None:
        cells = [Cell(text="1 !", value=1, note="Disturbed."), missing_cell("no GPU"), Cell(text="2", value=2)]
        table = made(*cells, marks={"!": "Excluded.", "–": "Not measured.", "†": "Never seen."})
        assert [row[1].text for row in table.rows] == ["1 !", "–", "2"]
        assert (table.footnotes, table.remarks) == ((), ("Three.", "! Excluded.", "– Not measured."))
        assert table.csv_texts == {"reasons": ["x: Disturbed.", "x: no GPU.", None]}
        ranged = made(Cell(text="1.0 (0.9–1.1)", value=1.0), marks={"–": "Not measured."})
        assert ranged.remarks == ("Three.",)  # the dash of a range is no sign
        short = make_table("t", "Title", ("One.",), [text_column("row", "row †", str)], [1], marks={"†": "Counted."})
        assert (short.caption, short.remarks) == ("One.", ("† Counted.",))  # a sign is never in a caption

    def test_numbers_that_print_alike_share_the_best_whatever_follows_them(self) -> None:
        cells = [
            Cell(text=f"2.0 {spread}", value=value, rankable=True) for spread, value in (("[1, 3]", 2.0), ("‡", 1.96))
        ]
        table = made(*cells, Cell(text="1.0 [0, 4]", value=1.0, rankable=True), best=True)
        assert [row[1].bold for row in table.rows] == [True, True, False]

    def test_chance_is_pinned_in_its_own_group(self) -> None:
        table = made(Cell(text="1", value=1.0), chance="Reference", group=lambda _: "Other")
        assert (table.groups, table.pinned) == (("Reference", "Other"), 1)
        assert made(Cell(text="1", value=1.0), chance="").groups == ()

    def test_the_csv_may_hold_rows_that_the_page_counts(self) -> None:
        table = made(*(Cell(text=str(i), value=i) for i in range(3)), shown=lambda i: i == 0)
        assert table.to_csv() == "row,x\nrow 0,0\nrow 1,1\nrow 2,2\n"
        assert "row 2" not in table.to_markdown()


def test_pieces_of_a_line_are_escaped_for_what_they_are() -> None:
    parts = ("<b> ", Code("a`b"), " made ", ("x|y", "a b.json"), ", ", ("z", None))
    assert markdown.inline(parts) == r"&lt;b&gt; ``a`b`` made [x\|y](a%20b.json), z"
    assert html.inline(parts) == '&lt;b&gt; <code>a`b</code> made <a href="a%20b.json">x|y</a>, z'
    assert "javascript:" not in html.inline([("x", "javascript:alert(1)")])
