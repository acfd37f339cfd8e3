"""Sampling of a level in a thread, to find its peak and the largest gap between samples."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

INTERVAL_S = 0.005


class PeakSampler:
    """Reads a level every few milliseconds between ``start`` and ``stop`` and keeps the largest.

    The thread is a daemon and ends with ``stop``.

    Attributes:
        peak: the largest level read, or None.
        gap_s: the longest time without a reading, start and stop included.
        readings: the number of levels read.
        failure: why reading stopped early, or None.
    """

    def __init__(self, read: Callable[[], int | None], interval_s: float = INTERVAL_S) -> None:
        self._read = read
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tvrbench-peak-sampler", daemon=True)
        self.peak: int | None = None
        self.gap_s = 0.0
        self.readings = 0
        self.failure: str | None = None

    def start(self) -> None:
        """Start; the first level is read at once."""
        self._last = time.perf_counter()
        self._thread.start()

    def stop(self) -> None:
        """Read a last level and end the thread."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            last_round = False
            while not last_round:
                last_round = self._stop.wait(self._interval_s if self.readings else 0.0)
                self._take()
        except Exception as error:  # noqa: BLE001 - whatever a driver raises must reach the record
            self.failure = str(error) or type(error).__name__

    def _take(self) -> None:
        level = self._read()
        now = time.perf_counter()
        self.gap_s, self._last = max(self.gap_s, now - self._last), now
        self.readings += 1
        if level is not None:
            self.peak = level if self.peak is None else max(self.peak, level)
