"""What the papers claim about cost, as data: each claim with every baseline that it can be read against."""

from __future__ import annotations

import csv
import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.reporting.papers.published import METHOD_NAMES, PublishedNumber

MODEL_MEASURES = ("output_tokens", "gmacs_video", "params_trainable")
"""Measures that belong to the model alone, the same on every machine."""

MEASURES = (*MODEL_MEASURES, "infer_time", "train_time", "train_memory")

# A form of saying how much less: from our figure over the baseline's, and back.
FORMS: Mapping[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "% less": (lambda ratio: 100 * (1 - ratio), lambda said: 1 - said / 100),
    "% of it": (lambda ratio: 100 * ratio, lambda said: said / 100),
    "x faster": (lambda ratio: 1 / ratio, lambda said: 1 / said),
}
ABSOLUTE = "M"
"""The form of a claim that needs no baseline: millions."""

OWN, OTHER = "the paper's own", "another reading"

# CenterCLIP's tables: whose rows give a ratio, its baseline in the same table, and the frames that no column says.
_TABLE_METHOD, _TABLE_BASELINE = "centerclip", ("clip4clip", "meanP (CenterCLIP authors' rerun)")
_TABLE_MEASURES = {"infer_ms_per_video": "infer_time", "train_memory_gb": "train_memory"}
_TABLE_FRAMES = {"activitynet": 60}
_USUAL_FRAMES = 12
# Its recipe trains under half precision and the baseline's does not: memory compares only within one precision.
_TABLE_OPTIONS = {"infer_time": (), "train_memory": ("--training", "--precision", "bfloat16")}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim of a paper against one baseline.

    Attributes:
        number: the figure claimed: ``metric`` is one of ``MEASURES``, ``unit`` its form (``FORMS`` or ``ABSOLUTE``).
        text: the claim in words.
        against, against_config: the baseline, named like ``number.method`` and ``number.config``; empty where the
            claim needs none.
        reading: whether the paper itself means this baseline.
        bench_options: what ``tvrbench bench`` needs besides the two methods to measure it.
    """

    number: PublishedNumber
    text: str
    against: str
    against_config: str
    reading: str
    bench_options: tuple[str, ...]

    @property
    def ratio(self) -> float:
        """Our figure over the baseline's, as claimed."""
        return FORMS[self.number.unit][1](self.number.value)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Options of a method that a paper has a name for, and which rows of a table then bear."""

    method: str
    name: str
    options: Mapping[str, Any]


@functools.cache
def load_claims() -> tuple[Claim, ...]:
    """The claims in words, in the order of the file.

    Raises:
        UsageError: names the line that is incomplete, unknown, no number or there twice.
    """
    return read_claims(resources.files("tvrbench.published") / "claims.csv")


@functools.cache
def load_variants() -> tuple[Variant, ...]:
    """The named variants; errors as ``load_claims``."""
    found = []
    for where, row in _rows(resources.files("tvrbench.published") / "variants.csv"):
        try:
            options = json.loads(_needed(row, "options", where))
        except ValueError as error:
            raise UsageError(f"{where}: column 'options' is not JSON: {error}") from None
        found.append(Variant(method=_needed(row, "method", where), name=_needed(row, "name", where), options=options))
    return tuple(found)


def read_claims(file: Traversable) -> tuple[Claim, ...]:
    """The claims of one table; errors as ``load_claims``."""
    found: dict[tuple[Any, ...], Claim] = {}
    for where, row in _rows(file):
        claim = _claim(row, where)
        n = claim.number
        key = (n.paper, claim.text, n.backbone, n.frames, n.config, claim.against, claim.against_config)
        if key in found:
            raise UsageError(f"{where}: {claim.text} against {claim.against} stands twice")
        found[key] = claim
    return tuple(found.values())


def table_claims(numbers: Iterable[PublishedNumber]) -> list[Claim]:
    """CenterCLIP's milliseconds and gigabytes as shares of its own baseline in the same table; equal ones once."""
    numbers = list(numbers)
    found: dict[tuple[Any, ...], Claim] = {}
    for n in numbers:
        base = next((b for b in numbers if _is_base(b, n)), None)
        if n.method != _TABLE_METHOD or base is None:
            continue
        frames, measure = _TABLE_FRAMES.get(n.dataset, _USUAL_FRAMES), _TABLE_MEASURES[n.metric]
        words = f"{n.value:g} {n.unit} where the baseline has {base.value:g}"
        claim = Claim(
            number=PublishedNumber(
                paper=n.paper,
                table=n.table,
                dataset=n.dataset,
                train_split=n.train_split,
                backbone=n.backbone,
                method=n.method,
                config=n.config,
                frames=frames,
                metric=measure,
                value=100 * n.value / base.value,
                unit="% of it",
                decimals=1,
                read_from=n.read_from,
            ),
            text=f"{'training memory' if measure == 'train_memory' else 'inference time'}: {words}",
            against=base.method,
            against_config=base.config,
            reading=OWN,
            bench_options=_TABLE_OPTIONS[measure],
        )
        found.setdefault((n.backbone, n.config, frames, claim.text), claim)
    return list(found.values())


def _is_base(base: PublishedNumber, n: PublishedNumber) -> bool:
    return (
        (base.method, base.config) == _TABLE_BASELINE
        and n.metric in _TABLE_MEASURES
        and (base.paper, base.table, base.backbone, base.metric) == (n.paper, n.table, n.backbone, n.metric)
    )


def _claim(row: Mapping[str, str], where: str) -> Claim:
    measure, form, text = (_needed(row, column, where) for column in ("measure", "form", "value"))
    if measure not in MEASURES:
        raise UsageError(f"{where}: column 'measure' must be one of {', '.join(MEASURES)}, not {measure!r}")
    if form not in (*FORMS, ABSOLUTE):
        raise UsageError(f"{where}: column 'form' must be one of {', '.join((*FORMS, ABSOLUTE))}, not {form!r}")
    if not re.fullmatch(r"\d+(\.\d+)?", text) or not float(text):
        raise UsageError(f"{where}: column 'value' must be a positive number, not {text!r}")
    frames, reading = _needed(row, "frames", where), _needed(row, "reading", where)
    if not frames.isdecimal() or reading not in (OWN, OTHER):
        raise UsageError(f"{where}: 'frames' must be a whole number, and 'reading' {OWN!r} or {OTHER!r}")
    if (form == ABSOLUTE) == bool(row.get("against")):
        raise UsageError(
            f"{where}: a claim in {form!r} needs {'no' if form == ABSOLUTE else 'a'} baseline in 'against'"
        )
    method = _needed(row, "method", where)
    return Claim(
        number=PublishedNumber(
            paper=_needed(row, "paper", where),
            table=_needed(row, "table", where),
            dataset="",
            train_split=None,
            backbone=_needed(row, "backbone", where).replace("/", "-"),
            method=METHOD_NAMES.get(method, method),
            config=row["config"],
            frames=int(frames),
            metric=measure,
            value=float(text),
            unit=form,
            decimals=len(text.partition(".")[2]),
            read_from=_needed(row, "read_from", where),
        ),
        text=_needed(row, "claim", where),
        against=row["against"],
        against_config=row["against_config"],
        reading=reading,
        bench_options=tuple(row["bench_options"].split()),
    )


def _rows(file: Traversable) -> Iterator[tuple[str, dict[str, str]]]:
    with file.open("r", encoding="utf-8") as text:
        for index, row in enumerate(csv.DictReader(text), start=2):
            if None in row or None in row.values():
                raise UsageError(f"{file.name} line {index}: as many fields as the header has are needed")
            yield f"{file.name} line {index}", row


def _needed(row: Mapping[str, str], column: str, where: str) -> str:
    if not row.get(column, "").strip():
        raise UsageError(f"{where}: column {column!r} is missing or empty")
    return row[column]
