"""LaTeX tables: nothing a record holds can break them, and a real engine takes them where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvrbench.harness.reporting.tables.latex import document, fragment, latex
from tvrbench.harness.reporting.tables.table import Cell, Column, Table, link_column, make_table, text_column

pytestmark = pytest.mark.unit

HOSTILE = (
    r"100% of $x_1$ \input{/etc/passwd} #1 ^ ~ { } & | <b> \end{document} [x] -- `` '' \\ "
    + '"q" é ſ 漢 🙂 →≥–…⚠ a\tb\nc'
)
ENGINES = ("tectonic", "pdflatex")


def table(text: str = "plain", rows: int = 3) -> Table:
    columns = (
        text_column("method", text, lambda _: text),
        Column(
            key="r1",
            header="T→V R@1",
            cell=lambda i: Cell(text=f"{10 + i:.1f}", value=10.0 + i, rankable=True),
            better="max",
        ),
        link_column("records", "records", lambda _: [("seed 0", "../x.json")]),
    )
    return make_table("main", text[:150], text[:400], columns, range(rows), best=True)


KNOWN = re.compile(
    r"\\(textbackslash|textasciicircum|textasciitilde|textless|textgreater|textbar|textquotedbl|textquotesingle"
    r"|textasciigrave|textendash|textemdash|ldots|textmu)\{\}"
    r"|\\textbf\{!\}|\$\\(rightarrow|geq|leq|pm|times)\$|\\[{}$&#%_]"
)
LETTERS = "".join(chr(code) for code in range(0xC0, 0x250))


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_no_text_leaves_anything_that_latex_would_act_on(text: str) -> None:
    left = KNOWN.sub("", latex(text))
    assert not re.search(r"[\\$&#%_^~<>|\"'`]", left)
    assert left.count("{") == left.count("}")
    assert all(" " <= c <= "~" or "\u00c0" <= c <= "\u017f" for c in left)


def test_what_the_fonts_lack_shows_as_its_code_point() -> None:
    assert latex("漢 é") == "{[}U+6F22{]} é"
    assert latex("a--b") == "a-{}-{}b"


def test_booktabs_without_columns_of_links_and_with_the_best_in_bold() -> None:
    made = fragment(table())
    assert [rule in made for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\hline")] == [True, True, True, False]
    assert "records" not in made
    assert made.count(r"\textbf{12.0}") == 1
    body = made[made.index(r"\midrule") : made.index(r"\bottomrule")]
    assert all(line.count("&") == 1 and line.endswith(r"\\") for line in body.splitlines()[1:])
    assert r"t$\rightarrow$v R@1" in made


def test_a_long_table_goes_on_over_pages() -> None:
    assert r"\begin{longtable}" in fragment(table(rows=60))
    assert r"\begin{tabular}" in fragment(table(rows=6))


@pytest.mark.skipif(not any(map(shutil.which, ENGINES)), reason=f"no LaTeX engine here: {' or '.join(ENGINES)}")
@pytest.mark.parametrize("rows", [3, 60])
def test_a_real_engine_compiles_hostile_text(tmp_path: Path, rows: int) -> None:
    made = table(f"{HOSTILE} {LETTERS}", rows)
    (tmp_path / "main.tex").write_text(fragment(made), encoding="utf-8")
    (tmp_path / "tables.tex").write_text(document([made]), encoding="utf-8")
    engine = next(name for name in ENGINES if shutil.which(name))
    options = ["-interaction=nonstopmode", "-halt-on-error"] if engine == "pdflatex" else []
    run = subprocess.run(
        [engine, *options, "tables.tex"], cwd=tmp_path, capture_output=True, text=True, errors="replace"
    )
    assert run.returncode == 0, run.stdout[-2000:]
    assert (tmp_path / "tables.pdf").stat().st_size > 5000
