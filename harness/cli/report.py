"""``tvrbench report``: write a report again, from records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from tvrbench.harness.core.console import print_json, say
from tvrbench.harness.core.options import REPORTS, RESULTS, Json


def report(
    protocol: Annotated[Positional[str], arg(metavar="PROTOCOL")],
    /,
    results: Path = RESULTS,
    reports: Path = REPORTS,
    formats: Annotated[UseAppendAction[tuple[Literal["md", "tex"], ...]], arg(name="format")] = (),
    as_json: Json = False,
) -> None:
    """Write the report of a protocol, or of efficiency, again from its records alone.

    Args:
        protocol: Name of the protocol in the records (of a protocol file, its path or own/STEM); efficiency for the
            cost of methods.
        results: Folder of the records.
        reports: Folder of the reports.
        formats: Write every table in this format too, below md/ (Markdown) or tex/ (LaTeX; tables.tex shows them all).
    """
    from tvrbench.harness.config.protocol import protocol_name
    from tvrbench.harness.records.store import RecordStore
    from tvrbench.harness.reporting.data.bench_rows import NAME
    from tvrbench.harness.reporting.pages.efficiency import write_efficiency
    from tvrbench.harness.reporting.pages.report import write_report

    store, protocol = RecordStore(results), protocol_name(protocol)
    if protocol == NAME:
        files = write_efficiency(store, reports, formats=formats, log=say)
    else:
        files = write_report(protocol, store, reports, formats=formats, log=say)
    if as_json:
        print_json([str(file) for file in files])
    else:
        say(f"report: {files[0]}")
