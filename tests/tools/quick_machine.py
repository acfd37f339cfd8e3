"""Measurements that take a moment: a machine whose own speed is measured with small matrices and copies."""

from __future__ import annotations

import pytest

from tvrbench.harness.profiling.trackers import interference, roofline


def make_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shrink what the instruments compute to judge the machine, in this process."""
    monkeypatch.setattr(interference, "CALIBRATION_SIDE", 64)
    monkeypatch.setattr(roofline, "SIDES", {"cpu": (32, 64)})
    monkeypatch.setattr(roofline, "COPIED", {"cpu": 2**20})
