"""Grids: values of a method's options of which every combination is a run of its own. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.options import parse_assignments, split_assignment

Grid = Mapping[str, Sequence[Any]]
"""Values by option."""
Grids = Grid | tuple[Grid, ...]
"""One grid, or several whose combinations are all run."""

MOST = 1000  # combinations: more is a slip of the keyboard
_TOKENS = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|.""", re.DOTALL)  # quoted texts, else single characters
_CLOSES = {"(": ")", "[": "]", "{": "}"}


def parse_grid(texts: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """``["r=1,2,4", "blocks=(3,6,9),(2,5)"]`` -> {"r": (1, 2, 4), "blocks": ((3, 6, 9), (2, 5))}.

    Commas separate values unless they are inside brackets or quotes; each value is read as that of ``--set``.

    Raises:
        UsageError: not ``key=value,value``, an option or a value given twice, a bracket or quote that is never closed,
            or an option of the command itself.
    """
    grid: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        key, given = split_assignment(text, "--grid", "r=1,2,4", "key=value,value")
        if key in grid:
            message = f"--grid {key}=... is there twice: give all values of {key} in one, separated by commas"
            raise UsageError(message, code="grid.option-twice", option=key)
        parts = [part.strip() for part in _top_level(given, text)]
        if not all(parts):
            message = f"--grid {text!r}: a value is empty: write it as key=value,value, for example --grid r=1,2,4"
            raise UsageError(message, code="grid.no-value", option=key)
        grid[key] = tuple(parse_assignments([f"{key}={part}"], "--grid")[key] for part in parts)
    check_grid(grid, "--grid")
    return grid


def check_grid(grid: Grid, where: str) -> None:
    """Check that every option has values, each once, and that they do not make too many combinations.

    Raises:
        UsageError: otherwise; names ``where``, the option and the value.
    """
    for option, values in grid.items():
        if not values:
            message = f"{where}: option {option!r} has no value: give at least one, or leave the option out"
            raise UsageError(message, code="grid.no-value", option=option)
        twice = next((value for place, value in enumerate(values) if value in values[:place]), None)
        if twice is not None:
            message = f"{where}: option {option!r} has the value {twice!r:.60} twice: give each value once"
            raise UsageError(message, code="grid.value-twice", option=option)
    if (count := prod(map(len, grid.values()))) > MOST:
        message = f"{where} makes {count:,} combinations: give at most {MOST:,}"
        raise UsageError(message, code="grid.size", combinations=count)


def each_grid(grids: Grids) -> tuple[Grid, ...]:
    """The grids one by one."""
    return grids if isinstance(grids, tuple) else (grids,)


def combinations(grids: Grids) -> list[dict[str, Any]]:
    """One dict of options for every combination, each once, the last option changing fastest; an empty grid has one."""
    points = list[dict[str, Any]]()
    for grid in each_grid(grids):
        made = (dict(zip(grid, values, strict=True)) for values in product(*grid.values()))
        points += [point for point in made if point not in points]
    return points


def grid_text(point: Mapping[str, Any]) -> str:
    """A combination in a few words: ``r=2, ratio=0.5``."""
    return ", ".join(f"{option}={value}" for option, value in point.items())


def _top_level(values: str, text: str) -> Iterator[str]:
    """Split at the commas outside of brackets and quotes; ``text`` is for the message."""
    closing, start = list[str](), 0
    for token in _TOKENS.finditer(values):
        if token[0] in _CLOSES:
            closing.append(_CLOSES[token[0]])
        elif token[0] in ("'", '"') or (token[0] in _CLOSES.values() and (not closing or closing.pop() != token[0])):
            raise _no_partner(text)
        elif token[0] == "," and not closing:
            yield values[start : token.start()]
            start = token.end()
    if closing:
        raise _no_partner(text)
    yield values[start:]


def _no_partner(text: str) -> UsageError:
    message = f"--grid {text!r}: a bracket or a quote has no partner: commas outside of them separate the values"
    return UsageError(message, code="grid.bracket")
