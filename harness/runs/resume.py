"""Which runs of a command are done, which were broken off, and which are left."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.records.record import read_record
from tvrbench.harness.records.store import BEST_ON_TEST, RecordStore, run_name
from tvrbench.harness.runs.config import RunConfig, new_model, recipe_of, training_steps
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.runs.runner import describe, head
from tvrbench.harness.runs.session import run_key, state_path
from tvrbench.harness.training.loop import check_shares
from tvrbench.harness.training.state_file import SUFFIX, StateFile

Described = Mapping[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class WorkList:
    """``done``: records that are there already and count; ``left``: what is to be run."""

    done: Sequence[Path]
    left: Sequence[RunConfig]


@dataclass(frozen=True, kw_only=True)
class ResumePolicy:
    """What to make of earlier work.

    Attributes:
        skip: leave out runs that have their record.
        refuse: begin no run anew where another one of the same method and seed was broken off.
    """

    skip: bool
    refuse: bool

    def look(
        self, prepared: RunContext, configs: Sequence[RunConfig], described: Described, store: RecordStore
    ) -> WorkList:
        """Part what is done from what is left.

        Raises:
            UsageError: a batch that the processes cannot share, or with ``refuse`` a state of another run.
        """
        done, left = [], []
        for config in configs:
            says = head(prepared, config, described[config.method])
            found = record_of(says, store) if self.skip else None
            if found is not None:
                done.append(found)
                continue
            left.append(config)
            if training_steps(prepared.protocol, config, len(prepared.train.captions)):
                check_shares(recipe_of(prepared.protocol, config).batch_size)
                if self.refuse:
                    refuse_another(says, state_path(store, prepared.protocol.name, run_name(says)), config.device)
        return WorkList(done=done, left=left)


def describe_all(prepared: RunContext, configs: Sequence[RunConfig]) -> Described:
    """How a record describes every method; builds each once.

    Raises:
        UsageError: an option that does not fit.
    """
    firsts = {config.method: config for config in reversed(configs)}
    return {method: describe(new_model(prepared, config)) for method, config in firsts.items()}


def record_of(head: Mapping[str, Any], store: RecordStore) -> Path | None:
    """The valid record, ranks included, of the very run that ``head`` names; None where there is none.

    A record that cannot be read counts as none: the run will be done again and replace it.
    """
    path = store.folder(head["protocol"]["name"]) / f"{run_name(head)}.json"
    if not path.is_file():
        return None
    try:
        store.load_ranks(read_record(path))
    except UsageError:
        return None
    return path


def refuse_another(head: dict[str, Any], state: Path, device: str) -> None:
    """Refuse to begin a run anew where what was broken off is the same method and seed, but not the same run.

    Args:
        head: of the record of the run that is wanted.
        state: where its own state would lie.
        device: it runs on.

    Raises:
        UsageError: says what differs.
    """
    if state.is_file():
        return
    stem, seed = re.sub(r"-[0-9a-f]{8}$", "", run_name(head)).replace(f"-{BEST_ON_TEST}", "").rsplit("-", 1)
    for selection in ("", f"-{BEST_ON_TEST}"):
        for other in sorted(state.parent.glob(f"{stem}{selection}-{seed}-????????{SUFFIX}")):
            StateFile(other, run_key(head, device)).read()
