"""Ctrl-C, SIGTERM and SIGHUP: stop at once, or during training after the step, with the state saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

RESUME_HINT = "finished records are kept; the same command with --resume continues from the saved state"

_HANGUP = getattr(signal, "SIGHUP", None)  # POSIX only
_SIGNALS = [signal.SIGINT, signal.SIGTERM, *([] if _HANGUP is None else [_HANGUP])]


class Interrupted(KeyboardInterrupt):
    """A signal ended the command; the message says how to resume."""

    def __init__(self, number: int, where: str = "", how: str = RESUME_HINT) -> None:
        self.number = number
        super().__init__(f"interrupted by {signal.Signals(number).name}{where}{': ' if how else ''}{how}")

    @property
    def exit_code(self) -> int:
        """The shell's exit code for a process ended by this signal."""
        return 128 + self.number


@contextmanager
def raising() -> Iterator[None]:
    """Let a signal whose default is to end the process raise Interrupted in the block, in the main thread only.

    A signal that is ignored (as under ``nohup``) or handled already stays so. An import that a signal ends may raise
    an error of its own instead; after a signal any error in the block counts as Interrupted.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> NoReturn:
        received.append(number)
        raise Interrupted(number, how="")

    defaults = (signal.SIG_DFL, signal.default_int_handler)
    numbers = _SIGNALS if threading.current_thread() is threading.main_thread() else []
    before = {number: handler for number in numbers if (handler := signal.getsignal(number)) in defaults}
    for number in before:
        signal.signal(number, handle)
    try:
        yield
    except Exception as error:
        if received:
            raise Interrupted(received[0], how="") from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class SignalHandler:
    """Handles the signals inside ``with SignalHandler() as interrupts:``, in the main thread only.

    Inside ``with interrupts.deferred():`` the first signal is only stored in ``pending``, and the code there stops at
    a safe point; a second signal stops at once.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            handled = [number for number in _SIGNALS if number != _HANGUP or signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """Hold back the first signal while the record of a failure is written."""
        self._deferred = True
        yield
        self._deferred = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Store a signal instead of stopping; a signal still pending stops at the end of the block."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.pending is not None:
            self.stop()

    def stop(self, where: str = "") -> NoReturn:
        """Act on the pending signal; ``where`` is the point in the run, for the message."""
        # Another process of the same run may have received the signal instead of this one.
        raise Interrupted(self.pending if self.pending is not None else signal.SIGTERM, where)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._deferred or self.pending is not None:
            raise Interrupted(number)
        self.pending = number
        try:  # print() is not reentrant
            os.write(2, b"tvrbench: finishing this step and saving; press Ctrl-C again to quit now\n")
        except OSError:  # the terminal has hung up, and any later line on it would fail too
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
