"""SIGTERM and Ctrl-C: they stop at once, or where work would be lost after the step, with the state saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

RESUME_HINT = "finished records stay, and the same command with --resume goes on from what was saved"


class Interrupted(KeyboardInterrupt):
    """A signal ended the command; the message says what was kept and how to go on."""

    def __init__(self, number: int, where: str = "", how: str = RESUME_HINT) -> None:
        self.number = number
        super().__init__(f"interrupted by {signal.Signals(number).name}{where}: {how}")

    @property
    def exit_code(self) -> int:
        """What a shell reports of a process that this signal ended."""
        return 128 + self.number


class SignalHandler:
    """Handles both signals inside ``with SignalHandler() as interrupts:``; in another than the main thread, neither.

    Inside ``with interrupts.deferred():`` the first signal is only noted, in ``pending``, and whoever runs there ends
    at a good moment; a second one stops at once.
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
        """Let no first signal break in: for the writing down of a fault that ends the command anyway."""
        self._deferred = True
        yield
        self._deferred = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Note a signal instead of stopping; one that was noted and not acted on stops at the end of the block."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.pending is not None:
            self.stop()

    def stop(self, where: str = "") -> NoReturn:
        """Act on the signal that was noted.

        Args:
            where: after which point, for the message.
        """
        # Another process of the same run may have had the signal in our place.
        raise Interrupted(self.pending if self.pending is not None else signal.SIGTERM, where)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._deferred or self.pending is not None:
            raise Interrupted(number)
        self.pending = number
        os.write(2, b"tvrbench: stopping after this step; a second signal stops at once\n")  # print() may be under way
