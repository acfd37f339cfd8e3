"""GitHub-flavored Markdown in which captions, names and messages of others are text and nothing else."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

import jinja2

_INLINE = re.compile(r"[\\`*|~\[\]$]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])|#(?=#*$)")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# Starts a list, a heading or a rule at the beginning of a line; a signed number does not.
_BLOCK = re.compile(r"^(?:(?=[-+=#])(?![-+]\d)|(\d{1,9})(?=[.)](?:\s|$)))")
_BARE_LINK = re.compile(r"(?i)(://|\bwww(?=\.))")


class Markdown(str):
    """Text that is Markdown already. Every other string is escaped on its way into a page."""

    __slots__ = ()


class Code(str):
    """Text shown as code, for example a shell command."""

    __slots__ = ()


class Url(str):
    """A web address that the code made itself; every other target of a link is a relative path."""

    __slots__ = ()


Inline = str | Code | tuple[str, str | None]
"""A piece of a line: text, code, or a link (text, ``Url`` or relative path; None: no link)."""


def one_line(value: object) -> str:
    """Return the value as one line, without control, direction or surrogate characters."""
    return " ".join("".join(" " if _unprintable(c) else c for c in str(value)).split())


def brief(value: object, longest: int = 300) -> str:
    """Return one line of at most ``longest`` characters; longer text ends in an ellipsis."""
    text = one_line(value)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def slug(text: str, longest: int | None = None) -> str:
    """Return a text as a part of file names and anchors: lower case, with hyphens for all but letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:longest]


def github_anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading, before equal ones are numbered."""
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


def escaped(value: object) -> Markdown:
    """Escape text so that it shows as it is, in a paragraph, a list item or a table cell."""
    if isinstance(value, Markdown):
        return value
    text = "".join(_HTML.get(c, c) for c in one_line(value))
    text = _INLINE.sub(lambda match: f"\\{match.group()}", text)
    text = _BARE_LINK.sub(lambda match: f"{match.group()[:-1]}&#{ord(match.group()[-1])};", text)
    return Markdown(_BLOCK.sub(lambda match: f"{match.group()}\\", text))


def bold(text: object) -> Markdown:
    """Return bold text."""
    return Markdown(f"**{escaped(text)}**")


def inline(parts: Iterable[Inline] | str, *, in_cell: bool = False) -> Markdown:
    """Join the pieces of a line, each escaped for what it is; a bar ends a cell of a table even in code."""
    pieces = [parts] if isinstance(parts, str) else parts
    bar = "\\|" if in_cell else "|"
    return Markdown("".join(_piece(p).replace("|", bar) if isinstance(p, Code) else _piece(p) for p in pieces))


def target(link: str) -> str:
    """Return the target of a link, a path quoted."""
    return str(link) if isinstance(link, Url) else quote(link)


def environment(finalize: Callable[[Any], str], **options: Any) -> jinja2.Environment:
    """Return the report's templates; ``finalize`` escapes what they print."""
    options |= {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    loader = jinja2.PackageLoader("tvrbench.harness.reporting")
    return jinja2.Environment(loader=loader, finalize=finalize, **options)


@functools.cache
def templates() -> jinja2.Environment:
    """Return the templates in Markdown, which escape what is not Markdown already; each is compiled once."""
    made = environment(escaped, keep_trailing_newline=True)
    made.filters["inline"] = inline
    made.filters["code"] = lambda text, in_cell=False: inline([Code(text)], in_cell=in_cell)
    return made


def _piece(part: Inline) -> Markdown:
    if isinstance(part, tuple):
        return Markdown(f"[{escaped(part[0])}]({target(part[1])})") if part[1] is not None else escaped(part[0])
    if isinstance(part, Code):  # fenced by more backticks than the text holds in a row
        text = one_line(part)
        fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
        pad = " " * (text.startswith("`") or text.endswith("`"))
        return Markdown(f"{fence}{pad}{text}{pad}{fence}")
    before, after = (" " * end.isspace() for end in (part[:1], part[1:][-1:]))
    return Markdown(f"{before}{escaped(part)}{after}")


def _unprintable(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
