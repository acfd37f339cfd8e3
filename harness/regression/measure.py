"""What ``tvrbench check`` measures for each tier of a baseline, as ``prefix/subject/metric`` -> value."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tvrbench.harness.core.console import say
from tvrbench.harness.core.options import Device
from tvrbench.harness.profiling.counts.flops import profile_by_name
from tvrbench.harness.records.record import MeasurementDoc, Record
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.regression.baseline import Value
from tvrbench.harness.regression.signature import TOLERANCE, signature
from tvrbench.harness.runs.settings import RunSettings
from tvrbench.harness.runs.suite import run_suite

_RATIOS: Mapping[str, tuple[str, str, bool]] = {
    "time_inference": ("throughput", "inference", True),
    "time_training": ("step_time", "training", False),
    "memory_inference": ("peak_process_memory", "inference", False),
    "memory_training": ("peak_process_memory", "training", False),
}
"""Ratio -> measurement, what ran, and whether the measurement is a speed, so that the ratio of times is its inverse."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Where the records of a tier come from: ``prefix`` of its entries, and the protocol, hash, seed and methods."""

    prefix: str
    protocol: str
    hash: str
    seed: int
    methods: tuple[str, ...]

    @classmethod
    def of(cls, prefix: str, document: Mapping[str, Any]) -> Runs:
        """From a baseline's section."""
        return cls(prefix=prefix, **(dict(document) | {"methods": tuple(document["methods"])}))


def measure_exact(subjects: Iterable[str]) -> dict[str, Value]:
    """Tokens, GMACs and parameters of every ``method@backbone``: the same on every machine."""
    measured: dict[str, Value] = {}
    for subject in subjects:
        method, _, backbone = subject.partition("@")
        found = profile_by_name(method, backbone)
        measured |= {
            f"exact/{subject}/gmacs_video": found["gmacs"]["video"],
            f"exact/{subject}/gmacs_text": found["gmacs"]["text"],
            f"exact/{subject}/params_total": found["params"]["total"],
            f"exact/{subject}/params_trainable": found["params"]["trainable"],
            f"exact/{subject}/tokens": [list(pair) for pair in found["tokens"]],
            f"exact/{subject}/output_tokens": found["output_tokens"],
        }
        say(f"measured {subject}")
    return measured


def measure_signatures(methods: Iterable[str]) -> dict[str, Value]:
    """What each method computes on a tiny model; see ``tvrbench.harness.regression.signature``."""
    return {f"signature/{method}/{name}": value for method in methods for name, value in signature(method).items()}


def run_again(runs: Runs, *, speed: bool, device: str, data: Path | None = None) -> list[Record]:
    """The records of the runs, made now in a folder of their own."""
    with tempfile.TemporaryDirectory(prefix="tvrbench-check-") as folder:
        settings = RunSettings(
            protocol=runs.protocol,
            methods=runs.methods,
            seeds=(runs.seed,),
            data=data,
            device=cast(Device, device),
            results=Path(folder) / "results",
            reports=Path(folder) / "reports",
            full_size_costs="off",
            no_timing=not speed,
        )
        run_suite(settings)
        return matching(RecordStore(Path(folder) / "results"), runs)


def matching(store: RecordStore, runs: Runs) -> list[Record]:
    """The records that a tier speaks of: those of runs that trained what they scored."""
    return [
        record
        for record in store.find(runs.protocol, seed=runs.seed, status="completed")
        if record["protocol"]["hash"] == runs.hash and "checkpoint" not in record
    ]


def retrieval_metrics(prefix: str, records: Iterable[Record]) -> tuple[dict[str, Value], dict[str, list[float]]]:
    """R@k of both directions and the share of right orders, and the interval over queries of those that have one."""
    measured: dict[str, Value] = {}
    intervals: dict[str, list[float]] = {}
    for record in records:
        name, metrics = f"{prefix}/{record['method']['name']}", record["metrics"]
        for direction in ("t2v", "v2t"):
            found = metrics.get("intervals", {}).get(direction, {})
            for k in ("R1", "R5", "R10"):
                measured[f"{name}/{direction}_{k}"] = metrics[direction][k]
                intervals |= {f"{name}/{direction}_{k}": found[k]} if k in found else {}
        if metrics.get("pair_accuracy") is not None:
            measured[f"{name}/pair_accuracy"] = metrics["pair_accuracy"]
    return measured, intervals


def cost_ratios(records: Iterable[Record], reference: str) -> dict[str, Value]:
    """Time and memory of each method as ratios to the reference's on the same device and batch; higher is worse."""
    found = list(records)
    base = next((record for record in found if record["method"]["name"] == reference), None)
    measured: dict[str, Value] = {}
    for record in found if base is not None else ():
        for ratio, (name, what, is_speed) in _RATIOS.items():
            one, other = _measurement(record, name, what), _measurement(base, name, what)
            if record is base or one is None or other is None or not _alike(record, base, one, other):
                continue
            values = (other["value"], one["value"]) if is_speed else (one["value"], other["value"])
            if values[0] and values[1]:
                measured[f"loose/{record['method']['name']}/{ratio}"] = values[0] / values[1]
    return measured


def default_margin(key: str) -> float:
    """The margin of an entry that a baseline holds for the first time."""
    prefix, _, metric = key.split("/")
    if prefix == "loose":
        return 0.3 if metric.startswith("memory") else 0.75
    return {"exact": 0.0, "signature": TOLERANCE, "standin": 5.0, "real": 1.0}[prefix]


def _measurement(record: Record | None, name: str, what: str) -> MeasurementDoc | None:
    costs = record["cost"] if record is not None else []
    return next((m for m in costs if m["name"] == name and m["conditions"].get("what") == what), None)


def _alike(record: Record, base: Record | None, one: MeasurementDoc, other: MeasurementDoc) -> bool:
    device = base is not None and record["environment"]["device"] == base["environment"]["device"]
    return device and all(
        one["conditions"].get(k) == other["conditions"].get(k) for k in ("batch", "precision", "threads")
    )
