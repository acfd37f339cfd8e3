"""The state of a run in training, on disk: replaced whole, checked to be of the same run, read without running code."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from tvrbench.harness.core.errors import RunFailed, UsageError
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.training.trainer import Trainer

FORMAT = "tvrbench-training-2"
SUFFIX = ".training"
Identity = Mapping[str, str | int | None]


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training, broken off after a step.

    Attributes:
        phase: which of the trainings of the run it is.
        losses: of every step so far.
        model: the tensors that training changes, by name.
        trainer: what ``Trainer.state_dict`` gave.
    """

    phase: str
    losses: list[float]
    model: dict[str, Any]
    trainer: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Best:
    """The model of the best of the checkpoints that were scored on the test set: after which step, its tensors."""

    step: int
    model: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """What a run has done so far.

    Attributes:
        scores: of every learning rate that was tried to its end; None where it diverged.
        training: the one in progress, None between two.
        resumed_at: where the run was taken up again, as ``phase:step``.
        log_bytes: how long the run's log was.
        chosen: the chunk that a memory limit led to, and what the record says of it.
        checks: test scores of checkpoints in the order of training, where the best of them is wanted.
        best: the one of the highest R@1 among them, the later of equal ones; None before any.
    """

    scores: dict[str, float | None] = field(default_factory=dict)
    training: Training | None = None
    resumed_at: list[str] = field(default_factory=list)
    log_bytes: int = 0
    chosen: dict[str, Any] | None = None
    checks: list[dict[str, float]] = field(default_factory=list)
    best: Best | None = None


_SNAPSHOT = TypeAdapter(TrainingState)


class StateFile:
    """The one file of a run's state.

    Args:
        path: where it lies; the folder is made when it is written.
        identity: what the run is: a state that says anything else is refused.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path = path
        self._identity = dict(identity)
        self._draft = path.with_name(f".{path.name}.part")  # one name: a kill leaves one file at most

    def read(self) -> TrainingState | None:
        """The state; None where there is no file.

        Raises:
            UsageError: damaged, or of another run; says what differs.
        """
        if not self.path.is_file():
            return None
        return self._checked(_document(self.path))

    def _checked(self, document: Any) -> TrainingState:
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise UsageError(f"{self.path}: not the state of a training of this version: leave --resume out")
        run = document.get("run")
        for key, own in self._identity.items():
            saved = run.get(key) if isinstance(run, dict) else None
            if saved != own:
                raise UsageError(
                    f"{self.path} was saved by another run, with {key} {saved} where this one has {own}: "
                    "give what that run was given, or leave --resume out to begin anew"
                )
        try:
            return _SNAPSHOT.validate_python(document.get("state"))
        except ValidationError as error:
            place = ".".join(str(part) for part in error.errors()[0]["loc"])
            raise UsageError(f"{self.path}: the saved state is damaged at {place}: leave --resume out") from None

    def write(self, snapshot: TrainingState) -> None:
        """Replace the state; what was there stays until the new one is safely on the disk.

        Raises:
            RunFailed: it cannot be written, on a full disk say; the earlier state is kept.
        """
        document = {"format": FORMAT, "run": self._identity, "state": _plain(snapshot)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._draft.open("wb") as file:
                torch.save(document, file)
                file.flush()
                os.fsync(file.fileno())
            self._draft.replace(self.path)
            _sync_folder(self.path.parent)
        except (OSError, RuntimeError) as error:  # torch's writer has errors of its own for a write that failed
            kept = "the state saved before it is kept" if self.path.is_file() else "no earlier state was saved"
            raise RunFailed(
                f"the training state {self.path.name} cannot be written ({write_error(error)}), and {kept}: free space "
                "on that disk, then go on with the same command and --resume"
            ) from error
        finally:
            self._draft.unlink(missing_ok=True)

    def remove(self) -> None:
        """The run is complete: its state has no use any more."""
        self.path.unlink(missing_ok=True)
        self._draft.unlink(missing_ok=True)


def _plain(snapshot: TrainingState) -> dict[str, Any]:
    """The snapshot as plain data, its tensors not copied."""
    training = vars(snapshot.training) if snapshot.training is not None else None
    best = vars(snapshot.best) if snapshot.best is not None else None
    return vars(snapshot) | {"training": training, "best": best}


def _document(path: Path, *, mapped: bool = False) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile):
        raise UsageError(f"{path}: the saved state cannot be read: delete it, or leave --resume out") from None


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the run of a saved state has come: what it is, and the steps done of which of its trainings."""

    run: dict[str, Any]
    phase: str | None
    steps: int


def progress_of(path: Path) -> Progress:
    """What a saved state says of itself; its tensors stay on the disk.

    Raises:
        UsageError: damaged, or not the state of a training of this version.
    """
    document = _document(path, mapped=True)
    if not isinstance(document, dict) or document.get("format") != FORMAT or not isinstance(document.get("run"), dict):
        raise UsageError(f"{path}: not the state of a training of this version: leave --resume out")
    try:
        training = _SNAPSHOT.validate_python(document.get("state")).training
    except ValidationError:
        raise UsageError(f"{path}: the saved state is damaged: leave --resume out") from None
    return Progress(
        run=document["run"],
        phase=None if training is None else training.phase,
        steps=0 if training is None else len(training.losses),
    )


def write_error(error: BaseException) -> str:
    """Why a file could not be written, in the system's words where it said something."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.strerror:
            return seen.strerror
        seen = seen.__cause__ or seen.__context__
    return next(iter(str(error).splitlines()), type(error).__name__)


def _sync_folder(folder: Path) -> None:
    """Make a rename in the folder last through a loss of power; POSIX only."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def trainable_state_dict(model: RetrievalModel) -> dict[str, Tensor]:
    """What training changes: parameters that learn, buffers, and the temperature, which every step clamps."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {
        name: tensor for name, tensor in model.state_dict().items() if name not in frozen or name == "clip.logit_scale"
    }


def load_tensors(model: RetrievalModel, tensors: Mapping[str, Any], where: str) -> None:
    """Give a model back what ``trainable_state_dict`` told of it.

    Raises:
        UsageError: the tensors are not this model's.
    """
    own = trainable_state_dict(model)
    for name in sorted(own.keys() | tensors.keys()):
        there, here = tensors.get(name), own.get(name)
        if here is None or not isinstance(there, Tensor) or there.shape != here.shape or there.dtype != here.dtype:
            raise UsageError(f"{where}: the saved state does not fit the model at {name}: leave --resume out")
    model.load_state_dict(dict(tensors), strict=False)


def restore(trainer: Trainer, saved: Training, where: str) -> None:
    """Bring a trainer and its model to where the saved training was.

    Raises:
        UsageError: the state does not fit them.
    """
    load_tensors(trainer.model, saved.model, where)
    try:
        trainer.load_state_dict(saved.trainer)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise UsageError(f"{where}: the saved state does not fit the optimizer ({error}): leave --resume out") from None
    if trainer.steps_done != len(saved.losses):
        raise UsageError(f"{where}: the saved state contradicts itself: leave --resume out")
