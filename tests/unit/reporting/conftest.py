"""Fixtures of tests on reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvrbench.harness.records.store import RecordStore


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take most of a report's time and have tests of their own."""
    for name, drawn in (("pictures", []), ("search_pictures", []), ("depth_picture", None)):
        monkeypatch.setattr(f"tvrbench.harness.reporting.pages.report.{name}", lambda *_, drawn=drawn: drawn)


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    return RecordStore(tmp_path / "results")
