"""The state of a run in training, on disk: replaced whole, checked to be of the same run, read without running code."""

from __future__ import annotations

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
from tvrbench.harness.core.io import atomic_path
from tvrbench.harness.models.model import RetrievalModel, trainable_state_dict
from tvrbench.harness.training.lr_choice import LrChoice
from tvrbench.harness.training.trainer import Trainer

FORMAT = "tvrbench-training-3"
SUFFIX = ".training"
Identity = Mapping[str, str | int | None]
_REMEDY = "leave --resume out to start again"


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """One training, interrupted after a step.

    Attributes:
        phase: which of the trainings of the run it is.
        losses: of every step so far.
        model: the tensors that training changes, by name.
        trainer: from ``Trainer.state_dict``.
    """

    phase: str
    losses: list[float]
    model: dict[str, Any]
    trainer: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best of the checkpoints that were scored on the test set: its step and its tensors."""

    step: int
    model: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """How far a run has come.

    Attributes:
        scores: of every learning rate that was tried to its end; None if it diverged.
        lr_choice: that the run trains with; None before it is made, and in states of earlier versions.
        training: the one in progress, None between two.
        resumed_at: where the run was resumed, as ``phase:step``.
        log_bytes: length of the run's log.
        micro_batch: the size that a memory limit led to, with the limit and the record's account of it.
        checks: test scores of checkpoints in the order of training, if the best of them is wanted.
        best: the one of the highest R@1 among them, the later of equal ones; None before any.
    """

    scores: dict[str, float | None] = field(default_factory=dict)
    lr_choice: LrChoice | None = None
    training: TrainingProgress | None = None
    resumed_at: list[str] = field(default_factory=list)
    log_bytes: int = 0
    micro_batch: dict[str, Any] | None = None
    checks: list[dict[str, float]] = field(default_factory=list)
    best: Best | None = None

    def to_document(self) -> dict[str, Any]:
        """The state as plain data, its tensors not copied."""
        parts = {name: getattr(self, name) for name in ("lr_choice", "training", "best")}
        return vars(self) | {name: None if part is None else vars(part) for name, part in parts.items()}


_STATE = TypeAdapter(TrainingState)


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """A state file's content: the identity of its run, and the state; tensors stay on the disk if it was mapped."""

    run: dict[str, Any]
    state: TrainingState


def read_state(path: Path, *, mapped: bool = False) -> SavedState:
    """Read a state file; nothing in it is run.

    Raises:
        UsageError: damaged, or not the state of a training of this version.
    """
    try:
        document = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile):
        raise UsageError(
            f"{path}: the saved state cannot be read: delete it, or {_REMEDY}", code="state.damaged", path=str(path)
        ) from None
    if not isinstance(document, dict) or document.get("format") != FORMAT or not isinstance(document.get("run"), dict):
        raise UsageError(
            f"{path}: not the state of a training of this version: {_REMEDY}", code="state.format", path=str(path)
        )
    try:
        return SavedState(run=document["run"], state=_STATE.validate_python(document.get("state")))
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UsageError(
            f"{path}: the saved state is damaged at {place}: {_REMEDY}", code="state.damaged", path=str(path)
        ) from None


class StateFile:
    """The one file of a run's state.

    Args:
        path: the file; its folder is made when it is written.
        identity: of the run; the state of any other is refused.
    """

    def __init__(self, path: Path, identity: Identity) -> None:
        self.path = path
        self._identity = dict(identity)

    def read(self) -> TrainingState | None:
        """Read the state; None without a file.

        Raises:
            UsageError: damaged, or of another run; the message names the difference.
        """
        if not self.path.is_file():
            return None
        saved = read_state(self.path)
        self.check_identity(saved.run, self.path)
        return saved.state

    def check_identity(self, run: Mapping[str, Any], path: Path) -> None:
        """Compare the identity in a state file with this run's.

        Raises:
            UsageError: they differ; the message names the first difference.
        """
        for key in {**self._identity, **run}:
            own = self._identity.get(key)
            if run.get(key) != own:
                raise UsageError(
                    f"{path} was saved by another run, with {key} {run.get(key)} instead of {own}: give the options "
                    f"of that run, or {_REMEDY}",
                    code="state.other-run",
                    key=key,
                    saved=run.get(key),
                    own=own,
                )

    def write(self, state: TrainingState) -> None:
        """Replace the state; the old one stays until the new one is safely on the disk.

        Raises:
            RunFailed: it cannot be written, for example on a full disk; the earlier state is kept.
        """
        document = {"format": FORMAT, "run": self._identity, "state": state.to_document()}
        try:
            # One name of the draft: a kill leaves one at most. A file of ours: its errors keep the system's reason.
            with atomic_path(self.path, draft_name=self._draft.name) as draft, draft.open("wb") as file:
                torch.save(document, file)
        except (OSError, RuntimeError) as error:  # torch's writer has errors of its own for a failed write
            kept = "the state saved before it is kept" if self.path.is_file() else "no earlier state was saved"
            raise RunFailed(
                f"the training state {self.path.name} cannot be written ({_write_error(error)}), and {kept}: free "
                "space on that disk, then run the same command with --resume",
                code="state.write",
                kept=self.path.is_file(),
            ) from error

    def remove(self) -> None:
        """Delete the state of a completed run."""
        self.path.unlink(missing_ok=True)
        self._draft.unlink(missing_ok=True)

    @property
    def _draft(self) -> Path:
        return self.path.with_name(f".{self.path.name}.part")


def _write_error(error: BaseException) -> str:
    """The system's reason why a file could not be written, or else the error's first line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return next(iter(str(error).splitlines()), type(error).__name__)


def copy_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached copies on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def load_tensors(model: RetrievalModel, tensors: Mapping[str, Any], where: str) -> None:
    """Set the tensors that ``trainable_state_dict`` returned.

    Raises:
        UsageError: the tensors are not this model's.
    """
    own = trainable_state_dict(model)
    for name in sorted(own.keys() | tensors.keys()):
        saved, current = tensors.get(name), own.get(name)
        if (
            current is None
            or not isinstance(saved, Tensor)
            or (saved.shape, saved.dtype) != (current.shape, current.dtype)
        ):
            raise UsageError(
                f"{where}: the saved state does not fit the model at {name}: {_REMEDY}",
                code="state.does-not-fit",
                tensor=name,
            )
    model.load_state_dict(dict(tensors), strict=False)


def restore(trainer: Trainer, saved: TrainingProgress, where: str) -> None:
    """Bring a trainer and its model to the point where the saved training was.

    Raises:
        UsageError: the state does not fit them.
    """
    load_tensors(trainer.model, saved.model, where)
    try:
        trainer.load_state_dict(saved.trainer)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise UsageError(
            f"{where}: the saved state does not fit the optimizer ({error}): {_REMEDY}", code="state.does-not-fit"
        ) from None
    if trainer.steps_done != len(saved.losses):
        raise UsageError(
            f"{where}: the saved state contradicts itself (step {trainer.steps_done}, {len(saved.losses)} losses): "
            f"{_REMEDY}",
            code="state.damaged",
        )
