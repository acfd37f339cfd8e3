"""Numbers, claims and configurations of papers, read from the CSV files in ``tvrbench.published`` and checked."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.resources.abc import Traversable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator
from pydantic.dataclasses import dataclass

from tvrbench.harness.records.store import BEST_ON_TEST
from tvrbench.harness.reporting.catalogue import COUNTS
from tvrbench.harness.reporting.papers.csv_rows import (
    COLUMNS,
    Backbone,
    Digits,
    Stated,
    Text,
    checked,
    decimals,
    duplicate,
    folder,
    lines,
    load,
    metric_of,
    unreadable,
)

ACCURACY = "t2v_RSum"
MEASURES = (*COUNTS, "infer_time", "train_time", "train_memory", ACCURACY)

MILLIONS, SHARE, POINTS = "M", "% of all", "points more"
FORMS: Mapping[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "% less": (lambda ratio: 100 * (1 - ratio), lambda claimed: 1 - claimed / 100),
    "% of it": (lambda ratio: 100 * ratio, lambda claimed: claimed / 100),
    "x faster": (lambda ratio: 1 / ratio, lambda claimed: 1 / claimed),
    POINTS: (lambda points: points, lambda claimed: claimed),
    MILLIONS: (lambda value: 1e-6 * value, lambda claimed: 1e6 * claimed),
    SHARE: (lambda share: 100 * share, lambda claimed: claimed / 100),
}
"""Forms of a claim: from the method's cost over the baseline's, or from its own, to the form, and back.

A share may also be one of a total that the paper names: "% of 119.8 M".
"""

_OF_TOTAL = re.compile(r"% of (\d+(?:\.\d+)?) M")


def form(unit: str) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """Return the two functions of a form.

    Raises:
        KeyError: the form is not known.
    """
    if (of := _OF_TOTAL.fullmatch(unit)) is None:
        return FORMS[unit]
    percent = 1e4 * float(of[1])
    return lambda value: value / percent, lambda claimed: claimed * percent


def needs_baseline(unit: str) -> bool:
    """Return True if a claim of this form is about two methods."""
    return unit not in (MILLIONS, SHARE) and _OF_TOTAL.fullmatch(unit) is None


OWN, OTHER = "the paper's own", "another reading"

_OTHER_FILES = (
    *("claims.csv", "ratios.csv", "configurations.csv", "variants.csv", "names.csv"),
    *("recipes.csv", "reruns.csv"),
)


def _whole(value: Any) -> Any:
    if isinstance(value, str) and value and not value.isdecimal():
        raise ValueError("a whole number is needed")
    return value or None


def _registered(name: str) -> str:
    return _registered_names().get(name, name)


Method = Annotated[Text, AfterValidator(_registered)]
_Options = Annotated[
    Mapping[str, Any], BeforeValidator(lambda value: json.loads(value) if isinstance(value, str) else value)
]


@dataclass(frozen=True, kw_only=True)
class PublishedNumber:
    """One number as a paper prints it.

    Attributes:
        paper: name and arXiv or OpenReview number.
        table: its table, or ``Abstract``.
        train_split, backbone, frames: None where the table does not name them.
        backbone: named as here, e.g. ``ViT-B-32``.
        method: the registry's name of a registered method, otherwise the table's.
        config: the table's words for the variant.
        metric: named as here, e.g. ``t2v_R1``, ``gmacs_video``, ``train_memory_gb``.
        value: in ``unit``, as printed.
        spread: printed after it as ``+-``, the deviation over seeds; None where none is printed.
        decimals: digits printed after the point.
        read_from: how the number was read.
        selection: the checkpoint that the number is of; papers of this field choose it on the test set.
    """

    paper: Text
    table: Text
    dataset: str
    train_split: Stated
    backbone: Backbone
    method: Method
    config: str
    frames: Annotated[int | None, BeforeValidator(_whole)]
    metric: Text
    value: Digits
    unit: Text
    spread: Digits | None = None
    decimals: int
    read_from: Text
    selection: Annotated[Literal["last", "best-on-test"], BeforeValidator(lambda v: v or BEST_ON_TEST)] = BEST_ON_TEST

    @property
    def cited(self) -> str:
        """Paper and table."""
        return f"{self.paper}, {self.table}"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of a paper about cost, against one baseline.

    Attributes:
        number: the claimed figure; ``metric`` is one of ``MEASURES``, ``unit`` its form.
        text: the claim in words.
        against, against_config: the baseline, named like ``number.method`` and ``number.config``; empty where the
            claim needs none.
        reading: ``OWN`` where the paper itself means this baseline.
        bench_options: options of ``tvrbench bench`` that measure it, besides the two methods; of accuracy, the protocol
            of ``tvrbench run``.
    """

    number: PublishedNumber
    text: Text
    against: str
    against_config: str
    reading: str
    bench_options: Annotated[tuple[str, ...], BeforeValidator(lambda v: v.split() if isinstance(v, str) else v)]

    @property
    def ratio(self) -> float:
        """The claimed cost of the method over the baseline's."""
        return form(self.number.unit)[1](self.number.value)


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """The options here that make what a paper calls ``config``.

    Attributes:
        backbone: None for any.
        not_checkable: why no number of it is judged, for example because no code was released; None where it is.
    """

    paper: Text
    method: Method
    config: str
    backbone: Backbone
    options: _Options
    not_checkable: Stated = None


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Options of a method that a paper has a name for, which labels the rows that have them."""

    method: Text
    name: Text
    options: _Options


@functools.cache
def load_published() -> tuple[PublishedNumber, ...]:
    """Every published number, in the order of the files.

    Raises:
        UsageError: a line is incomplete, unknown, no number, or repeated; the message names it.
    """
    files = [file for file in folder().iterdir() if file.name.endswith(".csv") and file.name not in _OTHER_FILES]
    return read_published(*sorted(files, key=lambda file: file.name))


@functools.cache
def load_configurations() -> tuple[Configuration, ...]:
    """The papers' configurations as options here; errors as ``load_published``."""
    return tuple(load("configurations.csv", Configuration))


@functools.cache
def load_variants() -> tuple[Variant, ...]:
    """The named variants; errors as ``load_published``."""
    return tuple(load("variants.csv", Variant))


@functools.cache
def load_claims() -> tuple[Claim, ...]:
    """The claims in words, in the order of the file; errors as ``load_published``."""
    return read_claims(folder() / "claims.csv")


def read_published(*files: Traversable) -> tuple[PublishedNumber, ...]:
    """The numbers of tables with a ``value`` column (one number per line) or without (one measure per column)."""
    numbers: dict[tuple[Any, ...], PublishedNumber] = {}
    for file in files:
        for line, row in lines(file):
            for table, metric, unit, column in _cells(file, line, row):
                n = _number(file, line, row, table=table, metric=metric, unit=unit, value=column)
                key = (n.paper, n.table, n.dataset, n.train_split, n.backbone, n.method, n.config, n.frames, n.metric)
                if key in numbers:
                    raise duplicate(file, line, f"{n.metric} of {n.method} ({n.config}) in {n.cited}")
                numbers[key] = n
    return tuple(numbers.values())


def read_claims(file: Traversable) -> tuple[Claim, ...]:
    """The claims of one file; errors as ``load_published``."""
    claims: dict[tuple[Any, ...], Claim] = {}
    for line, row in lines(file):
        number = _number(file, line, row, table=row["table"], metric=row["measure"], unit=row["form"], value="value")
        allowed = {
            "measure": (number.metric in MEASURES, f"one of {', '.join(MEASURES)}"),
            "form": (
                number.unit in FORMS or not needs_baseline(number.unit),
                f"one of {', '.join(FORMS)} or '% of NUMBER M'",
            ),
            "value": (number.value > 0, "a positive number"),
            "backbone": (number.backbone is not None, "a backbone"),
            "frames": (number.frames is not None, "a whole number"),
            "against": (
                needs_baseline(number.unit) == bool(row["against"]),
                "a baseline, or none for a number of its own",
            ),
            "reading": (row["reading"] in (OWN, OTHER), f"{OWN!r} or {OTHER!r}"),
        }
        for column, (good, needed) in allowed.items():
            if not good:
                raise unreadable(file, line, column, f"{row[column]!r}; give {needed}")
        columns = ("paper", "claim", "backbone", "frames", "config", "measure", "form", "against", "against_config")
        key = tuple(row[column] for column in columns)
        if key in claims:
            raise duplicate(file, line, f"{row['claim']} against {row['against']}")
        claims[key] = _claim(file, line, row, number=number, text=row["claim"])
    return tuple(claims.values())


def table_claims(numbers: Iterable[PublishedNumber]) -> list[Claim]:
    """Times and memory of a paper's tables as shares of the baseline in the same table (``ratios.csv``).

    A ratio that several tables repeat is listed once.
    """
    numbers, file = list(numbers), folder() / "ratios.csv"
    rows = {(r["paper"], r["dataset"], r["method"], r["metric"]): (line, r) for line, r in lines(file)}
    claims: dict[tuple[Any, ...], Claim] = {}
    for n in numbers:
        line, row = rows.get((n.paper, n.dataset, n.method, n.metric), (0, {}))
        place = (n.paper, n.table, n.backbone, n.metric, row.get("against"), row.get("against_config"))
        bases = (b for b in numbers if (b.paper, b.table, b.backbone, b.metric, b.method, b.config) == place)
        if (base := next(bases, None)) is not None:
            form: dict[str, Any] = {"metric": row["measure"], "unit": "% of it", "decimals": 1}
            share = replace(n, frames=int(row["frames"]), value=100 * n.value / base.value, **form)
            text = f"{row['claim']}: {n.value:g} {n.unit} where the baseline has {base.value:g}"
            claim = _claim(file, line, row, number=share, text=text, reading=OWN)
            claims.setdefault((n.backbone, n.config, row["frames"], text), claim)
    return list(claims.values())


@functools.cache
def _registered_names() -> dict[str, str]:
    return {row["printed"]: row["registered"] for _, row in lines(folder() / "names.csv")}


def _cells(file: Traversable, line: int, row: Mapping[str, str]) -> Iterator[tuple[str, str, str, str]]:
    """Table, metric, unit and column of each number in a line."""
    if "value" in row:
        yield row["table"], metric_of(file, line, row), row["unit"], "value"
        return
    table = re.search(r"Table \S+$", row["source"])
    if table is None:
        raise unreadable(file, line, "source", "end it in the table, e.g. 'Table 3b'")
    yield from ((table.group(), metric, unit, column) for column, (metric, unit) in COLUMNS.items() if row[column])


def _number(file: Traversable, line: int, row: Mapping[str, str], *, value: str, **fields: str) -> PublishedNumber:
    """One number; its text is in the column ``value``."""
    common = ("paper", "dataset", "train_split", "backbone", "method", "config", "frames", "read_from", "selection")
    text, _, spread = row[value].partition(" +- ")
    values = {column: row[column] for column in common} | fields | {"value": text, "spread": spread or None}
    return checked(file, line, PublishedNumber, values | {"decimals": decimals(text)})


def _claim(file: Traversable, line: int, row: Mapping[str, str], **fields: Any) -> Claim:
    same = ("against", "against_config", "reading", "bench_options")
    return checked(file, line, Claim, {column: row[column] for column in same} | fields)
