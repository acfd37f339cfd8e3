"""What reducers keep, and how far that agrees with the dense encoder: one line per reducer over its own strength."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from tvrbench.harness.reporting.data.rows import MethodRow, expected_recall
from tvrbench.harness.reporting.tables.markdown import brief

Kept = Literal["tokens", "gmacs"]


@dataclass(frozen=True, kw_only=True)
class ReducedRow:
    """A row, and what it keeps of the dense encoder.

    Attributes:
        row: of the main table.
        line: the method, and the options that stay the same along its line.
        setting: the option that changes along the line, with its value here; empty for a single point.
        tokens: percent of the dense encoder's tokens that leave the encoder.
        gmacs: percent of its multiply-adds.
        cosine: of the features, the mean over the test videos.
        recall: R@1, expected over ties.
        front: what of the two no other row has less of with at least the same cosine.
    """

    row: MethodRow
    line: str
    setting: str
    tokens: float | None
    gmacs: float | None
    cosine: float
    recall: float
    front: tuple[Kept, ...] = ()

    def kept(self, what: Kept) -> float | None:
        """Percent of the dense encoder's tokens or multiply-adds."""
        return self.tokens if what == "tokens" else self.gmacs


def reduced_rows(rows: Sequence[MethodRow]) -> list[ReducedRow]:
    """The rows whose records hold an agreement, line by line from the most multiply-adds to the fewest."""
    held = [row for row in rows if row.metric("agreement", "cosine", "mean") is not None]
    found = [_reduced(row, [other for other in held if other.method == row.method]) for row in held]
    best = {what: _on_front(found, what) for what in ("tokens", "gmacs")}
    marked = [
        ReducedRow(**vars(one) | {"front": tuple(what for what, rows_of in best.items() if id(one) in rows_of)})
        for one in found
    ]
    return sorted(marked, key=lambda one: (one.line, -(one.gmacs or 0.0), one.setting))


def reduced_lines(reduced: Sequence[ReducedRow], what: Kept) -> dict[str, list[ReducedRow]]:
    """The points of each line that have a share of tokens or multiply-adds, from the smallest share to the largest."""
    known = sorted((one for one in reduced if one.kept(what) is not None), key=lambda one: one.line)
    return {
        line: sorted(points, key=lambda one: (one.kept(what), one.cosine))
        for line, points in groupby(known, key=lambda one: one.line)
    }


def plain_recall(rows: Sequence[MethodRow]) -> float | None:
    """R@1 of the dense encoder that the rows are held against; None where they name none or several."""
    values = {value for row in rows if (value := row.metric("agreement", "plain", "R1")) is not None}
    return values.pop() if len(values) == 1 else None


def undominated(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each (cost, gain): True if no other is at least as cheap and as good, and better in one of the two."""
    return [
        not any(cost <= own and gain >= value and (cost, gain) != (own, value) for cost, gain in points)
        for own, value in points
    ]


def _reduced(row: MethodRow, same_method: Sequence[MethodRow]) -> ReducedRow:
    line, strength = _line(row, same_method)
    return ReducedRow(
        row=row,
        line=line,
        setting="" if strength is None else f"{strength}={_value(row.options.get(strength))}",
        tokens=_percent(row, "output_tokens"),
        gmacs=_percent(row, "gmacs_video"),
        cosine=row.metric("agreement", "cosine", "mean") or 0.0,
        recall=expected_recall(row) or 0.0,
    )


def _line(row: MethodRow, same_method: Sequence[MethodRow]) -> tuple[str, str | None]:
    """The name of a row's line, and the option that changes along it."""
    options = {id(other): other.options for other in same_method}
    varying = _varying(list(options.values()))
    strengths = {key: _strength(each, varying, list(options.values())) for key, each in options.items()}
    strength = strengths[id(row)]
    alike = [options[key] for key, other in strengths.items() if other == strength]
    fixed = ", ".join(f"{key}={_value(row.options.get(key))}" for key in _varying(alike) if key != strength)
    over = f" over {strength}" if len(set(strengths.values())) > 1 else ""
    return f"{row.method}{over}" + (f" ({fixed})" if fixed else ""), strength


def _strength(own: Mapping[str, Any], varying: Sequence[str], every: Sequence[Mapping[str, Any]]) -> str | None:
    """The option that alone parts a row from most others: the longest line that it is a point of."""

    def length(option: str) -> int:
        return sum(all(other.get(key) == own.get(key) for key in varying if key != option) for other in every)

    return max(varying, key=length, default=None)


def _varying(options: Sequence[Mapping[str, Any]]) -> list[str]:
    """The options in which rows of one method differ."""
    keys = dict.fromkeys(key for each in options for key in each)
    return [key for key in keys if any(each.get(key) != options[0].get(key) for each in options)]


def _percent(row: MethodRow, name: str) -> float | None:
    """A count over the dense encoder's; of one that depends on the pixels, the row gives the mean over test videos."""
    cost, whole = row.cost(name), row.metric("agreement", "plain", name)
    return None if cost is None or cost.valid is None or not whole else 100.0 * cost.valid / whole


def _on_front(found: Sequence[ReducedRow], what: Kept) -> set[int]:
    known = [(one, kept) for one in found if (kept := one.kept(what)) is not None]
    best = undominated([(kept, one.cosine) for one, kept in known])
    return {id(one) for (one, _), wins in zip(known, best, strict=True) if wins}


def _value(value: Any) -> str:
    return brief(json.dumps(value, ensure_ascii=False).strip('"').replace(", ", ","), 40)
