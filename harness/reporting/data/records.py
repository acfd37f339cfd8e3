"""Records on disk as a report reads them: each with its file, and those of one protocol hash selected."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tvrbench.harness.config.protocol import OWN
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.records.record import Record, read_record
from tvrbench.harness.records.store import RecordStore


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


def stored_records(store: RecordStore, protocol: str) -> list[StoredRecord]:
    """Read and check a protocol's records, in the order of file names; UsageError for a file that is no record."""
    paths = sorted(store.folder(protocol).glob("*.json"))
    return [StoredRecord(record=read_record(path), path=path) for path in paths]


def newest(stored: Iterable[StoredRecord]) -> StoredRecord:
    """Return the record of the run that was started last."""
    return max(stored, key=lambda s: (datetime.datetime.fromisoformat(s.record["started"]), s.path.name))


@dataclass(frozen=True, kw_only=True)
class Selected:
    """The completed and failed records of one protocol hash, and those of other hashes."""

    completed: tuple[StoredRecord, ...]
    failed: tuple[StoredRecord, ...]
    left_out: tuple[StoredRecord, ...]


def select(stored: Sequence[StoredRecord], protocol: str, protocol_hash: str | None) -> Selected:
    """Split a protocol's records by status and hash: the given one, or that of the latest completed run.

    Raises:
        UsageError: no completed record is left.
    """
    completed = [s for s in stored if s.record["status"] == "completed" and s.record["metrics"]]
    failed = [s for s in stored if s.record["status"] == "failed"]
    if not completed:
        names = [s.path.name for s in failed]
        seen = f"; {len(names)} failed, see {names[0]}" if names else ""
        to_run = "FILE.toml" if protocol.startswith(f"{OWN}/") else protocol
        message = f"{protocol}: no completed run is recorded{seen}; make one with 'tvrbench run {to_run}'"
        raise UsageError(message, code="report.no-run", protocol=protocol, failed=names)
    hashes = sorted({s.record["protocol"]["hash"] for s in completed})
    chosen = protocol_hash if protocol_hash is not None else newest(completed).record["protocol"]["hash"]
    if chosen not in hashes:
        message = f"{protocol}: no completed run has protocol hash {chosen}; recorded are {', '.join(hashes)}"
        facts = {"protocol": protocol, "protocol_hash": chosen, "recorded": hashes}
        raise UsageError(message, code="report.no-such-hash", **facts)
    return Selected(
        completed=tuple(s for s in completed if s.record["protocol"]["hash"] == chosen),
        failed=tuple(s for s in failed if s.record["protocol"]["hash"] == chosen),
        left_out=tuple(s for s in stored if s.record["protocol"]["hash"] != chosen),
    )
