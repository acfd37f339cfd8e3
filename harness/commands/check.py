"""``tvrbench check``: measure again and compare with a baseline."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tvrbench.harness.commands.output import print_json, print_table, say
from tvrbench.harness.commands.run import Request, run_protocol
from tvrbench.harness.cost.flops import profile_by_name
from tvrbench.harness.errors import BadInput, CheckFailed
from tvrbench.harness.protocol import load_protocol
from tvrbench.harness.provenance import source_revision
from tvrbench.harness.records import Record
from tvrbench.harness.regression import Baseline, Row, Value, compare, read_baseline, write_baseline
from tvrbench.harness.store import RecordStore


def check_against(against: Path, records: Path | None, accept: str | None, as_json: bool) -> None:
    """Compare with the baseline, or with ``accept`` take the new values over and keep the reason.

    Raises:
        BadInput: a broken baseline, or one made on a device that this machine lacks.
        CheckFailed: a metric moved beyond its margin or was not measured.
    """
    baseline = read_baseline(against)
    _check_device(baseline)
    if accept is not None and not accept.strip():
        raise BadInput("--accept needs a reason: --accept 'why the numbers moved'")
    if records is not None and not (records / "records").is_dir():
        raise BadInput(f"--records {records}: no results folder with a folder records in it")
    if baseline.standin is not None:
        baseline = _on_current_protocol(baseline, accept)
    measured: dict[str, Value] = {}
    tiers: tuple[str, ...]
    if records is None:
        measured |= measure_exact(sorted({key.split("/")[1] for key in baseline.entries if key.startswith("exact/")}))
        measured |= _rerun_standin(baseline)
        tiers = ("exact", "standin")
    else:
        measured |= _standin_metrics(_matching(RecordStore(records), baseline))
        tiers = ("standin",)
        say("--records compares the stand-in tier; the exact tier is measured anew without --records")
    rows = compare(baseline, measured, tiers)
    if accept is not None:
        _accept(against, baseline, measured, accept)
    _print(rows, as_json)
    bad = [row for row in rows if row.state in ("moved", "missing")]
    if not rows:
        raise CheckFailed(f"{against} holds nothing that can be compared this way")
    if bad and accept is None:
        raise CheckFailed(f"{len(bad)} of {len(rows)} metrics moved or were not measured (baseline {against})")
    say(f"{len(rows)} metrics compared, {len(bad)} moved" + (", accepted" if accept is not None else ""))


def _on_current_protocol(baseline: Baseline, accept: str | None) -> Baseline:
    """The baseline, with the protocol's present hash where a new one is being accepted.

    Raises:
        BadInput: the protocol has changed since, and the change is not being accepted.
    """
    standin = baseline.standin or {}
    now = load_protocol(standin["protocol"]).hash
    if now != standin["hash"] and accept is None:
        raise BadInput(
            f"protocol {standin['protocol']} has changed since the baseline was made ({standin['hash']}, now {now}): "
            "take new values over with --accept 'why it changed'"
        )
    return replace(baseline, standin=standin | {"hash": now})


def _check_device(baseline: Baseline) -> None:
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    if baseline.device not in ("cpu", here):
        raise BadInput(
            f"the baseline was made on {baseline.device}, this machine has {here}: use a baseline of its own"
        )


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


def _rerun_standin(baseline: Baseline) -> dict[str, Value]:
    if baseline.standin is None:
        return {}
    with tempfile.TemporaryDirectory(prefix="tvrbench-check-") as folder:
        request = Request(
            protocol=baseline.standin["protocol"],
            methods=tuple(baseline.standin["methods"]),
            seeds=(baseline.standin["seed"],),
            device="cpu",
            results=Path(folder) / "results",
            reports=Path(folder) / "reports",
            paper_scale=None,
            measure_speed=False,
        )
        run_protocol(request, dry_run=False, as_json=False)
        return _standin_metrics(_matching(RecordStore(Path(folder) / "results"), baseline))


def _matching(store: RecordStore, baseline: Baseline) -> list[Record]:
    """The records that the stand-in tier speaks of."""
    if baseline.standin is None:
        raise BadInput("the baseline has no stand-in tier to compare records with")
    name, wanted = baseline.standin["protocol"], baseline.standin["hash"]
    return [
        record
        for record in store.find(name, seed=baseline.standin["seed"], status="completed")
        if record["protocol"]["hash"] == wanted
    ]


def _standin_metrics(records: Iterable[Record]) -> dict[str, Value]:
    measured: dict[str, Value] = {}
    for record in records:
        prefix, metrics = f"standin/{record['method']['name']}", record["metrics"]
        for direction in ("t2v", "v2t"):
            measured |= {f"{prefix}/{direction}_{k}": metrics[direction][k] for k in ("R1", "R5", "R10")}
        if metrics.get("pair_accuracy") is not None:
            measured[f"{prefix}/pair_accuracy"] = metrics["pair_accuracy"]
    return measured


def _accept(path: Path, baseline: Baseline, measured: Mapping[str, Value], reason: str) -> None:
    entries = {key: entry | {"value": measured.get(key, entry["value"])} for key, entry in baseline.entries.items()}
    note = {"date": datetime.now(UTC).date().isoformat(), "reason": reason, "git_sha": source_revision()[0]}
    write_baseline(
        path,
        Baseline(
            device=baseline.device,
            standin=baseline.standin,
            entries=entries,
            accepted=[*baseline.accepted, note],
        ),
    )


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
