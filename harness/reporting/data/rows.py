"""The runs of one method with one set of options (its seeds) as one row of a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from tvrbench.harness.evaluation.statistics import bootstrap_interval, mean, mean_and_sd_over_seeds
from tvrbench.harness.records.record import MeasurementDoc, Record
from tvrbench.harness.reporting.data.records import StoredRecord
from tvrbench.harness.reporting.tables.markdown import brief

CONFIDENCE = 0.95
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
    """A measurement, averaged over a row's runs.

    Attributes:
        value: None where it was not made in every run.
        unit: of the value.
        lower_bound: the value is at least this.
        reason: why there is none.
        invalid: why it is not to be trusted, where some run was disturbed or its outputs strayed.
    """

    value: float | None
    unit: str
    lower_bound: bool = False
    reason: str | None = None
    invalid: str | None = None

    @property
    def valid(self) -> float | None:
        """The value, where there is one to be trusted."""
        return None if self.invalid is not None else self.value


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """The runs of one method with the same options, weights, split and selection; one run a seed, in order of seed."""

    label: str
    runs: tuple[StoredRecord, ...]

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
    def selection(self) -> str:
        """Which checkpoint the metrics are of: ``last``, ``best-on-test`` or ``unknown``."""
        return str(self.record["metrics"].get("selection", "last"))

    @property
    def encodes(self) -> bool:
        """Whether an encoder runs: what does no multiply-adds beats nobody in time or memory."""
        cost = self.cost("gmacs_video")
        return cost is None or cost.value != 0

    def values(self, *path: str) -> list[float] | None:
        """A metric by its path in the record, e.g. ("t2v", "R1"), one a run; None unless every run has it."""
        found = [_at(run.record["metrics"], path) for run in self.runs]
        numbers = [value for value in found if value is not None]
        return numbers if len(numbers) == len(found) else None

    def metric(self, *path: str) -> float | None:
        """The metric's mean over seeds."""
        values = self.values(*path)
        return None if values is None else mean_and_sd_over_seeds(values).mean

    def sd(self, *path: str) -> float | None:
        """The metric's standard deviation over seeds; None for a single one."""
        values = self.values(*path)
        return None if values is None else mean_and_sd_over_seeds(values).sd

    def interval(self, direction: str, metric: str) -> tuple[float, float] | None:
        """95 % bootstrap interval over queries: one run's as recorded; of several seeds' mean, from their ranks.

        None where neither is there, and for the median rank of several seeds, which is no mean over queries.

        Raises:
            UsageError: a record's file of ranks is missing or broken.
        """
        if len(self.runs) == 1:
            intervals = self.record["metrics"].get("intervals", {})
            found = intervals.get(direction, {}).get(metric) if intervals.get("confidence") == CONFIDENCE else None
            return None if found is None else (found[0], found[1])
        if metric not in _PER_QUERY:
            return None
        ranks = [run.ranks() for run in self.runs]
        per_seed = [_PER_QUERY[metric](r[direction]) for r in ranks if r is not None]
        if len(per_seed) < len(self.runs) or len({len(values) for values in per_seed}) > 1:
            return None
        interval = bootstrap_interval(np.mean(per_seed, axis=0), mean, CONFIDENCE)
        return interval.low, interval.high

    def cost(self, name: str, what: str = "inference") -> Cost | None:
        """A measurement by name; None where no run mentions it.

        Args:
            name: as in the records.
            what: ``inference`` or ``training``; a measurement that does not say counts as either.
        """
        found = [_measurement(run.record["cost"], name, what) for run in self.runs]
        there = [measurement for measurement in found if measurement is not None]
        if not there:
            return None
        unit = there[0]["unit"]
        values = [m["value"] for m in there if m["value"] is not None]
        if len(values) < len(found):
            reasons = [str(m["conditions"]["reason"]) for m in there if m["value"] is None]
            return Cost(value=None, unit=unit, reason=reasons[0] if reasons else "not measured in every run")
        bound = any(m["conditions"].get("lower_bound") is True for m in there)
        invalid = next((str(m["conditions"]["invalid"]) for m in there if "invalid" in m["conditions"]), None)
        return Cost(value=fmean(values), unit=unit, lower_bound=bound, invalid=invalid)


def method_rows(stored: Sequence[StoredRecord], *, apart: tuple[str, ...] = ()) -> list[MethodRow]:
    """Completed runs as rows, in order of method name.

    A method that stands in several rows is labeled with the options that tell them apart.

    Args:
        stored: the records.
        apart: options that the table shows in columns of their own, so that labels need not.
    """
    groups: dict[str, list[StoredRecord]] = {}
    for run in stored:
        if run.record["status"] == "completed":
            groups.setdefault(json.dumps(_identity(run.record), sort_keys=True), []).append(run)
    runs = [tuple(sorted(group, key=lambda r: r.record["seed"])) for _, group in sorted(groups.items())]
    labels = _labels([_identity(group[0].record) for group in runs], apart)
    rows = [MethodRow(label=label, runs=group) for label, group in zip(labels, runs, strict=True)]
    return sorted(rows, key=lambda row: (row.method, row.label))


def with_unique_labels(stored: Sequence[StoredRecord]) -> tuple[StoredRecord, ...]:
    """The same runs, each named as its row is."""
    labels = {run.path: row.label for row in method_rows([s for s in stored if not s.scored]) for run in row.runs}
    return tuple(replace(run, label=labels.get(run.path)) for run in stored)


def _identity(record: Record) -> dict[str, Any]:
    """What makes two runs two rows; what stands under "" goes into every label."""
    scored = record.get("checkpoint")
    return {
        "": record["method"]["name"] + (f", scored checkpoint {scored['file']}" if scored else ""),
        **record["method"]["options"],
        "tuning": record["tuning"],
        "selection": record["metrics"].get("selection", "last"),
        "weights": (scored["sha256"] if scored else record["weights_sha256"] or "")[:8],
        "split": (record["data"]["split_fingerprint"] or "")[:8],
    }


def _labels(identities: Sequence[Mapping[str, Any]], apart: tuple[str, ...]) -> list[str]:
    def rivals(identity: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        return [other for other in identities if all(other.get(key) == identity.get(key) for key in ("", *apart))]

    labels = []
    for identity in identities:
        others = rivals(identity)
        differing = [key for key in identity if any(other.get(key) != identity[key] for other in others)]
        told = ", ".join(f"{key}={_short(identity[key])}" for key in differing)
        labels.append(f"{identity['']} ({told})" if told else str(identity[""]))
    return labels


def _short(value: Any) -> str:
    return brief(json.dumps(value, ensure_ascii=False).strip('"').replace(", ", ","), 40)


def _at(metrics: Mapping[str, Any], path: Sequence[str]) -> float | None:
    value: Any = metrics
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def _measurement(cost: Sequence[MeasurementDoc], name: str, what: str) -> MeasurementDoc | None:
    return next((m for m in cost if m["name"] == name and m["conditions"].get("what", what) == what), None)
