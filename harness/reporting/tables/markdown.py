"""GitHub-flavoured Markdown in which captions, names and messages of others are text and nothing else."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote

import jinja2

_INLINE = re.compile(r"[\\`*|~\[\]$]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])|#(?=#*$)")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# What starts a list, a heading or a rule when it stands first on a line; a signed number starts none.
_BLOCK = re.compile(r"^(?:(?=[-+=#])(?![-+]\d)|(\d{1,9})(?=[.)](?:\s|$)))")
_BARE_LINK = re.compile(r"(?i)(://|\bwww(?=\.))")


class Markdown(str):
    """Text that is Markdown already. Every other string is escaped on its way into a page."""

    __slots__ = ()


def one_line(value: object) -> str:
    """The value as one line, without control, direction or surrogate characters."""
    return " ".join("".join(" " if _unprintable(c) else c for c in str(value)).split())


def brief(value: object, longest: int = 300) -> str:
    """One line of at most so many characters; what is too long ends in an ellipsis."""
    text = one_line(value)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def escaped(value: object) -> Markdown:
    """Text that shows as it is, in a paragraph, a list item or a table cell."""
    if isinstance(value, Markdown):
        return value
    text = "".join(_HTML.get(c, c) for c in one_line(value))
    text = _INLINE.sub(lambda found: f"\\{found.group()}", text)
    text = _BARE_LINK.sub(lambda found: f"{found.group()[:-1]}&#{ord(found.group()[-1])};", text)
    return Markdown(_BLOCK.sub(lambda found: f"{found.group()}\\", text))


def code(value: object) -> Markdown:
    """A code span, fenced by more backticks than the text holds anywhere; not for table cells."""
    text = one_line(value)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return Markdown(f"{fence}{pad}{text}{pad}{fence}")


def link(text: object, target: str) -> Markdown:
    """A link to a relative path."""
    return Markdown(f"[{escaped(text)}]({quote(target)})")


def bold(text: object) -> Markdown:
    """Bold text."""
    return Markdown(f"**{escaped(text)}**")


def listed(items: list[Markdown]) -> Markdown:
    """Items separated by commas."""
    return Markdown(", ".join(items))


def templates() -> jinja2.Environment:
    """The report's templates; what they print is escaped unless it is Markdown already."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tvrbench.harness.reporting"),
        autoescape=False,  # HTML's rules; ``finalize`` applies Markdown's
        finalize=escaped,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"code": code, "brief": brief}
    return environment


def _unprintable(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
