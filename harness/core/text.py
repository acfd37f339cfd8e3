"""Text from files for people."""

from __future__ import annotations


def printable(text: str) -> str:
    """A text for a terminal: what is not printable (escape codes, bytes that are no text) as an escape of ASCII."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
