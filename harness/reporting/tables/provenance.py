"""Where a report's numbers come from: protocol, data, weights, machine, commands; and what is missing and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tvrbench.harness.records.record import Record
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.records import StoredRecord
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.tables.table import Column, Table, words

Runs = Sequence[StoredRecord]


@dataclass(frozen=True, kw_only=True)
class SharedValue:
    """A value and the runs that share it."""

    value: str
    runs: tuple[StoredRecord, ...]


def origins(runs: Runs, value: Callable[[Record], str | None]) -> list[SharedValue]:
    """The values that runs have, each with its runs, in order of first appearance; runs without one are left out."""
    groups: dict[str, list[StoredRecord]] = {}
    for run in runs:
        found = value(run.record)
        if found is not None:
            groups.setdefault(found, []).append(run)
    return [SharedValue(value=found, runs=tuple(members)) for found, members in groups.items()]


def provenance_table(runs: Runs, scope: ReportContext) -> Table:
    """What made the numbers, one line for each value that runs differ in."""
    rows = []
    for what, value in _FACTS.items():
        found = origins(runs, value)
        for origin in found:
            shared = "all runs" if len(origin.runs) == len(runs) else "; ".join(run.name for run in origin.runs)
            rows.append((words(what), words(origin.value), words(shared)))
    columns = [Column(key=key, header=key, left=True) for key in ("what", "value", "runs")]
    return scope.table("provenance", "Where the numbers come from", ("Read from the records.",), columns, rows)


def warnings(runs: Runs, scope: ReportContext) -> list[str]:
    """What a reader must know before comparing rows."""
    return list(_warnings(runs, scope))


def not_measured(rows: Sequence[MethodRow]) -> list[str]:
    """Measurements that a record names without a value, and the reason it gives, each once."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        for run in row.runs:
            for m in run.record["cost"]:
                if m["value"] is None:
                    what = str(m["conditions"].get("what", ""))
                    labels = found.setdefault((m["name"], what, str(m["conditions"]["reason"])), [])
                    labels += [] if row.label in labels else [row.label]
    return [
        f"{name.replace('_', ' ')}{f' ({what})' if what else ''}: {reason} ({', '.join(labels)})"
        for (name, what, reason), labels in found.items()
    ]


def skipped_videos(runs: Runs) -> list[SharedValue]:
    """Videos left out with ``--skip-bad-videos``, as a list of ids for each set of runs."""
    return origins(runs, lambda record: ", ".join(record["data"]["skipped"]) or None)


def _warnings(runs: Runs, scope: ReportContext) -> Iterator[str]:
    if len({run.record["data"]["split_fingerprint"] for run in runs}) > 1:
        yield "The runs were not all tested on the same videos and captions: rows of different splits do not compare."
    if len({run.record["weights_sha256"] for run in runs if not run.scored}) > 1:
        yield "The runs did not all start from the same weights."
    if len({run.record["environment"]["device"] for run in runs}) > 1:
        yield "The runs were not all made on one device: throughput, latency and memory do not compare across devices."
    dirty = [run.name for run in runs if run.record["environment"]["dirty"]]
    if dirty:
        yield f"Made from sources with changes that are in no commit: {'; '.join(dirty)}."
    chosen = [run.name for run in runs if run.record["metrics"].get("selection") == "best-on-test"]
    if chosen:
        yield f"Checkpoint chosen on the test set, which flatters the number: {'; '.join(chosen)}."
    if scope.compares and len({run.record["data"]["frames_fingerprint"] for run in runs}) > 1:
        yield "The runs did not all see the same decoded frames (frames fingerprint)."


def _versions(record: Record) -> str:
    return ", ".join(f"{name} {version}" for name, version in record["environment"]["versions"].items() if version)


def _commit(record: Record) -> str:
    sha, dirty = record["environment"]["git_sha"], record["environment"]["dirty"]
    return "not run from a checkout" if sha is None else f"{sha}{' with uncommitted changes' if dirty else ''}"


def _checkpoint(record: Record) -> str | None:
    scored = record.get("checkpoint")
    return None if scored is None else f"{scored['sha256']} ({scored['file']}, {scored['format']})"


def _backbone(record: Record) -> str | None:
    options = record["method"]["options"]
    parts = [str(options[key]) + what for key, what in (("backbone", ""), ("frames", " frames")) if key in options]
    return ", ".join(parts) or None


_FACTS: dict[str, Callable[[Record], str | None]] = {
    "protocol hash": lambda record: record["protocol"]["hash"],
    "backbone": _backbone,
    "weights, SHA-256": lambda record: record["weights_sha256"],
    "scored checkpoint, SHA-256": _checkpoint,
    "split fingerprint": lambda record: record["data"]["split_fingerprint"],
    "frames fingerprint": lambda record: record["data"]["frames_fingerprint"],
    "device": lambda record: record["environment"]["device"],
    "CPU cores": lambda record: str(record["environment"].get("cpu_count", "")) or None,
    "driver": lambda record: record["environment"]["driver"],
    "versions": _versions,
    "commit": _commit,
}
