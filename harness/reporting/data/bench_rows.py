"""What ``tvrbench bench`` recorded, sorted: one group for each device and way of measuring, and figures by name."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.evaluation.statistics import repeats_interval
from tvrbench.harness.records.record import MeasurementDoc
from tvrbench.harness.reporting.data.records import StoredRecord, newest
from tvrbench.harness.reporting.data.rows import MethodRow, method_rows
from tvrbench.harness.reporting.papers.published import Variant

NAME = "efficiency"
UNMEASURED = "this record does not hold it"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Records that were measured in one way on one device, and may stand in one table.

    Attributes:
        device: its name.
        on_gpu: whether it is a GPU.
        frames: a video.
        precision, compiled: of encoding; None where nothing was timed.
        hashes: of the way of measuring, one for each that differs between backbones (their batches).
        rows: of every backbone.
        slug: what its files are called; no two benches of one report share it.
    """

    device: str
    on_gpu: bool
    frames: int
    precision: str | None
    compiled: bool
    hashes: tuple[str, ...]
    rows: tuple[MethodRow, ...]
    slug: str

    @property
    def name(self) -> str:
        """Device and way of measuring, for people."""
        parts = [self.device, self.precision, "compiled" if self.compiled else None, f"{self.frames} frames"]
        return ", ".join(part for part in parts if part)

    @property
    def runs(self) -> tuple[StoredRecord, ...]:
        """The records."""
        return tuple(run for row in self.rows for run in row.runs)

    @property
    def backbones(self) -> list[str]:
        """Small ones first."""
        heaviest: dict[str, float] = {}
        for row in self.rows:
            gmacs = figure(row, "gmacs_video")
            heaviest[backbone(row)] = max(value_of(gmacs) or 0.0, heaviest.get(backbone(row), 0.0))
        return sorted(heaviest, key=lambda name: (heaviest[name], name))

    def on(self, name: str) -> list[MethodRow]:
        """The rows of one backbone."""
        return [row for row in self.rows if backbone(row) == name]

    @property
    def dates(self) -> str:
        """The day of the first measurement and of the last."""
        days = sorted({datetime.datetime.fromisoformat(run.record["started"]).date().isoformat() for run in self.runs})
        return " to ".join(dict.fromkeys((days[0], days[-1])))

    @property
    def encoding_only(self) -> tuple[MethodRow, ...]:
        """The rows of which neither training nor stages nor energy were measured."""
        more = ("step_time", "end_to_end_throughput", "energy_video")
        return tuple(row for row in self.rows if all(figure(row, name) is None for name in more))


def benches(stored: Sequence[StoredRecord], variants: Sequence[Variant]) -> tuple[list[Bench], list[StoredRecord]]:
    """The groups, GPUs first, and the records of older ways of measuring.

    Where a backbone was measured on a device in ways that differ only in how thoroughly (batches, rounds), the one with
    the most rows counts, and of equal ones the newest: a quick trial does not push a whole table out.

    Raises:
        UsageError: there is no record.
    """
    groups: dict[tuple[str, str, str], list[StoredRecord]] = {}
    for run in stored:
        if run.record["status"] == "completed":
            on = str(run.record["method"]["options"].get("backbone"))
            key = (run.record["protocol"]["hash"], run.record["environment"]["device"], on)
            groups.setdefault(key, []).append(run)
    if not groups:
        raise UsageError("no method's cost is recorded: measure them with 'tvrbench bench' or 'nox -s efficiency'")
    largest: dict[tuple[Any, ...], list[StoredRecord]] = {}
    for (_, device, on), runs in groups.items():
        table = (device, *_way(runs), on)
        largest[table] = max(largest.get(table, runs), runs, key=lambda g: (len(g), newest(g).record["started"]))
    chosen: dict[tuple[Any, ...], list[StoredRecord]] = {}
    for (*way, _), runs in largest.items():
        chosen.setdefault(tuple(way), []).extend(runs)
    kept = [run for runs in chosen.values() for run in runs]
    found = [_bench(runs, variants) for runs in chosen.values()]
    found.sort(key=lambda bench: (not bench.on_gpu, bench.device, bench.precision or "", bench.compiled, bench.frames))
    taken: set[str] = set()
    for index, bench in enumerate(found):
        slug = bench.slug if bench.slug not in taken else f"{bench.slug}-{index + 1}"
        taken.add(slug)
        found[index] = replace(bench, slug=slug)
    return found, [run for run in stored if run not in kept]


def backbone(row: MethodRow) -> str:
    """Of a row's model."""
    return str(row.options.get("backbone", "unnamed"))


def figure(row: MethodRow, name: str, what: str | None = None, batch: int | None = None) -> MeasurementDoc | None:
    """A measurement by name; a measured one before a missing one, None where the row does not mention it.

    Args:
        row: one method.
        name: as in the records.
        what: of which job (``inference``, ``training``); a measurement that does not say counts as any.
        batch: at which batch; likewise.
    """
    found = [
        m
        for run in row.runs
        for m in run.record["cost"]
        if m["name"] == name
        and (what is None or m["conditions"].get("what", what) == what)
        and (batch is None or m["conditions"].get("batch", batch) == batch)
    ]
    return min(found, key=lambda m: (m["value"] is None, "invalid" in m["conditions"]), default=None)


def value_of(found: MeasurementDoc | None) -> float | None:
    """The value of a measurement that there is and that is valid."""
    return None if found is None or "invalid" in found["conditions"] else found["value"]


def rounds_interval(ratio: MeasurementDoc) -> tuple[float, float]:
    """95 % interval of a ratio from its rounds; of a single round, which has none, the ends that the record gives."""
    if len(ratio["samples"]) > 1:
        return repeats_interval(ratio["samples"])
    return float(ratio["conditions"]["low"]), float(ratio["conditions"]["high"])


def why_not(found: MeasurementDoc | None) -> str:
    """Why ``value_of`` is None."""
    if found is None:
        return UNMEASURED
    return str(found["conditions"].get("reason") or f"not valid: {found['conditions'].get('invalid')}")


def batches(rows: Sequence[MethodRow], name: str, what: str | None = None) -> list[int]:
    """The batches at which a figure was measured or tried, ascending."""
    return sorted(
        {
            int(m["conditions"]["batch"])
            for row in rows
            for run in row.runs
            for m in run.record["cost"]
            if m["name"] == name and "batch" in m["conditions"] and m["conditions"].get("what", what) in (what, None)
        }
    )


def shared_batch(rows: Sequence[MethodRow], name: str, what: str | None = None) -> int | None:
    """The largest batch at which every row that has the figure at all has it; if there is none, the largest."""
    there = {
        row.label: {b for b in batches([row], name, what) if _measured(figure(row, name, what, b))} for row in rows
    }
    having = [found for found in there.values() if found]
    common = set.intersection(*having) if having else set()
    return max(common or set().union(*having), default=None)


def variant_name(row: MethodRow, variants: Sequence[Variant]) -> str | None:
    """What a paper calls the row's options, where it has a name for them."""
    return next((v.name for v in variants if v.method == row.method and _fits(v.options, row)), None)


def _fits(options: Mapping[str, Any], row: MethodRow) -> bool:
    return all(key in row.options and row.options[key] == value for key, value in options.items())


def _measured(found: MeasurementDoc | None) -> bool:
    return found is not None and found["value"] is not None


def _way(runs: Sequence[StoredRecord]) -> tuple[int, str | None, bool]:
    said = [m["conditions"] for run in runs for m in run.record["cost"] if m["conditions"].get("what") == "inference"]
    timed = next((c for c in said if "precision" in c), {})
    frames = int(runs[0].record["method"]["options"].get("frames", 0))
    return frames, timed.get("precision"), bool(timed.get("compile"))


def _bench(runs: Sequence[StoredRecord], variants: Sequence[Variant]) -> Bench:
    frames, precision, compiled = _way(runs)
    environment = runs[0].record["environment"]
    devices = {str(m["conditions"].get("device", "")) for run in runs for m in run.record["cost"]}
    words = [environment["device"], precision or "untimed", *(["compiled"] * compiled), f"{frames}f"]
    return Bench(
        device=environment["device"],
        on_gpu=any(device.startswith("cuda") for device in devices),
        frames=frames,
        precision=precision,
        compiled=compiled,
        hashes=tuple(sorted({run.record["protocol"]["hash"] for run in runs})),
        rows=tuple(_labeled(runs, variants)),
        slug=re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")[:60],
    )


def _labeled(runs: Sequence[StoredRecord], variants: Sequence[Variant]) -> list[MethodRow]:
    """Rows; those that make a named variant of a paper bear its name, and do not lengthen the labels of the others."""
    named: dict[str, list[StoredRecord]] = {}
    plain: list[StoredRecord] = []
    for row in method_rows(runs):
        name = variant_name(row, variants)
        (plain if name is None else named.setdefault(name, [])).extend(row.runs)
    rows = method_rows(plain, apart=("backbone",))
    for name, members in named.items():
        rows += [replace(row, label=f"{row.label}: {name}") for row in method_rows(members, apart=("backbone",))]
    return sorted(rows, key=lambda row: (row.method, row.label))
