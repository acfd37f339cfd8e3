"""Faults put into a training: an error with its remedy, the state kept, and a record with the cause."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from errors import raises
from tiny_run import record_of, saved_steps

from tvrbench.harness.core.errors import RunFailed, TrainingDiverged, UsageError
from tvrbench.harness.models.checkpoint import save_checkpoint
from tvrbench.harness.runs import runner
from tvrbench.harness.runs.config import RunConfig
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.runs.failures import explain
from tvrbench.harness.training.loop import WINDOW, check_exploded
from tvrbench.harness.training.trainer import Trainer

pytestmark = pytest.mark.unit
STEPS = 4


CONFIG = RunConfig(method="lora", seed=0, timing=False)


@pytest.fixture
def context(small_weights: Path) -> RunContext:
    made: RunContext = tiny_run.tiny_context(small_weights, steps=STEPS)
    return made


def run_saving_every_step(context: RunContext, folder: Path, **settings: Any) -> None:
    tiny_run.run_in(folder, context, CONFIG, save_interval_min=0, **settings)


def failure(folder: Path) -> str:
    """The failure in the one record, which must be of a failed run and hold no folder of this machine."""
    record = record_of(folder)
    assert record["status"] == "failed"
    text: str = record["failure"]
    assert str(folder) not in text
    return text


def at_step(number: int, act: Callable[[], None]) -> Callable[..., dict[str, Any]]:
    """``Trainer.step`` that calls ``act`` first at one step."""
    real = Trainer.step

    def step(self: Trainer, *inputs: torch.Tensor) -> dict[str, Any]:
        if self.steps_done == number - 1:
            act()
        return real(self, *inputs)

    return step


def _out_of_gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def _out_of_library_memory() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def _out_of_cpu_memory() -> None:
    torch.empty(10**15)


def _out_of_python_memory() -> None:
    raise MemoryError


@pytest.mark.parametrize(
    "fault", [_out_of_gpu_memory, _out_of_library_memory, _out_of_cpu_memory, _out_of_python_memory]
)
def test_out_of_memory_names_the_options_that_help(
    fault: Callable[[], None], context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "step", at_step(3, fault))
    with raises("run.out-of-memory", RunFailed):
        run_saving_every_step(context, tmp_path)
    assert "--memory-limit" in failure(tmp_path)
    assert saved_steps(tmp_path) == 2
    monkeypatch.undo()
    run_saving_every_step(context, tmp_path, resume=True, micro_batch_size=2)
    assert record_of(tmp_path)["metrics"]["training"]["chunk"] == 2  # the failed record is gone
    assert not list(tmp_path.rglob("*.training"))


def test_a_nan_in_the_weights_keeps_the_state_before_it(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer.backward

    def backward(self: Trainer, pairs: Any) -> float:
        if self.steps_done == 2:
            pairs.video.mul_(float("nan"))
        return real(self, pairs)

    monkeypatch.setattr(Trainer, "backward", backward)
    with raises("training.not-finite", TrainingDiverged, step=2):
        run_saving_every_step(context, tmp_path)
    assert "TrainingDiverged" in failure(tmp_path)
    assert saved_steps(tmp_path) == 2


def test_an_exploded_loss_differs_from_a_bad_start() -> None:
    calm = [2.0] * WINDOW
    check_exploded(calm + [9.0] * (WINDOW - 1), 8)  # too few steps
    check_exploded([9.0] * WINDOW + [20.0] * WINDOW, 8)  # a bad start
    check_exploded(calm + [6.0] * WINDOW, 8)  # three times ln 8 is 6.24
    with raises("training.exploded", TrainingDiverged, step=2 * WINDOW, first=2.0, last=7.0):
        check_exploded(calm + [7.0] * WINDOW, 8)


def test_a_video_that_cannot_be_read_any_more_loses_no_step(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_one() -> None:
        dataset: Any = context.dataset
        monkeypatch.setattr(dataset, "frames", unreadable)

    def unreadable(*_: Any) -> None:
        raise UsageError("v7.mp4: truncated", code="video.truncated")

    monkeypatch.setattr("tvrbench.harness.data.frame_loader.AHEAD", 0)
    monkeypatch.setattr(Trainer, "step", at_step(2, break_one))
    context.loaders.clear()
    with raises("training.video", RunFailed, step=3):
        run_saving_every_step(context, tmp_path)
    assert "v7.mp4" in failure(tmp_path)
    assert saved_steps(tmp_path) == 2
    monkeypatch.undo()
    run_saving_every_step(context, tmp_path, resume=True)


def test_a_state_that_cannot_be_written_leaves_the_one_before(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        monkeypatch.setattr("tvrbench.harness.runs.runner._record_failure", _with_room(soft, hard))

    monkeypatch.setattr(Trainer, "step", at_step(3, fill))
    with raises("state.write", RunFailed, kept=True):
        run_saving_every_step(context, tmp_path)
    assert os.strerror(errno.EFBIG) in failure(tmp_path)
    assert saved_steps(tmp_path) == 2
    assert not list(tmp_path.rglob(".*"))


def _with_room(soft: int, hard: int) -> Callable[..., Any]:
    """The real function, on a disk with room again."""
    real = runner._record_failure

    def record(*given: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return real(*given)

    return record


def _no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_if_nothing_can_be_written_the_state_is_kept(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "step", at_step(3, lambda: monkeypatch.setattr(os, "fsync", _no_space)))
    with raises("record.write", RunFailed, cause="state.write"):
        run_saving_every_step(context, tmp_path)
    assert not list(tmp_path.rglob("*.json"))
    assert saved_steps(tmp_path) == 2
    monkeypatch.undo()
    run_saving_every_step(context, tmp_path, resume=True)


def test_a_record_that_cannot_be_written_costs_no_training(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*given: Any) -> None:
        save_checkpoint(*given)
        monkeypatch.setattr(os, "fsync", _no_space)

    monkeypatch.setattr("tvrbench.harness.runs.runner.save_checkpoint", save)
    with raises("record.write", RunFailed):
        run_saving_every_step(context, tmp_path)
    assert saved_steps(tmp_path) == STEPS
    monkeypatch.undo()
    monkeypatch.setattr(Trainer, "step", at_step(1, lambda: pytest.fail("nothing is left to train")))
    run_saving_every_step(context, tmp_path, resume=True)


def test_a_trained_model_that_cannot_be_written_is_recorded(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*_: Any) -> None:
        raise UsageError("x.safetensors cannot be written", code="checkpoint.write")

    monkeypatch.setattr("tvrbench.harness.runs.runner.save_checkpoint", save)
    with raises("run.input-changed", RunFailed, cause="checkpoint.write"):
        run_saving_every_step(context, tmp_path)
    assert "x.safetensors" in failure(tmp_path)
    assert saved_steps(tmp_path) == STEPS


def test_features_that_cannot_be_ranked_say_that_training_diverged(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("video holds NaN")

    monkeypatch.setattr(RunContext, "evaluate", refuse)
    with raises("training.features", TrainingDiverged):
        run_saving_every_step(context, tmp_path)
    assert "video holds NaN" in failure(tmp_path)
    assert saved_steps(tmp_path) == STEPS


def test_a_log_that_cannot_be_written_stops_the_run(context: RunContext, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way")
    with raises("log.write", RunFailed):
        run_saving_every_step(context, tmp_path)
    assert "log" in failure(tmp_path)


def test_wrong_input_before_training_leaves_no_record(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise UsageError("v107.mp4: gone", code="video.missing")

    monkeypatch.setattr(context.dataset, "frames", refuse)
    context.loaders.clear()
    with raises("video.missing"):
        run_saving_every_step(context, tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_a_bug_stays_a_bug() -> None:
    assert explain(RuntimeError("connection closed by peer"), "lora") is None  # there is no other process
    assert explain(IndexError("list index out of range"), "lora") is None
