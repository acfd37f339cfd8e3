"""``tvrbench bench``: what methods cost on this device, each held against a baseline in one process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvrbench.harness.cli.bench_table import print_rows
from tvrbench.harness.core import registry
from tvrbench.harness.core.console import print_json, say
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.backbone.architecture import vision_name
from tvrbench.harness.models.backbone.weights import load_weights
from tvrbench.harness.profiling.plan import RANDOM, Entry, Plan, parse_entry
from tvrbench.harness.profiling.scenarios.end_to_end import open_videos
from tvrbench.harness.profiling.suite import NAME, load, measure_method
from tvrbench.harness.profiling.to_record import StartTime, store_costs
from tvrbench.harness.records.provenance import command_line
from tvrbench.harness.records.record import Measurement
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.pages.efficiency import write_efficiency

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line asked for.

    No ``methods``, or ``all`` among them, means every registered one; without ``reports`` no report is written.
    """

    methods: tuple[str, ...]
    options: dict[str, Any]
    backbones: tuple[str | None, ...]
    plan: Plan
    results: Path
    reports: Path | None = None
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one backbone, measured."""

    entry: Entry
    backbone: str
    found: Sequence[Measurement]
    record: Path


def run_bench(request: Request, as_json: bool) -> None:
    """Do what ``tvrbench bench`` promises; see ``tvrbench bench --help``."""
    registered = registry.names("baselines", "methods")
    texts = [text for given in request.methods or (ALL,) for text in (registered if given == ALL else [given])]
    entries = [parse_entry(text) for text in texts]
    entries = [Entry(method=e.method, options=request.options | e.options) for e in entries]
    if len({entry.label for entry in entries}) < len(entries):
        raise UsageError("bench: a method stands twice with the same options; name it once")
    store, plan = RecordStore(request.results), request.plan
    for backbone in request.backbones:
        for entry in (*entries, plan.against):
            load(plan, entry, backbone)  # an option that does not fit is found before minutes of measuring
    if plan.end_to_end:
        open_videos(plan.dataset, plan.data)
    store.check_writable(NAME)
    command = command_line(request.arguments)
    rows = [_measured(plan, entry, backbone, store, command) for backbone in request.backbones for entry in entries]
    if request.reports is not None:
        say(f"report: {write_efficiency(store, request.reports)[0]}")
    if as_json:
        print_json({"protocol": {"name": NAME, "hash": plan.hash}, "rows": [_document(row) for row in rows]})
        return
    for backbone in dict.fromkeys(row.backbone for row in rows):
        print_rows(backbone, plan, {row.entry.label: row.found for row in rows if row.backbone == backbone})
    say(f"records: {store.folder(NAME)}")


def _measured(plan: Plan, entry: Entry, backbone: str | None, store: RecordStore, command: str) -> Row:
    began, model = StartTime(), load(plan, entry, backbone)
    found, name = measure_method(plan, entry, backbone, say), vision_name(model.clip.arch)
    record = store_costs(
        store,
        {"name": NAME, "hash": plan.hash},
        model,
        name,
        found,
        device=plan.device,
        command=command,
        began=began,
        weights_sha256=None if plan.weights == RANDOM else load_weights(plan.weights, backbone).sha256,
    )
    return Row(entry=entry, backbone=name, found=found, record=record)


def _document(row: Row) -> dict[str, Any]:
    return {
        "method": row.entry.method,
        "options": row.entry.options,
        "backbone": row.backbone,
        "record": str(row.record),
        "cost": [measurement.to_json() for measurement in row.found],
    }
