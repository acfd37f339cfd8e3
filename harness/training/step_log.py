"""The log of a run: one JSON document per line for every training step, and TensorBoard events on request."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tvrbench.harness.core.errors import RunFailed, UsageError


def check_tensorboard() -> None:
    """Look for TensorBoard's package.

    Raises:
        UsageError: it is not installed.
    """
    if find_spec("tensorboard") is None:
        raise UsageError(
            "--tensorboard needs the package tensorboard: pip install tensorboard",
            code="package.missing",
            package="tensorboard",
        )


class StepLog:
    """Writes a line per step; a resumed run continues after the lines of its saved state.

    Args:
        path: the file, or None to write nothing.
        tensorboard: write TensorBoard events beside it as well.
    """

    def __init__(self, path: Path | None, *, tensorboard: bool = False) -> None:
        self._path = path
        self._tensorboard = tensorboard
        self._board: Any = None

    def __enter__(self) -> Self:
        if self._path is not None and self._tensorboard:
            check_tensorboard()
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self._path.with_suffix("")))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._board is not None:
            self._board.close()

    @property
    def bytes(self) -> int:
        """Length of the log."""
        return self._path.stat().st_size if self._path is not None and self._path.exists() else 0

    def cut(self, length: int) -> None:
        """Drop everything after ``length`` bytes: steps that will be taken again, and a torn line."""
        if self._path is not None and self._path.exists() and self.bytes > length:
            with self._path.open("rb+") as file:
                file.truncate(length)

    def write(self, phase: str, step: int, values: Mapping[str, float | list[float]]) -> None:
        """Add the line of a step.

        Args:
            phase: which training of the run.
            step: counted from 1.
            values: numbers by name; one that is not finite is written as null.

        Raises:
            RunFailed: the log cannot be written.
        """
        if self._path is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"phase": phase, "step": step} | {name: _plain(value) for name, value in values.items()} | {"time": now}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise RunFailed(
                f"the log {self._path.name} cannot be written ({error.strerror}): free space on that disk, then run "
                "the same command with --resume",
                code="log.write",
            ) from error
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{phase}/{name}", value[0] if isinstance(value, list) else value, step)


def _plain(value: float | list[float]) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if math.isfinite(value) else None
