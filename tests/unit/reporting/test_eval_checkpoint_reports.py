"""Scored checkpoints in records and reports: marked wherever they appear, and compared with nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import report_records
from records import csv_rows, make_record
from report_records import STANDIN, msrvtt_record

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.records.record import dumps
from tvrbench.harness.records.store import RecordStore, run_name

pytestmark = pytest.mark.unit

PUBLISHED = "msrvtt-1ka-9k/published"
FILE = {"file": "best|of_*many*.bin", "sha256": "c" * 64, "format": "released"}


def trained(r1: float, protocol: str = STANDIN) -> dict[str, Any]:
    return make_record(r1=r1) if protocol == STANDIN else msrvtt_record("tempme", r1)


def make_scored(r1: float, protocol: str = STANDIN, **changes: Any) -> dict[str, Any]:
    record = trained(r1, protocol) | {"checkpoint": FILE, "weights_sha256": FILE["sha256"]}
    record["metrics"]["selection"] = "unknown"
    record["data"] = {key: value for key, value in record["data"].items() if not key.startswith("train_")}
    return record | changes


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordStore:
    monkeypatch.setattr("tvrbench.harness.reporting.figures.all_figures.pareto", _points)
    return RecordStore(tmp_path / "results")


def _points(points: Any, **_: Any) -> bytes:
    return "\n".join(point.label for point in points).encode()


def report(store: RecordStore, tmp_path: Path, *records: dict[str, Any]) -> Path:
    for record in records:
        store.save(record)
    return report_records.report(store, tmp_path, records[0]["protocol"]["name"])


def test_it_stands_in_a_table_of_its_own(store: RecordStore, tmp_path: Path) -> None:
    folder = report(store, tmp_path, trained(50.0), make_scored(93.4))
    assert [row["method"] for row in csv_rows(folder, "main")] == ["chance", "tempme"]
    (scored,) = csv_rows(folder, "scored")
    assert scored["method"] == f"tempme, scored checkpoint {FILE['file']}"
    assert (scored["t2v_R1"], scored["saved_by"], scored["checkpoint"]) == ("93.4", "other code", "not known")
    assert (folder / "pareto.png").read_text() == "tempme"
    page = (folder / "README.md").read_text()
    assert "## Scored checkpoints" in page
    assert "> **Note.**" not in page
    assert FILE["sha256"] in (folder / "provenance.csv").read_text()
    assert "93.4" not in (folder / "main.csv").read_text()
    assert "**" not in str(report_records.table(folder, "scored"))


def test_no_published_number_is_judged_by_it(store: RecordStore, tmp_path: Path) -> None:
    folder = report(store, tmp_path, make_scored(46.1, PUBLISHED))
    assert not (folder / "published.csv").exists()
    assert not (folder / "main.csv").exists()
    page = (folder / "README.md").read_text()
    assert "tempme" in page.split("of methods without a run: ")[1].splitlines()[0]


def test_it_does_not_change_a_verdict(store: RecordStore, tmp_path: Path) -> None:
    folder = report(store, tmp_path, trained(46.1, PUBLISHED))
    before = csv_rows(folder, "published")
    assert "46.1" in [row["measured"] for row in before]
    report(store, tmp_path, make_scored(93.4, PUBLISHED))
    assert csv_rows(folder, "published") == before


def test_the_table_goes_when_nothing_is_scored(store: RecordStore, tmp_path: Path) -> None:
    folder = report(store, tmp_path, trained(50.0), make_scored(90.0))
    (record,) = (path for path in store.folder(STANDIN).glob("*.json") if "checkpoint" in path.name)
    record.unlink()
    report(store, tmp_path, trained(50.0))
    assert not (folder / "scored.csv").exists()
    assert "Scored checkpoints" not in (folder / "README.md").read_text()


def test_files_of_one_name_are_told_apart(store: RecordStore, tmp_path: Path) -> None:
    other = FILE | {"sha256": "d" * 64}
    scored = make_scored(40.0), make_scored(41.0, checkpoint=other, weights_sha256=other["sha256"])
    folder = report(store, tmp_path, *scored)
    assert sorted(row["method"].partition(" (")[2] for row in csv_rows(folder, "scored")) == [
        "weights=cccccccc)",
        "weights=dddddddd)",
    ]


def test_it_has_a_record_of_its_own() -> None:
    own, scored = trained(50.0), make_scored(50.0)
    same_weights = scored | {"weights_sha256": own["weights_sha256"]}
    names = {run_name(own), run_name(scored), run_name(same_weights)}
    assert len(names) == 3
    assert "checkpoint" in run_name(scored)


@pytest.mark.parametrize(
    "change", [{"file": "results/best.bin"}, {"sha256": "short"}, {"format": "other"}, {"folder": "here"}]
)
def test_a_record_names_the_file_alone(change: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"\$\.checkpoint"):
        dumps(make_scored(50.0, checkpoint=FILE | change))
