"""``tvrbench run``: train, evaluate and measure methods under a protocol, then write the report."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import arg

from tvrbench.harness.runs.settings import RunSettings


def run(settings: Annotated[RunSettings, arg(name="")]) -> None:
    """Train, evaluate and measure methods under a protocol; write a record per run, then the report.

    Several GPUs or machines: torchrun --no-python --nproc-per-node N tvrbench run ...; see docs/training.md.
    """
    import os

    from tvrbench.harness.core.console import print_json, say
    from tvrbench.harness.core.rendezvous import read_launch

    launch = None if settings.single_process or settings.dry_run else read_launch(os.environ)
    if launch is not None and not launch.served:  # at once: what a cluster left may be news to the user
        say(f"process {launch.rank} of {launch.size}, which meets the others at {launch.place}")
    from tvrbench.harness.core.signals import SignalHandler
    from tvrbench.harness.records.store import RecordStore
    from tvrbench.harness.reporting.pages.report import write_report
    from tvrbench.harness.runs.suite import run_suite

    result = run_suite(settings)
    if result is None:
        return
    pages = []
    if not settings.no_report:
        with SignalHandler():
            pages = write_report(result.protocol, RecordStore(settings.results), settings.reports, log=say)
        say(f"report: {pages[0]}")
    if settings.as_json:
        print_json({"records": [str(path) for path in result.records], "report": [str(page) for page in pages]})
