"""Faults put into a training: one sentence that says what to change, the state kept, and a record that says why."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch

from tvrbench.harness.core.errors import RunFailed, TrainingDiverged, UsageError
from tvrbench.harness.models.checkpoint import save_checkpoint
from tvrbench.harness.runs.config import RunConfig
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.runs.failures import explained
from tvrbench.harness.training.loop import WINDOW, check_exploded
from tvrbench.harness.training.trainer import Trainer

pytestmark = pytest.mark.unit
STEPS = 4


@pytest.fixture
def prepared(tiny_weights: Path) -> RunContext:
    made: RunContext = tiny_run.tiny_context(tiny_weights, steps=STEPS)
    return made


def carry_out(prepared: RunContext, folder: Path, **options: Any) -> None:
    config = RunConfig(method="lora", seed=0, timing=False)
    tiny_run.run_in(folder, prepared, config, checkpoint_every_s=0, **options)


def failure(folder: Path) -> str:
    """What the one record says; it must be of a failed run and hold no folder of this machine."""
    (path,) = folder.rglob("*.json")
    record = json.loads(path.read_text())
    assert record["status"] == "failed"
    assert str(folder) not in record["failure"]
    text: str = record["failure"]
    return text


def saved_steps(folder: Path) -> int:
    (path,) = folder.rglob("*.training")
    return len(torch.load(path, weights_only=True)["state"]["training"]["losses"])


def at_step(number: int, raises: Callable[[], None]) -> Callable[..., dict[str, Any]]:
    """``Trainer.step`` that does something else at one step."""
    real = Trainer.step

    def step(self: Trainer, *inputs: torch.Tensor) -> dict[str, Any]:
        if self.steps_done == number - 1:
            raises()
        return real(self, *inputs)

    return step


def _out_of_gpu_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def _out_of_cpu_memory() -> None:
    torch.empty(10**15)


def _out_of_python_memory() -> None:
    raise MemoryError


@pytest.mark.parametrize("fault", [_out_of_gpu_memory, _out_of_cpu_memory, _out_of_python_memory])
def test_out_of_memory_names_the_options_that_help(
    fault: Callable[[], None], prepared: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "step", at_step(3, fault))
    with pytest.raises(RunFailed, match=r"^lora seed 0: out of memory; .*--memory-limit.*--resume$"):
        carry_out(prepared, tmp_path)
    assert "--memory-limit" in failure(tmp_path)
    assert saved_steps(tmp_path) == 2
    monkeypatch.undo()
    carry_out(prepared, tmp_path, resume=True, chunk=2)
    (record,) = tmp_path.rglob("*.json")  # the failed one went when the run completed
    assert json.loads(record.read_text())["metrics"]["training"]["chunk"] == 2
    assert not list(tmp_path.rglob("*.training"))


def test_a_nan_in_the_weights_keeps_the_state_before_it(
    prepared: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer.backward

    def backward(self: Trainer, pairs: Any) -> float:
        if self.steps_done == 2:
            pairs.video.mul_(float("nan"))
        return real(self, pairs)

    monkeypatch.setattr(Trainer, "backward", backward)
    with pytest.raises(TrainingDiverged, match="lower the learning rate"):
        carry_out(prepared, tmp_path)
    assert "lower the learning rate" in failure(tmp_path)
    assert saved_steps(tmp_path) == 2


def test_an_exploding_loss_is_told_from_a_bad_start() -> None:
    calm = [2.0] * WINDOW
    check_exploded(calm + [9.0] * (WINDOW - 1), 8)  # too short to say
    check_exploded([9.0] * WINDOW + [20.0] * WINDOW, 8)  # it began that badly
    check_exploded(calm + [6.0] * WINDOW, 8)  # three times ln 8 is 6.24
    with pytest.raises(TrainingDiverged, match=r"7, of the first 2, .* 2\.08; lower"):
        check_exploded(calm + [7.0] * WINDOW, 8)


def test_a_video_that_cannot_be_read_any_more_stops_with_nothing_lost(
    prepared: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_one() -> None:
        dataset: Any = prepared.dataset
        monkeypatch.setattr(dataset, "frames", unreadable)

    def unreadable(*_: Any) -> None:
        raise UsageError("v7.mp4: truncated")

    monkeypatch.setattr("tvrbench.harness.data.frame_loader.AHEAD", 0)
    monkeypatch.setattr(Trainer, "step", at_step(2, break_one))
    prepared.loaders.clear()
    with pytest.raises(
        RunFailed, match=r"step 3 cannot read a video \(v7\.mp4: truncated\); mend .*--resume.*--skip-bad"
    ):
        carry_out(prepared, tmp_path)
    assert "v7.mp4" in failure(tmp_path)
    assert saved_steps(tmp_path) == 2
    monkeypatch.undo()
    carry_out(prepared, tmp_path, resume=True)


def test_a_state_that_cannot_be_written_leaves_the_one_before(
    prepared: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill() -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        monkeypatch.setattr("tvrbench.harness.runs.runner._record_failure", _emptied(soft, hard))

    monkeypatch.setattr(Trainer, "step", at_step(3, fill))
    with pytest.raises(RunFailed, match=r"cannot be written \(File too large\), and the state saved before it is kept"):
        carry_out(prepared, tmp_path)
    assert "free space" in failure(tmp_path)
    assert saved_steps(tmp_path) == 2
    assert not list(tmp_path.rglob(".*"))


def _emptied(soft: int, hard: int) -> Callable[..., Any]:
    """The real function, on a disk with room again."""
    from tvrbench.harness.runs import runner as running

    real = running._record_failure

    def record(*given: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        return real(*given)

    return record


def _no_space(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_where_nothing_at_all_can_be_written_the_state_is_still_kept(
    prepared: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "step", at_step(3, lambda: monkeypatch.setattr(os, "fsync", _no_space)))
    with pytest.raises(RunFailed, match=r"No space left.*no record of this could be left"):
        carry_out(prepared, tmp_path)
    assert not list(tmp_path.rglob("*.json"))
    assert saved_steps(tmp_path) == 2
    monkeypatch.undo()
    carry_out(prepared, tmp_path, resume=True)


def test_a_record_that_cannot_be_written_costs_no_training(
    prepared: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*given: Any) -> None:
        save_checkpoint(*given)
        monkeypatch.setattr(os, "fsync", _no_space)

    monkeypatch.setattr("tvrbench.harness.runs.runner.save_checkpoint", save)
    with pytest.raises(RunFailed, match=r"cannot write .*No space left.*--resume"):
        carry_out(prepared, tmp_path)
    assert saved_steps(tmp_path) == STEPS
    monkeypatch.undo()
    monkeypatch.setattr(Trainer, "step", at_step(1, lambda: pytest.fail("nothing is left to train")))
    carry_out(prepared, tmp_path, resume=True)


def test_a_trained_model_that_cannot_be_written_is_recorded(
    prepared: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*_: Any) -> None:
        raise UsageError("checkpoint x.safetensors cannot be written (No space left on device): choose another folder")

    monkeypatch.setattr("tvrbench.harness.runs.runner.save_checkpoint", save)
    with pytest.raises(RunFailed, match=r"cannot be written .*--resume"):
        carry_out(prepared, tmp_path)
    assert "cannot be written" in failure(tmp_path)
    assert saved_steps(tmp_path) == STEPS


def test_features_that_cannot_be_ranked_say_that_training_diverged(
    prepared: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ranked(*_: Any) -> None:
        raise ValueError("video holds NaN or Inf, so no rank can be trusted")

    monkeypatch.setattr("tvrbench.harness.runs.runner.evaluate_on", ranked)
    with pytest.raises(TrainingDiverged, match=r"lora seed 0 was trained, but .* NaN .* lower the learning rate"):
        carry_out(prepared, tmp_path)
    assert "lower the learning rate" in failure(tmp_path)
    assert saved_steps(tmp_path) == STEPS


def test_a_log_that_cannot_be_written_stops_the_run(prepared: RunContext, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way")
    with pytest.raises(RunFailed, match=r"the log .* cannot be written"):
        carry_out(prepared, tmp_path)
    assert "the log" in failure(tmp_path)


def test_bad_input_before_training_leaves_no_record(
    prepared: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise UsageError("v107.mp4: gone")

    monkeypatch.setattr(prepared.dataset, "frames", refuse)
    prepared.loaders.clear()
    with pytest.raises(UsageError, match="gone"):
        carry_out(prepared, tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_a_bug_stays_a_bug() -> None:
    assert explained(RuntimeError("connection closed by peer"), "lora") is None  # there is no other process
    assert explained(IndexError("list index out of range"), "lora") is None
