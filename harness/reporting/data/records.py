"""Records on disk as a report reads them: each with its file, those of one protocol hash apart from the rest."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.records.record import Record, read_record
from tvrbench.harness.records.store import RecordStore


@dataclass(frozen=True, kw_only=True)
class StoredRecord:
    """A record and the file it was read from (``ROOT/records/PROTOCOL/FILE.json``).

    Attributes:
        record: as read.
        path: the file.
        label: what its row is called where the method's name does not tell it apart.
    """

    record: Record
    path: Path
    label: str | None = None

    @property
    def scored(self) -> bool:
        """Whether a checkpoint was scored: nothing was trained under the protocol, so no row compares with it."""
        return "checkpoint" in self.record

    @property
    def name(self) -> str:
        """Method and seed, for people; method and file of a scored checkpoint; with the backbone for cost alone."""
        method = self.record["method"]
        if self.scored:
            return f"{method['name']}, scored checkpoint {self.record['checkpoint']['file']}"
        if self.record["metrics"] or self.record["status"] == "failed":
            return f"{self.label or method['name']}, seed {self.record['seed']}"
        return f"{method['name']} on {method['options'].get('backbone', 'an unnamed backbone')}"

    def link_from(self, folder: Path) -> str | None:
        """The file's path relative to ``folder``; None where only the file system's root is common to both."""
        path, start = self.path.resolve(), folder.resolve()
        if Path(os.path.commonpath([path, start])) == Path(path.anchor):
            return None
        return Path(os.path.relpath(path, start)).as_posix()

    def ranks(self) -> Mapping[str, npt.NDArray[Any]] | None:
        """Per-query ranks of both directions; None where the record keeps none."""
        if self.record["per_query_ranks_path"] is None:
            return None
        return RecordStore(self.path.parents[2]).load_ranks(self.record)


def stored_records(store: RecordStore, protocol: str) -> list[StoredRecord]:
    """Every record of a protocol, checked, in the order of file names; UsageError for a file that is no record."""
    paths = sorted(store.folder(protocol).glob("*.json"))
    return [StoredRecord(record=read_record(path), path=path) for path in paths]


def newest(stored: Iterable[StoredRecord]) -> StoredRecord:
    """The record of the run that was started last."""
    return max(stored, key=lambda s: (datetime.datetime.fromisoformat(s.record["started"]), s.path.name))


@dataclass(frozen=True, kw_only=True)
class Selected:
    """The records of one protocol hash, and the rest."""

    completed: tuple[StoredRecord, ...]
    failed: tuple[StoredRecord, ...]
    left_out: tuple[StoredRecord, ...]


def select(stored: Sequence[StoredRecord], protocol: str, protocol_hash: str | None) -> Selected:
    """Split the records by protocol hash and status; UsageError where no completed one is left."""
    completed = [s for s in stored if s.record["status"] == "completed" and s.record["metrics"]]
    if not completed:
        failures = [s for s in stored if s.record["status"] == "failed"]
        told = f"; {len(failures)} runs failed, see {failures[0].path.name}" if failures else ""
        raise UsageError(f"no completed run of {protocol!r} is recorded{told}: make one with 'tvrbench run {protocol}'")
    chosen = protocol_hash if protocol_hash is not None else newest(completed).record["protocol"]["hash"]
    kept = tuple(s for s in completed if s.record["protocol"]["hash"] == chosen)
    if not kept:
        known = sorted({s.record["protocol"]["hash"] for s in completed})
        raise UsageError(
            f"no completed run of {protocol!r} has protocol hash {chosen}: recorded are {', '.join(known)}"
        )
    return Selected(
        completed=kept,
        failed=tuple(s for s in stored if s.record["status"] == "failed" and s.record["protocol"]["hash"] == chosen),
        left_out=tuple(s for s in stored if s.record["protocol"]["hash"] != chosen),
    )
