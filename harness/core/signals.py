"""SIGTERM and Ctrl-C: stop at once, or during training after the step, with the state saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

RESUME_HINT = "finished records are kept; the same command with --resume continues from the saved state"


class Interrupted(KeyboardInterrupt):
    """A signal ended the command; the message says how to resume."""

    def __init__(self, number: int, where: str = "", how: str = RESUME_HINT) -> None:
        self.number = number
        super().__init__(f"interrupted by {signal.Signals(number).name}{where}: {how}")

    @property
    def exit_code(self) -> int:
        """The shell's exit code for a process ended by this signal."""
        return 128 + self.number


class SignalHandler:
    """Handles both signals inside ``with SignalHandler() as interrupts:``, in the main thread only.

    Inside ``with interrupts.deferred():`` the first signal is only stored in ``pending``, and the code there stops at
    a safe point; a second signal stops at once.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
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
        # print() is not reentrant.
        os.write(2, b"tvrbench: finishing this step and saving; press Ctrl-C again to quit now\n")
