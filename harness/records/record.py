"""One JSON document per run, checked against its types whenever it is written or read.

``TypeAdapter(Record).json_schema()`` gives the schema as JSON. Two rules that types cannot hold are functions here:
a missing value has a reason, and a run that failed says why.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NoReturn, NotRequired, TypeVar, cast

import numpy as np
from pydantic import AfterValidator, ConfigDict, Field, GetPydanticSchema, TypeAdapter, ValidationError, with_config
from pydantic_core import InitErrorDetails, PydanticCustomError
from typing_extensions import TypedDict

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.validation import first_error, json_path

SCHEMA_VERSION = 1

T = TypeVar("T")
Text = Annotated[str, Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Percent = Annotated[float, Field(ge=0, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]
Rank = Annotated[float, Field(ge=1)]
Cosine = Annotated[float, Field(ge=-1, le=1)]
Sum = Annotated[float, Field(ge=0, le=300)]
Channels = Annotated[list[float], Field(min_length=3, max_length=3)]
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]
MetricName = Literal["R1", "R5", "R10", "MdR", "MnR", "RSum"]
_closed = with_config(ConfigDict(extra="forbid", strict=True))
_open = with_config(ConfigDict(extra="allow", strict=True))


def _reject(message: str, *at: str) -> NoReturn:
    """Fail like pydantic does, at a place below the value that a validator is given."""
    error = InitErrorDetails(type=PydanticCustomError("record", message), loc=at, input=None)
    raise ValidationError.from_exception_data("record", [error])


def _unique(items: list[T]) -> list[T]:
    return items if len(set(items)) == len(items) else _reject("an item is named twice")


def _with_reason(measurement: Any) -> Any:
    reason = measurement["conditions"].get("reason")
    if measurement["value"] is None and not (isinstance(reason, str) and reason):
        _reject("a missing value needs its reason", "conditions", "reason")
    return measurement


def _known_metrics(metrics: Any) -> Any:
    for key, value in metrics.items():
        if key not in _Metrics.__annotations__ and not isinstance(value, dict):
            _reject("an unlisted key may hold a section, never a bare value", key)
    return metrics


def _consistent(record: Any) -> Any:
    completed, metrics = record["status"] == "completed", record["metrics"]
    if completed != (record["failure"] is None):
        _reject("a failed run needs a reason, a completed run has none", "failure")
    absent = [key for key in ("t2v", "v2t", "RSum", "selection") if key not in metrics]
    if completed and metrics and absent:  # a run that measures cost alone has no metrics
        _reject("Field required", "metrics", absent[0])
    return record


@_closed
class ProtocolRef(TypedDict):
    """A protocol by name and by the hash of everything in it; one that does not ship also by its definition."""

    name: Text
    hash: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")]
    definition: NotRequired[dict[str, Any]]


@_closed
class MethodRef(TypedDict):
    """A method by name, with every option it ran with; ``given`` are those that no preset filled in, where known."""

    name: Text
    options: dict[str, Any]
    given: NotRequired[dict[str, Any]]


@_closed
class CheckpointRef(TypedDict):
    """A trained checkpoint by its file's name and content, and who saved it."""

    file: Annotated[str, Field(pattern="^[^/]+$")]
    sha256: Sha256
    format: Literal["tvrbench", "released"]


@_closed
class WeightsRef(TypedDict):
    """The weights that a run started from, or that are in its checkpoint, and how they were read.

    ``source`` is a file or folder by its name, an open_clip tag or ``random:SEED``; ``mean`` and ``std`` normalize red,
    green and blue from 0 to 1; ``tokenizer`` is None where no caption was read.
    """

    source: Annotated[str, Field(pattern="^[^/]+$")]
    sha256: Sha256 | None
    activation: Literal["quick_gelu", "gelu"]
    activation_source: Text
    image_size: Annotated[int, Field(ge=1)]
    mean: Channels
    std: Channels
    normalization_source: Text
    tokenizer: Text | None


@_closed
class MeasurementDoc(TypedDict):
    """A Measurement in a record."""

    name: Text
    value: float | None
    unit: Text
    samples: list[float]
    conditions: dict[str, Any]


@_closed
class Environment(TypedDict):
    """The machine and software of a run; see ``provenance.environment`` and ``core.numerics``."""

    device: Text
    cpu_count: NotRequired[Annotated[int, Field(ge=1)]]
    matmul_precision: NotRequired[Text]
    cudnn_tf32: NotRequired[bool]
    deterministic: NotRequired[bool]
    driver: str | None
    versions: dict[str, str | None]
    git_sha: Annotated[str, Field(pattern="^([0-9a-f]{40}|[0-9a-f]{64})$")] | None
    dirty: bool | None


@_closed
class FrameCaptionsRef(TypedDict):
    """Captions of frames, which a method trained on, by their file's name and content."""

    file: Annotated[str, Field(pattern="^[^/]+$")]
    sha256: Sha256


@_open
class _Data(TypedDict):
    """Further keys describe the data."""

    dataset: Text
    split_fingerprint: Sha256 | None
    order_fingerprint: NotRequired[Sha256]
    frames_fingerprint: Sha256 | None
    skipped: Annotated[list[Text], AfterValidator(_unique)]
    frame_captions: NotRequired[FrameCaptionsRef | None]


@_closed
class _Cosines(TypedDict):
    mean: Cosine
    quantile_05: Cosine
    min: Cosine


@_closed
class _Agreement(TypedDict):
    """With the plain encoder, whose costs and R@1 (text to video, expected over ties) are beside it."""

    cosine: _Cosines
    same_top1: Percent
    plain: dict[Literal["gmacs_video", "output_tokens", "R1"], Annotated[float, Field(ge=0)]]


@_closed
class _Direction(TypedDict):
    R1: Percent
    R5: Percent
    R10: Percent
    MdR: Rank
    MnR: Rank
    RSum: NotRequired[Sum]


@_closed
class _Subset(TypedDict, total=False):
    t2v: _Direction
    v2t: _Direction
    pair_accuracy: Percent | None


@_closed
class _SubsetIntervals(TypedDict, total=False):
    t2v: dict[MetricName, Interval]
    v2t: dict[MetricName, Interval]
    pair_accuracy: Interval


@_closed
class _Intervals(_SubsetIntervals):
    confidence: Annotated[float, Field(gt=0, lt=1)]
    subsets: NotRequired[dict[str, _SubsetIntervals]]


@_closed
class _TokensKept(TypedDict):
    """The share of its patches that a test video keeps, over the videos."""

    mean: Share
    quantile_05: Share
    median: Share
    quantile_95: Share
    min: Share
    max: Share


@_closed
class _BothDirections(TypedDict):
    t2v: _Direction
    v2t: _Direction


@_closed
class _AtDepth(_BothDirections):
    depth: Annotated[int, Field(ge=0)]


@_closed
class _TwoStage(TypedDict):
    """How the ranks came about where the best of a coarse stage are scored again.

    ``depth`` is None where all pairs are; ``coarse`` has the ranks of the coarse stage alone, and ``ceiling`` the share
    of captions whose video it leaves to the last stage, which R@1 cannot exceed. ``edge_ties`` counts the candidates
    beyond ``depth`` that tie with the last one and are scored too. ``curve`` has the metrics of smaller depths.
    """

    depth: Annotated[int, Field(ge=0)] | None
    v2t: Literal["own", "transposed"]
    storage: Literal["float32", "float16", "int8"]
    coarse: _BothDirections
    ceiling: Percent
    edge_ties: Annotated[int, Field(ge=0)]
    curve: list[_AtDepth]


@_open
class _Metrics(TypedDict, total=False):
    """A further key may hold a section (an object), never a bare number: a misspelled metric fails."""

    t2v: _Direction
    v2t: _Direction
    agreement: _Agreement
    RSum: Sum
    subsets: dict[str, Annotated[_Subset, Field(min_length=1)]]
    pair_accuracy: Percent | None
    selection: Literal["last", "best-on-test", "unknown"]
    intervals: _Intervals
    tokens_kept: _TokensKept
    two_stage: _TwoStage


def _as(schema: type) -> GetPydanticSchema:  # a plain dict for callers, checked by a private type
    return GetPydanticSchema(lambda _, handler: handler(schema))


@_closed
class Record(TypedDict):
    """The document of one run.

    ``checkpoint`` is there where a trained checkpoint was scored; such a run trained nothing under its protocol.
    ``selection`` is ``unknown`` for a checkpoint that other code released. ``per_query_ranks_path`` names a file beside
    the record; ``started`` is UTC, ISO 8601.
    """

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)]
    protocol: ProtocolRef
    method: MethodRef
    checkpoint: NotRequired[CheckpointRef]
    tuning: Text | None
    seed: Annotated[int, Field(ge=0)]
    data: Annotated[dict[str, Any], _as(_Data)]
    weights_sha256: Sha256 | None
    weights: NotRequired[WeightsRef]
    metrics: Annotated[dict[str, Any], _as(_Metrics), AfterValidator(_known_metrics)]
    per_query_ranks_path: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.npz$", max_length=255)] | None
    cost: list[Annotated[MeasurementDoc, AfterValidator(_with_reason)]]
    environment: Environment
    command: Text
    started: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|\+00:00)$")]
    duration_s: Annotated[float, Field(ge=0)]
    status: Literal["completed", "failed"]
    failure: Text | None


AS_RELEASED = "_as_released"
"""Ends the name of a cost as the released code has it, with work whose results it drops. Where a record holds none, the
cost is the one without that ending."""

OVER_VIDEOS = "_mean"
"""Ends the name of a count that depends on the pixels, as its mean over videos. The one without that ending is then the
most that it can be (``upper_bound`` in its conditions)."""


@dataclass(frozen=True)
class Measurement:
    """One number of an instrument.

    Attributes:
        name: e.g. ``gmacs_video`` or ``latency``.
        value: in ``unit``; None if it is not available (never 0 for that).
        unit: e.g. ``GMACs``, ``videos/s``, ``ms``, ``MiB``.
        samples: the raw samples behind ``value``, in ``unit``.
        conditions: everything that the number depends on; a missing value has its ``reason`` here.

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
            raise ValueError(f"measurement {self.name}: every number must be finite")
        if self.value is None and not self.conditions.get("reason"):
            raise ValueError(f"measurement {self.name}: a missing value needs its reason in conditions")

    @classmethod
    def missing(cls, name: str, unit: str, reason: str, **conditions: Any) -> Measurement:
        """A measurement that could not be made, and the reason."""
        return cls(name, None, unit, conditions={**conditions, "reason": reason})

    def to_json(self) -> MeasurementDoc:
        """The measurement as plain data."""
        samples, conditions = list(self.samples), dict(self.conditions)
        return MeasurementDoc(name=self.name, value=self.value, unit=self.unit, samples=samples, conditions=conditions)


def weights_line(weights: WeightsRef) -> str:
    """Weights and how they are read, in a line."""
    mean, std = ("/".join(f"{value:.3g}" for value in values) for values in (weights["mean"], weights["std"]))
    return (
        f"{weights['source']}: {weights['activation']} ({weights['activation_source']}), "
        f"{weights['image_size']} pixels, mean {mean} and std {std} ({weights['normalization_source']}), "
        f"tokenizer: {weights['tokenizer'] or 'none'}"
    )


def trained(record: Record) -> bool:
    """Return True if the run trained a model."""
    without = record["tuning"] == "frozen" or "checkpoint" in record
    return not without and record["data"].get("train_split", "unknown") is not None


def normalized(record: Mapping[str, Any], where: str) -> Record:
    """Reduce a record to plain JSON types (tuples to lists, NumPy scalars to numbers) and check it.

    Raises:
        UsageError: names ``where`` and the path of what is wrong.
    """
    document = plain(record, where)
    try:
        _validator().validate_python(document)
    except ValidationError as error:
        at, message = first_error(error)
        message = f"{where}: not a valid run record: at {at}: {message}"
        raise UsageError(message, code="record.invalid", where=where, at=at) from None
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
        UsageError: the file cannot be read, is not JSON, or is no valid record; names the file and the path in it.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return normalized(json.loads(text, parse_constant=_reject_constant), str(path))
    except UsageError:
        raise
    except OSError as error:
        message = f"{path}: the record cannot be read: {error.strerror}"
        raise UsageError(message, code="record.read", path=str(path)) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a JSON document: {error}", code="record.json", path=str(path)) from None


def plain(value: Any, where: str, at: tuple[str | int, ...] = ()) -> Any:
    """``value`` in JSON types only: dict with string keys, list, str, int, float, bool, None.

    Raises:
        UsageError: a number that is not finite, or a type that JSON lacks; names ``where`` and the path.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(item, where, (*at, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, where, (*at, i)) for i, item in enumerate(value)]
    kind = "object with keys that are not strings" if isinstance(value, Mapping) else type(value).__name__
    what = f"the number {value}" if isinstance(value, float) else f"a value of type {kind}"
    path = json_path(at)
    raise UsageError(f"{where}: at {path}: JSON cannot hold {what}", code="json.type", where=where, at=path)


def _reject_constant(token: str) -> NoReturn:
    raise ValueError(f"JSON has no {token}")


@cache
def _validator() -> TypeAdapter[Record]:
    return TypeAdapter(Annotated[Record, AfterValidator(_consistent)])
