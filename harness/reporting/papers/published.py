"""The numbers that papers print, loaded from the tables in ``tvrbench.published`` and checked; none is made here."""

from __future__ import annotations

import csv
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from tvrbench.harness.core.errors import UsageError

# A published measure and its unit, as our metrics and measurements are named.
_RANKING = {
    **{f"{d}_r{k}": (f"{d}_R{k}", "percent") for d in ("t2v", "v2t") for k in (1, 5, 10)},
    **{f"{d}_mdr": (f"{d}_MdR", "rank") for d in ("t2v", "v2t")},
    **{f"{d}_mnr": (f"{d}_MnR", "rank") for d in ("t2v", "v2t")},
}
_WIDE = _RANKING | {
    "train_mem_gb": ("train_memory_gb", "GB"),
    "infer_ms_per_video": ("infer_ms_per_video", "ms"),
}
_LONG = {(name, unit): ours for name, (ours, unit) in _RANKING.items()} | {
    ("t2v_rsum", "points"): "t2v_RSum",
    ("v2t_rsum", "points"): "v2t_RSum",
    ("gflops", "GMACs"): "gmacs_video",
    ("output_tokens", "tokens"): "output_tokens",
    ("trainable_params", "M"): "params_trainable",
    ("throughput", "videos/s on A100"): "throughput",
    ("train_mem", "GB"): "train_memory_gb",
    ("train_mem", "MB per GPU"): "train_memory_mb_per_gpu",
    ("infer_mem", "MB per GPU"): "infer_memory_mb_per_gpu",
    ("train_speedup", "x over clip4clip"): "train_speedup",
}
METHOD_NAMES: Mapping[str, str] = {"clip-zero-shot": "zero_shot"}
"""Where a paper's table and our registry name a method differently."""


@dataclass(frozen=True, kw_only=True)
class PublishedNumber:
    """One number as a paper prints it.

    Attributes:
        paper: name and arXiv number.
        table: the table (or ``Abstract``) it stands in.
        train_split, backbone, frames: None where the table, as it was read, does not say.
        backbone: named as here, e.g. ``ViT-B-32``.
        method: our registry's name where we have the method, the table's otherwise.
        config: the table's words for the variant.
        metric: our name, e.g. ``t2v_R1``, ``gmacs_video``, ``train_memory_gb``.
        value: in ``unit``, as printed.
        decimals: digits printed after the point.
        read_from: how the number was read.
    """

    paper: str
    table: str
    dataset: str
    train_split: str | None
    backbone: str | None
    method: str
    config: str
    frames: int | None
    metric: str
    value: float
    unit: str
    decimals: int
    read_from: str

    @property
    def cited(self) -> str:
        """Paper and table."""
        return f"{self.paper}, {self.table}"


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """The options of ours that make what a paper calls ``config``; ``backbone`` None: on any."""

    paper: str
    method: str
    config: str
    backbone: str | None
    options: Mapping[str, Any]


@functools.cache
def load_published() -> tuple[PublishedNumber, ...]:
    """Every published number, in the order of the files.

    Raises:
        UsageError: names the file and line that is incomplete, unknown, no number or there twice.
    """
    folder = resources.files("tvrbench.published")
    return read_published(folder / "centerclip.csv", folder / "tempme.csv")


@functools.cache
def load_configurations() -> tuple[Configuration, ...]:
    """What the papers' configurations are in our options; errors as ``load_published``."""
    file = resources.files("tvrbench.published") / "configurations.csv"
    found = []
    for where, row in _rows(file):
        try:
            options = json.loads(_needed(row, "options", where))
        except ValueError as error:
            raise UsageError(f"{where}: column 'options' is not JSON: {error}") from None
        method = _needed(row, "method", where)
        found.append(
            Configuration(
                paper=_needed(row, "paper", where),
                method=METHOD_NAMES.get(method, method),
                config=row.get("config", ""),
                backbone=_backbone(row),
                options=options,
            )
        )
    return tuple(found)


def read_published(*files: Traversable) -> tuple[PublishedNumber, ...]:
    """The numbers of tables with a ``value`` column (one number a line) or without (one measure a column)."""
    numbers: dict[tuple[Any, ...], PublishedNumber] = {}
    for file in files:
        for where, row in _rows(file):
            for number in _long(row, where) if "value" in row else _wide(row, where):
                n = number
                key = (n.paper, n.table, n.dataset, n.backbone, n.method, n.config, n.frames, n.metric)
                if key in numbers:
                    raise UsageError(f"{where}: {n.metric} of {n.method} ({n.config}) stands twice in {n.cited}")
                numbers[key] = number
    return tuple(numbers.values())


def _rows(file: Traversable) -> Iterator[tuple[str, dict[str, str]]]:
    with file.open("r", encoding="utf-8") as text:
        for index, row in enumerate(csv.DictReader(text), start=2):
            if None in row or None in row.values():
                raise UsageError(f"{file.name} line {index}: as many fields as the header has are needed")
            yield f"{file.name} line {index}", row


def _wide(row: Mapping[str, str], where: str) -> Iterator[PublishedNumber]:
    table = re.search(r"Table \S+$", _needed(row, "source", where))
    if table is None:
        raise UsageError(f"{where}: column 'source' must end in the table, e.g. 'CenterCLIP Table 3b'")
    for column, (metric, unit) in _WIDE.items():
        if row.get(column):
            yield _number(row, where, table=table.group(), metric=metric, unit=unit, text=row[column])


def _long(row: Mapping[str, str], where: str) -> Iterator[PublishedNumber]:
    measure = (_needed(row, "metric", where), _needed(row, "unit", where))
    if measure not in _LONG:
        raise UsageError(f"{where}: measure {measure[0]!r} in {measure[1]!r} is not known")
    table, text = _needed(row, "table", where), _needed(row, "value", where)
    yield _number(row, where, table=table, metric=_LONG[measure], unit=measure[1], text=text)


def _number(row: Mapping[str, str], where: str, *, table: str, metric: str, unit: str, text: str) -> PublishedNumber:
    if not re.fullmatch(r"-?\d+(\.\d+)?", text) or not math.isfinite(float(text)):
        raise UsageError(f"{where}: {text!r} is not a number")
    method, frames = _needed(row, "method", where), row.get("frames", "")
    if frames and not frames.isdecimal():
        raise UsageError(f"{where}: column 'frames' must be a whole number, not {frames!r}")
    return PublishedNumber(
        paper=_needed(row, "paper", where),
        table=table,
        dataset=_needed(row, "dataset", where),
        train_split=_stated(row, "train_split"),
        backbone=_backbone(row),
        method=METHOD_NAMES.get(method, method),
        config=row.get("config", ""),
        frames=int(frames) if frames else None,
        metric=metric,
        value=float(text),
        unit=unit,
        decimals=len(text.partition(".")[2]),
        read_from=_needed(row, "read_from", where),
    )


def _needed(row: Mapping[str, str], column: str, where: str) -> str:
    if not row.get(column, "").strip():
        raise UsageError(f"{where}: column {column!r} is missing or empty")
    return row[column]


def _stated(row: Mapping[str, str], column: str) -> str | None:
    return None if row.get(column, "") in ("", "-") else row[column]


def _backbone(row: Mapping[str, str]) -> str | None:
    name = _stated(row, "backbone")
    return None if name is None else name.replace("/", "-")
