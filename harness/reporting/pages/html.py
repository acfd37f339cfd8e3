"""HTML pages: text of others is escaped, and a content security policy lets nothing but the page's own script run.

Text is escaped by jinja2 in HTML and by ``tojson`` in the embedded data. The script writes text and never HTML. The
policy names script and style by their hashes, so the page fetches nothing.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Iterable
from typing import Any

import jinja2
from markupsafe import Markup

from tvrbench.harness.reporting.tables.latex import latex_rows
from tvrbench.harness.reporting.tables.markdown import Code, Inline, environment, one_line, target
from tvrbench.harness.reporting.tables.table import MISSING, Cell, Table

_LEADING_NUMBER = re.compile(r"^[≥<≤~ ]*([-+−]?[\d,]*\.?\d+)")


@functools.cache
def html_templates() -> jinja2.Environment:
    """Return the report's templates, escaped for HTML; control and direction characters become spaces.

    Each is compiled once in a process.
    """
    made = environment(lambda value: value if isinstance(value, Markup) else one_line(value), autoescape=True)
    made.filters |= {"inline": inline, "data_uri": data_uri, "sort_value": sort_value}
    made.tests |= {"missing": is_missing}
    made.globals |= {"is_number": is_number, "latex_rows": latex_rows}
    made.policies["json.dumps_kwargs"] = {"sort_keys": True, "allow_nan": False, "separators": (",", ":")}
    return made


def html_page(template: str, *, sheet: str, script: str = "", **content: Any) -> str:
    """Render a page with its style sheet, its script, and a policy that names both."""
    inline_sources = {"sheet": Markup(sheet), "sheet_hash": source_hash(sheet)}
    if script:
        inline_sources |= {"script": Markup(script), "script_hash": source_hash(script)}
    return html_templates().get_template(template).render(content | inline_sources)


def data_uri(data: bytes, kind: str = "image/png") -> str:
    """Return a picture as an address that needs no file."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def source_hash(text: str) -> str:
    """Return the name that a content security policy has for an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"


def inline(parts: Iterable[Inline] | str) -> Markup:
    """Join the pieces of a line, each escaped for what it is."""
    return Markup().join(_piece(part) for part in ([parts] if isinstance(parts, str) else parts))


def sort_value(cell: Cell) -> str:
    """Return what a cell sorts by: its number, the first one of an interval; empty for text."""
    if isinstance(cell.value, int | float):
        return f"{cell.value:.9g}"
    number = _LEADING_NUMBER.match(cell.text) if isinstance(cell.value, str) else None
    return number[1].replace(",", "").replace("−", "-") if number else ""


def is_number(table: Table, column: int) -> bool:
    """Return True if a column sorts by number: it has cells that are not missing, each with a number."""
    cells = [row[column] for row in table.rows if not is_missing(row[column])]
    return bool(cells) and all(sort_value(cell) for cell in cells)


def is_missing(cell: Cell) -> bool:
    """Return True if a cell is a dash or blank; a footnote may give the reason."""
    return cell.value is None and not cell.links and (not cell.text or cell.text.startswith(MISSING))


def _piece(part: Inline) -> Markup:
    if isinstance(part, Code):
        return Markup("<code>{}</code>").format(one_line(part))
    if isinstance(part, tuple):
        text, link = one_line(part[0]), part[1]
        return Markup('<a href="{}">{}</a>').format(target(link), text) if link else Markup.escape(text)
    before, after = (" " * end.isspace() for end in (part[:1], part[1:][-1:]))
    return Markup("{}{}{}").format(before, one_line(part), after)
