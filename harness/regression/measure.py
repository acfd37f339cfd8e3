"""Measurements of ``tvrbench check`` for each tier of a baseline, as ``prefix/subject/metric`` -> value."""

from __future__ import annotations

import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from tvrbench.harness.config.protocol import load_protocol
from tvrbench.harness.core import registry
from tvrbench.harness.core.console import say
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.evaluation.comparability import RULES, reasons_between, set_apart, shortfalls
from tvrbench.harness.profiling.counts.flops import profile_by_name
from tvrbench.harness.records.reading import USUAL_ACTIVATION
from tvrbench.harness.records.record import MeasurementDoc, Record
from tvrbench.harness.records.runs import StoredRecord
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.regression.baseline import Acceptance, Baseline, Entry, Loose, Runs, Section, Tier, Value
from tvrbench.harness.regression.signature import TOLERANCE, signature
from tvrbench.harness.reporting.data.records import protocol_runs
from tvrbench.harness.runs.settings import RunSettings
from tvrbench.harness.runs.suite import run_suite

SECTIONS: Mapping[Tier, Section] = {"tight": "standin", "loose": "standin", "real": "real"}
"""The runs that a tier is measured on."""

_MEMORY = ("peak_memory_allocated", "peak_process_memory")  # of a GPU, of a CPU
_RATIOS: Mapping[str, tuple[tuple[str, ...], str, bool]] = {
    "time_inference": (("throughput",), "inference", True),
    "time_training": (("step_time",), "training", False),
    "memory_inference": (_MEMORY, "inference", False),
    "memory_training": (_MEMORY, "training", False),
}
"""Ratio -> the measurement (the first that a record has), scenario, and True for a speed: the ratio of times is then
its inverse."""
_SEARCH = ("macs_per_query", "macs_per_pair", "coarse_macs_per_pair", "floats_per_video", "bytes_per_video")
_SAME = ("batch", "precision", "threads")
"""Conditions in which both sides of a ratio agree."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Values by key, and intervals over queries of those that have one."""

    values: dict[str, Value]
    intervals: dict[str, list[float]] = field(default_factory=dict)


def with_current_protocols(baseline: Baseline, tiers: Sequence[Tier], *, update: bool) -> Baseline:
    """The baseline with every section that the tiers need, at its protocol's present hash.

    Args:
        baseline: as read, or an empty one.
        update: the values are about to be replaced, so a section may be new and a protocol may have changed.

    Raises:
        UsageError: a protocol has changed since the baseline was made.
    """
    for section in {SECTIONS[tier] for tier in tiers if tier in SECTIONS}:
        runs: Runs | None = getattr(baseline, section)
        if runs is None and not update:
            continue
        runs = runs or Runs(hash="", **_new_baseline()[section])
        current = load_protocol(runs.protocol).hash
        if current != runs.hash and not update:
            cause = f"protocol {runs.protocol} has changed since the baseline was made ({runs.hash}, now {current})"
            message = f"{cause}: accept new values with --update-baseline 'why it changed'"
            raise UsageError(message, code="baseline.protocol-changed", protocol=runs.protocol)
        baseline = replace(baseline, **{section: replace(runs, hash=current)})  # type: ignore[arg-type]
    return baseline


def measure(baseline: Baseline, tiers: Sequence[Tier], *, update: bool, data: Path | None) -> Measured:
    """Measure the tiers of the baseline now, in this process.

    Args:
        update: measure every registered method in the exact tier, also those that the baseline does not know.
        data: folder of the data set of the real tier.
    """
    values: dict[str, Value] = {}
    device = "cpu" if baseline.device == "cpu" else "cuda"
    if "exact" in tiers:
        names = registry.names("baselines", "methods") if update else []
        subjects = {f"{name}@{backbone}" for name in names for backbone in _new_baseline()["backbones"]}
        values |= measure_exact(sorted(subjects | _subjects(baseline, "exact")))
        values |= measure_signatures(sorted(_subjects(baseline, "signature") | set(names)))
    standin: list[Record] = []
    real: list[Record] = []
    if baseline.standin is not None and {"tight", "loose"}.intersection(tiers):
        standin = run_again(baseline.standin, speed="loose" in tiers, device=device)
    if baseline.real is not None and "real" in tiers:
        real = run_again(baseline.real, speed=False, device=device, data=data)
    trained = _of_records(baseline, tiers, standin, real)
    return replace(trained, values=values | trained.values)


def from_store(folder: Path, baseline: Baseline, tiers: Sequence[Tier]) -> Measured:
    """Take the tiers from the records in a results folder.

    Raises:
        UsageError: no such folder, or a baseline that does not say which records to compare.
    """
    if not (folder / "records").is_dir():
        message = f"--records {folder}: no folder `records` in it; give a results folder"
        raise UsageError(message, code="check.records", path=str(folder))
    if baseline.standin is None and {"tight", "loose"}.intersection(tiers):
        message = "the baseline has no stand-in tier to compare records with: choose another --tier"
        raise UsageError(message, code="check.no-standin")
    store = RecordStore(folder)
    standin, real = ([] if runs is None else matching(store, runs) for runs in (baseline.standin, baseline.real))
    return _of_records(baseline, tiers, standin, real)


def updated(baseline: Baseline, measured: Measured, note: Acceptance) -> Baseline:
    """The baseline with the measured values; a value that was not measured stays, a new one comes in."""
    entries = dict(baseline.entries)
    for key, value in measured.values.items():
        assert value is not None  # only a missing entry has none
        entry = Entry(value=value, margin=entries[key]["margin"] if key in entries else default_margin(key))
        if key in measured.intervals:
            entry["interval"] = measured.intervals[key]
        entries[key] = entry
    loose = _reference(baseline) if any(key.startswith("loose/") for key in entries) else baseline.loose
    return replace(baseline, entries=entries, accepted=[*baseline.accepted, note], loose=loose)


def _of_records(
    baseline: Baseline, tiers: Sequence[Tier], standin: Sequence[Record], real: Sequence[Record]
) -> Measured:
    """R@k and cost ratios of the records of both sections, as far as they belong to the tiers."""
    values, intervals = retrieval_metrics("standin", standin if "tight" in tiers else ())
    more, their_intervals = retrieval_metrics("real", real if "real" in tiers else ())
    ratios = cost_ratios(standin, _reference(baseline)["reference"]) if "loose" in tiers else {}
    return Measured(values=values | more | ratios, intervals=intervals | their_intervals)


def measure_exact(subjects: Iterable[str]) -> dict[str, Value]:
    """Count tokens, GMACs, parameters and the search of every ``method@backbone``: the same on every machine."""
    measured: dict[str, Value] = {}
    for subject in subjects:
        method, _, backbone = subject.partition("@")
        profile = profile_by_name(method, backbone)
        gmacs, params = profile["gmacs"], profile["params"]
        values = {f"gmacs_{encoder}": gmacs[encoder] for encoder in ("video", "text")}
        values |= {f"params_{part}": params[part] for part in ("total", "trainable")}
        values |= {"tokens": profile["tokens"], "output_tokens": profile["output_tokens"]}
        values |= {f"search_{name}": profile["search"][name] for name in _SEARCH}
        measured |= {f"exact/{subject}/{name}": value for name, value in values.items()}
        say(f"measured {subject}")
    return measured


def measure_signatures(methods: Iterable[str]) -> dict[str, Value]:
    """Run each method on a tiny model; see ``tvrbench.harness.regression.signature``."""
    return {f"signature/{method}/{name}": value for method in methods for name, value in signature(method).items()}


def run_again(runs: Runs, *, speed: bool, device: str, data: Path | None = None) -> list[Record]:
    """Repeat the runs in a temporary folder and return their records."""
    with tempfile.TemporaryDirectory(prefix="tvrbench-check-") as folder:
        what = {"protocol": runs.protocol, "methods": tuple(runs.methods), "seeds": (runs.seed,), "data": data}
        where: dict[str, Any] = {"device": device, "results": Path(folder) / "results", "reports": Path(folder)}
        run_suite(RunSettings(**what | where, full_size_costs="off", no_timing=not speed))
        return matching(RecordStore(Path(folder) / "results"), runs)


def matching(store: RecordStore, runs: Runs) -> list[Record]:
    """The stored records of the runs, one of each method, without those that only scored a checkpoint.

    Those that do not compare with the baseline's are named and left out.

    Raises:
        UsageError: several records of one method are left.
    """
    stored, aside = protocol_runs(store, runs.protocol)
    for unused in aside:
        say(str(unused))
    found: dict[str, StoredRecord] = {}
    for run in stored:
        record, name = run.record, run.record["method"]["name"]
        is_asked = name in runs.methods and (record["protocol"]["hash"], record["seed"]) == (runs.hash, runs.seed)
        if run.scored or not is_asked:
            continue
        if why := _why_not(record, runs):
            say(f"{run.path.name} is left out: {why}")
            continue
        if name in found:
            both = [found[name].path.name, run.path.name]
            message = f"{' and '.join(both)} are both of {name}: keep one of them in {store.root}"
            raise UsageError(message, code="check.ambiguous", method=name, records=both)
        found[name] = run
    records = {name: run.record for name, run in found.items()}
    reasons = set_apart([[record] for record in records.values()])
    for (name, run), reason in zip(found.items(), reasons, strict=True):
        if reason is not None:
            say(f"{run.path.name} is left out: {reason.text}")
            del records[name]
    return list(records.values())


def _why_not(record: Record, runs: Runs) -> str | None:
    """What keeps a record from being the run that the baseline means, whatever the others are."""
    protocol, options = load_protocol(runs.protocol), record["method"]["options"]
    known = (*shortfalls(record), *reasons_between(record, record))
    reasons = [reason.text for reason in known if reason.code not in RULES]  # the hash is the baseline's
    for code, wanted in (("backbone", protocol.backbone), ("frames", protocol.frames)):
        if wanted is not None and options.get(code, wanted) != wanted:
            reasons.append(f"run with {code} {options[code]}, the protocol has {wanted}")
    activation = record.get("weights", {}).get("activation", USUAL_ACTIVATION)
    if activation != protocol.weights_config.get("activation", USUAL_ACTIVATION):
        reasons.append(f"run with {activation}, the protocol with QuickGELU")
    return next(iter(reasons), None)


def retrieval_metrics(prefix: str, records: Iterable[Record]) -> tuple[dict[str, Value], dict[str, list[float]]]:
    """R@k of both directions, R@1 of a coarse stage and pair accuracy by key, and intervals over queries by key."""
    measured: dict[str, Value] = {}
    intervals: dict[str, list[float]] = {}
    for record in records:
        name, metrics = f"{prefix}/{record['method']['name']}", record["metrics"]
        for direction in ("t2v", "v2t"):
            known = metrics.get("intervals", {}).get(direction, {})
            for k in ("R1", "R5", "R10"):
                measured[f"{name}/{direction}_{k}"] = metrics[direction][k]
                intervals |= {f"{name}/{direction}_{k}": known[k]} if k in known else {}
            if stages := metrics.get("two_stage"):
                measured[f"{name}/coarse_{direction}_R1"] = stages["coarse"][direction]["R1"]
        if metrics.get("pair_accuracy") is not None:
            measured[f"{name}/pair_accuracy"] = metrics["pair_accuracy"]
    return measured, intervals


def cost_ratios(records: Iterable[Record], reference: str) -> dict[str, Value]:
    """Time and memory of each method as ratios to the reference's on the same device and batch; higher is worse."""
    everything = list(records)
    base = next((record for record in everything if record["method"]["name"] == reference), None)
    ratios: dict[str, Value] = {}
    for record, (ratio, (names, scenario, is_speed)) in product(everything, _RATIOS.items()):
        if base is None or record is base or record["environment"]["device"] != base["environment"]["device"]:
            continue
        own, other = _measurement(record, names, scenario), _measurement(base, names, scenario)
        if own is None or other is None or any(own["conditions"].get(k) != other["conditions"].get(k) for k in _SAME):
            continue
        over, under = (other["value"], own["value"]) if is_speed else (own["value"], other["value"])
        if over and under:
            ratios[f"loose/{record['method']['name']}/{ratio}"] = over / under
    return ratios


def default_margin(key: str) -> float:
    """The margin of an entry that a baseline holds for the first time."""
    prefix, _, metric = key.split("/")
    if prefix == "loose":
        return 0.3 if metric.startswith("memory") else 0.75
    return {"exact": 0.0, "signature": TOLERANCE, "standin": 5.0, "real": 1.0}[prefix]


def _subjects(baseline: Baseline, prefix: str) -> set[str]:
    return {key.split("/")[1] for key in baseline.entries if key.startswith(f"{prefix}/")}


def _reference(baseline: Baseline) -> Loose:
    """The reference of ratios: the baseline's own choice, or the encoder without token reduction."""
    return baseline.loose or Loose(reference=registry.matching("methods", "baselines", role="dense")[0])


@cache
def _new_baseline() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("new_baseline.toml").read_text(encoding="utf-8"))


def _measurement(record: Record, names: Sequence[str], scenario: str) -> MeasurementDoc | None:
    of_scenario = [m for m in record["cost"] if m["conditions"].get("what") == scenario]
    return next((m for name in names for m in of_scenario if m["name"] == name), None)
