"""The relative links of Markdown files: which lead to no file, or to no heading of one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tvrbench.harness.reporting.tables.markdown import github_anchor

_FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1[`~]*\s*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"\]\(\s*<?([^()\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|\b(?:src|href)=\"([^\"]+)\"")
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*\s*$", re.MULTILINE)
_NAMED = re.compile(r"<a\s+(?:id|name)=\"([^\"]+)\"")
_TARGET = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")


def broken_links(path: Path) -> list[str]:
    """List the relative links of a Markdown file that lead nowhere; addresses of the web are not looked at."""
    return [link for link in links(path.read_text(encoding="utf-8")) if not _resolves(path, link)]


def links(text: str) -> Iterator[str]:
    """Yield the relative links and the files of pictures, without those in code."""
    for match in _LINK.finditer(_CODE.sub("", _FENCE.sub("", text))):
        link = match[1] or match[2]
        if not urlsplit(link).scheme and not link.startswith("//"):
            yield link


def anchors(text: str) -> set[str]:
    """Return the anchors of a Markdown text: GitHub's for each heading, with a number if repeated, and named ones."""
    text = _FENCE.sub("", text)
    seen: Counter[str] = Counter()
    found = set(_NAMED.findall(text))
    for heading in _HEADING.findall(text):
        anchor = github_anchor(_TARGET.sub(r"\1", heading))
        found.add(f"{anchor}-{seen[anchor]}" if seen[anchor] else anchor)
        seen[anchor] += 1
    return found


def _resolves(path: Path, link: str) -> bool:
    parts = urlsplit(link)
    target = path.parent / unquote(parts.path) if parts.path else path
    if not target.exists():
        return False
    if not parts.fragment or target.suffix != ".md":
        return True
    return unquote(parts.fragment) in anchors(target.read_text(encoding="utf-8"))
