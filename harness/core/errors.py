"""Errors that the user can fix, as opposed to bugs. Each carries a stable code; its wording may change."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar


class TvrbenchError(Exception):
    """An error that ends a command with one message and no traceback.

    Args:
        message: cause, then remedy, in one or two sentences.
        code: stable and dotted, for example ``video.missing``; scripts and tests compare it instead of the message.
        fields: the facts in the message, as plain data.

    Attributes:
        exit_code: of the command line.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, code: str, **fields: Any) -> None:
        super().__init__(message)
        self.code = code
        self.fields = fields

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), code=self.code, **self.fields), (str(self),)


class UsageError(TvrbenchError, ValueError):
    """Wrong input from the user; the command line exits with 2."""

    exit_code = 2


class CheckFailed(TvrbenchError):
    """A check ran and failed; the command line exits with 1."""


class TrainingDiverged(TvrbenchError, RuntimeError):
    """A loss or gradient that is no longer finite; the command line exits with 1."""


class RunFailed(TvrbenchError, RuntimeError):
    """A run stopped for a reason that the user can fix and its record holds; the command line exits with 1."""
