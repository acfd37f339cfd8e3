"""Two records side by side: first what differs between them, then their numbers, each with what may be concluded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.evaluation.comparability import Reason, reasons_between
from tvrbench.harness.evaluation.statistics import (
    RANK_STATISTICS,
    McNemar,
    PairedDifference,
    mcnemar,
    paired_mean_differences,
    paired_statistic,
)
from tvrbench.harness.records.record import MeasurementDoc, Record
from tvrbench.harness.records.runs import StoredRecord, difference_of_repeats, same_run
from tvrbench.harness.reporting.analysis.matched_time import CONDITIONS
from tvrbench.harness.reporting.catalogue import CATALOGUE
from tvrbench.harness.reporting.data.context import compares_methods
from tvrbench.harness.reporting.data.rows import Values, run_credits

_COUNTED = ("GMACs", "tokens", "parameters")  # units of counts that are not in the catalogue
MEANING: Mapping[str, str] = {
    "protocol": "the numbers answer different questions",
    "protocol hash": "rules of training or testing differ: no table holds both",
    "data: dataset": "metrics do not compare",
    "option backbone": "part of any difference is the backbone's",
    "option frames": "part of any difference is that of the frames",
    "data: split_fingerprint": "other test videos or captions: metrics do not compare",
    "data: order_fingerprint": "test captions in another order: ranks do not pair",
    "data: train_split": "trained on other videos or captions",
    "data: train_fingerprint": "trained on other videos or captions",
    "data: frame_captions": "trained on other captions of frames, or on none",
    "data: frames_fingerprint": "other pixels: videos, decoder or sampler differ",
    "data: skipped": "videos were left out",
    "weights": "started from other weights",
    "weights: activation": "another activation: the same tensors give other features",
    "weights: mean": "frames were normalized in another way",
    "weights: std": "frames were normalized in another way",
    "weights: tokenizer": "captions were split into other tokens",
    "checkpoint": "another trained model was scored",
    "selection": "a checkpoint chosen on the test set flatters its number",
    "seed": "another training: part of any difference is chance",
    "option depth": "another number of candidates is scored again",
    "option v2t": "video to text starts from other captions",
    "option storage": "what is stored of a video is rounded otherwise",
    "tuning": "other parameters were trained",
    "device": "times, memory and energy do not compare",
    "commit": "the code differs",
    "uncommitted changes": "code that is in no commit made one of them",
    "status": "a run that failed has no numbers",
}
"""What a difference means for a comparison, by what differs."""

_OTHER_WEIGHTS = "the runs differ in the weights that they started from: no test of these is a verdict on the method"


@dataclass(frozen=True, kw_only=True)
class RecordComparison:
    """Everything about two records: differences are B minus A, ratios B over A; None where a record holds no value.

    Attributes:
        same_run: both are records of one run, and how they differ; None for two runs.
        facts: each difference with ``what`` it is, ``a``, ``b``, and its ``meaning``.
        metrics: each ``metric`` of both, ``a``, ``b``, their ``difference``, and the ``paired`` bootstrap of it where
            queries are shared.
        mcnemar: by cut-off, text to video: queries that only A, or only B, finds; empty where not paired.
        why_not_paired: None where the queries were paired.
        caveat: what a test of paired queries does not say; None where it says what it seems to.
        costs: each measurement that either holds: ``name``, ``unit``, ``a``, ``b``, ``ratio``, and the ``reason`` for
            no ratio.
    """

    same_run: str | None
    facts: list[dict[str, str | None]]
    metrics: list[dict[str, Any]]
    mcnemar: dict[str, McNemar]
    why_not_paired: str | None
    caveat: str | None
    costs: list[dict[str, Any]]


def compare_records(a: StoredRecord, b: StoredRecord) -> RecordComparison:
    """Compare two records."""
    ranks, reason = _paired_ranks(a, b)
    one, other = _described(a.record), _described(b.record)
    repeated = same_run(a.record, b.record)
    return RecordComparison(
        same_run=difference_of_repeats(b.record, a.record) if repeated else None,
        facts=[
            {"what": what, "a": one.get(what), "b": other.get(what), "meaning": MEANING.get(what)}
            for what in one | other
            if one.get(what) != other.get(what)
        ],
        metrics=list(_metrics(a, b, ranks)),
        mcnemar={f"R{k}": mcnemar(*ranks["t2v"], k=k) for k in (1, 5, 10)} if ranks else {},
        why_not_paired=reason,
        caveat=_OTHER_WEIGHTS if ranks and reasons_between(a.record, b.record) else None,
        costs=list(_costs(a.record, b.record)),
    )


def _described(record: Record) -> dict[str, str]:
    """Everything that two records can differ in, by name, in the order of the output."""
    environment, metrics = record["environment"], record["metrics"]
    checkpoint: Mapping[str, Any] = dict(record).get("checkpoint") or {}  # type: ignore[assignment]
    values: dict[str, Any] = {
        "protocol": record["protocol"]["name"],
        "protocol hash": record["protocol"]["hash"],
        "method": record["method"]["name"],
        **{f"option {key}": value for key, value in record["method"]["options"].items() if key != "tuning"},
        "tuning": record["tuning"],
        "seed": record["seed"],
        **{f"data: {key}": value for key, value in record["data"].items()},
        "weights": record["weights_sha256"],
        **{f"weights: {key}": value for key, value in record.get("weights", {}).items() if key != "sha256"},
        "checkpoint": checkpoint.get("sha256"),
        "selection": metrics.get("selection"),
        **{f"training: {key}": value for key, value in metrics.get("training", {}).items() if key != "last_loss"},
        "device": environment["device"],
        "CPU cores": environment.get("cpu_count"),
        "driver": environment["driver"],
        "matmul precision": environment.get("matmul_precision"),
        "TF32 convolutions": environment.get("cudnn_tf32"),
        "deterministic": environment.get("deterministic"),
        **{f"version of {name}": version for name, version in environment["versions"].items()},
        "commit": environment["git_sha"],
        "uncommitted changes": environment["dirty"],
        "command": record["command"],
        "started": record["started"],
        "status": record["status"],
        "failure": record["failure"],
    }
    return {what: _text(value) for what, value in values.items() if value is not None}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return f"({', '.join(_text(item) for item in value)})"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _paired_ranks(a: StoredRecord, b: StoredRecord) -> tuple[dict[str, tuple[Values, Values]], str | None]:
    """The ranks of both records by direction, or why they cannot be paired."""
    if not (a.record["metrics"] and b.record["metrics"]):
        return {}, "one of them has no retrieval metrics"
    split, other = (run.record["data"]["split_fingerprint"] for run in (a, b))
    if split is None or split != other:
        return {}, "the split fingerprints differ: not the same test videos and captions"
    protocols = [run.record["protocol"] for run in (a, b)]
    uniform = protocols[0]["hash"] == protocols[1]["hash"] and all(compares_methods(p["name"]) for p in protocols)
    one_method = a.record["method"]["name"] == b.record["method"]["name"]
    if not one_method and not uniform:
        return {}, "two methods are compared only under one and the same uniform protocol"
    if protocols[0]["name"] != protocols[1]["name"]:
        return {}, "the runs do not compare: they are of two protocols"
    reasons = reasons_between(a.record, b.record)
    if reasons and not (one_method and _only_weights(reasons)):
        return {}, f"the {'runs' if one_method else 'methods'} do not compare: {reasons[0].text}"
    try:
        one, two = a.ranks(), b.ranks()
    except UsageError as error:
        return {}, str(error)
    if one is None or two is None:
        return {}, "a record holds no per-query ranks"
    both = [name for name in one if name in two]  # not each has a coarse stage
    if any(len(one[name]) != len(two[name]) for name in both):
        return {}, "the records hold ranks of different numbers of queries"
    return {d: (np.asarray(one[d], dtype=np.float64), np.asarray(two[d], dtype=np.float64)) for d in both}, None


def _only_weights(reasons: Sequence[Reason]) -> bool:
    return [reason.code for reason in reasons] == ["weights"]


def _metrics(a: StoredRecord, b: StoredRecord, ranks: Mapping[str, tuple[Values, Values]]) -> Iterator[dict[str, Any]]:
    one, other = a.record["metrics"], b.record["metrics"]

    def compared(name: str, x: Any, y: Any, paired: PairedDifference | None = None) -> Iterator[dict[str, Any]]:
        if x is not None and y is not None:
            yield {"metric": name, "a": x, "b": y, "difference": y - x, "paired": paired}

    x, y = (m.get("ties_shared", {}).get("t2v", {}).get("R1") for m in (one, other))
    credits_a, credits_b = (run_credits(run) if ranks else None for run in (a, b))
    gain = None if credits_a is None or credits_b is None else credits_b - credits_a
    yield from compared("t2v R1, ties shared", x, y, None if gain is None else paired_mean_differences([gain])[0])
    for direction in [d for d in ("t2v", "v2t") if d in one and d in other]:
        for name, statistic in RANK_STATISTICS.items():
            paired = paired_statistic(ranks[direction][1], ranks[direction][0], statistic) if ranks else None
            yield from compared(f"{direction} {name}", one[direction][name], other[direction][name], paired)
    stages = [m["two_stage"] for m in (one, other) if "two_stage" in m]
    if len(stages) == 2:
        yield from compared("ceiling of the coarse stage", *(stage["ceiling"] for stage in stages))
        for way, name in product(("t2v", "v2t"), RANK_STATISTICS):
            x, y = (stage["coarse"][way].get(name) for stage in stages)
            pair = ranks.get(f"coarse_{way}")
            paired = paired_statistic(pair[1], pair[0], RANK_STATISTICS[name]) if pair else None
            yield from compared(f"coarse {way} {name}", x, y, paired)
    yield from compared("right order picked", one.get("pair_accuracy"), other.get("pair_accuracy"))


def _costs(a: Record, b: Record) -> Iterator[dict[str, Any]]:
    one, other = _by_name(a), _by_name(b)
    for name in one | other:
        sides = [m for m in (one.get(name), other.get(name)) if m is not None]
        x, y = (None if m is None else m["value"] for m in (one.get(name), other.get(name)))
        reason = _why_no_ratio(a, b, *sides) if len(sides) == 2 else "measured in one of them only"
        ratio = y / x if reason is None and x and y is not None else None
        yield {"name": name, "unit": sides[0]["unit"], "a": x, "b": y, "ratio": ratio, "reason": reason}


def _by_name(record: Record) -> dict[str, MeasurementDoc]:
    """Measurements by name, what ran, and the batch or gallery where one name was measured at several."""
    names = [(m["name"], m["conditions"].get("what")) for m in record["cost"]]
    named: dict[str, MeasurementDoc] = {}
    for m, (name, what) in zip(record["cost"], names, strict=True):
        several = names.count((name, what)) > 1
        size = next((key for key in ("batch", "gallery") if key in m["conditions"]), "batch")
        parts = [name.replace("_", " "), str(what or ""), f"{size} {m['conditions'].get(size)}" * several]
        named.setdefault(", ".join(filter(None, parts)), m)
    return named


def _why_no_ratio(a: Record, b: Record, x: MeasurementDoc, y: MeasurementDoc) -> str | None:
    if x["unit"] != y["unit"]:
        return f"in {x['unit']} and in {y['unit']}"
    for m in (x, y):
        if m["value"] is None:
            return str(m["conditions"]["reason"])
    known = CATALOGUE.get(x["name"])
    if not (x["unit"] in _COUNTED if known is None else known.kind == "count"):  # not the same on every machine
        devices = [record["environment"]["device"] for record in (a, b)]
        if devices[0] != devices[1]:
            return f"made on different devices ({devices[0]}; {devices[1]}): not compared"
        for key in (*CONDITIONS, "frames", "gallery"):
            one, other = x["conditions"].get(key), y["conditions"].get(key)
            if one != other:
                return f"{key} was {one} and {other}: not compared"
        if any(m["conditions"].get("lower_bound") is True for m in (x, y)):
            return "a lower bound has no ratio"
    if any(m["conditions"].get("upper_bound") is True for m in (x, y)):
        return "an upper bound has no ratio: the number of tokens depends on the pixels"
    return None if x["value"] else "A's is 0"
