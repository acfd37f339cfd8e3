"""The table of results in ``README.md``: some columns of the stand-in's report, from its records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.analysis.pairwise import compared_pairs
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.records import select, stored_records
from tvrbench.harness.reporting.data.rows import method_rows
from tvrbench.harness.reporting.tables.results import main_table
from tvrbench.harness.reporting.tables.table import Table

PROTOCOL = "standin/uniform"
_COLUMNS = (
    "method",
    "rank",
    "t2v_R1_ties_shared",
    "t2v_R5",
    "v2t_R1",
    "gmacs_video",
    "output_tokens",
    "params_trainable",
    "speedup_comparison",
    "peak_process_memory_training",
)


def results_table(results: Path = Path("results")) -> Table:
    """Make the table from the records in ``results``; UsageError where no run is completed."""
    runs = select(stored_records(RecordStore(results), PROTOCOL), PROTOCOL, None).completed
    rows = method_rows([run for run in runs if not run.scored])
    dataset = runs[0].record["data"]["dataset"]
    scope = ReportContext(protocol=PROTOCOL, dataset=dataset, folder=results)
    table = main_table(rows, compared_pairs(rows, scope), scope, best=True)
    kept = [i for i, column in enumerate(table.columns) if column.key in _COLUMNS]
    return replace(
        table,
        caption=scope.caption("Some columns of the report; methods that do not differ significantly share a rank."),
        remarks=(),
        columns=tuple(table.columns[i] for i in kept),
        rows=tuple(tuple(row[i] for i in kept) for row in table.rows),
    )
