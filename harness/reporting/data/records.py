"""The records that a report is about: the runs of a protocol, and those of one protocol hash selected."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from tvrbench.harness.config.protocol import OWN, shipped_protocol
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.records.runs import SetAside, StoredRecord, newest, read_runs
from tvrbench.harness.records.store import RecordStore


def protocol_runs(store: RecordStore, protocol: str) -> tuple[list[StoredRecord], list[SetAside]]:
    """Read the runs of a protocol, each once, and the records set aside; errors as ``read_runs``."""
    shipped = shipped_protocol(protocol)
    return read_runs(store, protocol, shipped.dataset if shipped else None)


def stored_records(store: RecordStore, protocol: str) -> list[StoredRecord]:
    """Return the runs of ``protocol_runs`` alone."""
    return protocol_runs(store, protocol)[0]


@dataclass(frozen=True, kw_only=True)
class Selected:
    """The completed and failed records of one protocol hash, and those of other hashes."""

    completed: tuple[StoredRecord, ...]
    failed: tuple[StoredRecord, ...]
    left_out: tuple[StoredRecord, ...]


def select(
    stored: Sequence[StoredRecord], protocol: str, protocol_hash: str | None, store: RecordStore | None = None
) -> Selected:
    """Split a protocol's records by status and hash: the given one, or that of the latest completed run.

    ``store`` is where they were read from, for the message.

    Raises:
        UsageError: no completed record is left.
    """
    completed = [s for s in stored if s.record["status"] == "completed" and s.record["metrics"]]
    failed = [s for s in stored if s.record["status"] == "failed"]
    if not completed:
        names = [s.path.name for s in failed]
        seen = f"; {len(names)} failed, see {names[0]}" if names else ""
        where = f" in {store.searched(protocol)}" if store else ""
        to_run = "FILE.toml" if protocol.startswith(f"{OWN}/") else protocol
        close = difflib.get_close_matches(protocol, [] if store is None or stored else store.protocols(), n=1)
        guess = f" (did you mean {close[0]}?)" if close else ""
        message = f"{protocol}: no completed run is recorded{where}{seen}{guess}; make one with 'tvrbench run {to_run}'"
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
