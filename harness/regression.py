"""Regression baselines: what was measured once, how far it may move, and what has moved."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from tvrbench.harness.errors import BadInput
from tvrbench.harness.store import atomic_write

Value = float | list[list[int]] | None

SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["schema_version", "device", "standin", "entries", "accepted"],
    "properties": {
        "schema_version": {"const": 1},
        "device": {"type": "string", "minLength": 1},
        "standin": {
            "type": ["object", "null"],
            "additionalProperties": False,
            "required": ["protocol", "hash", "seed", "methods"],
            "properties": {
                "protocol": {"type": "string"},
                "hash": {"type": "string"},
                "seed": {"type": "integer"},
                "methods": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            },
        },
        "entries": {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": "^(exact|standin)/[^/]+/[^/]+$"},
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["value", "margin"],
                "properties": {"value": {"type": ["number", "array"]}, "margin": {"type": "number", "minimum": 0}},
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
        standin: protocol, hash, seed and methods of the stand-in tier, or None without one.
        entries: ``tier/subject/metric`` -> value and margin; the tier is ``exact`` or ``standin``.
        accepted: when, why and at which revision the values were taken over.
    """

    device: str
    standin: dict[str, Any] | None
    entries: dict[str, dict[str, Any]]
    accepted: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric compared; ``missing`` means that the baseline has it and this measurement does not."""

    key: str
    baseline: Value
    measured: Value
    margin: float
    state: Literal["same", "within", "moved", "missing"]


def read_baseline(path: Path) -> Baseline:
    """Read and check a baseline file; BadInput names the file and what is wrong with it."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"baseline {path} cannot be read: {error}") from None
    problem = best_match(Draft202012Validator(SCHEMA).iter_errors(document))
    if problem is not None:
        raise BadInput(f"baseline {path} is not valid at {problem.json_path}: {problem.message[:200]}")
    return Baseline(**{key: value for key, value in document.items() if key != "schema_version"})


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write it whole or not at all."""
    document = {"schema_version": 1} | {name: getattr(baseline, name) for name in Baseline.__dataclass_fields__}
    atomic_write(path, (json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def compare(baseline: Baseline, measured: Mapping[str, Value], tiers: Sequence[str]) -> list[Row]:
    """Every entry of the baseline in the given tiers against what was measured."""
    return [
        _row(key, entry, measured.get(key)) for key, entry in baseline.entries.items() if key.partition("/")[0] in tiers
    ]


def _row(key: str, entry: dict[str, Any], got: Value) -> Row:
    want, margin = entry["value"], float(entry["margin"])
    state: Literal["same", "within", "moved", "missing"]
    if got is None:
        state = "missing"
    elif got == want:
        state = "same"
    elif isinstance(want, list) or isinstance(got, list):
        state = "moved"
    else:
        state = "within" if abs(got - want) <= margin else "moved"
    return Row(key=key, baseline=want, measured=got, margin=margin, state=state)
