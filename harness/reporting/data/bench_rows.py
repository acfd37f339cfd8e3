"""Records of ``tvrbench bench`` by device and measurement settings, and their measurements by name."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.evaluation.statistics import repeats_interval
from tvrbench.harness.records.record import MeasurementDoc
from tvrbench.harness.records.runs import StoredRecord, newest
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.catalogue import COUNTS
from tvrbench.harness.reporting.data.device_names import device_part, precision_part, printed_device, unique
from tvrbench.harness.reporting.data.rows import MethodRow, method_rows, option_number
from tvrbench.harness.reporting.papers.published import Variant
from tvrbench.harness.reporting.tables.markdown import slug

NAME = "efficiency"
UNMEASURED = "this record does not hold it"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Records that were measured with the same settings on one device, and may share a table.

    Attributes:
        device: its name in the records.
        name: device and settings, for people; unique in a report.
        on_gpu: True for a GPU.
        frames: per video.
        precision, compiled, graphs: of encoding (graphs: through CUDA graphs); None where nothing was timed.
        hashes: of the settings, one per backbone with its own batch sizes.
        rows: of every backbone.
        counted: rows of other devices that this one lacks, with what is counted, which is the same on every machine.
        slug: part of its files' names, unique in a report.
    """

    device: str
    name: str
    on_gpu: bool
    frames: int
    precision: str | None
    compiled: bool
    graphs: bool
    hashes: tuple[str, ...]
    rows: tuple[MethodRow, ...]
    counted: tuple[MethodRow, ...] = ()
    slug: str

    @property
    def runs(self) -> tuple[StoredRecord, ...]:
        """The records."""
        return tuple(run for row in self.rows for run in row.runs)

    def on(self, name: str) -> list[MethodRow]:
        """Return the rows of one backbone."""
        return [row for row in self.rows if backbone(row) == name]

    def counted_on(self, name: str) -> list[MethodRow]:
        """Return the rows of one backbone that were measured on other devices only."""
        return [row for row in self.counted if backbone(row) == name]

    @property
    def dates(self) -> str:
        """The day of the first measurement and of the last."""
        days = sorted({datetime.datetime.fromisoformat(run.record["started"]).date().isoformat() for run in self.runs})
        return " to ".join(dict.fromkeys((days[0], days[-1])))


def benches(
    stored: Sequence[StoredRecord], variants: Sequence[Variant], store: RecordStore | None = None
) -> tuple[list[Bench], list[StoredRecord]]:
    """Group the records and return those of older settings apart.

    GPUs come first, then the device with the most rows, then the one that was measured last. Where a backbone was
    measured on a device with settings that differ only in thoroughness (batches, repeats), the ones with the most rows
    count, and of equal ones the newest: a quick trial does not replace a whole table.
    ``store`` is where they were read from, for the message.

    Raises:
        UsageError: there is no record.
    """
    groups: dict[tuple[str, str, str], list[StoredRecord]] = {}
    for run in stored:
        if (record := run.record)["status"] == "completed":
            on = str(record["method"]["options"].get("backbone"))
            groups.setdefault((record["protocol"]["hash"], record["environment"]["device"], on), []).append(run)
    if not groups:
        where = f" in {store.searched(NAME)}" if store else ""
        message = f"no cost is recorded{where}; measure methods with 'tvrbench bench' or 'nox -s efficiency'"
        raise UsageError(message, code="report.no-cost")
    largest: dict[tuple[Any, ...], list[StoredRecord]] = {}
    for (_, device, on), runs in groups.items():
        table = (device, *_settings(runs), on)
        largest[table] = max(largest.get(table, runs), runs, key=lambda g: (len(g), newest(g).record["started"]))
    chosen: dict[tuple[Any, ...], list[StoredRecord]] = {}
    for (*settings, _), runs in largest.items():
        chosen.setdefault(tuple(settings), []).extend(runs)
    kept = {run.path for runs in chosen.values() for run in runs}
    result = [_bench(runs, variants) for runs in chosen.values()]
    result.sort(key=lambda b: (b.device, b.precision or "", b.compiled, b.graphs, b.frames))
    result.sort(key=lambda b: (b.on_gpu, len(b.rows), b.dates), reverse=True)
    return _with_others(_named(result), variants), [run for run in stored if run.path not in kept]


def backbone(row: MethodRow) -> str:
    """Return the name of a row's backbone."""
    return str(row.options.get("backbone", "unnamed"))


def backbones(rows: Sequence[MethodRow]) -> list[str]:
    """Return the backbones of rows, small ones first."""
    heaviest: dict[str, float] = {}
    for row in rows:
        gmacs = value_of(figure(row, "gmacs_video")) or 0.0
        heaviest[backbone(row)] = max(gmacs, heaviest.get(backbone(row), 0.0))
    return sorted(heaviest, key=lambda name: (heaviest[name], name))


def figure(row: MethodRow, name: str, what: str | None = None, batch: int | None = None) -> MeasurementDoc | None:
    """Return a measurement by name: a valid one before an invalid and a missing one; None where there is none.

    A measurement that names no scenario (``what``) or batch counts for any.
    """
    name = row.reading(name)
    matching = (
        m
        for m in row.measurements
        if m["name"] == name
        and (what is None or m["conditions"].get("what", what) == what)
        and (batch is None or m["conditions"].get("batch", batch) == batch)
    )
    return min(matching, key=lambda m: (m["value"] is None, "invalid" in m["conditions"]), default=None)


def value_of(measurement: MeasurementDoc | None) -> float | None:
    """Return the value of a measurement that exists and is valid."""
    return None if measurement is None or "invalid" in measurement["conditions"] else measurement["value"]


def rounds_interval(ratio: MeasurementDoc) -> tuple[float, float]:
    """Return the 95 % interval of a ratio from its rounds; a single round has the recorded ends."""
    if len(ratio["samples"]) > 1:
        return repeats_interval(ratio["samples"])
    return float(ratio["conditions"]["low"]), float(ratio["conditions"]["high"])


def why_not(measurement: MeasurementDoc | None) -> str:
    """Return the reason why ``value_of`` is None."""
    if measurement is None:
        return UNMEASURED
    return str(measurement["conditions"].get("reason") or f"not valid: {measurement['conditions'].get('invalid')}")


def batches(rows: Sequence[MethodRow], name: str, what: str | None = None) -> list[int]:
    """List the batch sizes at which a cost was measured or tried, ascending."""
    conditions = (m["conditions"] for row in rows for m in row.measurements if m["name"] == name)
    return sorted({int(c["batch"]) for c in conditions if "batch" in c and c.get("what", what) in (what, None)})


def shared_batch(rows: Sequence[MethodRow], name: str, what: str | None = None) -> int | None:
    """Return the largest batch size at which every row with this cost has it; without one, the largest."""

    def measured(row: MethodRow, batch: int) -> bool:
        return (m := figure(row, name, what, batch)) is not None and m["value"] is not None

    per_row = [{batch for batch in batches([row], name, what) if measured(row, batch)} for row in rows]
    usable = [sizes for sizes in per_row if sizes]
    common = set.intersection(*usable) if usable else set()
    return max(common or set().union(*usable), default=None)


def _settings(runs: Sequence[StoredRecord]) -> tuple[int, str | None, bool, bool]:
    """Return frames, precision, compilation and CUDA graphs of encoding."""
    conditions = [m["conditions"] for run in runs for m in run.record["cost"]]
    timed = next((c for c in conditions if c.get("what") == "inference" and "precision" in c), {})
    frames = int(option_number(runs[0].record["method"]["options"], "frames") or 0)
    return frames, timed.get("precision"), bool(timed.get("compile")), bool(timed.get("cuda_graphs"))


def _bench(runs: Sequence[StoredRecord], variants: Sequence[Variant]) -> Bench:
    frames, precision, compiled, graphs = _settings(runs)
    device = runs[0].record["environment"]["device"]
    devices = {str(m["conditions"].get("device", "")) for run in runs for m in run.record["cost"]}
    return Bench(
        device=device,
        name=device,
        on_gpu=any(name.startswith("cuda") for name in devices),
        frames=frames,
        precision=precision,
        compiled=compiled,
        graphs=graphs,
        hashes=tuple(sorted({run.record["protocol"]["hash"] for run in runs})),
        rows=tuple(_labeled(runs, variants)),
        slug="",
    )


def _named(found: Sequence[Bench]) -> list[Bench]:
    """Name each bench by what tells it apart: its device, its precision, and frames that are not the usual ones."""
    usual = Counter({b.frames: 0 for b in found})
    for bench in found:
        usual[bench.frames] += len(bench.rows)
    cpus = {bench.device for bench in found if not bench.on_gpu}
    printed = Counter(printed_device(device) for device in {bench.device for bench in found})
    names, slugs = [], []
    for bench in found:
        short = printed_device(bench.device)
        odd = bench.frames != usual.most_common(1)[0][0]
        how = ("compiled" * bench.compiled, "CUDA graphs" * bench.graphs, f"{bench.frames} frames" * odd)
        precision = bench.precision and precision_part(bench.precision)
        names.append(", ".join(filter(None, (short if printed[short] == 1 else bench.device, precision, *how))))
        parts = (
            device_part(bench.device, on_gpu=bench.on_gpu, alone=len(cpus) == 1),
            slug(precision_part(bench.precision), 20),
            *("compiled" * bench.compiled, "graphs" * bench.graphs, slug(f"{bench.frames}f", 12) * odd),
        )
        slugs.append("-".join(filter(None, parts)))
    named = zip(found, names, unique(slugs), strict=True)
    return [replace(bench, name=name, slug=part) for bench, name, part in named]


def _with_others(found: Sequence[Bench], variants: Sequence[Variant]) -> list[Bench]:
    """Give each bench the counts of methods that only others measured, with as many frames; rows are labeled anew."""
    result = []
    for bench in found:
        mine, known = {run.path for run in bench.runs}, list(bench.runs)
        for run in (run for other in found if other.frames == bench.frames for run in other.runs):
            if not any(_same_method(run, one) for one in known):
                counts = [m for m in run.record["cost"] if m["name"] in COUNTS]
                known.append(replace(run, record={**run.record, "cost": counts}))
        rows = _labeled(known, variants)
        own, others = (tuple(row for row in rows if (row.runs[0].path in mine) == side) for side in (True, False))
        result.append(replace(bench, rows=own, counted=others))
    return result


def _same_method(one: StoredRecord, other: StoredRecord) -> bool:
    """Check whether two records are of one method with the same options; one that an older record lacks is ignored."""
    a, b = one.record["method"], other.record["method"]
    shared = a["options"].keys() & b["options"].keys()
    return a["name"] == b["name"] and all(a["options"][key] == b["options"][key] for key in shared)


def _labeled(runs: Sequence[StoredRecord], variants: Sequence[Variant]) -> list[MethodRow]:
    """Return rows; a paper's named variant has its name and does not lengthen the labels of the others."""
    named: dict[str | None, list[StoredRecord]] = {}
    for row in method_rows(runs):
        fitting = (v for v in variants if v.method == row.method and v.options.items() <= row.options.items())
        named.setdefault(next((variant.name for variant in fitting), None), []).extend(row.runs)
    rows = [
        row if name is None else replace(row, label=f"{row.label}: {name}")
        for name, members in named.items()
        for row in method_rows(members, apart=("backbone",))
    ]
    return sorted(rows, key=lambda row: (row.method, row.label))
