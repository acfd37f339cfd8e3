"""Regression baselines: what was measured once, how far it may move, and what has moved.

Tiers and the entries that belong to them:

- ``exact``: tokens, GMACs and parameters (``exact/``), which may not move at all, and signatures (``signature/``:
  what a tiny model computes), which may move by rounding.
- ``tight``: R@k on the embedded stand-in (``standin/``): within the interval over queries and a practical margin.
- ``loose``: time and memory (``loose/``) as ratios to one method in the same run; only a rise is a regression.
- ``real``: R@k on MSR-VTT (``real/``), for those who have it; judged like ``tight``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_write

Value = float | list[list[int]] | None
Tier = Literal["exact", "tight", "loose", "real"]

PREFIXES: Mapping[Tier, tuple[str, ...]] = {
    "exact": ("exact", "signature"),
    "tight": ("standin",),
    "loose": ("loose",),
    "real": ("real",),
}
"""What the entries of a tier begin with."""

_RUNS: dict[str, Any] = {
    "type": ["object", "null"],
    "additionalProperties": False,
    "required": ["protocol", "hash", "seed", "methods"],
    "properties": {
        "protocol": {"type": "string"},
        "hash": {"type": "string"},
        "seed": {"type": "integer"},
        "methods": {"type": "array", "items": {"type": "string"}, "minItems": 1},
    },
}

SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["schema_version", "device", "standin", "entries", "accepted"],
    "properties": {
        "schema_version": {"const": 1},
        "device": {"type": "string", "minLength": 1},
        "standin": _RUNS,
        "real": _RUNS,
        "loose": {
            "type": ["object", "null"],
            "additionalProperties": False,
            "required": ["reference"],
            "properties": {"reference": {"type": "string"}},
        },
        "entries": {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": "^(exact|signature|standin|loose|real)/[^/]+/[^/]+$"},
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["value", "margin"],
                "properties": {
                    "value": {"type": ["number", "array"]},
                    "margin": {"type": "number", "minimum": 0},
                    "interval": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
                },
            },
        },
        "accepted": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["date", "reason", "git_sha"],
                "additionalProperties": False,
                "properties": {
                    "date": {"type": "string"},
                    "reason": {"type": "string", "minLength": 1},
                    "git_sha": {"type": ["string", "null"]},
                },
            },
        },
    },
}


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A baseline file.

    Attributes:
        device: what it was measured on (``cpu`` or a GPU's name).
        standin: protocol, hash, seed and methods of the stand-in's runs, or None without them.
        entries: ``prefix/subject/metric`` -> value and margin, and the interval over queries where there is one; the
            margin of signatures and of ``loose`` is relative, the others' in the metric's unit.
        accepted: when, why and at which revision the values were taken over.
        real: like ``standin``, of the runs on real data.
        loose: ``reference``, the method that time and memory are ratios to.
    """

    device: str
    standin: dict[str, Any] | None
    entries: dict[str, dict[str, Any]]
    accepted: list[dict[str, Any]]
    real: dict[str, Any] | None = None
    loose: dict[str, Any] | None = None


State = Literal["same", "within", "better", "moved", "missing"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric compared.

    Attributes:
        state: ``missing`` means that the baseline has it and this measurement does not; ``better`` that a ratio fell
            by more than its margin, which is no regression and calls for a new baseline.
    """

    key: str
    baseline: Value
    measured: Value
    margin: float
    state: State


def read_baseline(path: Path) -> Baseline:
    """Read and check a baseline file; UsageError names the file and what is wrong with it."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UsageError(f"baseline {path} cannot be read: {error}") from None
    problem = best_match(Draft202012Validator(SCHEMA).iter_errors(document))
    if problem is not None:
        raise UsageError(f"baseline {path} is not valid at {problem.json_path}: {problem.message[:200]}")
    return Baseline(**{key: value for key, value in document.items() if key != "schema_version"})


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write it whole or not at all."""
    document = {"schema_version": 1} | {name: getattr(baseline, name) for name in Baseline.__dataclass_fields__}
    atomic_write(path, (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def compare(baseline: Baseline, measured: Mapping[str, Value], tiers: Sequence[Tier]) -> list[Row]:
    """Every entry of the baseline in the given tiers against what was measured."""
    prefixes = [prefix for tier in tiers for prefix in PREFIXES[tier]]
    return [
        _row(key, entry, measured.get(key))
        for key, entry in baseline.entries.items()
        if key.partition("/")[0] in prefixes
    ]


def tiers_of(baseline: Baseline) -> list[Tier]:
    """The tiers that the baseline holds entries of."""
    prefixes = {key.partition("/")[0] for key in baseline.entries}
    return [tier for tier, own in PREFIXES.items() if prefixes.intersection(own)]


def _row(key: str, entry: Mapping[str, Any], got: Value) -> Row:
    return Row(
        key=key, baseline=entry["value"], measured=got, margin=float(entry["margin"]), state=_state(key, entry, got)
    )


def _state(key: str, entry: Mapping[str, Any], got: Value) -> State:
    want, margin, prefix = entry["value"], float(entry["margin"]), key.partition("/")[0]
    if got is None:
        return "missing"
    if got == want:
        return "same"
    if isinstance(want, list) or isinstance(got, list):
        return "moved"
    if prefix == "loose":
        return "moved" if got > want * (1 + margin) else "better" if got < want / (1 + margin) else "within"
    allowed = margin * abs(want) if prefix == "signature" else margin
    low, high = entry.get("interval", (want - allowed, want + allowed))
    return "within" if abs(got - want) <= allowed and low <= got <= high else "moved"
