"""Tables as LaTeX (booktabs): one fragment a table to put into a paper, and one document that holds them all."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from tvrbench.harness.reporting.tables.markdown import brief, one_line
from tvrbench.harness.reporting.tables.table import Cell, Column, Table

_WIDE_CELL = 34  # characters from which a column of words is set as paragraphs
_PARAGRAPH = "4.6cm"
_LINE = 28  # characters on a line of a paragraph
_LONG_WORD = 24  # characters after which a word without a space may break
_LONG_TABLE = 40  # lines from which a table may break over pages
_CAPTION = 3000  # characters; TeX measures a caption as one line, which must not be metres long
_NOT_IN_T1 = "ĦħĸĿŀŉŦŧ"
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    "-": r"-{}",  # no ligature: two hyphens stay two
    "[": r"{[}",  # after a line break a bracket would be read as a length
    "]": r"{]}",
    "*": r"{*}",
    "→": r"$\rightarrow$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "…": r"\ldots{}",
    "⚠": r"\textbf{!}",
    "µ": r"\textmu{}",
}


def latex(value: object) -> str:
    """Text that shows as it is, whatever it holds; what the fonts lack shows as its code point."""
    text = unicodedata.normalize("NFC", one_line(value))
    return "".join(_SPECIAL.get(c) or (c if _plain(c) else f"{{[}}U+{ord(c):04X}{{]}}") for c in text)


def fragment(table: Table) -> str:
    """A table to include; its first line says which packages it needs. Columns of links are left out."""
    kept = [i for i, _ in enumerate(table.columns) if not any(row[i].links for row in table.rows)]
    kinds = [_kind(table.columns[i], [row[i] for row in table.rows]) for i in kept]
    head = " & ".join(latex(table.columns[i].header) for i in kept)
    body = [" & ".join(_cell(row[i]) for i in kept) + r" \\" for row in table.rows]
    caption = rf"\textbf{{{latex(table.title)}.}} {_text(brief(table.caption, _CAPTION))}"
    make = _breaking if _lines(table, kept) >= _LONG_TABLE else _floating
    return make(table.name, caption, "".join(kinds), head, body)


def document(tables: Iterable[Table]) -> str:
    """A document of all fragments that lie beside it, for ``pdflatex tables.tex``."""
    inputs = "\n".join(rf"\input{{{table.name}.tex}}" + "\n" + r"\clearpage" for table in tables)
    return (
        "\\documentclass{article}\n"
        "\\usepackage[T1]{fontenc}\n\\usepackage[utf8]{inputenc}\n\\usepackage{lmodern,textcomp}\n"
        "\\usepackage[paperwidth=42cm,paperheight=29.7cm,margin=1.5cm]{geometry}\n"
        "\\usepackage{array,booktabs,graphicx,longtable}\n\\pagestyle{empty}\n"
        f"\\begin{{document}}\n{inputs}\n\\end{{document}}\n"
    )


def _floating(name: str, caption: str, kinds: str, head: str, body: list[str]) -> str:
    """A float, made smaller where it is wider than the text."""
    rows = "\n".join(body)
    return (
        "% needs array, booktabs, graphicx, and T1 fonts (fontenc, textcomp)\n"
        f"\\begin{{table*}}[tp]\n\\centering\\footnotesize\n\\caption{{{caption}}}\n\\label{{tab:{name}}}\n"
        f"\\sbox0{{\\begin{{tabular}}{{{kinds}}}\n\\toprule\n{head} \\\\\n\\midrule\n{rows}\n\\bottomrule\n"
        "\\end{tabular}}\n"
        "\\ifdim\\wd0>\\textwidth\\resizebox{\\textwidth}{!}{\\usebox0}\\else\\usebox0\\fi\n\\end{table*}\n"
    )


def _breaking(name: str, caption: str, kinds: str, head: str, body: list[str]) -> str:
    """A table that goes on over pages; for one column of text."""
    rows = "\n".join(body)
    return (
        "% needs array, booktabs, longtable, and T1 fonts (fontenc, textcomp)\n"
        f"\\begingroup\\scriptsize\\setlength{{\\LTcapwidth}}{{\\textwidth}}\n\\begin{{longtable}}{{{kinds}}}\n\\caption{{{caption}}}\\label{{tab:{name}}}\\\\\n"
        f"\\toprule\n{head} \\\\\n\\midrule\n\\endhead\n\\bottomrule\n\\endfoot\n{rows}\n"
        "\\end{longtable}\n\\endgroup\n"
    )


def _lines(table: Table, kept: list[int]) -> int:
    """About how many lines the table has."""
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
    """Words that fit into a line of paragraphs and captions."""
    return " ".join(_breakable(word) for word in one_line(value).split(" "))


def _breakable(word: str) -> str:
    """A word that may break where it is very long, such as a hash."""
    parts = [word[i : i + _LONG_WORD] for i in range(0, len(word), _LONG_WORD)]
    return r"\allowbreak{}".join(latex(part) for part in parts)


def _plain(character: str) -> bool:
    """Printable ASCII, and the Latin letters that T1 fonts hold."""
    latin = "\u00c0" <= character <= "\u017e" and character.isalpha()
    return " " <= character <= "~" or (latin and character not in _NOT_IN_T1)
