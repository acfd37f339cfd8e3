"""Costs counted for several numbers of frames: one row per method as it was asked for, on one backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvrbench.harness.core import registry
from tvrbench.harness.records.runs import StoredRecord, newest
from tvrbench.harness.reporting.data.bench_rows import Bench, backbone, backbones, figure, value_of
from tvrbench.harness.reporting.data.rows import MethodRow, option_number
from tvrbench.harness.reporting.tables.markdown import brief

NAME = "efficiency/counted"
_OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class CountedMethod:
    """A method with the options that were given for it, which presets complete for each number of frames.

    Attributes:
        method: its name.
        label: with the options given.
        group: of its card.
        rows: what was counted, by the number of frames.
        timed: the same method and options in a table of times, by the number of frames.
    """

    method: str
    label: str
    group: str
    rows: Mapping[int, MethodRow]
    timed: Mapping[int, MethodRow] = field(default_factory=dict)

    @property
    def encodes(self) -> bool:
        """False where no encoder runs."""
        return all(row.encodes for row in self.rows.values())

    @property
    def at_most(self) -> bool:
        """True where pixels decide how many tokens are kept, so that counts are upper bounds."""
        found = [figure(row, "gmacs_video") for row in self.rows.values()]
        return any(m is not None and m["conditions"].get("upper_bound") is True for m in found)

    def counted(self, frames: Sequence[int]) -> bool:
        """Return True if any of these numbers of frames was counted."""
        return not self.rows.keys().isdisjoint(frames)

    def value(self, name: str, frames: int) -> float | None:
        """Return a counted cost; None where it was not counted."""
        return None if (row := self.rows.get(frames)) is None else value_of(figure(row, name))


@dataclass(frozen=True, kw_only=True)
class LongVideos:
    """What was counted on one backbone.

    Attributes:
        backbone: its name.
        methods: in their groups, those that cost most first.
        precision, batch: of the training step; None where none was counted.
        times: the table that the times of each number of frames are from.
    """

    backbone: str
    methods: tuple[CountedMethod, ...]
    precision: str | None
    batch: int | None
    times: Mapping[int, Bench]

    @property
    def frames(self) -> list[int]:
        """Every number of frames, ascending."""
        return sorted({frames for method in self.methods for frames in method.rows})

    @property
    def shared(self) -> list[int]:
        """The numbers of frames that at least half of the methods were counted for."""
        number = {frames: sum(method.counted([frames]) for method in self.methods) for frames in self.frames}
        return [frames for frames in self.frames if 2 * number[frames] >= len(self.methods)]

    @property
    def runs(self) -> tuple[StoredRecord, ...]:
        """The records."""
        return tuple(run for method in self.methods for row in method.rows.values() for run in row.runs)

    @property
    def dense(self) -> CountedMethod | None:
        """The encoder without token reduction; None where it was not counted."""
        names = registry.matching("methods", "baselines", role="dense")
        return next((method for method in self.methods if method.label in names), None)

    def of_dense(self, method: CountedMethod, frames: int) -> float | None:
        """Return the multiply-adds over those of the dense encoder with as many frames."""
        ours, dense = method.value("gmacs_video", frames), self.dense and self.dense.value("gmacs_video", frames)
        return None if ours is None or not dense else ours / dense


def long_videos(
    stored: Sequence[StoredRecord], measured: Sequence[Bench]
) -> tuple[list[LongVideos], list[StoredRecord]]:
    """Sort the counted records by backbone and method, and return those that no table holds.

    One way of counting a training step (precision, pairs) makes the tables, the one with the most records, and of equal
    ones the newest. Times come from GPUs alone, compiled ones left out.
    """
    ways: dict[str, list[StoredRecord]] = {}
    for run in stored:
        if run.record["status"] == "completed" and option_number(run.record["method"]["options"], "frames"):
            ways.setdefault(run.record["protocol"]["hash"], []).append(run)
    if not ways:
        return [], list(stored)
    chosen = max(ways.values(), key=lambda runs: (len(runs), newest(runs).record["started"]))
    rows = [MethodRow(label=run.record["method"]["name"], runs=(run,)) for run in _newest_each(chosen)]
    kept = {run.path for row in rows for run in row.runs}
    gpus = [bench for bench in measured if bench.on_gpu and not bench.compiled and not bench.graphs]
    tables = [_on(name, [row for row in rows if backbone(row) == name], gpus) for name in backbones(rows)]
    return tables, [run for run in stored if run.path not in kept]


def _newest_each(runs: Sequence[StoredRecord]) -> list[StoredRecord]:
    """Return the newest record of each method, options given, number of frames and backbone."""
    latest: dict[tuple[Any, ...], StoredRecord] = {}
    for run in sorted(runs, key=lambda run: run.record["started"]):
        options = run.record["method"]["options"]
        latest[(*_asked(run), options.get("frames"), options.get("backbone"))] = run
    return list(latest.values())


def _asked(run: StoredRecord) -> tuple[str, str]:
    """Return a method's name and the options given for it, as text."""
    method = run.record["method"]
    given = {key: json.dumps(value).replace(", ", ",").strip('"') for key, value in method.get("given", {}).items()}
    return method["name"], ", ".join(f"{key}={brief(value, 40)}" for key, value in sorted(given.items()))


def _on(name: str, rows: Sequence[MethodRow], gpus: Sequence[Bench]) -> LongVideos:
    steps = [m["conditions"] for row in rows for m in row.measurements if m["name"] == "step_memory" and m["value"]]
    precision = next((str(step["precision"]) for step in steps), None)
    asked: dict[tuple[str, str], dict[int, MethodRow]] = {}
    for row in rows:
        asked.setdefault(_asked(row.runs[0]), {})[int(row.options["frames"])] = row
    times: dict[int, Bench] = {}
    for frames in sorted({frames for rows in asked.values() for frames in rows}):
        counted = [by_frames[frames] for by_frames in asked.values() if frames in by_frames]
        known = {bench.slug: sum(_timed(row, bench) is not None for row in counted) for bench in gpus}
        if best := max(gpus, key=lambda b: (known[b.slug], b.precision == precision), default=None):
            times |= {frames: best} if known[best.slug] else {}
    methods = [_method(*key, by_frames, times) for key, by_frames in asked.items()]
    order: dict[str, int] = {group: place for place, group in enumerate(registry.GROUPS)}

    def place(method: CountedMethod) -> tuple[Any, ...]:
        heaviest = max((method.value("gmacs_video", frames) or 0.0 for frames in method.rows), default=0.0)
        return order.get(method.group, len(order)), -heaviest, method.label

    methods.sort(key=place)
    batch = max((int(step["batch"]) for step in steps), default=None)
    return LongVideos(backbone=name, methods=tuple(methods), precision=precision, batch=batch, times=times)


def _method(method: str, given: str, rows: Mapping[int, MethodRow], times: Mapping[int, Bench]) -> CountedMethod:
    known = any(method in registry.table(kind) for kind in ("methods", "baselines"))
    group = registry.lookup(method, "methods", "baselines").card.group if known else _OTHER
    timed = {frames: found for frames, row in rows.items() if frames in times if (found := _timed(row, times[frames]))}
    return CountedMethod(
        method=method,
        label=f"{method} ({given})" if given else method,
        group=group,
        rows=dict(sorted(rows.items())),
        timed=timed,
    )


def _timed(row: MethodRow, bench: Bench) -> MethodRow | None:
    """Find the same method with the same options, backbone and number of frames in a table of times."""
    same = (one for one in bench.rows if one.method == row.method and one.options == row.options)
    return next(same, None)
