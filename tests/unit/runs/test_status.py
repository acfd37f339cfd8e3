"""What a plan says of work that is there already: records, saved states, failures, and what is of another run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_run

from tvrbench.harness.core.errors import TrainingDiverged
from tvrbench.harness.core.signals import Interrupted
from tvrbench.harness.records.record import plain
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.runs.config import RunConfig, new_model
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.runs.plan import PlannedRun
from tvrbench.harness.runs.runner import describe
from tvrbench.harness.runs.status import RunStatus, run_status
from tvrbench.harness.training.trainer import Trainer

pytestmark = pytest.mark.unit
TEMPME = RunConfig(method="tempme", seed=0, timing=False)  # has options that are tuples


def planned(prepared: RunContext, config: RunConfig) -> PlannedRun:
    said = describe(new_model(prepared, config))
    return PlannedRun(
        method=config.method,
        options=plain(said["options"], "options"),
        tuning=said["tuning"],
        seed=config.seed,
        steps=4,
        batch_size=4,
        trainings=1,
        disk_mib=1.0,
        hours=0.1,
    )


def carry_out(prepared: RunContext, folder: Path, config: RunConfig = TEMPME, stop: int | None = None) -> None:
    listener = tiny_run.Hit(stop, tiny_run.sends(15)) if stop else None
    tiny_run.run_in(folder, prepared, config, listener, resume=True)


@pytest.fixture
def prepared(tiny_weights: Path) -> RunContext:
    made: RunContext = tiny_run.tiny_context(tiny_weights, steps=4)
    return made


def test_a_plan_follows_a_run_from_nothing_to_its_record(
    prepared: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, run, protocol = RecordStore(tmp_path), planned(prepared, TEMPME), prepared.protocol
    assert run_status(protocol, run, store) == RunStatus()
    assert RunStatus().in_words() is None
    with pytest.raises(Interrupted):
        carry_out(prepared, tmp_path, stop=2)
    assert run_status(protocol, run, store) == RunStatus(resumes="goes on after step 2")
    with monkeypatch.context() as patch:

        def diverge(*_: Any) -> None:
            raise TrainingDiverged("step 3: loss nan")

        patch.setattr(Trainer, "step", diverge)
        with pytest.raises(TrainingDiverged):
            carry_out(prepared, tmp_path)
    found = run_status(protocol, run, store)
    assert found.in_words() == "failed, goes on after step 2"
    assert "loss nan" in str(found.failure)
    carry_out(prepared, tmp_path)
    assert run_status(protocol, run, store) == RunStatus(done=True)


def test_what_is_of_another_run_does_not_count(prepared: RunContext, tmp_path: Path) -> None:
    store, run, protocol = RecordStore(tmp_path), planned(prepared, TEMPME), prepared.protocol
    for stop in (2, None):  # a state, then a record
        if stop:
            with pytest.raises(Interrupted):
                carry_out(prepared, tmp_path, stop=stop)
        else:
            carry_out(prepared, tmp_path)
        assert run_status(protocol, replace(run, options=run.options | {"r": 7}), store) == RunStatus()
        assert run_status(protocol, replace(run, seed=1), store) == RunStatus()
        other = replace(protocol, words=9)
        assert run_status(other, run, store) == RunStatus()
        assert run_status(other, run, store, other_weights=True) != RunStatus()  # the hash cannot tell then


def test_a_run_that_chose_on_the_test_set_is_another(prepared: RunContext, tmp_path: Path) -> None:
    best = replace(TEMPME, selection="best-on-test")
    carry_out(prepared, tmp_path, best)
    assert run_status(prepared.protocol, planned(prepared, TEMPME), RecordStore(tmp_path)) == RunStatus()
    (record,) = (tmp_path / "records").rglob("*.json")
    assert json.loads(record.read_text())["metrics"]["selection"] == "best-on-test"


def test_a_damaged_state_is_said_and_stops_no_plan(prepared: RunContext, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        carry_out(prepared, tmp_path, stop=2)
    (state,) = tmp_path.rglob("*.training")
    for content in (state.read_bytes()[:3000], b"", b"not a state"):
        state.write_bytes(content)
        found = run_status(prepared.protocol, planned(prepared, TEMPME), RecordStore(tmp_path))
        assert found.in_words() == f"its saved state {state.name} is damaged"
