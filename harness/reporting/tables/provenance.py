"""The origin of a report's numbers: protocol, data, weights, machine, commands; and what is missing and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter

from tvrbench.harness.core.numerics import Numerics, numerics_text
from tvrbench.harness.evaluation.comparability import ALWAYS, OWN_REASONS, RULES, shortfalls
from tvrbench.harness.records.record import Record, weights_line
from tvrbench.harness.records.runs import StoredRecord
from tvrbench.harness.reporting.catalogue import printed_backbone
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.papers.published import load_published
from tvrbench.harness.reporting.tables.table import Cell, Column, Table, text_column

Runs = Sequence[StoredRecord]
_FEW = 4  # runs that a line of a page names


def shared_values(runs: Runs, value: Callable[[Record], str | None]) -> dict[str, Runs]:
    """Group runs by a value, in order of first appearance; runs without one are left out."""
    groups: dict[str, list[StoredRecord]] = {}
    for run in runs:
        if (own := value(run.record)) is not None:
            groups.setdefault(own, []).append(run)
    return dict(groups)


def names(runs: Runs) -> str:
    """Join the runs' names."""
    return "; ".join(run.name for run in runs)


def few_names(runs: Runs) -> str:
    """Join the runs' names, or count them where they are many."""
    return names(runs) if len(runs) <= _FEW else f"{len(runs)} runs"


def provenance_table(runs: Runs, context: ReportContext) -> Table:
    """Make the table of what produced the numbers, one line per value that runs differ in."""

    def who(line: tuple[str, str, Runs]) -> Cell:
        members = line[2]
        if len(members) == len(runs):
            return Cell(text="all runs", value="all runs")
        return Cell(text=few_names(members), value=names(members))

    lines = [
        (what, value, found) for what, fact in _FACTS.items() for value, found in shared_values(runs, fact).items()
    ]
    columns = [
        text_column("what", "what", itemgetter(0)),
        text_column("value", "value", itemgetter(1)),
        Column("runs", "runs", who, left=True),
    ]
    caption = ("Read from the records.", "The CSV names the runs of each value.")
    return context.table("provenance", "Origin of the numbers", caption, columns, lines)


def not_measured(rows: Sequence[MethodRow]) -> list[str]:
    """List measurements without a value, each once with the recorded reason and the methods."""
    gaps: dict[tuple[str, str, str], dict[str, None]] = {}
    for row in rows:
        for m in row.measurements:
            if m["value"] is None:
                key = (m["name"], str(m["conditions"].get("what", "")), str(m["conditions"]["reason"]))
                gaps.setdefault(key, {})[row.label] = None
    return [
        f"{name.replace('_', ' ')}{f' ({what})' if what else ''}: {reason} ({', '.join(labels)})"
        for (name, what, reason), labels in gaps.items()
    ]


def banner(runs: Runs, rows: Sequence[MethodRow], context: ReportContext) -> tuple[str, ...]:
    """Say what keeps runs from being set beside papers or rows beside each other, and how many they are."""
    judged = not context.standin and any(number.dataset == context.dataset for number in load_published())
    groups: dict[str, list[StoredRecord]] = {}
    for run in runs:
        for reason in shortfalls(run.record):
            matters = judged and (reason.code not in RULES or not context.compares)  # rules matter to papers alone
            if matters or reason.code in ALWAYS:
                groups.setdefault(reason.text, []).append(run)
    lines = [f"{text[0].upper()}{text[1:]} in {_how_many(members, runs)}." for text, members in groups.items()]
    if lines and judged:
        lines.append("Such runs are judged against no published number.")
    apart: dict[str, list[str]] = {}
    for row in rows if context.compares else ():
        if row.apart is not None and row.apart.code not in OWN_REASONS:
            apart.setdefault(row.apart.text, []).append(row.label)
    return (*lines, *(f"Compared with no other row ({text}): {', '.join(who)}." for text, who in apart.items()))


def _how_many(members: Runs, runs: Runs) -> str:
    if len(members) == len(runs) > 1:
        return f"all {len(runs)} runs"
    found, every = (Counter(run.record["method"]["name"] for run in some) for some in (members, runs))
    return ", ".join(f"{count} of {every[method]} {method} runs" for method, count in found.items())


def warnings(runs: Runs) -> Iterator[str]:
    """Yield what a reader must know before comparing rows."""
    if len({run.record["environment"]["device"] for run in runs}) > 1:
        yield "The runs were not all made on one device: throughput, latency and memory do not compare across devices."
    if copied := [run for run in runs if run.record["data"].get("split_origin", {}).get("same_content")]:
        yield f"Files with the same content are in two splits, so these scores test nothing: {few_names(copied)}."
    if dirty := [run for run in runs if run.record["environment"]["dirty"]]:
        yield f"Made from sources with uncommitted changes: {few_names(dirty)}."
    if chosen := [run for run in runs if run.record["metrics"].get("selection") == "best-on-test"]:
        yield f"Checkpoint chosen on the test set, which flatters the number: {names(chosen)}."


def _commit(record: Record) -> str:
    sha, dirty = record["environment"]["git_sha"], record["environment"]["dirty"]
    if sha is None:
        return "not run from a checkout"
    return sha + {True: " with uncommitted changes", False: "", None: ", not known whether changed"}[dirty]


def _backbone(record: Record) -> str | None:
    options = record["method"]["options"]
    parts = (
        printed_backbone(str(options.get("backbone", ""))),
        f"{options['frames']} frames" if "frames" in options else "",
    )
    return ", ".join(filter(None, parts)) or None


def _checkpoint(record: Record) -> str | None:
    checkpoint = record.get("checkpoint")
    return checkpoint and "{sha256} ({file}, {format})".format_map(checkpoint)


def _training_data(record: Record) -> str | None:
    """Split and pairs that it was trained on; None where nothing was trained or the record does not tell."""
    if (split := record["data"].get("train_split")) is None:
        return None
    pairs = record["data"].get("train_pairs")
    return f"{split}, {pairs:,} pairs" if pairs else split


def _weights(record: Record) -> str | None:
    return weights_line(record["weights"]) if "weights" in record else None


def _precision(record: Record) -> str | None:
    """In what it was trained and evaluated; None where an earlier version recorded neither."""
    told = {what: record["metrics"].get(what, {}).get("precision") for what in ("training", "evaluation")}
    words = [f"{what} in {precision}" for what, precision in told.items() if precision]
    environment = record["environment"]
    told_all = environment.keys() >= Numerics.__required_keys__
    return ", ".join([*words, *([numerics_text(environment)] if told_all else [])]) or None


_FACTS: Mapping[str, Callable[[Record], str | None]] = {
    "protocol hash": lambda record: record["protocol"]["hash"],
    "backbone": _backbone,
    "weights, SHA-256": lambda record: record["weights_sha256"],
    "weights, read as": _weights,
    "scored checkpoint, SHA-256": _checkpoint,
    "splits": lambda record: record["data"].get("split_origin", {}).get("rule"),
    "split fingerprint": lambda record: record["data"]["split_fingerprint"],
    "training data": _training_data,
    "frames fingerprint": lambda record: record["data"]["frames_fingerprint"],
    "device": lambda record: record["environment"]["device"],
    "CPU cores": lambda record: str(record["environment"].get("cpu_count", "")) or None,
    "driver": lambda record: record["environment"]["driver"],
    "precision": _precision,
    "versions": lambda record: ", ".join(f"{n} {v}" for n, v in record["environment"]["versions"].items() if v),
    "commit": _commit,
}
