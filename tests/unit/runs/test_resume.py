"""A stopped run ends as an undisturbed one, bit for bit, and continues as nothing but itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from tiny_run import ActAt, Quiet, assert_equal, assert_same, only, outcome, record_of, run_in, saved_steps, stop_run
from tiny_run import tiny_context as context_of

from tvrbench.harness.core.errors import TrainingDiverged, UsageError
from tvrbench.harness.core.signals import Interrupted, SignalHandler
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.runs.config import RunConfig
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.runs.plan import PlannedRun
from tvrbench.harness.runs.resume import RunStatus, WorkList, run_status, work_list
from tvrbench.harness.training.trainer import Trainer

pytestmark = pytest.mark.unit
CONFIG = RunConfig(method="lora", seed=0, timing=False)
# vidtome draws at random in training, and has an option that is a tuple.
VIDTOME = replace(CONFIG, method="vidtome", options={"blocks": (0, 2)})
EERCF = replace(CONFIG, method="eercf", options={"reducer": "tome", "reducer_options": {"r": 1}, "depth": 3})


@pytest.fixture
def context(small_weights: Path) -> RunContext:
    made: RunContext = context_of(small_weights, steps=4)
    return made


@pytest.fixture(scope="module")
def stopped(small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state of a run that was stopped after two of four steps."""
    folder = tmp_path_factory.mktemp("stopped")
    stop_run(folder, context_of(small_weights, steps=4), CONFIG, 2)
    path: Path = only(folder, "*.training")
    return path


def with_state(folder: Path, state: Path, content: bytes | None = None) -> Path:
    """Put a copy of the state where the run in ``folder`` looks for it."""
    path = folder / "checkpoints" / state.parent.name / state.name
    path.parent.mkdir(parents=True)
    path.write_bytes(state.read_bytes() if content is None else content)
    return path


@pytest.mark.parametrize(
    "config", [CONFIG, VIDTOME, replace(CONFIG, method="clip4clip"), EERCF], ids=lambda config: config.method
)
def test_a_run_stopped_twice_ends_as_an_undisturbed_one(config: RunConfig, small_weights: Path, tmp_path: Path) -> None:
    """clip4clip trains nearly everything; eercf the parameters of its scorer too, over a reducer."""
    context, whole, broken = context_of(small_weights, steps=5), tmp_path / "whole", tmp_path / "broken"
    run_in(whole, context, config)
    first = stop_run(broken, context, config, 2)
    state = only(broken, "*.training")
    assert not list(broken.rglob("*.json"))
    second = stop_run(broken, context, config, 1, resume=True)
    third = ActAt()
    run_in(broken, context, config, third, resume=True)
    assert [first.steps, second.steps, third.steps] == [["1/5", "2/5"], ["3/5"], ["4/5", "5/5"]]
    assert not state.exists()
    assert record_of(broken)["metrics"]["training"]["resumed_at"] == ["train:2", "train:3"]
    assert_same(whole, broken)


@pytest.mark.parametrize("config", [CONFIG, EERCF], ids=lambda config: config.method)
def test_an_lr_search_resumes_inside_each_of_its_trainings(
    config: RunConfig, small_weights: Path, tmp_path: Path
) -> None:
    context = context_of(small_weights, steps=3, factors=(0.5, 1.0))
    run_in(tmp_path / "whole", context, config)
    broken, last = tmp_path / "broken", ActAt()
    taken = [stop_run(broken, context, config, 2, resume=True).steps for _ in range(4)]
    run_in(broken, context, config, last, resume=True)
    assert [step for part in (*taken, last.steps) for step in part] == ["1/3", "2/3", "3/3"] * 3
    assert_same(tmp_path / "whole", broken)


@pytest.mark.parametrize(
    ("config", "recipe"),
    [
        (VIDTOME, {}),  # draws at random
        (replace(CONFIG, method="clip4clip"), {"weights": "float16"}),
        (CONFIG, {"weights": "float16"}),  # frozen weights are rounded too
    ],
    ids=["vidtome", "clip4clip", "lora"],
)
def test_a_search_leaves_no_trace_in_the_model(
    config: RunConfig, recipe: dict[str, Any], small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The final training equals one without a search at the rate chosen, also after memory trials and a divergence."""

    def diverge_at_first(trainer: Trainer, *inputs: torch.Tensor) -> dict[str, Any]:
        out = step(trainer, *inputs)
        rates.add(trainer.recipe.lr)
        if len(rates) == 1 and trainer.steps_done == 1:
            raise TrainingDiverged("step 1", code="training.exploded")
        return out

    step, rates = Trainer.step, set[float | None]()
    run_in(tmp_path / "plain", context_of(small_weights, steps=2, factors=(0.5,), recipe=recipe), config)
    monkeypatch.setattr(Trainer, "step", diverge_at_first)
    searched = context_of(small_weights, steps=2, factors=(2.0, 0.5), recipe=recipe)
    run_in(tmp_path / "searched", searched, config, memory_limit=10**15)
    (plain, plain_metrics, plain_log), (weights, metrics, log) = (
        outcome(tmp_path / "plain"),
        outcome(tmp_path / "searched"),
    )
    assert metrics["training"]["learning_rate_choice"]["chosen"] == 0.5
    assert metrics["training"]["memory_limit"]["peaks_mib"]
    assert [line for line in log if line["phase"] == "train"] == plain_log
    assert_equal(weights, plain)
    assert metrics["t2v"] == plain_metrics["t2v"]


def test_a_rate_that_diverged_is_not_tried_again(
    small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = context_of(small_weights, steps=2, factors=(0.5, 1.0))
    step, rates = Trainer.step, list[float | None]()

    def diverge_once(trainer: Trainer, *inputs: torch.Tensor) -> dict[str, Any]:
        rates.append(trainer.recipe.lr)
        if len(rates) == 1:
            raise TrainingDiverged("step 0: loss nan", code="training.not-finite")
        return step(trainer, *inputs)

    monkeypatch.setattr(Trainer, "step", diverge_once)
    stop_run(tmp_path, context, CONFIG, 1)
    run_in(tmp_path, context, CONFIG, resume=True)
    assert len(rates) == 1 + 2 + 2
    choice = outcome(tmp_path)[1]["training"]["learning_rate_choice"]
    assert (choice["chosen"], list(choice["held_out_rsum"]), choice["diverged"]) == (1.0, ["1.0"], [0.5])


def test_a_search_whose_every_rate_diverges_names_the_factors(
    small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: Any) -> None:
        raise TrainingDiverged("step 0: loss nan", code="training.not-finite")

    monkeypatch.setattr(Trainer, "step", diverge)
    with raises("training.every-rate-diverged", TrainingDiverged, factors=[0.5, 1.0]):
        run_in(tmp_path, context_of(small_weights, steps=2, factors=(0.5, 1.0)), CONFIG)
    assert record_of(tmp_path)["status"] == "failed"


@pytest.mark.parametrize(("minutes", "saved"), [(1e9, [0] * 5 + [5]), (0.0, [0, 1, 2, 3, 4, 5])])
def test_every_epoch_is_saved_and_time_saves_as_well(
    minutes: float, saved: list[int], small_weights: Path, tmp_path: Path
) -> None:
    """40 captions in batches of 8: an epoch is 5 steps. A step is reported before it is saved."""
    found = []

    class Watch(Quiet):
        def update(self, work: int, note: str = "") -> None:
            if note.startswith("step"):
                found.append(saved_steps(tmp_path) if list(tmp_path.rglob("*.training")) else 0)

    context = context_of(small_weights, steps=6, batch=8)
    run_in(tmp_path, context, CONFIG, Watch(), save_interval_min=minutes)
    assert found == saved


def test_a_state_is_used_on_request_only(context: RunContext, stopped: Path, tmp_path: Path) -> None:
    with_state(tmp_path, stopped)
    again = ActAt()
    run_in(tmp_path, context, CONFIG, again)
    assert again.steps == ["1/4", "2/4", "3/4", "4/4"]
    assert any("--resume" in line for line in again.lines)
    assert len(outcome(tmp_path)[2]) == 4  # the log starts again too


def test_the_micro_batch_of_a_memory_limit_is_searched_once_per_run(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def choose(*_: Any, **__: Any) -> dict[str, Any]:
        return {"size": sizes.pop(0), "record": {"limit_mib": 25.0, "peaks_mib": {"1": 10.0}}}

    monkeypatch.setattr("tvrbench.harness.runs.runner.choose_micro_batch", choose)
    limit, folders = 25 * 2**20, {name: tmp_path / name for name in ("whole", "resumed", "other limit")}
    sizes[:] = [2]
    run_in(folders["whole"], context, CONFIG, memory_limit=limit)
    sizes[:] = [2, 1]
    stop_run(folders["resumed"], context, CONFIG, 1, memory_limit=limit)
    run_in(folders["resumed"], context, CONFIG, memory_limit=limit, resume=True)
    assert sizes == [1]
    assert_same(folders["whole"], folders["resumed"])
    training = outcome(folders["resumed"])[1]["training"]
    assert training["chunk"] == 2
    assert training["memory_limit"] == {"limit_mib": 25.0, "peaks_mib": {"1": 10.0}}
    sizes[:] = [2, 1]
    stop_run(folders["other limit"], context, CONFIG, 1, memory_limit=limit)
    run_in(folders["other limit"], context, CONFIG, memory_limit=2**20, resume=True)
    assert not sizes


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"options": {"rank": 4}}, "options"),
        ({"method": "bias"}, "method"),
        ({"deterministic": True}, "deterministic"),
    ],
)
def test_the_state_of_another_run_is_refused(
    changed: dict[str, Any], key: str, context: RunContext, stopped: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, **changed)
    stop_run(tmp_path, context, config, 1)
    own = only(tmp_path, "*.training")
    own.write_bytes(stopped.read_bytes())
    with raises("state.other-run", key=key):
        run_in(tmp_path, context, config, resume=True)
    assert not list(tmp_path.rglob("*.json"))


def other_protocol(context: RunContext) -> RunContext:
    return replace(context, protocol=replace(context.protocol, words=9))


@pytest.mark.parametrize(
    ("change", "config", "key"),
    [(other_protocol, CONFIG, "protocol hash"), (lambda same: same, replace(CONFIG, options={"rank": 4}), "options")],
)
def test_a_command_that_would_forget_an_interrupted_run_is_refused(
    change: Callable[[RunContext], RunContext],
    config: RunConfig,
    key: str,
    context: RunContext,
    stopped: Path,
    tmp_path: Path,
) -> None:
    state, store = with_state(tmp_path, stopped), RecordStore(tmp_path)
    with raises("state.other-run", key=key):
        work_list(change(context), [config], store, skip=True, refuse=True)
    assert work_list(change(context), [config], store, skip=True, refuse=False).left == [config]
    assert work_list(context, [replace(CONFIG, seed=1)], store, skip=True, refuse=True).left  # another seed
    state.write_bytes(b"damaged")  # of no known identity
    assert work_list(change(context), [config], store, skip=True, refuse=True).left == [config]


def test_runs_with_a_valid_record_are_skipped(small_weights: Path, tmp_path: Path) -> None:
    context, store = context_of(small_weights, steps=1), RecordStore(tmp_path)
    run_in(tmp_path, context, CONFIG)
    configs = [CONFIG, replace(CONFIG, seed=1)]

    def listed(*, skip: bool) -> WorkList:
        return work_list(context, configs, store, skip=skip, refuse=False)

    assert listed(skip=True) == WorkList(done=[only(tmp_path, "*.json")], left=configs[1:])
    assert listed(skip=False).left == configs
    for pattern in ("*.npz", "*.json"):
        only(tmp_path, pattern).write_bytes(b"torn")
        assert listed(skip=True).left == configs


def test_an_option_that_does_not_fit_is_refused_before_any_run(context: RunContext, tmp_path: Path) -> None:
    for options in ({"rank": 0}, {"tuning": "none"}, {"speed": 4}):
        with pytest.raises(UsageError):
            work_list(context, [replace(CONFIG, options=options)], RecordStore(tmp_path), skip=False, refuse=False)
    wrong = replace(VIDTOME, options={"blocks": (0, 3)})  # of 3 blocks
    with pytest.raises(UsageError):
        work_list(context, [wrong], RecordStore(tmp_path), skip=False, refuse=False)


class _Code:
    def __reduce__(self) -> Any:
        return print, ("code ran",)


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        ("cut", "state.damaged"),
        ("empty", "state.damaged"),
        ("code", "state.damaged"),
        ("list", "state.format"),
        ("field", "state.damaged"),
        ("step", "state.damaged"),
        ("tensor", "state.does-not-fit"),
        ("optimizer", "state.does-not-fit"),
    ],
)
def test_a_damaged_state_is_refused_in_one_line(
    damage: str, code: str, context: RunContext, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, document = with_state(tmp_path, stopped), torch.load(stopped, weights_only=True)
    training = document["state"]["training"]
    if damage == "step":
        training["losses"].pop()
    elif damage == "tensor":
        training["model"].popitem()
    elif damage == "optimizer":
        training["trainer"]["optimizer"]["param_groups"] = []
    elif damage == "field":
        document["state"]["scores"] = 3
    torch.save({"code": _Code(), "list": [1]}.get(damage, document), state)
    if damage in ("cut", "empty"):
        state.write_bytes(stopped.read_bytes()[: 2000 if damage == "cut" else 0])
    with raises(code) as refusal:
        run_in(tmp_path, context, CONFIG, resume=True)
    assert "\n" not in str(refusal.value)
    assert "code ran" not in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.json"))


def test_a_signal_outside_training_stops_at_once() -> None:
    with SignalHandler() as signals:
        with pytest.raises(Interrupted) as stop:
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.value.exit_code == 143
        with signals.deferred():
            os.kill(os.getpid(), signal.SIGINT)  # held back
            with pytest.raises(Interrupted) as stop:
                os.kill(os.getpid(), signal.SIGINT)
            signals.pending = None
        assert stop.value.exit_code == 130
    assert "SignalHandler" not in repr(signal.getsignal(signal.SIGTERM))


def planned(context: RunContext, config: RunConfig) -> PlannedRun:
    """The run as a plan lists it; JSON makes lists of tuples."""
    shape = {"backbone": "ViT-3x64-16px64", "frames": 12, "tuning": "lora", "rank": 8}
    own = {"mode": "unmerge", "blocks": [0, 2], "ratio": 0.9, "chunk": 4, "target_stride": 4}
    options = shape | own | {"merge": "replace", "global_ratio": None}
    sizes: dict[str, Any] = {"steps": 4, "search_steps": 0, "batch_size": 4, "trainings": 1, "samples": 16}
    sizes |= {"disk_mib": 1.0, "hours": 0.1}
    return PlannedRun(
        method=config.method, label=config.label, options=options, tuning="lora", seed=config.seed, **sizes
    )


def test_the_status_of_a_planned_run_follows_it_to_its_record(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, run, protocol = RecordStore(tmp_path), planned(context, VIDTOME), context.protocol
    assert run_status(protocol, run, store) == RunStatus()
    assert RunStatus().describe() is None
    stop_run(tmp_path, context, VIDTOME, 2)
    assert run_status(protocol, run, store) == RunStatus(resumes="resumes after step 2")
    with monkeypatch.context() as patch:

        def diverge(*_: Any) -> None:
            raise TrainingDiverged("step 3: loss nan", code="training.not-finite")

        patch.setattr(Trainer, "step", diverge)
        with raises("training.not-finite", TrainingDiverged):
            run_in(tmp_path, context, VIDTOME, resume=True)
    status = run_status(protocol, run, store)
    assert status.describe() == "failed, resumes after step 2"
    assert "loss nan" in str(status.failure)
    assert_other_runs_have_none(context, run, store)
    run_in(tmp_path, context, VIDTOME, resume=True)
    assert run_status(protocol, run, store) == RunStatus(done=True)
    assert_other_runs_have_none(context, run, store)


def assert_other_runs_have_none(context: RunContext, run: PlannedRun, store: RecordStore) -> None:
    assert run_status(context.protocol, replace(run, options=run.options | {"ratio": 0.5}), store) == RunStatus()
    assert run_status(context.protocol, replace(run, seed=1), store) == RunStatus()
    other = other_protocol(context).protocol
    assert run_status(other, run, store) == RunStatus()
    assert run_status(other, run, store, other_weights=True) != RunStatus()  # its hash cannot tell then


def test_the_status_ignores_a_run_that_selected_on_the_test_set_and_a_damaged_state(
    small_weights: Path, tmp_path: Path
) -> None:
    context = context_of(small_weights, steps=2)
    run_in(tmp_path, context, replace(VIDTOME, selection="best-on-test"))
    assert record_of(tmp_path)["metrics"]["selection"] == "best-on-test"
    stop_run(tmp_path, context, VIDTOME, 1)
    run, store = planned(context, VIDTOME), RecordStore(tmp_path)
    assert run_status(context.protocol, run, store).resumes
    for content in (only(tmp_path, "*.training").read_bytes()[:3000], b"", b"not a state"):
        only(tmp_path, "*.training").write_bytes(content)
        assert run_status(context.protocol, run, store) == RunStatus()
