"""File names for JSON and lengths for people."""

from __future__ import annotations


def encodable(text: str) -> str:
    """A text for JSON: bytes that are no text as an escape of ASCII, everything else as it is."""
    return text.encode("utf-8", "backslashreplace").decode()


def clock(seconds: float | None) -> str:
    """A length as minutes and seconds, or hours, minutes and seconds; empty for None."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
