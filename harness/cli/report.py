"""``tvrbench report``: the report again, from records alone."""

from __future__ import annotations

from pathlib import Path

from tvrbench.harness.core.console import print_json, say
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.data.bench_rows import NAME as EFFICIENCY
from tvrbench.harness.reporting.pages.efficiency import write_efficiency
from tvrbench.harness.reporting.pages.report import write_report


def report_protocol(protocol: str, results: Path, reports: Path, as_json: bool) -> None:
    """Write the report of a protocol, or of ``efficiency``: what methods cost; UsageError where nothing is recorded."""
    pages = written(protocol, RecordStore(results), reports)
    if as_json:
        print_json([str(page) for page in pages])
    else:
        say(f"report: {pages[0]}")


def written(protocol: str, store: RecordStore, reports: Path) -> list[Path]:
    """Write the report of a protocol or of ``efficiency``; its files, ``README.md`` first."""
    return write_efficiency(store, reports) if protocol == EFFICIENCY else write_report(protocol, store, reports)
