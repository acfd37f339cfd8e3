"""Losses that are read late on a GPU: nothing waits for a step, and nothing is saved before its loss is known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from errors import raises
from fake_cuda import fake_gpu, pairs, tiny
from fake_streams import CUDA, Fakes
from torch import Tensor

from tvrbench.harness.core.errors import RunFailed, TrainingDiverged, UsageError
from tvrbench.harness.data.pair_loader import PairBatch
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.kernels import KernelCounter, missing, on_fake_cuda
from tvrbench.harness.training.loop import UNREAD, TrainingLoop
from tvrbench.harness.training.step_log import StepLog
from tvrbench.harness.training.trainer import Trainer

pytestmark = [
    pytest.mark.unit,
    pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter:UserWarning"),
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning"),
]
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def test_a_queued_step_is_the_step(tiny_model: Callable[..., RetrievalModel], tiny_batch: dict[str, Any]) -> None:
    inputs = tuple(tiny_batch[name] for name in ("frames", "mask", "ids", "text_mask"))
    direct, late = (Trainer(tiny_model("lora"), "uniform", 5) for _ in range(2))
    wanted = [direct.step(*inputs) for _ in range(2)]
    queued = [late.queue_step(*inputs) for _ in range(2)]
    assert [late.read(step) for step in queued] == wanted
    assert late.steps_done == direct.steps_done == 2
    for a, b in zip(late.model.trainable().values(), direct.model.trainable().values(), strict=True):
        assert torch.equal(a, b)


def test_a_queued_step_that_diverged_is_found_when_it_is_read(
    tiny_model: Callable[..., RetrievalModel], tiny_batch: dict[str, Any]
) -> None:
    trainer = Trainer(tiny_model("lora"), "uniform", 5)
    frames = torch.full_like(tiny_batch["frames"], math.nan)
    queued = trainer.queue_step(frames, tiny_batch["mask"], tiny_batch["ids"], tiny_batch["text_mask"])
    with raises("training.not-finite", kind=TrainingDiverged, step=0):
        trainer.read(queued)


class Gpu:
    """A trainer on a GPU that is not there: tells in which order steps are queued and read."""

    def __init__(self, losses: dict[int, float] | None = None) -> None:
        self.device, self.total_steps, self.steps_done, self.micro_batch_size = CUDA, 8, 0, None
        self.recipe = SimpleNamespace(batch_size=4, lr=1.0, weights="float32")
        self.precision, self.losses, self.log = "bfloat16", losses or {}, list[str]()
        self.model = SimpleNamespace(normalize=lambda pixels, mask: pixels)

    def queue_step(self, *_: Tensor) -> int:
        self.steps_done += 1
        self.log.append(f"queue {self.steps_done}")
        return self.steps_done

    def read(self, step: int) -> dict[str, Any]:
        self.log.append(f"read {step}")
        loss = self.losses.get(step, 1.0)
        if not math.isfinite(loss):
            raise TrainingDiverged("not finite", code="training.not-finite")
        return {"loss": loss, "lr": [0.1], "grad_norm": 2.0}

    def finish(self) -> None:
        self.log.append("finish")


class State:
    """Saves at the end of an epoch, and after one more step if told to."""

    def __init__(self, trainer: Gpu, log: StepLog, due: int | None = None) -> None:
        self.title, self.log, self.trainer, self.due, self.saved = "a run", log, trainer, due, list[int]()

    def resume(self, phase: str, trainer: Any) -> list[float]:
        return []

    def deferred_signals(self) -> Any:
        return nullcontext()

    def after_step(self, trainer: Gpu, save: Callable[[], None], *, epoch_ends: bool) -> None:
        if epoch_ends or trainer.steps_done == self.due:
            save()

    def save(self, phase: str, trainer: Gpu, losses: list[float]) -> None:
        assert len(losses) == trainer.steps_done, "a loss is missing in the state"
        self.saved.append(len(losses))
        trainer.log.append(f"save {len(losses)}")


class Pairs:
    """Batches, one of which may be broken."""

    steps_per_epoch = 4

    def __init__(self, broken: int | None = None, code: str = "video.truncated") -> None:
        self.broken, self.code, self.closed = broken, code, False

    def batches(self, start: int, stop: int, device: torch.device) -> Iterator[Any]:
        assert device == CUDA
        try:
            for step in range(start, stop):
                if step == self.broken:
                    raise UsageError("v1.mp4: truncated", code=self.code)
                nothing: dict[str, Any] = dict.fromkeys(("pixels", "video_mask", "ids", "text_mask"))
                yield PairBatch(**nothing, global_size=4)
        finally:
            self.closed = True


def loop_of(trainer: Gpu, pairs: Pairs, state: State) -> TrainingLoop:
    progress = SimpleNamespace(update=lambda *_: None, log=lambda *_: None)
    return TrainingLoop(trainer, pairs, state, progress, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("due", [None, 3, 6])
def test_a_step_is_queued_before_the_one_before_is_read_and_all_are_read_before_a_save(
    due: int | None, tmp_path: Path
) -> None:
    trainer, pairs = Gpu({n: n / 10 for n in range(1, 9)}), Pairs()
    state = State(trainer, StepLog(tmp_path / "log.jsonl"), due)
    account = loop_of(trainer, pairs, state).run()
    for step in range(1, 9):
        place = trainer.log.index(f"read {step}")
        late = trainer.log[:place].count(f"queue {step + UNREAD}")
        assert late == (step not in state.saved and step < 8)
    assert state.saved == sorted({4, 8, *([due] if due else [])})
    assert account["last_loss"] == 0.8
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(n, n / 10) for n in range(1, 9)]
    assert pairs.closed


@pytest.mark.parametrize("bad", [1, 3, 4, 8])
def test_divergence_is_found_a_step_late_at_most_and_never_saved(bad: int) -> None:
    trainer, pairs = Gpu({bad: math.nan}), Pairs()
    state = State(trainer, StepLog(None))
    with raises("training.not-finite", kind=TrainingDiverged):
        loop_of(trainer, pairs, state).run()
    assert trainer.steps_done <= bad + UNREAD
    assert all(saved < bad for saved in state.saved)
    assert pairs.closed


@pytest.mark.parametrize(
    ("fault", "code"), [("video.truncated", "training.video"), ("vocabulary.word", "training.caption")]
)
def test_what_cannot_be_read_saves_the_steps_before_it_with_their_losses(fault: str, code: str) -> None:
    trainer, pairs = Gpu(), Pairs(broken=6, code=fault)
    state = State(trainer, StepLog(None))
    with raises(code, kind=RunFailed, step=7):
        loop_of(trainer, pairs, state).run()
    assert state.saved == [4, 6]


def test_between_two_reads_a_training_step_waits_for_nothing(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    Fakes().install(monkeypatch, moves=False)
    model = tiny("lora", tiny_weights)
    with fake_gpu():
        twin = on_fake_cuda(model)
        trainer, (frames, video_mask, ids, mask) = Trainer(twin, "uniform", 9), pairs(twin)

        def waits_of(step: Callable[..., Any]) -> int:
            with KernelCounter() as seen:
                pixels = torch.zeros(frames.shape, dtype=torch.uint8, device=CUDA)
                step(twin.normalize(pixels, video_mask), video_mask, ids, mask)
            return seen.waits.total()

        waits_of(trainer.queue_step)  # the optimizer's state, and mean and standard deviation, are made
        assert waits_of(trainer.queue_step) == 0
        assert waits_of(trainer.step) == 2  # of a user who asks for numbers: the loss and the norm
