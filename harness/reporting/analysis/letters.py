"""Compact letter display: letters in a table that say which rows differ significantly (Piepho, 2004)."""

from __future__ import annotations

from collections.abc import Iterable
from string import ascii_lowercase


def letter_display(count: int, different: Iterable[tuple[int, int]]) -> list[str]:
    """Return the letters of rows that are numbered from the best: two share one unless they differ significantly.

    Insert and absorb: one set of all rows is split at each pair that differs, and a set inside another is dropped.
    What is left are the largest sets of rows that do not differ, one letter each; the best row has an ``a``.

    Args:
        count: number of rows.
        different: the pairs that differ significantly.

    Returns:
        Per row its letters in order, joined by commas where one of them has two characters.
    """
    sets = [frozenset(range(count))]
    for pair in different:
        kept = [rows for rows in sets if not rows.issuperset(pair)]
        for part in (rows - {one} for rows in sets if rows.issuperset(pair) for one in pair):
            if not any(part <= rows for rows in kept):
                kept = [*(rows for rows in kept if not rows < part), part]
        sets = kept
    names = {rows: _name(place) for place, rows in enumerate(sorted(sets, key=sorted))}
    separator = "," if len(names) > len(ascii_lowercase) else ""
    return [separator.join(name for rows, name in names.items() if row in rows) for row in range(count)]


def _name(place: int) -> str:
    """Return a to z, then aa, ab, ..., as columns of a spreadsheet are named."""
    rest, last = divmod(place, len(ascii_lowercase))
    return (_name(rest - 1) if rest else "") + ascii_lowercase[last]
