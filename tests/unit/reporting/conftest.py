"""Fixtures of tests on reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvrbench.harness.records.store import RecordStore


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of a report's time and have tests of their own."""
    pages = "tvrbench.harness.reporting.pages"
    for name in ("pictures", "search_pictures", "agreement_pictures"):
        monkeypatch.setattr(f"{pages}.report.{name}", lambda *_: [])
    for name in ("report.depth_picture", "efficiency.cost_picture"):
        monkeypatch.setattr(f"{pages}.{name}", lambda *_: None)
    for name in ("frames_figure", "matched_time_figure"):
        monkeypatch.setattr(f"{pages}.efficiency.{name}", lambda *_: b"")


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(tmp_path / "results")
