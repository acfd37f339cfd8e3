"""The costs of methods as videos get longer: counted, and timed where a GPU did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tvrbench.harness.records.record import MeasurementDoc
from tvrbench.harness.reporting.analysis.matched_time import is_frame_budget
from tvrbench.harness.reporting.catalogue import Metric, fixed, metric, printed_backbone
from tvrbench.harness.reporting.data.bench_rows import UNMEASURED, figure
from tvrbench.harness.reporting.data.long_videos import CountedMethod, LongVideos
from tvrbench.harness.reporting.data.rows import Cost, MethodRow, grouped
from tvrbench.harness.reporting.tables.columns import cost_cell
from tvrbench.harness.reporting.tables.markdown import slug
from tvrbench.harness.reporting.tables.marks import FVCORE, MARKS
from tvrbench.harness.reporting.tables.table import (
    MISSING,
    Cell,
    Column,
    Table,
    csv_only,
    make_table,
    missing_cell,
    text_column,
)

_UNCOUNTED = "not counted: the method refuses this number of frames, or it was not asked for"
_UNTIMED = "not timed with this number of frames"


def long_videos_tables(found: LongVideos, stem: str) -> list[Table]:
    """Make the table of the numbers of frames that most methods share, and one of the others with the dense encoder.

    ``stem`` starts the names of the files.
    """
    encoding = [method for method in found.methods if method.encodes]
    few = [frames for frames in found.frames if frames not in found.shared]
    words = f"Longer videos on {printed_backbone(found.backbone)}"
    tables = []
    if found.shared:
        title = f"{words}: {_numbers(found.shared)} frames"
        methods = [method for method in encoding if method.counted(found.shared)]
        tables.append(_table(stem, title, found, found.shared, methods))
    if few:
        dense = [] if found.dense is None else [found.dense]
        methods = [method for method in encoding if method.counted(few) and method not in dense]
        title = f"{words}: {_numbers(few)} frames, of the papers' own settings"
        name = f"{stem}.{slug('-'.join(map(str, few)), 60)}-frames"
        tables.append(_table(name, title, found, few, grouped([*dense, *methods], lambda m: m.rows[min(m.rows)])))
    return tables


def _table(name: str, title: str, found: LongVideos, frames: Sequence[int], methods: Sequence[CountedMethod]) -> Table:
    dense = None if found.dense is None else found.dense.label
    timed = [number for number in frames if number in found.times]
    devices = dict.fromkeys(found.times[number].name for number in timed)
    sentences = (
        f"GFLOPs {FVCORE} per video, those over {dense}'s with as many frames, and the memory of a training step."
        if dense
        else f"GFLOPs {FVCORE} per video, and the memory of a training step.",
        "Counted, and so the same on every machine.",
        "Bold: the least of a column among methods that encode every frame.",
        f"Training step: with the method's own tuning, {found.batch} pairs and {found.precision} products, as an "
        "allocator without waste would hold it."
        if found.batch
        else None,
        f"Speed-up over the dense encoder on {'; '.join(devices)}; the CSV has the videos/s." if timed else None,
    )
    columns = [
        text_column("method", "Method", lambda method: method.label),
        *(_counted("gmacs_video", f"GFLOPs, {number} frames", number) for number in frames),
        *(_of_dense(found, number) for number in frames),
        *(_counted("step_memory", f"Training (GB), {number} frames", number, found.batch) for number in frames),
        *(_timed("speedup", f"Speed-up, {number} frames", number) for number in timed),
        *csv_only(*(_counted(key, "", number) for key in ("output_tokens", "gmacs_step") for number in frames)),
        *csv_only(*(_timed("throughput_best", "", number) for number in timed)),
    ]
    return make_table(
        *(name, title, sentences, columns, methods), best=True, group=lambda m: m.group.capitalize(), marks=_MARKS
    )


_MARKS = {**MARKS, MISSING: "Not counted; the CSV has the reason."}


def _counted(name: str, header: str, frames: int, batch: int | None = None) -> Column:
    def cell(method: CountedMethod) -> Cell:
        row = method.rows.get(frames)
        return missing_cell(_UNCOUNTED) if row is None else _cell(row, figure(row, name, batch=batch), metric(name))

    return _column(metric(name), header, frames, cell)


def _timed(name: str, header: str, frames: int) -> Column:
    def cell(method: CountedMethod) -> Cell:
        row = method.timed.get(frames)
        return missing_cell(_UNTIMED) if row is None else _cell(row, figure(row, name), metric(name))

    return _column(metric(name), header, frames, cell)


def _of_dense(found: LongVideos, frames: int) -> Column:
    shown = replace(metric("gmacs_video"), name="of_dense", short="of dense", show=fixed(3))

    def cell(method: CountedMethod) -> Cell:
        counted, ratio = method.rows.get(frames), found.of_dense(method, frames)
        if counted is None or ratio is None:
            return missing_cell(_UNCOUNTED if counted is None else "the dense encoder was not counted")
        measured = figure(counted, "gmacs_video")
        return _cell(counted, None if measured is None else {**measured, "value": ratio}, shown)

    return _column(shown, f"Of dense, {frames} frames", frames, cell)


def _cell(row: MethodRow, measured: MeasurementDoc | None, shown: Metric) -> Cell:
    if measured is None:
        return missing_cell(UNMEASURED)
    cell = cost_cell(Cost.mean([measured]), row, shown.text)
    return replace(cell, rankable=cell.rankable and not is_frame_budget(row.method))


def _column(shown: Metric, header: str, frames: int, cell: Callable[[Any], Cell]) -> Column:
    return Column(f"{shown.name}_{frames}", header, cell, better=shown.better)


def _numbers(frames: Sequence[int]) -> str:
    *first, last = map(str, frames)
    return f"{', '.join(first)} and {last}" if first else last
