"""Tables in LaTeX (booktabs): one fragment per table to put into a paper, and one document with all of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from tvrbench.harness.reporting.tables.markdown import brief, one_line
from tvrbench.harness.reporting.tables.table import Cell, Column, Table

_WIDE_CELL = 34  # characters from which a column of words is set as paragraphs
_PARAGRAPH = "4.6cm"
_LINE = 28  # characters per line of a paragraph
_LONG_WORD = 24  # characters after which a word without a space may break
_LONG_TABLE = 40  # lines from which a table may break over pages
_CAPTION = 3000  # characters; TeX measures a caption as one line, whose length is limited
_NOT_IN_T1 = "ĦħĸĿŀŉŦŧ"
_NAMED = {
    "\\": "textbackslash",
    "^": "textasciicircum",
    "~": "textasciitilde",
    "<": "textless",
    ">": "textgreater",
    "|": "textbar",
    '"': "textquotedbl",
    "'": "textquotesingle",
    "`": "textasciigrave",
    "–": "textendash",
    "—": "textemdash",
    "…": "ldots",
    "µ": "textmu",
}
_SPECIAL = {
    **{character: rf"\{name}{{}}" for character, name in _NAMED.items()},
    **{character: rf"\{character}" for character in "{}$&#%_"},
    "-": r"-{}",  # no ligature: two hyphens stay two
    **{character: f"{{{character}}}" for character in "[]*"},  # no length or star after a line break
    "→": r"$\rightarrow$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "⚠": r"\textbf{!}",
}


def latex(value: object) -> str:
    """Escape text so that it shows as it is; a character that the fonts lack shows as its code point."""
    text = unicodedata.normalize("NFC", one_line(value))
    return "".join(_SPECIAL.get(c) or (c if _plain(c) else f"{{[}}U+{ord(c):04X}{{]}}") for c in text)


def fragment(table: Table) -> str:
    """Return a table to include; its first line names the packages. Columns of links are left out.

    A wide table shrinks to the text's width; a long one continues over pages.
    """
    kept = [i for i, _ in enumerate(table.columns) if not any(row[i].links for row in table.rows)]
    kinds = "".join(_kind(table.columns[i], [row[i] for row in table.rows]) for i in kept)
    head = " & ".join(latex(table.columns[i].header) for i in kept) + r" \\"
    rows = "\n".join(" & ".join(_cell(row[i]) for i in kept) + r" \\" for row in table.rows)
    text = brief(" ".join([table.caption, *("".join(map(str, note)) for note in table.notes)]), _CAPTION)
    caption = rf"\caption{{\textbf{{{latex(table.title)}.}} {_text(text)}}}"
    if _lines(table, kept) >= _LONG_TABLE:
        return (
            "% needs array, booktabs, longtable, and T1 fonts (fontenc, textcomp)\n"
            f"\\begingroup\\scriptsize\\setlength{{\\LTcapwidth}}{{\\textwidth}}\n\\begin{{longtable}}{{{kinds}}}\n"
            f"{caption}\\label{{tab:{table.name}}}\\\\\n"
            f"\\toprule\n{head}\n\\midrule\n\\endhead\n\\bottomrule\n\\endfoot\n{rows}\n"
            "\\end{longtable}\n\\endgroup\n"
        )
    return (
        "% needs array, booktabs, graphicx, and T1 fonts (fontenc, textcomp)\n"
        f"\\begin{{table*}}[tp]\n\\centering\\footnotesize\n{caption}\n\\label{{tab:{table.name}}}\n"
        f"\\sbox0{{\\begin{{tabular}}{{{kinds}}}\n\\toprule\n{head}\n\\midrule\n{rows}\n\\bottomrule\n"
        "\\end{tabular}}\n"
        "\\ifdim\\wd0>\\textwidth\\resizebox{\\textwidth}{!}{\\usebox0}\\else\\usebox0\\fi\n\\end{table*}\n"
    )


def document(tables: Iterable[Table]) -> str:
    """Return a document of all fragments in its folder, for ``pdflatex tables.tex``."""
    inputs = "\n".join(rf"\input{{{table.name}.tex}}" + "\n" + r"\clearpage" for table in tables)
    return (
        "\\documentclass{article}\n"
        "\\usepackage[T1]{fontenc}\n\\usepackage[utf8]{inputenc}\n\\usepackage{lmodern,textcomp}\n"
        "\\usepackage[paperwidth=42cm,paperheight=29.7cm,margin=1.5cm]{geometry}\n"
        "\\usepackage{array,booktabs,graphicx,longtable}\n\\pagestyle{empty}\n"
        f"\\begin{{document}}\n{inputs}\n\\end{{document}}\n"
    )


def _lines(table: Table, kept: list[int]) -> int:
    """Estimate the table's number of lines."""
    return sum(max((-(-len(row[i].text) // _LINE) for i in kept), default=1) for row in table.rows)


def _kind(column: Column, cells: list[Cell]) -> str:
    if not column.left:
        return "r"
    wide = max((len(cell.text) for cell in cells), default=0) > _WIDE_CELL
    return rf">{{\raggedright\arraybackslash}}p{{{_PARAGRAPH}}}" if wide else "l"


def _cell(cell: Cell) -> str:
    text = _text(cell.text)
    return rf"\textbf{{{text}}}" if cell.bold else text


def _text(value: str) -> str:
    """Escape words, each broken where it is too long for a line."""
    return " ".join(_breakable(word) for word in one_line(value).split(" "))


def _breakable(word: str) -> str:
    """Escape a word; one as long as a hash may break."""
    parts = [word[i : i + _LONG_WORD] for i in range(0, len(word), _LONG_WORD)]
    return r"\allowbreak{}".join(latex(part) for part in parts)


def _plain(character: str) -> bool:
    """Return True for printable ASCII and the Latin letters of T1 fonts."""
    latin = "\u00c0" <= character <= "\u017e" and character.isalpha()
    return " " <= character <= "~" or (latin and character not in _NOT_IN_T1)
