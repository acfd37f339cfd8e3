"""``tvrbench sweep``: many runs from one file, then a report per protocol."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import arg

from tvrbench.harness.runs.settings import SweepSettings


def sweep(settings: Annotated[SweepSettings, arg(name="")]) -> None:
    """Do many runs from one file: those without a record, one at a time on every GPU; interrupted ones resume."""
    from dataclasses import asdict

    from tvrbench.harness.core.console import print_json, say
    from tvrbench.harness.records.store import RecordStore
    from tvrbench.harness.reporting.pages.report import write_report
    from tvrbench.harness.runs.sweep import run_sweep

    result = run_sweep(settings)
    if result is None:
        return
    store = RecordStore(settings.results)
    pages = [write_report(protocol, store, settings.reports, log=say)[0] for protocol in result.protocols]
    for page in pages:
        say(f"report: {page}")
    if settings.as_json:
        print_json({"runs": [asdict(one) for one in result.finished], "report": [str(page) for page in pages]})
    result.check()
