"""Progress of a whole command on stderr: a live bar on a terminal, plain lines elsewhere.

Only the first of several processes shows it.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tvrbench.harness.core.distributed import dist_info

PLAIN_EVERY_S = 15.0


class ProgressReporter(Protocol):
    """Receives the progress of a run; work is counted in videos encoded once."""

    def update(self, work: int, note: str = "") -> None:
        """Add ``work`` to what is done."""

    def log(self, text: str) -> None:
        """Show a line that the user should read."""


class Bar:
    """A ``ProgressReporter`` over all runs of a command, for ``total`` planned work."""

    def __init__(self, total: int = 1, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, quiet=not dist_info().first)
        self._total, self._done, self._title, self._note = total, 0, "", ""
        self._start = time.monotonic()
        self._printed = self._start
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=False))
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), *times)
        self._live = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._live.add_task("", total=total)

    def __enter__(self) -> Bar:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._live.stop()

    def begin(self, title: str) -> None:
        """Start another run."""
        self._title, self._note = title, ""
        self._show(force=True)

    def update(self, work: int, note: str = "") -> None:
        """Add ``work`` to what is done."""
        self._done += work
        self._note = note or self._note
        self._show()

    def reach(self, done: int, total: int) -> None:
        """Set the finished and the total work."""
        self._total = total
        self._live.update(self._task, total=total)
        self.update(done - self._done)

    def log(self, text: str) -> None:
        """Print a line of its own."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _show(self, force: bool = False) -> None:
        self._live.update(self._task, completed=self._done, description=f"{self._title} {self._note}".strip())
        now = time.monotonic()
        if self._console.is_terminal or not (force or now - self._printed >= PLAIN_EVERY_S):
            return
        self._printed = now
        share = min(self._done / self._total, 1.0) if self._total else 1.0
        left = (now - self._start) * (1 - share) / share if share > 0 else None
        remaining = f", about {left / 60:.1f} min left" if left is not None else ""
        self.log(f"[{share:4.0%}{remaining}] {self._title} {self._note}".rstrip())
