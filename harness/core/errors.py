"""Errors that are the user's to mend, told apart from bugs."""

from __future__ import annotations


class BadInput(ValueError):
    """Something the user gave is wrong; the message is one sentence naming it and what would be right.

    The command line prints the message without a traceback and exits with 2.
    """


class CheckFailed(Exception):
    """A check ran and did not hold; the command line exits with 1."""


class TrainingDiverged(RuntimeError):
    """The loss or the gradient is no longer finite; the command line exits with 1."""


class RunFailed(RuntimeError):
    """A run broke off for a reason that the user can mend; one sentence, exit code 1, and a record says so too."""
