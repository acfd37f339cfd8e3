"""Text from files for people."""

from __future__ import annotations

import reprlib

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 120
_BRIEF.maxlist = _BRIEF.maxtuple = _BRIEF.maxdict = 12
_BRIEF.maxlevel = 4


def printable(text: str) -> str:
    """A text for a terminal: what is not printable (escape codes, bytes that are no text) as an escape of ASCII."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def brief_repr(value: object) -> str:
    """A value for a message, as ``repr`` has it; the middle of a long one is left out, and what is nested deeply."""
    return _BRIEF.repr(value)
