"""The runs of one method with one set of options (its seeds) as one row of a table, and the R@1 that rows compare by.

Rows are ordered, plotted and tested by R@1, text to video, with exact ties broken at random, in expectation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tvrbench.harness.core import registry
from tvrbench.harness.evaluation.comparability import Reason, set_apart
from tvrbench.harness.evaluation.statistics import bootstrap_interval, mean, mean_and_sd_over_seeds
from tvrbench.harness.records.reading import USUAL_READING, frame_captions_of, unusual_reading
from tvrbench.harness.records.record import AS_RELEASED, OVER_VIDEOS, MeasurementDoc, Record
from tvrbench.harness.records.runs import StoredRecord
from tvrbench.harness.reporting.tables.markdown import brief

Values = npt.NDArray[np.float64]
Item = TypeVar("Item")

CONFIDENCE = 0.95
_MOST = 10**6  # frames of a video
_RANK_PRECISION = 1e-3  # points: ranks are stored in float32
# Metrics that are means over queries, so that seeds can be averaged query by query before queries are resampled.
_PER_QUERY: Mapping[str, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
    "R1": lambda ranks: 100.0 * (ranks <= 1),
    "R5": lambda ranks: 100.0 * (ranks <= 5),
    "R10": lambda ranks: 100.0 * (ranks <= 10),
    "RSum": lambda ranks: 100.0 * ((ranks <= 1).astype(float) + (ranks <= 5) + (ranks <= 10)),
    "MnR": lambda ranks: ranks,
}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A measurement, averaged over runs.

    Attributes:
        value: None where a run lacks it.
        lower_bound, upper_bound: the value is at least, or at most, this.
        reason: why there is no value.
        invalid: why the value is excluded, for example a disturbed run.
    """

    value: float | None
    lower_bound: bool = False
    upper_bound: bool = False
    reason: str | None = None
    invalid: str | None = None

    @property
    def valid(self) -> float | None:
        """The value unless it is excluded."""
        return None if self.invalid is not None else self.value

    @classmethod
    def mean(cls, measurements: Sequence[MeasurementDoc], runs: int = 1) -> Cost:
        """Average the measurements that so many runs have."""
        conditions = [m["conditions"] for m in measurements]
        values = [m["value"] for m in measurements if m["value"] is not None]
        if len(values) < runs:
            reasons = (str(c["reason"]) for c in conditions if "reason" in c)
            return cls(value=None, reason=next(reasons, "not measured in every run"))
        invalid = next((str(c["invalid"]) for c in conditions if "invalid" in c), None)
        low, high = (any(c.get(key) is True for c in conditions) for key in ("lower_bound", "upper_bound"))
        return cls(value=fmean(values), lower_bound=low, upper_bound=high, invalid=invalid)


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """The runs of one method with the same options, weights, split and selection: one per seed, in order of seed.

    ``apart`` is the reason why the row is compared with no other one; None where it is compared.
    """

    label: str
    runs: tuple[StoredRecord, ...]
    apart: Reason | None = None

    @property
    def record(self) -> Record:
        """The first run's record: what holds for all of them."""
        return self.runs[0].record

    @property
    def method(self) -> str:
        """The method's name in the registry."""
        return self.record["method"]["name"]

    @property
    def options(self) -> Mapping[str, Any]:
        """Backbone, frames and every option of the method."""
        return self.record["method"]["options"]

    @property
    def measurements(self) -> list[MeasurementDoc]:
        """Every measurement of every run."""
        return [m for run in self.runs for m in run.record["cost"]]

    @property
    def selection(self) -> str:
        """The checkpoint that the metrics are of: ``last``, ``best-on-test`` or ``unknown``."""
        return str(self.record["metrics"].get("selection", "last"))

    @property
    def encodes(self) -> bool:
        """True unless no encoder runs: a method without multiply-adds wins nothing in time or memory."""
        cost = self.cost("gmacs_video")
        return cost is None or cost.value != 0

    def values(self, *path: str) -> list[float] | None:
        """Return a metric of each run by its path in the record, e.g. ("t2v", "R1"); None unless every run has it."""
        values: list[Any] = [run.record["metrics"] for run in self.runs]
        for key in path:
            values = [value.get(key) if isinstance(value, Mapping) else None for value in values]
        return None if None in values else [float(value) for value in values]

    def metric(self, *path: str) -> float | None:
        """Return the metric's mean over seeds."""
        values = self.values(*path)
        return None if values is None else mean_and_sd_over_seeds(values).mean

    def sd(self, *path: str) -> float | None:
        """Return the metric's standard deviation over seeds; None for a single one."""
        values = self.values(*path)
        return None if values is None else mean_and_sd_over_seeds(values).sd

    def interval(self, direction: str, metric: str) -> tuple[float, float] | None:
        """Return the 95 % bootstrap interval over queries: recorded, or of several seeds' mean from their ranks.

        None where neither exists, and for the median rank of several seeds, which is no mean over queries.

        Raises:
            UsageError: a record's file of ranks is missing or broken.
        """
        if len(self.runs) == 1:
            intervals = self.record["metrics"].get("intervals", {})
            ends = intervals.get(direction, {}).get(metric) if intervals.get("confidence") == CONFIDENCE else None
            return None if ends is None else (ends[0], ends[1])
        if metric not in _PER_QUERY:
            return None
        ranks = [run.ranks() for run in self.runs]
        per_seed = [_PER_QUERY[metric](r[direction]) for r in ranks if r is not None]
        if len(per_seed) < len(self.runs) or len({len(values) for values in per_seed}) > 1:
            return None
        interval = bootstrap_interval(np.mean(per_seed, axis=0), mean, CONFIDENCE)
        return interval.low, interval.high

    def holds(self, name: str) -> bool:
        """Return True if any run's record has a measurement of this name."""
        return any(m["name"] == name for m in self.measurements)

    def reading(self, name: str) -> str:
        """Return the name that a cost has in these records.

        One as released that they do not hold is the exact one, and a count that depends on the pixels is its mean over
        videos, where they hold that.
        """
        known = name if self.holds(name) else name.removesuffix(AS_RELEASED)
        return f"{known}{OVER_VIDEOS}" if self.holds(f"{known}{OVER_VIDEOS}") else known

    def cost(self, name: str, what: str = "inference") -> Cost | None:
        """Return a measurement by the name that it has in these records (``reading``), averaged over the runs."""
        return self.recorded(self.reading(name), what)

    def recorded(self, name: str, what: str = "inference", gallery: int | None = None) -> Cost | None:
        """Return a measurement of exactly this name, averaged over the runs; None where no run mentions it.

        A measurement that names no scenario (``what``) counts for any; ``gallery`` is that of a search.
        """

        def fits(m: MeasurementDoc) -> bool:
            conditions = m["conditions"]
            return (
                m["name"] == name
                and conditions.get("what", what) == what
                and gallery in (None, conditions.get("gallery"))
            )

        per_run = (list(filter(fits, run.record["cost"])) for run in self.runs)
        first = [measurements[0] for measurements in per_run if measurements]
        return Cost.mean(first, len(self.runs)) if first else None


def method_rows(stored: Sequence[StoredRecord], *, apart: tuple[str, ...] = ()) -> list[MethodRow]:
    """Group completed runs into rows, in order of method name; rows with metrics know whether they compare.

    The label of a method with several rows names the options that differ, without those that are set ``apart`` in
    columns of their own.
    """
    groups: dict[str, list[StoredRecord]] = {}
    for run in stored:
        if run.record["status"] == "completed":
            groups.setdefault(json.dumps(row_identity(run.record), sort_keys=True), []).append(run)
    runs = [tuple(sorted(group, key=lambda r: r.record["seed"])) for _, group in sorted(groups.items())]
    labels = _labels([group[0].record for group in runs], apart)
    scored = any(run.record["metrics"] for group in runs for run in group)
    reasons = set_apart([[run.record for run in group] for group in runs]) if scored else [None] * len(runs)
    rows = [
        MethodRow(label=label, runs=group, apart=reason)
        for label, group, reason in zip(labels, runs, reasons, strict=True)
    ]
    return sorted(rows, key=lambda row: (row.method, row.label))


def with_unique_labels(stored: Sequence[StoredRecord]) -> tuple[StoredRecord, ...]:
    """Return the same runs, each labeled as its row."""
    labels = {run.path: row.label for row in method_rows([s for s in stored if not s.scored]) for run in row.runs}
    return tuple(replace(run, label=labels.get(run.path)) for run in stored)


def by_recall(rows: Sequence[MethodRow]) -> list[MethodRow]:
    """Sort rows from the lowest expected R@1 to the highest, as papers print them."""
    return sorted(rows, key=lambda row: (expected_recall(row) or 0.0, row.label))


def group_title(group: registry.Group) -> str:
    """Return the title of a group of rows."""
    return group.capitalize()


def group_of(row: MethodRow) -> str:
    """Return the title of a row's group, from its method's card; "Other" for a method that is not installed."""
    known = {**registry.table("methods"), **registry.table("baselines")}
    if row.method not in known:
        return "Other"
    return group_title(registry.lookup(row.method, "methods", "baselines").card.group)


def in_groups(rows: Sequence[MethodRow]) -> list[MethodRow]:
    """Sort rows by their group, in the order of papers' tables, and from the lowest expected R@1 to the highest.

    The dense encoder on fewer frames is in order of frames.
    """
    fewer = registry.matching("methods", "baselines", role="frame_budget")
    frames = {id(row): option_number(row.options, "keep") or 0.0 for row in rows if row.method in fewer}
    return grouped(sorted(by_recall(rows), key=lambda row: frames.get(id(row), 0.0)), lambda row: row)


def option_number(options: Mapping[str, Any], *names: str) -> float | None:
    """Return the first of some options that there is, if it is a number that can be: options may be anything."""
    value = next((options[name] for name in names if name in options), None)
    return value if isinstance(value, int | float) and 0 < value <= _MOST else None


def grouped(items: Iterable[Item], row: Callable[[Item], MethodRow]) -> list[Item]:
    """Sort items by the group of their row, in the order of papers' tables; the order in a group stays."""
    titles = [group_title(group) for group in registry.GROUPS]
    return sorted(items, key=lambda item: titles.index(g) if (g := group_of(row(item))) in titles else len(titles))


def expected_recall(row: MethodRow) -> float | None:
    """Return R@1 with ties broken at random, in expectation; the plain R@1 where the record does not hold it."""
    expected = row.metric("ties_shared", "t2v", "R1")
    return row.metric("t2v", "R1") if expected is None else expected


def ties_matter(rows: Sequence[MethodRow]) -> bool:
    """Return True if exact ties change the R@1 of any row."""
    return any(expected_recall(row) != row.metric("t2v", "R1") for row in rows)


def expected_sd(row: MethodRow) -> float | None:
    """Return the standard deviation over seeds of the expected R@1; None for a single seed."""
    expected = row.sd("ties_shared", "t2v", "R1")
    return row.sd("t2v", "R1") if expected is None else expected


def expected_interval(row: MethodRow) -> tuple[float, float] | None:
    """Return the recorded 95 % interval of the expected R@1; of several seeds only where no tie matters."""
    if not ties_matter([row]):
        return row.interval("t2v", "R1")
    ends = row.record["metrics"]["ties_shared"]["t2v"]["R1_interval"] if len(row.runs) == 1 else None
    return None if ends is None else (ends[0], ends[1])


def run_credits(run: StoredRecord) -> Values | None:
    """Return each query's share of the expected R@1, in percent [Q]; None where the run's ranks cannot give it.

    Rank 1 earns 100. Rank 1.5 can only be a tie of two at the top, which earns 50. A higher rank earns nothing unless
    three or more tie at the top; then the mean differs from the recorded one, and the ranks cannot give the shares.

    Raises:
        UsageError: the record's file of ranks is missing or broken.
    """
    ranks = run.ranks()
    if ranks is None:
        return None
    t2v = np.asarray(ranks["t2v"], dtype=np.float64)
    recorded = run.record["metrics"].get("ties_shared", {}).get("t2v", {}).get("R1")
    if recorded is None:
        return np.where(t2v <= 1, 100.0, 0.0)
    earned = np.select([t2v <= 1, t2v == 1.5], [100.0, 50.0], 0.0)
    return earned if abs(float(earned.mean()) - recorded) <= _RANK_PRECISION else None


def seed_credits(row: MethodRow) -> Values | None:
    """Return ``run_credits`` of every seed [S, Q]; None where one has none or seeds were tested on other queries."""
    per_seed = [run_credits(run) for run in row.runs]
    usable = [values for values in per_seed if values is not None]
    return np.stack(usable) if len(usable) == len(per_seed) and len({len(v) for v in usable}) == 1 else None


def row_credits(row: MethodRow) -> Values | None:
    """Return ``run_credits`` averaged over seeds, query by query [Q]."""
    seeds_SQ = seed_credits(row)
    return None if seeds_SQ is None else seeds_SQ.mean(axis=0)


def why_not_paired(a: MethodRow, b: MethodRow) -> str | None:
    """Return the reason why the queries of two rows cannot be paired; None where they can."""
    one, other = a.record["data"]["split_fingerprint"], b.record["data"]["split_fingerprint"]
    credits = [(row, row_credits(row)) for row in (a, b)]
    lengths = {None if values is None else len(values) for _, values in credits}
    if one is None or one != other or (None not in lengths and len(lengths) > 1):
        return "not tested on the same queries"
    lacking = (row.label for row, values in credits if values is None)
    return next((f"the records of {label} hold no usable ranks of single queries" for label in lacking), None)


def row_identity(record: Record) -> dict[str, Any]:
    """Return what makes two runs two rows; the value under "" goes into every label."""
    checkpoint = record.get("checkpoint")
    return {
        "": record["method"]["name"] + (f", scored checkpoint {checkpoint['file']}" if checkpoint else ""),
        **record["method"]["options"],
        "tuning": record["tuning"],
        "selection": record["metrics"].get("selection", "last"),
        "weights": (checkpoint["sha256"] if checkpoint else record["weights_sha256"] or "")[:8],
        **USUAL_READING,
        **unusual_reading(record),
        "split": (record["data"]["split_fingerprint"] or "")[:8],
        **({"frame_captions": frame_captions[:8]} if (frame_captions := frame_captions_of(record)) else {}),
    }


def _labels(records: Sequence[Record], apart: tuple[str, ...]) -> list[str]:
    """Name each row by what sets it apart from those of its method.

    Options that a preset filled in are left out where all of these records tell which were given, and the names stay
    unique without them.
    """
    identities = [row_identity(record) for record in records]
    named: dict[str, list[int]] = {}
    for i, own in enumerate(identities):
        named.setdefault(json.dumps([own.get(key) for key in ("", *apart)]), []).append(i)
    labels = [""] * len(records)
    for group in named.values():
        members = [identities[i] for i in group]
        differing = {key for one in members for key in one if any(other.get(key) != one[key] for other in members)}
        whole = [_label(identities[i], differing) for i in group]
        short = [_label(identities[i], _without_presets(records[i], differing)) for i in group]
        known = all("given" in records[i]["method"] for i in group) and len(set(short)) == len(short)
        for i, label in zip(group, short if known else whole, strict=True):
            labels[i] = label
    return labels


def _without_presets(record: Record, keys: Set[str]) -> Set[str]:
    """Leave out the options of a method that nobody gave."""
    method = record["method"]
    return keys - (method["options"].keys() - {"backbone", "frames", *method.get("given", {})})


def _label(identity: Mapping[str, Any], keys: Set[str]) -> str:
    options = ", ".join(f"{key}={_short(value)}" for key, value in identity.items() if key in keys)
    return f"{identity['']} ({options})" if options else str(identity[""])


def _short(value: Any) -> str:
    return brief(json.dumps(value, ensure_ascii=False).strip('"').replace(", ", ","), 40) or "none"
