"""``tvrbench check``: measure again and compare with a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import torch

from tvrbench.harness.config.protocol import load_protocol
from tvrbench.harness.core import registry
from tvrbench.harness.core.console import print_json, print_table, say
from tvrbench.harness.core.errors import CheckFailed, UsageError
from tvrbench.harness.records.provenance import source_revision
from tvrbench.harness.records.record import Record
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.regression.baseline import (
    Baseline,
    Row,
    Tier,
    Value,
    compare,
    read_baseline,
    tiers_of,
    write_baseline,
)
from tvrbench.harness.regression.measure import (
    Runs,
    cost_ratios,
    default_margin,
    matching,
    measure_exact,
    measure_signatures,
    retrieval_metrics,
    run_again,
)

BACKBONES = ("ViT-B-32", "ViT-B-16")
STANDIN, REAL = "standin/uniform", "msrvtt-1ka-9k/uniform"
STANDIN_METHODS, REAL_METHODS, REFERENCE = ("zero_shot", "clip4clip", "lora", "tempme"), ("zero_shot",), "lora"


@dataclass(frozen=True, kw_only=True)
class CheckRequest:
    """What the command line asked for.

    Attributes:
        against: the baseline's file.
        tiers: those to check; empty: all that the baseline holds, but ``real``.
        records: compare the records below this results folder instead of measuring.
        accept: take the measured values over, for this reason.
        data: folder of the data set, for the tier ``real``.
    """

    against: Path
    tiers: tuple[str, ...] = ()
    records: Path | None = None
    accept: str | None = None
    data: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Values by key, and intervals over queries of those that have one."""

    values: Mapping[str, Value]
    intervals: Mapping[str, Sequence[float]]


def check_against(request: CheckRequest, as_json: bool) -> None:
    """Compare with the baseline, or with ``accept`` take the new values over and keep the reason.

    Raises:
        UsageError: a broken baseline, one made on a device that this machine lacks, or options that do not fit.
        CheckFailed: a metric moved beyond its margin or was not measured.
    """
    baseline = _baseline(request)
    _check_device(baseline)
    tiers = _tiers(request, baseline)
    for section, tier in (("standin", "tight"), ("standin", "loose"), ("real", "real")):
        if tier in tiers:
            baseline = _on_current_protocol(baseline, section, request)
    found = _from_records(request.records, baseline, tiers) if request.records else _measure(request, baseline, tiers)
    rows = compare(baseline, found.values, tiers)
    if request.accept is not None:
        _accept(request.against, baseline, found, request.accept)
    _print(rows, as_json)
    bad = [row for row in rows if row.state in ("moved", "missing")]
    if request.accept is not None:
        say(f"{request.against}: {len(found.values)} metrics accepted, of {len(rows)} known ones {len(bad)} had moved")
        return
    if not rows:
        raise CheckFailed(f"{request.against} holds nothing that can be compared this way")
    if bad:
        raise CheckFailed(f"{len(bad)} of {len(rows)} metrics moved or were not measured (baseline {request.against})")
    better = sum(row.state == "better" for row in rows)
    say(f"{len(rows)} metrics compared, none moved" + (f", {better} better: --accept them" if better else ""))


def _baseline(request: CheckRequest) -> Baseline:
    """The file's, or an empty one for a file that is to be made."""
    if request.accept is not None and not request.accept.strip():
        raise UsageError("--accept needs a reason: --accept 'why the numbers moved'")
    if request.records is not None and not (request.records / "records").is_dir():
        raise UsageError(f"--records {request.records}: no results folder with a folder records in it")
    if request.against.exists() or request.accept is None:
        return read_baseline(request.against)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return Baseline(device=device, standin=None, entries={}, accepted=[])


def _tiers(request: CheckRequest, baseline: Baseline) -> list[Tier]:
    held, known = tiers_of(baseline), get_args(Tier)
    unknown = [tier for tier in request.tiers if tier not in known]
    if unknown:
        raise UsageError(f"--tier {unknown[0]}: known are {', '.join(known)}")
    if request.accept is None:
        absent = [tier for tier in request.tiers if tier not in held]
        if absent:
            raise UsageError(
                f"{request.against} holds no tier {absent[0]}: add it with --tier {absent[0]} --accept REASON"
            )
    default = held or ["exact", "tight"]
    wanted = [tier for tier in known if tier in (request.tiers or [t for t in default if t != "real"])]
    if request.records is None:
        if "real" in wanted and request.data is None:
            raise UsageError("--tier real measures on MSR-VTT: give its folder with --data DIR")
        return wanted
    say("--records compares what records hold; the exact tier is measured anew without --records")
    return [tier for tier in wanted if tier != "exact"]


def _on_current_protocol(baseline: Baseline, section: str, request: CheckRequest) -> Baseline:
    """The baseline, with the protocol's present hash where a new one is being accepted.

    Raises:
        UsageError: the protocol has changed since, and the change is not being accepted.
    """
    runs: dict[str, Any] | None = getattr(baseline, section)
    name = runs["protocol"] if runs else {"standin": STANDIN, "real": REAL}[section]
    protocol = load_protocol(name)
    if runs is None:
        methods = {"standin": STANDIN_METHODS, "real": REAL_METHODS}[section]
        runs = {"protocol": name, "hash": protocol.hash, "seed": 0, "methods": list(methods)}
    elif protocol.hash != runs["hash"] and request.accept is None:
        raise UsageError(
            f"protocol {name} has changed since the baseline was made ({runs['hash']}, now {protocol.hash}): "
            "take new values over with --accept 'why it changed'"
        )
    current = runs | {"hash": protocol.hash}
    return replace(baseline, standin=current) if section == "standin" else replace(baseline, real=current)


def _check_device(baseline: Baseline) -> None:
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    if baseline.device not in ("cpu", here):
        raise UsageError(
            f"the baseline was made on {baseline.device}, this machine has {here}: use a baseline of its own"
        )


def _measure(request: CheckRequest, baseline: Baseline, tiers: Sequence[Tier]) -> Measured:
    values: dict[str, Value] = {}
    intervals: dict[str, list[float]] = {}
    device = "cpu" if baseline.device == "cpu" else "cuda"
    if "exact" in tiers:
        # What is new comes into a baseline when it is accepted; until then it is compared as it is.
        new = _all_subjects() if request.accept is not None else []
        values |= measure_exact(sorted({*_subjects(baseline, "exact"), *new}))
        names = {subject.partition("@")[0] for subject in new}
        values |= measure_signatures(sorted({*_subjects(baseline, "signature"), *names}))
    if baseline.standin is not None and {"tight", "loose"}.intersection(tiers):
        records = run_again(Runs.of("standin", baseline.standin), speed="loose" in tiers, device=device)
        found = _of_records(baseline, records, tiers)
        values, intervals = values | dict(found.values), intervals | {k: list(v) for k, v in found.intervals.items()}
    if baseline.real is not None and "real" in tiers:
        real = run_again(Runs.of("real", baseline.real), speed=False, device=device, data=request.data)
        more, known = retrieval_metrics("real", real)
        values, intervals = values | more, intervals | known
    return Measured(values=values, intervals=intervals)


def _from_records(folder: Path, baseline: Baseline, tiers: Sequence[Tier]) -> Measured:
    store = RecordStore(folder)
    if baseline.standin is None and {"tight", "loose"}.intersection(tiers):
        raise UsageError("the baseline has no stand-in tier to compare records with")
    records = [] if baseline.standin is None else matching(store, Runs.of("standin", baseline.standin))
    found = _of_records(baseline, records, tiers)
    real = [] if baseline.real is None else matching(store, Runs.of("real", baseline.real))
    values, intervals = retrieval_metrics("real", real)
    return Measured(values=dict(found.values) | values, intervals=dict(found.intervals) | intervals)


def _of_records(baseline: Baseline, records: Sequence[Record], tiers: Sequence[Tier]) -> Measured:
    """R@k and ratios of the stand-in's records."""
    values, intervals = retrieval_metrics("standin", records) if "tight" in tiers else ({}, {})
    reference = (baseline.loose or {"reference": REFERENCE})["reference"]
    ratios = cost_ratios(records, reference) if "loose" in tiers else {}
    return Measured(values=values | ratios, intervals=intervals)


def _subjects(baseline: Baseline, prefix: str) -> list[str]:
    return sorted({key.split("/")[1] for key in baseline.entries if key.startswith(f"{prefix}/")})


def _all_subjects() -> list[str]:
    return sorted(f"{name}@{backbone}" for name in registry.names("baselines", "methods") for backbone in BACKBONES)


def _accept(path: Path, baseline: Baseline, found: Measured, reason: str) -> None:
    """Write what was measured over what the file held; what was not measured stays, what is new comes in."""
    entries = dict(baseline.entries)
    for key, value in found.values.items():
        margin = entries[key]["margin"] if key in entries else default_margin(key)
        interval = {"interval": list(found.intervals[key])} if key in found.intervals else {}
        entries[key] = {"value": value, "margin": margin} | interval
    loose = any(key.startswith("loose/") for key in entries)
    note = {"date": datetime.now(UTC).date().isoformat(), "reason": reason, "git_sha": source_revision()[0]}
    new = replace(
        baseline,
        entries=entries,
        accepted=[*baseline.accepted, note],
        loose=baseline.loose or ({"reference": REFERENCE} if loose else None),
    )
    write_baseline(path, new)


def _print(rows: list[Row], as_json: bool) -> None:
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    shown = [row for row in rows if row.state != "same"]
    if shown:
        print_table([_cells(row) for row in shown], ["metric", "baseline", "measured", "margin", "state"])


def _cells(row: Row) -> list[Any]:
    return [row.key, _short(row.baseline), _short(row.measured), row.margin, row.state]


def _short(value: Value) -> Any:
    return " ".join(f"{s}x{n}" for s, n in value) if isinstance(value, list) else value
