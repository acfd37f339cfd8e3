"""The costs of methods as videos get longer: counted, and timed where a GPU did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tvrbench.harness.records.record import MeasurementDoc
from tvrbench.harness.reporting.analysis.matched_time import is_frame_budget
from tvrbench.harness.reporting.catalogue import Metric, fixed, metric
from tvrbench.harness.reporting.data.bench_rows import UNMEASURED, figure
from tvrbench.harness.reporting.data.long_videos import CountedMethod, LongVideos
from tvrbench.harness.reporting.data.rows import Cost, MethodRow
from tvrbench.harness.reporting.tables.columns import cost_cell
from tvrbench.harness.reporting.tables.markdown import slug
from tvrbench.harness.reporting.tables.table import Cell, Column, Table, make_table, missing_cell, text_column

_PAPERS = " (papers' GFLOPs)"
_UNCOUNTED = "not counted: the method refuses this number of frames, or it was not asked for"
_UNTIMED = "not timed with this number of frames"


def long_videos_tables(found: LongVideos) -> list[Table]:
    """Make the table of the numbers of frames that most methods share, and one of the others with the dense encoder."""
    encoding = [method for method in found.methods if method.encodes]
    few = [frames for frames in found.frames if frames not in found.shared]
    stem = f"long-videos-{slug(found.backbone, 40)}"
    words = f"Cost of longer videos on {found.backbone}"
    tables = []
    if found.shared:
        title = f"{words}: {_numbers(found.shared)} frames"
        tables.append(
            _table(stem, title, found, found.shared, [method for method in encoding if method.counted(found.shared)])
        )
    if few:
        dense = [] if found.dense is None else [found.dense]
        methods = [method for method in encoding if method.counted(few) and method not in dense]
        title = f"{words}: {_numbers(few)} frames, of the papers' own settings"
        tables.append(_table(f"{stem}-{'-'.join(map(str, few))}", title, found, few, [*dense, *methods]))
    return tables


def _table(name: str, title: str, found: LongVideos, frames: Sequence[int], methods: Sequence[CountedMethod]) -> Table:
    dense = None if found.dense is None else found.dense.label
    timed = [number for number in frames if number in found.times]
    devices = dict.fromkeys(f"{b.device}, {b.precision}" for b in (found.times[number] for number in timed))
    sentences = (
        "Counted, and so the same on every machine; GMACs are what papers call GFLOPs.",
        "Bold: least of a column among methods that encode every frame.",
        "Each method has its own tuning, which decides what a training step takes as much as its tokens do.",
        None if dense is None else f"Of dense: multiply-adds over those of {dense} with as many frames.",
        None
        if found.batch is None
        else f"Training step: its multiply-adds per pair, forward and backward as far as the tuning needs it, and "
        f"the memory of one with {found.batch} pairs and {found.precision} products, as an allocator without waste "
        "would hold it: weights, gradients, the optimizer's moments and activations.",
        f"Times: best batch, and speed-up over the dense encoder, on {'; '.join(devices)}." if timed else None,
    )
    columns = [
        text_column("method", "method", lambda method: method.label),
        text_column("group", "group", lambda method: method.group),
        *(_counted("gmacs_video", number) for number in frames),
        *(_of_dense(found, number) for number in frames),
        *(_counted("output_tokens", number) for number in frames),
        *(_counted("gmacs_step", number) for number in frames),
        *(_counted("step_memory", number, found.batch) for number in frames),
        *(_timed("throughput_best", number) for number in timed),
        *(_timed("speedup", number) for number in timed),
    ]
    return make_table(name, title, sentences, columns, methods, best=True)


def _counted(name: str, frames: int, batch: int | None = None) -> Column:
    def cell(method: CountedMethod) -> Cell:
        row = method.rows.get(frames)
        return missing_cell(_UNCOUNTED) if row is None else _cell(row, figure(row, name, batch=batch), metric(name))

    return _column(metric(name), frames, cell)


def _timed(name: str, frames: int) -> Column:
    def cell(method: CountedMethod) -> Cell:
        row = method.timed.get(frames)
        return missing_cell(_UNTIMED) if row is None else _cell(row, figure(row, name), metric(name))

    return _column(metric(name), frames, cell)


def _of_dense(found: LongVideos, frames: int) -> Column:
    shown = replace(metric("gmacs_video"), name="of_dense", short="of dense", show=fixed(3))

    def cell(method: CountedMethod) -> Cell:
        counted, ratio = method.rows.get(frames), found.of_dense(method, frames)
        if counted is None or ratio is None:
            return missing_cell(_UNCOUNTED if counted is None else "the dense encoder was not counted")
        measured = figure(counted, "gmacs_video")
        return _cell(counted, None if measured is None else {**measured, "value": ratio}, shown)

    return _column(shown, frames, cell)


def _cell(row: MethodRow, measured: MeasurementDoc | None, shown: Metric) -> Cell:
    if measured is None:
        return missing_cell(UNMEASURED)
    cell = cost_cell(Cost.mean([measured]), row, shown.text)
    return replace(cell, rankable=cell.rankable and not is_frame_budget(row.method))


def _column(shown: Metric, frames: int, cell: Callable[[Any], Cell]) -> Column:
    header = f"{shown.short.removesuffix(_PAPERS)}, {frames} frames"
    return Column(key=f"{shown.name}_{frames}", header=header, cell=cell, better=shown.better)


def _numbers(frames: Sequence[int]) -> str:
    *first, last = map(str, frames)
    return f"{', '.join(first)} and {last}" if first else last
