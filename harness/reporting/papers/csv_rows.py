"""CSV files of the papers' numbers, each line checked as hostile input is: by file, line and column."""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, StringConstraints, ValidationError

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.text import brief_repr

T = TypeVar("T")

_RANKING = {
    f"{direction}_{name.lower()}": (f"{direction}_{name}", unit)
    for names, unit in ((("R1", "R5", "R10"), "percent"), (("MdR",), "rank"), (("MnR",), "rank"))
    for direction in ("t2v", "v2t")
    for name in names
}
COLUMNS: Mapping[str, tuple[str, str]] = _RANKING | {
    "train_mem_gb": ("train_memory_gb", "GB"),
    "infer_ms_per_video": ("infer_ms_per_video", "ms"),
}
"""Columns of a file with one measure per column: the metric as named here, and its unit."""
_LINES = {(name, unit): metric for name, (metric, unit) in _RANKING.items()} | {
    ("t2v_rsum", "points"): "t2v_RSum",
    ("v2t_rsum", "points"): "v2t_RSum",
    ("gflops", "GMACs"): "gmacs_video",
    ("output_tokens", "tokens"): "output_tokens",
    ("trainable_params", "M"): "params_trainable",
    ("throughput", "videos/s"): "throughput",
    ("train_mem", "GB"): "train_memory_gb",
    ("train_mem", "MB per GPU"): "train_memory_mb_per_gpu",
    ("infer_mem", "MB per GPU"): "infer_memory_mb_per_gpu",
    ("train_speedup", "x"): "train_speedup",
}


def _stated(text: Any) -> Any:
    return None if text in ("", "-") else text


def _digits(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"-?\d{1,12}(\.\d{1,12})?", value):
        raise ValueError("a number is needed")
    return value


Text = Annotated[str, StringConstraints(pattern=r"\S")]
Stated = Annotated[str | None, BeforeValidator(_stated)]
"""None for an empty field or a hyphen."""
Backbone = Annotated[Stated, AfterValidator(lambda name: name and name.replace("/", "-"))]
Digits = Annotated[float, BeforeValidator(_digits)]


def folder() -> Traversable:
    """Return the folder of the files."""
    return resources.files("tvrbench.published")


def lines(file: Traversable) -> Iterator[tuple[int, dict[str, str]]]:
    """Read each row with its line number; a column that the file lacks reads as empty.

    Raises:
        UsageError: a line has more or fewer fields than the header, or the file is no CSV in UTF-8.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(file.read_bytes().decode(), newline="")))
    except (csv.Error, UnicodeDecodeError) as error:
        message = f"{file.name} is no CSV file in UTF-8 ({error}): write it again"
        raise UsageError(message, code="published.fields", file=file.name) from None
    for line, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            message = f"{file.name} line {line} has more or fewer fields than the header; quote commas in fields"
            raise UsageError(message, code="published.fields", file=file.name, line=line)
        yield line, defaultdict(str, row)


def checked(file: Traversable, line: int, kind: type[T], values: Mapping[str, Any]) -> T:
    """Make an object of a line.

    Raises:
        UsageError: a value does not fit; the message names the column.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise unreadable(file, line, str(first["loc"][0]), f"{brief_repr(first['input'])}; {first['msg']}") from None


def load(name: str, kind: type[T]) -> Iterator[T]:
    """Make an object of each line of a file whose columns are the object's fields; errors as ``checked``."""
    for line, row in lines(folder() / name):
        yield checked(folder() / name, line, kind, {field: row[field] for field in kind.__annotations__})


def metric_of(file: Traversable, line: int, row: Mapping[str, str]) -> str:
    """Return the metric, as named here, of a line with one number.

    Raises:
        UsageError: metric or unit is unknown.
    """
    # A unit may name the device that it was measured on or the baseline that it is over.
    metric = _LINES.get((row["metric"], re.split(" on | over ", row["unit"])[0]))
    if metric is None:
        raise unreadable(file, line, "metric", f"{brief_repr(row['metric'])} in {brief_repr(row['unit'])} is not known")
    return metric


def decimals(text: str) -> int:
    """Count the digits printed after the point."""
    return len(text.partition(".")[2])


def unreadable(file: Traversable, line: int, column: str, problem: str) -> UsageError:
    """Return the error of a value that cannot be read."""
    message = f"{file.name} line {line}, column {column!r}: {problem}"
    return UsageError(message, code="published.value", file=file.name, line=line, column=column)


def duplicate(file: Traversable, line: int, what: str) -> UsageError:
    """Return the error of a line that says again what an earlier one says."""
    message = f"{file.name} line {line} repeats {what}; keep one of the lines"
    return UsageError(message, code="published.duplicate", file=file.name, line=line)
