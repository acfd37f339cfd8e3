"""LaTeX tables: nothing a record holds can break them, and a real engine takes them where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvrbench.harness.reporting.tables.latex import fragment, latex, latex_files
from tvrbench.harness.reporting.tables.table import Cell, Column, Table, link_column, make_table, text_column

pytestmark = pytest.mark.unit

HOSTILE = (
    r"100% of $x_1$ \input{/etc/passwd} #1 ^ ~ { } & | <b> \end{document} [x] -- `` '' \\ %(rows)s %s "
    + '"q" é ſ 漢 🙂 →≥–…⚠ a\tb\nc'
)
ENGINES = ("tectonic", "pdflatex")


def table(text: str = "plain", rows: int = 3, groups: int = 1) -> Table:
    columns = (
        text_column("method", text, lambda _: text),
        Column(
            key="r1",
            header="T→V R@1",
            cell=lambda i: Cell(text=f"{10 + i:.1f}", value=10.0 + i, rankable=True, note=f"{text} {i % 2}"),
            better="max",
        ),
        link_column("records", "records", lambda _: [("seed 0", "../x.json")]),
    )
    per_group = -(-rows // groups)
    return make_table(
        "main",
        text[:150],
        [text[:400]],
        columns,
        range(rows),
        best=True,
        group=lambda i: f"{text[:60]} {i // per_group}" if groups > 1 else "",
    )


KNOWN = re.compile(
    r"\\(textbackslash|textasciicircum|textasciitilde|textless|textgreater|textbar|textquotedbl|textquotesingle"
    r"|textasciigrave|textendash|textemdash|textquotedblleft|textquotedblright|textquoteleft|textquoteright|ldots|textmu)"
    r"\{\}|\\textbf\{!\}|\$\\(rightarrow|geq|leq|pm|times|dagger|ddagger|uparrow|downarrow|Delta)\$|\$-\$|\\[{}$&#%_]"
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
    assert [latex(text) for text in ("a-b", "a--b", "a---b")] == ["a-b", "a-{}-b", "a-{}-{}-b"]  # no ligature


def test_booktabs_without_columns_of_links_and_with_the_best_in_bold() -> None:
    made = fragment(table())
    assert [rule in made for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\hline")] == [True, True, True, False]
    assert "records" not in made
    assert made.count(r"\textbf{12.0 (1)}") == 1
    assert r"\shortstack[r]{T$\rightarrow$V\\R@1}" in made


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=80) | st.just(HOSTILE), st.sampled_from([1, 3, 70]), st.sampled_from([1, 3]))
def test_every_fragment_is_well_formed(text: str, rows: int, groups: int) -> None:
    assert_well_formed(fragment(table(text, rows, groups)), columns=2)


def assert_well_formed(made: str, columns: int) -> None:
    """Check that environments and braces are closed in order, and that every row has all columns."""
    open_environments: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+\*?)\}", made):
        if kind == "begin":
            open_environments.append(name)
        else:
            assert open_environments.pop() == name
    assert not open_environments
    braces = re.findall(r"[{}]", re.sub(r"\\[\\{}]", "", made))
    depth = [sum(1 if b == "{" else -1 for b in braces[: i + 1]) for i in range(len(braces))]
    assert min(depth) == depth[-1] == 0
    body = made[made.index(r"\toprule") : made.rindex(r"\bottomrule") if "sbox0" in made else made.index("\\end{lon")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    for row in rows:
        spanned = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", row))
        assert len(re.findall(r"(?<!\\)&", row)) + 1 + spanned == columns


def test_groups_have_a_line_of_their_own() -> None:
    made = fragment(table(groups=3))
    titles = re.findall(r"\\multicolumn\{2\}\{@\{\}l\}\{\\textit\{(.*?)\}\} \\\\", made)
    assert titles == ["plain 0", "plain 1", "plain 2"]


def test_a_long_table_goes_on_over_pages() -> None:
    assert r"\begin{longtable}" in fragment(table(rows=60))
    assert r"\begin{tabular}" in fragment(table(rows=6))


def test_the_document_has_every_table() -> None:
    files = latex_files([table()])
    assert list(files) == ["tex/main.tex", "tex/tables.tex"]
    assert r"\input{main.tex}" in files["tex/tables.tex"]


def compiled(folder: Path, document: str) -> str:
    """Compile a document twice, and return what the engine said."""
    engine = next((name for name in ENGINES if shutil.which(name)), None)
    if engine is None:
        pytest.skip(f"no LaTeX engine here: {' or '.join(ENGINES)}")
    (folder / "paper.tex").write_text(document, encoding="utf-8")
    options = ["-interaction=nonstopmode", "-halt-on-error"] if engine == "pdflatex" else []
    command = [engine, *options, "paper.tex"]
    for _ in range(2):  # the second time with the labels of the first
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
        assert run.returncode == 0, run.stdout[-2000:]
    assert (folder / "paper.pdf").stat().st_size > 5000
    return run.stdout


@pytest.mark.parametrize(("rows", "groups"), [(3, 1), (6, 3), (60, 1), (60, 4)])
def test_a_real_engine_compiles_hostile_text(tmp_path: Path, rows: int, groups: int) -> None:
    files = latex_files([table(f"{HOSTILE} {LETTERS}", rows, groups)])
    (tmp_path / "main.tex").write_text(files["tex/main.tex"], encoding="utf-8")
    said = compiled(tmp_path, files["tex/tables.tex"])
    assert "multiply defined" not in said


def test_twelve_columns_fit_an_article_in_two_columns_without_shrinking(tmp_path: Path) -> None:
    heads = ["Params (M)", "GFLOPs†", "Speed-up", "Memory (GB)", "T→V R@1", "T→V R@5", "T→V R@10", "T→V MnR"]
    heads += ["V→T R@1", "V→T R@10", "Sig."]
    wide = text_column("r1", "T→V R@1", lambda _: "51.3 ± 0.4", left=False)
    numbers = [text_column(h, h, lambda _: "100.0", left=False) for h in heads]
    columns = [text_column("method", "Method", lambda _: "vop (variant=F+C)"), *numbers[:4], wide, *numbers[5:]]
    made = fragment(make_table("main", "Retrieval and cost", ["A. B."], columns, range(20)))
    measured = made.replace(r"\ifdim", r"\immediate\write16{WIDTH \the\wd0, \the\textwidth}\ifdim")
    (tmp_path / "main.tex").write_text(measured, encoding="utf-8")
    packages = "".join(rf"\usepackage{{{p}}}" for p in ("array,booktabs,graphicx,lmodern,textcomp", "longtable"))
    said = compiled(
        tmp_path,
        rf"\documentclass[twocolumn]{{article}}\usepackage[T1]{{fontenc}}\usepackage[utf8]{{inputenc}}{packages}"
        "\n" + r"\begin{document}\input{main.tex}x\end{document}",
    )
    width, of = re.search(r"WIDTH ([\d.]+)pt, ([\d.]+)pt", said).groups()  # type: ignore[union-attr]
    assert 100 < float(width) <= float(of)
