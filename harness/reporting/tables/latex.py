"""Tables in LaTeX (booktabs): one fragment per table to put into a paper, and one document with all of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from tvrbench.harness.reporting.tables.markdown import brief, one_line
from tvrbench.harness.reporting.tables.table import Cell, Table

_WIDE_CELL = 34  # characters from which a column of words is set as paragraphs
_LINE = 28  # characters per line of a paragraph
_LONG_WORD = 24  # characters after which a word without a space may break
_LONG_TABLE = 40  # lines from which a table may break over pages
_CAPTION = 3000  # characters; TeX measures a caption as one line, whose length is limited
_NOT_IN_T1 = "ĦħĸĿŀŉŦŧ"
_SIGNS = {"\\": "backslash", "^": "asciicircum", "~": "asciitilde", "<": "less", ">": "greater", "|": "bar"}
_MARKS = {'"': "quotedbl", "'": "quotesingle", "`": "asciigrave", "–": "endash", "—": "emdash", "µ": "mu"}
_MATH = {"→": "rightarrow", "≥": "geq", "≤": "leq", "±": "pm", "×": "times"}
_SPECIAL = {
    **{character: rf"\text{name}{{}}" for character, name in (_SIGNS | _MARKS).items()},
    **{character: rf"$\{name}$" for character, name in _MATH.items()},
    **{character: rf"\{character}" for character in "{}$&#%_"},
    **{character: f"{{{character}}}" for character in "[]*"},  # no length or star after a line break
    "-": r"-{}",  # no ligature: two hyphens stay two
    "…": r"\ldots{}",
    "⚠": r"\textbf{!}",
}


def latex(value: object) -> str:
    """Escape text so that it shows as it is; a character that the fonts lack shows as its code point."""

    def plain(character: str) -> bool:  # printable ASCII, and the Latin letters of T1 fonts
        latin = "\u00c0" <= character <= "\u017e" and character.isalpha()
        return " " <= character <= "~" or (latin and character not in _NOT_IN_T1)

    text = unicodedata.normalize("NFC", one_line(value))
    return "".join(_SPECIAL.get(c) or (c if plain(c) else f"{{[}}U+{ord(c):04X}{{]}}") for c in text)


def fragment(table: Table) -> str:
    """Return a table to include; its first line names the packages. Columns of links are left out.

    A wide table shrinks to the text's width; a long one continues over pages.
    """

    def kind(index: int) -> str:
        if not table.columns[index].left:
            return "r"
        wide = any(len(row[index].text) > _WIDE_CELL for row in table.rows)
        return r">{\raggedright\arraybackslash}p{4.6cm}" if wide else "l"

    kept = [i for i, _ in enumerate(table.columns) if not any(row[i].links for row in table.rows)]
    kinds = "".join(map(kind, kept))
    head = " & ".join(latex(table.columns[i].header) for i in kept) + r" \\"
    lines_of_rows: list[str] = []
    for title, members in table.grouped:
        rule = r"\midrule " * bool(lines_of_rows)
        lines_of_rows += [rf"{rule}\multicolumn{{{len(kept)}}}{{l}}{{\textit{{{latex(title)}}}}} \\"] * bool(title)
        lines_of_rows += [" & ".join(_cell(row[i]) for i in kept) + r" \\" for _, row in members]
    rows = "\n".join(lines_of_rows)
    text = brief(" ".join([table.caption, *("".join(map(str, note)) for note in table.notes)]), _CAPTION)
    caption = rf"\caption{{\textbf{{{latex(table.title)}.}} {_text(text)}}}"
    lines = sum(max((-(-len(row[i].text) // _LINE) for i in kept), default=1) for row in table.rows)
    if lines >= _LONG_TABLE:
        return (
            "% needs array, booktabs, longtable, and T1 fonts (fontenc, textcomp)\n"
            f"\\begingroup\\scriptsize\\setlength{{\\LTcapwidth}}{{\\textwidth}}\n\\begin{{longtable}}{{{kinds}}}\n"
            f"{caption}\\label{{tab:{table.anchor}}}\\\\\n"
            f"\\toprule\n{head}\n\\midrule\n\\endhead\n\\bottomrule\n\\endfoot\n{rows}\n"
            "\\end{longtable}\n\\endgroup\n"
        )
    return (
        "% needs array, booktabs, graphicx, and T1 fonts (fontenc, textcomp)\n"
        f"\\begin{{table*}}[tp]\n\\centering\\footnotesize\n{caption}\n\\label{{tab:{table.anchor}}}\n"
        f"\\sbox0{{\\begin{{tabular}}{{{kinds}}}\n\\toprule\n{head}\n\\midrule\n{rows}\n\\bottomrule\n"
        "\\end{tabular}}\n"
        "\\ifdim\\wd0>\\textwidth\\resizebox{\\textwidth}{!}{\\usebox0}\\else\\usebox0\\fi\n\\end{table*}\n"
    )


def document(tables: Iterable[Table]) -> str:
    """Return a document of all fragments in its folder, for ``pdflatex tables.tex``."""
    inputs = "\n".join(rf"\input{{{table.anchor}.tex}}" + "\n" + r"\clearpage" for table in tables)
    return (
        "\\documentclass{article}\n"
        "\\usepackage[T1]{fontenc}\n\\usepackage[utf8]{inputenc}\n\\usepackage{lmodern,textcomp}\n"
        "\\usepackage[paperwidth=42cm,paperheight=29.7cm,margin=1.5cm]{geometry}\n"
        "\\usepackage{array,booktabs,graphicx,longtable}\n\\pagestyle{empty}\n"
        f"\\begin{{document}}\n{inputs}\n\\end{{document}}\n"
    )


def latex_rows(table: Table) -> list[str]:
    """Return each row as the line that a table in LaTeX has for it; columns of links are left out."""
    kept = [i for i, _ in enumerate(table.columns) if not any(row[i].links for row in table.rows)]
    return [" & ".join(_cell(row[i]) for i in kept) + r" \\" for row in table.rows]


def _cell(cell: Cell) -> str:
    return rf"\textbf{{{_text(cell.text)}}}" if cell.bold else _text(cell.text)


def _text(value: str) -> str:
    """Escape words; one as long as a hash may break."""
    words = one_line(value).split(" ")
    parts = ([word[i : i + _LONG_WORD] for i in range(0, len(word), _LONG_WORD)] for word in words)
    return " ".join(r"\allowbreak{}".join(map(latex, word)) for word in parts)
