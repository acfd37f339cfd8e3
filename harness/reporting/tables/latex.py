"""Tables in LaTeX (booktabs): one fragment per table to put into a paper, and one document with all of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from textwrap import wrap

from tvrbench.harness.reporting.tables.markdown import brief, one_line
from tvrbench.harness.reporting.tables.table import Cell, Column, Table

_WIDE_CELL = 34  # characters from which a column of words is set as paragraphs
_LINE = 28  # characters per line of a paragraph
_LONG_WORD = 24  # characters after which a word without a space may break
_LONG_TABLE = 50  # lines from which a table may break over pages, which it cannot in two columns
_CAPTION = 3000  # characters; TeX measures a caption as one line, whose length is limited
_HEAD = 6  # characters per line of a header
_PARAGRAPH = r">{\raggedright\arraybackslash}p{4.6cm}"
_FLOATING = r"""%% needs array, booktabs, graphicx, and T1 fonts (fontenc, textcomp)
\begin{table*}[tp]
\centering\footnotesize\setlength{\tabcolsep}{2.5pt}
%(caption)s
\label{%(label)s}\par\smallskip
\sbox0{\begin{tabular}{@{}%(kinds)s@{}}
\toprule
%(head)s
\midrule
%(rows)s
\bottomrule
\end{tabular}}
\ifdim\wd0>\textwidth\resizebox{\textwidth}{!}{\usebox0}\else\usebox0\fi\par\smallskip
\begin{minipage}{\textwidth}\scriptsize
%(notes)s\end{minipage}
\end{table*}
"""
_LONG = r"""%% needs array, booktabs, longtable, and T1 fonts (fontenc, textcomp)
\begingroup\scriptsize\setlength{\tabcolsep}{2.5pt}\setlength{\LTcapwidth}{\textwidth}
\begin{longtable}{@{}%(kinds)s@{}}
%(caption)s\label{%(label)s}\\
\toprule
%(head)s
\midrule
\endfirsthead
\toprule
%(head)s
\midrule
\endhead
\bottomrule
\endfoot
%(rows)s
\end{longtable}
%(notes)s\endgroup
"""
_DOCUMENT = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{lmodern,textcomp}
\usepackage[paperwidth=42cm,paperheight=29.7cm,margin=1.5cm]{geometry}
\usepackage{array,booktabs,graphicx,longtable}
\pagestyle{empty}\setlength{\parindent}{0pt}
\begin{document}
%s\end{document}
"""
_NOT_IN_T1 = "ĦħĸĿŀŉŦŧ"
_SIGNS = {"\\": "backslash", "^": "asciicircum", "~": "asciitilde", "<": "less", ">": "greater", "|": "bar"}
_MARKS = {'"': "quotedbl", "'": "quotesingle", "`": "asciigrave", "–": "endash", "—": "emdash", "µ": "mu"}
_MARKS |= {"“": "quotedblleft", "”": "quotedblright", "‘": "quoteleft", "’": "quoteright"}
_MATH = {"→": "rightarrow", "≥": "geq", "≤": "leq", "±": "pm", "×": "times", "†": "dagger", "‡": "ddagger"}
_MATH |= {"↑": "uparrow", "↓": "downarrow", "Δ": "Delta"}
_SPECIAL = {
    **{character: rf"\text{name}{{}}" for character, name in (_SIGNS | _MARKS).items()},
    **{character: rf"$\{name}$" for character, name in _MATH.items()},
    **{character: rf"\{character}" for character in "{}$&#%_"},
    **{character: f"{{{character}}}" for character in "[]*"},  # no length or star after a line break
    "−": "$-$",
    "…": r"\ldots{}",
    "⚠": r"\textbf{!}",
}


def latex(value: object) -> str:
    """Escape text so that it shows as it is; a character that the fonts lack shows as its code point."""

    def plain(character: str) -> bool:  # printable ASCII, and the Latin letters of T1 fonts
        latin = "\u00c0" <= character <= "\u017e" and character.isalpha()
        return " " <= character <= "~" or (latin and character not in _NOT_IN_T1)

    text = unicodedata.normalize("NFC", one_line(value))
    escaped = "".join(_SPECIAL.get(c) or (c if plain(c) else f"{{[}}U+{ord(c):04X}{{]}}") for c in text)
    return escaped.replace("--", "-{}-").replace("--", "-{}-")  # no ligature: two hyphens stay two, three three


def latex_files(tables: Sequence[Table]) -> dict[str, str]:
    """Return a file per table to put into a paper, and ``tables.tex``, which shows them all, by name."""
    document = _DOCUMENT % "".join(rf"\input{{{table.anchor}.tex}}\clearpage" + "\n" for table in tables)
    return {f"tex/{table.anchor}.tex": fragment(table) for table in tables} | {"tex/tables.tex": document}


def fragment(table: Table) -> str:
    """Return a table to include; its first line names the packages. Columns of links are left out.

    A table that is wider than the text even with narrow gaps shrinks to its width; a long one continues over pages.
    """
    table = table.unlinked
    kinds = [_kind(table, i) for i, _ in enumerate(table.columns)]
    head = " & ".join(map(_head, table.columns, kinds)) + r" \\"
    lines: list[str] = []
    for title, members in table.grouped:
        rule = r"\midrule " * bool(lines)
        lines += [rf"{rule}\multicolumn{{{len(kinds)}}}{{@{{}}l}}{{\textit{{{latex(title)}}}}} \\"] * bool(title)
        lines += [_row(row) for _, row in members]
    is_long = sum(max((-(-len(cell.text) // _LINE) for cell in row), default=1) for row in table.rows) >= _LONG_TABLE
    return (_LONG if is_long else _FLOATING) % {
        "caption": rf"\caption{{\textbf{{{latex(table.title)}.}} {_text(brief(table.caption, _CAPTION))}}}",
        "label": f"tab:{table.anchor}",
        "kinds": "".join(kinds),
        "head": head,
        "rows": "\n".join(lines),
        "notes": "".join(f"{_text(note)}\\par\n" for note in table.notes),
    }


def _kind(table: Table, index: int) -> str:
    if not table.columns[index].left:
        return "r"
    return _PARAGRAPH if any(len(row[index].text) > _WIDE_CELL for row in table.rows) else "l"


def _head(column: Column, kind: str) -> str:
    """Return a header in as many lines as its words need in a narrow column."""
    lines = wrap(one_line(column.header), _HEAD, break_long_words=False, break_on_hyphens=False)
    if kind == _PARAGRAPH or len(lines) < 2:
        return latex(column.header)
    stacked = r"\\".join(map(latex, lines))
    return rf"\shortstack[{kind}]{{{stacked}}}"


def latex_rows(table: Table) -> list[str]:
    """Return each row as the line that a table in LaTeX has for it; columns of links are left out."""
    return [_row(row) for row in table.unlinked.rows]


def _row(cells: Sequence[Cell]) -> str:
    return " & ".join(map(_cell, cells)) + r" \\"


def _cell(cell: Cell) -> str:
    return rf"\textbf{{{_text(cell.text)}}}" if cell.bold else _text(cell.text)


def _text(value: str) -> str:
    """Escape words; one as long as a hash may break."""
    words = one_line(value).split(" ")
    parts = ([word[i : i + _LONG_WORD] for i in range(0, len(word), _LONG_WORD)] for word in words)
    return " ".join(r"\allowbreak{}".join(map(latex, word)) for word in parts)
