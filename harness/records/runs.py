"""The runs among the records of a folder: each once, however often it was copied or recorded again."""

from __future__ import annotations

import datetime
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tvrbench.harness.records.record import Record, read_record, trained
from tvrbench.harness.records.store import LAST, RecordStore, run_digest


@dataclass(frozen=True, kw_only=True)
class StoredRecord:
    """A record and the file it was read from (``ROOT/records/PROTOCOL/FILE.json``).

    Attributes:
        record: as read.
        path: the file.
        label: of its row, where the method's name is not unique.
    """

    record: Record
    path: Path
    label: str | None = None

    @property
    def scored(self) -> bool:
        """True if a checkpoint was scored: nothing was trained under the protocol, so no row compares with it."""
        return "checkpoint" in self.record

    @property
    def name(self) -> str:
        """The run for people: method and seed, scored checkpoint or, for cost alone, backbone."""
        method = self.record["method"]
        if self.scored:
            return f"{method['name']}, scored checkpoint {self.record['checkpoint']['file']}"
        if self.record["metrics"] or self.record["status"] == "failed":
            return f"{self.label or method['name']}, seed {self.record['seed']}"
        return f"{method['name']} on {method['options'].get('backbone', 'an unnamed backbone')}"

    def link_from(self, folder: Path) -> str | None:
        """Return the file's path relative to ``folder``; None where only the file system's root is common to both."""
        path, start = self.path.resolve(), folder.resolve()
        if Path(os.path.commonpath([path, start])) == Path(path.anchor):
            return None
        return Path(os.path.relpath(path, start)).as_posix()

    def ranks(self) -> Mapping[str, npt.NDArray[Any]] | None:
        """Load the per-query ranks of both directions; None where the record keeps none."""
        if self.record["per_query_ranks_path"] is None:
            return None
        return RecordStore(self.path.parents[2]).load_ranks(self.record)


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """A record that no table counts.

    Attributes:
        run: the record.
        code: ``copy``, ``repeated``, ``other-protocol`` or ``other-dataset``.
        reason: for people.
    """

    run: StoredRecord
    code: str
    reason: str

    def __str__(self) -> str:
        return f"{self.run.path.name} is set aside: {self.reason}"


def read_runs(
    store: RecordStore, protocol: str, dataset: str | None = None
) -> tuple[list[StoredRecord], list[SetAside]]:
    """Read and check a protocol's records: its runs, each once and in the order of file names, and the others.

    ``dataset`` is the protocol's; None for that of most runs with metrics.

    Raises:
        UsageError: a file is no valid record.
    """
    aside: list[SetAside] = []
    runs: dict[tuple[Any, ...], list[StoredRecord]] = {}
    for path in sorted(store.folder(protocol).glob("*.json")):
        run = StoredRecord(record=read_record(path), path=path)
        if (own := run.record["protocol"]["name"]) == protocol:
            runs.setdefault(identity(run.record), []).append(run)
        else:
            aside.append(SetAside(run=run, code="other-protocol", reason=f"it is of protocol {own}"))
    kept = [min(files, key=_precedence) for files in runs.values()]
    for first, files in zip(kept, runs.values(), strict=True):
        aside += [_repeated(run, first) for run in files if run is not first]
    kept, more = _without_copies_as_seeds(kept)
    aside += more
    counted = Counter(run.record["data"]["dataset"] for run in kept if run.record["metrics"])
    usual = dataset or max(counted, key=lambda name: (counted[name], name), default=None)
    for run in kept:
        if run.record["metrics"] and (data := run.record["data"]["dataset"]) != usual:
            reason = f"it is of data set {data}, the protocol is of {usual}"
            aside.append(SetAside(run=run, code="other-dataset", reason=reason))
    others = {found.run.path for found in aside}
    runs_in_order = sorted((run for run in kept if run.path not in others), key=lambda run: run.path)
    return runs_in_order, sorted(aside, key=lambda found: found.run.path)


def _without_copies_as_seeds(runs: Sequence[StoredRecord]) -> tuple[list[StoredRecord], list[SetAside]]:
    """Part the runs from those that are another one of them again under another seed."""
    groups: dict[str, list[StoredRecord]] = {}
    for run in runs:
        groups.setdefault(_outcome(run.record), []).append(run)
    kept, aside = [], []
    for group in groups.values():
        first = min(group, key=lambda run: (not _is_named_by_its_run(run), run.record["seed"], run.path.name))
        kept.append(first)
        aside += [_seed_of_one_run(run, first) for run in group if run is not first]
    return kept, aside


def _outcome(record: Record) -> str:
    """Return what the records of one run share whatever their seed.

    Two trainings never take the same time and give the same numbers. Where nothing is trained, the numbers alone tell:
    only those of a method that draws at random depend on the seed.
    """
    metrics = record["metrics"]
    numbers: list[Any] = [record["duration_s"], record["failure"] and record["started"], metrics, record["cost"]]
    if record["status"] == "completed" and metrics and not trained(record):
        numbers = [metrics.get("t2v"), metrics.get("v2t")]
    return json.dumps([_identity_but_seed(record), record["data"]["dataset"], numbers], sort_keys=True)


def _seed_of_one_run(run: StoredRecord, first: StoredRecord) -> SetAside:
    name, seeds = first.path.name, f"seed {run.record['seed']} is seed {first.record['seed']} again"
    if run.record | {"seed": 0} == first.record | {"seed": 0}:
        return SetAside(run=run, code="copy", reason=f"an exact copy of {name} under another seed")
    if trained(run.record) or not run.record["metrics"]:
        return SetAside(run=run, code="copy", reason=f"a copy of {name} under another seed")
    return SetAside(run=run, code="repeated", reason=f"nothing is trained, so {seeds}; {name} counts")


def same_run(one: Record, other: Record) -> bool:
    """Return True if two records are of one run, whatever their seed where that makes no other run."""
    return identity(one) == identity(other) or _outcome(one) == _outcome(other)


def identity(record: Record) -> tuple[Any, ...]:
    """Return what two records of one run share, whichever files, machines or dates they have.

    A run is a seed of a method with its options, on some data and weights under some rules. Where only cost was
    measured, another device makes another run.
    """
    return (record["seed"], *_identity_but_seed(record))


def _identity_but_seed(record: Record) -> tuple[Any, ...]:
    metrics, status = record["metrics"], record["status"]
    device = None if metrics or status == "failed" else record["environment"]["device"]
    names = (record["protocol"]["name"], record["method"]["name"], metrics.get("selection", LAST))
    return (*names, status, device, run_digest(record))


def difference_of_repeats(run: Record, other: Record) -> str:
    """Say what a record is to another one of the same run: a copy, or a repetition with so much more or less R@1."""
    if run == other:
        return "an exact copy"
    r1, r1_other = (record["metrics"].get("t2v", {}).get("R1") for record in (run, other))
    if r1 is None or r1_other is None:
        return "a repetition"
    if r1 == r1_other:
        return "a repetition with the same R@1"
    return f"a repetition whose R@1 is {abs(r1 - r1_other):.2f} points {'higher' if r1 > r1_other else 'lower'}"


def _precedence(run: StoredRecord) -> tuple[float, bool, int, str]:
    """Order the files of one run: the newest first, then the name that the run itself gave, then the shortest."""
    return -_started(run.record), not _is_named_by_its_run(run), len(run.path.name), run.path.name


def _is_named_by_its_run(run: StoredRecord) -> bool:
    return run.path.stem.removesuffix("-failed").endswith(f"-{run_digest(run.record)}")


def _repeated(run: StoredRecord, kept: StoredRecord) -> SetAside:
    how, name = difference_of_repeats(run.record, kept.record), kept.path.name
    if run.record == kept.record:
        return SetAside(run=run, code="copy", reason=f"{how} of {name}")
    newer = "newer " * (_started(run.record) < _started(kept.record))
    return SetAside(run=run, code="repeated", reason=f"{how}; the {newer}{name} counts")


def _started(record: Record) -> float:
    return datetime.datetime.fromisoformat(record["started"]).timestamp()


def newest(stored: Iterable[StoredRecord]) -> StoredRecord:
    """Return the record of the run that was started last."""
    return max(stored, key=lambda s: (_started(s.record), s.path.name))
