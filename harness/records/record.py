"""One JSON document per run, checked against ``record.schema.json`` whenever it is written or read."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NoReturn, NotRequired, TypedDict, cast

import numpy as np
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match

from tvrbench.harness.core.errors import UsageError

SCHEMA_VERSION = 1
_MESSAGE_LIMIT = 200


class ProtocolRef(TypedDict):
    """A protocol by name and by the hash of everything in it."""

    name: str
    hash: str


class MethodRef(TypedDict):
    """A method by name, with every option it ran with."""

    name: str
    options: dict[str, Any]


class CheckpointRef(TypedDict):
    """A trained checkpoint by its file's name and content, and who saved it."""

    file: str
    sha256: str
    format: Literal["tvrbench", "released"]


class MeasurementDoc(TypedDict):
    """A Measurement as it stands in a record."""

    name: str
    value: float | None
    unit: str
    samples: list[float]
    conditions: dict[str, Any]


class Environment(TypedDict):
    """Where a run ran; see ``provenance.environment``."""

    device: str
    cpu_count: int
    driver: str | None
    versions: dict[str, str | None]
    git_sha: str | None
    dirty: bool | None


class Record(TypedDict):
    """The document of one run. ``record.schema.json`` says what each key may hold.

    ``checkpoint`` is there where a trained checkpoint was scored; such a run trained nothing under its protocol.
    """

    schema_version: int
    protocol: ProtocolRef
    method: MethodRef
    checkpoint: NotRequired[CheckpointRef]
    tuning: str | None
    seed: int
    data: dict[str, Any]
    weights_sha256: str | None
    metrics: dict[str, Any]
    per_query_ranks_path: str | None
    cost: list[MeasurementDoc]
    environment: Environment
    command: str
    started: str
    duration_s: float
    status: Literal["completed", "failed"]
    failure: str | None


@dataclass(frozen=True)
class Measurement:
    """One number of an instrument.

    Attributes:
        name: what was measured, e.g. ``video_gmacs`` or ``latency``.
        value: the number, in ``unit``; None when it is not available (never 0 for that).
        unit: e.g. ``GMACs``, ``videos/s``, ``ms``, ``MiB``.
        samples: the raw samples behind ``value``, in ``unit``.
        conditions: what the number depends on; where ``value`` is None, ``reason`` says why.

    Raises:
        ValueError: a value or sample that is not finite, or a missing value without a reason.
    """

    name: str
    value: float | None
    unit: str
    samples: Sequence[float] = ()
    conditions: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        numbers = list(self.samples) if self.value is None else [self.value, *self.samples]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"measurement {self.name}: a number is not finite")
        if self.value is None and not self.conditions.get("reason"):
            raise ValueError(f"measurement {self.name}: no value, so conditions['reason'] must say why")

    @classmethod
    def missing(cls, name: str, unit: str, reason: str, **conditions: Any) -> Measurement:
        """A measurement that could not be made, and why."""
        return cls(name, None, unit, conditions={**conditions, "reason": reason})

    def to_json(self) -> MeasurementDoc:
        """The measurement as plain data."""
        return MeasurementDoc(
            name=self.name,
            value=self.value,
            unit=self.unit,
            samples=list(self.samples),
            conditions=dict(self.conditions),
        )

    @classmethod
    def from_json(cls, document: MeasurementDoc) -> Measurement:
        """The measurement that ``to_json`` gave."""
        return cls(
            document["name"], document["value"], document["unit"], tuple(document["samples"]), document["conditions"]
        )


def normalized(record: Mapping[str, Any], where: str) -> Record:
    """The record as plain JSON types (tuples become lists, NumPy scalars become numbers), checked against the schema.

    Raises:
        UsageError: names ``where`` and the path in the document that is wrong.
    """
    document = plain(record, where)
    error = best_match(_validator().iter_errors(document))
    if error is not None:
        message = error.message if len(error.message) <= _MESSAGE_LIMIT else f"{error.message[:_MESSAGE_LIMIT]}..."
        raise UsageError(f"{where}: not a valid run record: at {error.json_path}: {message}")
    return cast(Record, document)


def dumps(record: Mapping[str, Any], where: str = "record") -> str:
    """The checked record as JSON text, the same text for the same content.

    Raises:
        UsageError: as ``normalized``.
    """
    return json.dumps(normalized(record, where), indent=2, allow_nan=False, ensure_ascii=True) + "\n"


def read_record(path: Path) -> Record:
    """Read one record and check it.

    Raises:
        UsageError: the file cannot be read, is not JSON, or breaks the schema; names the file and what breaks it.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return normalized(json.loads(text, parse_constant=_refuse_constant), str(path))
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"{path}: the record cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a JSON document: {error}") from None


def plain(value: Any, where: str, at: str = "$") -> Any:
    """``value`` in JSON types only: dict with string keys, list, str, int, float, bool, None.

    Raises:
        UsageError: a number that is not finite or a type JSON has no word for; names ``where`` and the path.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UsageError(f"{where}: at {at}: {value} is not a finite number, and JSON can hold no other")
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise UsageError(f"{where}: at {at}: the key {key!r} is not a string")
        return {key: plain(item, where, f"{at}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, where, f"{at}[{i}]") for i, item in enumerate(value)]
    raise UsageError(f"{where}: at {at}: a {type(value).__name__} has no place in a JSON document")


def _refuse_constant(token: str) -> NoReturn:
    raise ValueError(f"it holds {token}, which JSON does not know")


@functools.cache
def _validator() -> Draft202012Validator:
    text = resources.files("tvrbench.harness.records").joinpath("record.schema.json").read_text(encoding="utf-8")
    return Draft202012Validator(json.loads(text))
