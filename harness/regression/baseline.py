"""Regression baselines: accepted values, how far each may move, and which moved.

Tiers and their entries:

- ``exact``: tokens, GMACs, parameters, and what a search takes (``exact/``), which may not move at all, and signatures
  (``signature/``: the outputs of a tiny model), which may move by rounding.
- ``tight``: R@k on the embedded stand-in (``standin/``), also of a coarse stage: within the interval over
  queries and a practical margin.
- ``loose``: time and memory (``loose/``) as ratios to one method in the same run; only a rise is a regression.
- ``real``: R@k on real data (``real/``), for those who have it; judged like ``tight``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_write
from tvrbench.harness.core.validation import first_error

Value = float | list[list[int]] | None
Tier = Literal["exact", "tight", "loose", "real"]
Section = Literal["standin", "real"]
"""The fields of a baseline that say which runs a tier is measured on."""
State = Literal["same", "within", "better", "moved", "missing"]

PREFIXES: Mapping[Tier, tuple[str, ...]] = {
    "exact": ("exact", "signature"),
    "tight": ("standin",),
    "loose": ("loose",),
    "real": ("real",),
}
"""First part of the keys of a tier's entries."""

_Text = Annotated[str, Field(min_length=1)]
_Key = Annotated[str, Field(pattern="^(exact|signature|standin|loose|real)/[^/]+/[^/]+$")]
_closed = with_config(ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))


@_closed
class Entry(TypedDict):
    """An accepted value, its margin, and the interval over queries where there is one.

    The margin of signatures and of ``loose`` is relative; the others' is in the metric's unit.
    """

    value: int | float | list[list[int]]
    margin: Annotated[int | float, Field(ge=0)]
    interval: NotRequired[Annotated[list[float], Field(min_length=2, max_length=2)]]


@_closed
class Acceptance(TypedDict):
    """Date, reason and git revision of an update."""

    date: str
    reason: _Text
    git_sha: str | None


@_closed
@dataclass(frozen=True, kw_only=True)
class Runs:
    """The runs that a section's entries are measured on."""

    protocol: str
    hash: str
    seed: int
    methods: Annotated[list[str], Field(min_length=1)]


@_closed
class Loose(TypedDict):
    """``reference``: the method that time and memory are ratios to."""

    reference: str


@_closed
@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A baseline file.

    Attributes:
        device: ``cpu`` or a GPU's name.
        standin, real: the runs on the stand-in and on real data, or None.
        entries: by ``prefix/subject/metric``.
        accepted: every update, oldest first.
    """

    schema_version: Literal[1] = 1
    device: _Text
    standin: Runs | None
    real: Runs | None = None
    loose: Loose | None = None
    entries: Annotated[dict[_Key, Entry], Field(min_length=1)]
    accepted: Annotated[list[Acceptance], Field(min_length=1)]


@dataclass(frozen=True)
class Row:
    """One metric compared.

    Attributes:
        state: ``missing``: in the baseline, but not measured now. ``better``: a ratio fell by more than its margin,
            which is no regression and calls for an update.
    """

    key: str
    baseline: Value
    measured: Value
    margin: float
    state: State


def read_baseline(path: Path) -> Baseline:
    """Read and check a baseline file.

    Raises:
        UsageError: names the file and what is wrong with it.
    """
    try:
        return TypeAdapter(Baseline).validate_json(path.read_bytes())
    except ValidationError as error:
        at, message = first_error(error)
        message = f"baseline {path} is not valid at {at}: {message}"
        raise UsageError(message, code="baseline.invalid", path=str(path), at=at) from None
    except OSError as error:
        message = f"baseline {path} cannot be read: {error.strerror}"
        raise UsageError(message, code="baseline.read", path=str(path)) from None


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write the whole file or nothing."""
    atomic_write(path, (json.dumps(asdict(baseline), indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def compare(baseline: Baseline, measured: Mapping[str, Value], tiers: Sequence[Tier]) -> list[Row]:
    """Compare every entry of the given tiers with the measured values."""
    prefixes = [prefix for tier in tiers for prefix in PREFIXES[tier]]
    rows = []
    for key, entry in baseline.entries.items():
        if key.partition("/")[0] in prefixes:
            now = measured.get(key)
            rows.append(Row(key, entry["value"], now, float(entry["margin"]), _state(key, entry, now)))
    return rows


def tiers_of(baseline: Baseline) -> list[Tier]:
    """The tiers that the baseline holds entries of."""
    prefixes = {key.partition("/")[0] for key in baseline.entries}
    return [tier for tier, own in PREFIXES.items() if prefixes.intersection(own)]


def _state(key: str, entry: Entry, measured: Value) -> State:
    expected, margin, prefix = entry["value"], float(entry["margin"]), key.partition("/")[0]
    if measured is None:
        return "missing"
    if measured == expected:
        return "same"
    if isinstance(expected, list) or isinstance(measured, list):
        return "moved"
    if prefix == "loose":
        if measured > expected * (1 + margin):
            return "moved"
        return "better" if measured < expected / (1 + margin) else "within"
    allowed = margin * abs(expected) if prefix == "signature" else margin
    low, high = entry.get("interval", (expected - allowed, expected + allowed))
    return "within" if abs(measured - expected) <= allowed and low <= measured <= high else "moved"
