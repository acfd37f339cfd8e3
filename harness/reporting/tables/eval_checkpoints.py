"""The table of checkpoints that were scored under a protocol and not trained under it, apart from all that were."""

from __future__ import annotations

from collections.abc import Sequence

from tvrbench.harness.reporting.catalogue import fixed, significant
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.records import StoredRecord
from tvrbench.harness.reporting.data.rows import MethodRow, method_rows
from tvrbench.harness.reporting.tables.columns import (
    GMACS_HEADER,
    cost_field,
    direction_fields,
    interval_field,
    metric_field,
    record_field,
    text_field,
)
from tvrbench.harness.reporting.tables.table import Table

_SAVED_BY = {"tvrbench": "tvrbench", "released": "other code"}
_CHOSEN = {"last": "last of its training", "unknown": "not known"}


def scored_table(runs: Sequence[StoredRecord], scope: ReportContext) -> Table | None:
    """One row a checkpoint, nothing bold; None where none was scored.

    Args:
        runs: completed runs that scored a checkpoint.
        scope: of the report.
    """
    rows = method_rows(runs)
    if not rows:
        return None
    fields = [
        text_field("method", "method", lambda row: row.label),
        text_field("saved_by", "saved by", _saved_by),
        text_field("checkpoint", "chosen", lambda row: _CHOSEN.get(row.selection, row.selection)),
        metric_field("ties_shared", "t2v", "R1", key="t2v_R1_ties_shared", header="t→v R@1, ties shared"),
        *direction_fields("t2v", {}),
        interval_field("t2v", "R1"),
        *direction_fields("v2t", {}),
        cost_field("gmacs_video", GMACS_HEADER, significant(4)),
        cost_field("output_tokens", "tokens out", fixed(0)),
        cost_field("throughput", "videos/s", significant(3)),
        record_field(scope),
    ]
    sentences = (
        "Models that came trained and were only scored here, on the protocol's test videos and frames. "
        "What they were trained on, and how, is not known here, so they are compared with no row of this report "
        "and with no published number. Interval: 95 % bootstrap over queries.",
    )
    cells = [tuple(field.cell(row) for field in fields) for row in rows]
    return scope.table("scored", "EvalCheckpoint checkpoints", sentences, [field.column for field in fields], cells)


def _saved_by(row: MethodRow) -> str | None:
    scored = row.record.get("checkpoint")
    return None if scored is None else _SAVED_BY[scored["format"]]
