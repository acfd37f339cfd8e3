"""What there is of a planned run already; data and weights are not opened for that."""

from __future__ import annotations

from dataclasses import dataclass

from tvrbench.harness.config.protocol import Protocol
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.records.store import LAST, RecordStore
from tvrbench.harness.runs.plan import PlannedRun
from tvrbench.harness.runs.session import options_text, state_path
from tvrbench.harness.training.loop import FINAL
from tvrbench.harness.training.state_file import SUFFIX, Progress, progress_of


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """How far a run has come.

    Attributes:
        done: it has its record.
        resumes: from where it goes on; None where no state was saved.
        failure: of its last attempt, where that left a record.
    """

    done: bool = False
    resumes: str | None = None
    failure: str | None = None

    def in_words(self) -> str | None:
        """For a table; None where there is nothing."""
        if self.done:
            return "record"
        failed = "failed" if self.failure is not None else None
        return ", ".join(part for part in (failed, self.resumes) if part is not None) or None


def run_status(protocol: Protocol, run: PlannedRun, store: RecordStore, *, other_weights: bool = False) -> RunStatus:
    """What the results folder holds of a run.

    Args:
        protocol: it is planned under.
        run: as planned.
        store: of the records.
        other_weights: it is to be run on other weights than the protocol's, which its hash cannot tell then.

    Raises:
        UsageError: a file among the records is none.
    """
    records = [
        record
        for record in store.find(protocol.name, method=run.method, tuning=run.tuning, seed=run.seed)
        if "checkpoint" not in record
        and record["metrics"].get("selection", LAST) == LAST
        and (other_weights or record["protocol"]["hash"] == protocol.hash)
        and record["method"]["options"] == run.options
    ]
    if any(record["status"] == "completed" for record in records):
        return RunStatus(done=True)
    failure = next((record["failure"] for record in records), None)
    return RunStatus(resumes=_saved(protocol, run, store, other_weights), failure=failure)


def _where(found: Progress) -> str:
    if found.phase is None:
        return "with its next training"
    return f"after step {found.steps}" + ("" if found.phase == FINAL else f" of {found.phase}")


def _saved(protocol: Protocol, run: PlannedRun, store: RecordStore, other_weights: bool) -> str | None:
    folder = state_path(store, protocol.name, run.method).parent
    for path in sorted(folder.glob(f"{run.method}-{run.tuning}-seed{run.seed}-????????{SUFFIX}")):
        try:
            found = progress_of(path)
        except UsageError:
            return f"its saved state {path.name} is damaged"
        same = other_weights or found.run.get("protocol hash") == protocol.hash
        if same and found.run.get("options") == options_text(run.options):
            return f"goes on {_where(found)}"
    return None
