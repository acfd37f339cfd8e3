"""``tvrbench report``: formats of tables, the index, and what it lists."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from records import make_record, save
from report_records import STANDIN

from tvrbench.harness.cli.app import main
from tvrbench.harness.records.store import RecordStore

pytestmark = pytest.mark.unit


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Store a record, and give the command that reports it."""
    monkeypatch.setattr("tvrbench.harness.reporting.pages.report.pictures", lambda *_: [])
    monkeypatch.chdir(tmp_path)
    save(RecordStore(Path("runs")), make_record())
    return ["report", STANDIN]


def test_formats_are_written_and_listed(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--format", "tex", "--format", "md", "--json"]) == 0
    files = [Path(file) for file in json.loads(capsys.readouterr().out)]
    assert all(file.is_file() for file in files)
    folder = Path("runs/reports") / STANDIN
    assert files[0] == folder / "README.md"
    assert files[-1] == Path("runs/reports/README.md")
    assert {folder / "tex" / "main.tex", folder / "tex" / "tables.tex", folder / "md" / "main.md"} <= set(files)


def test_without_formats_there_are_none(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--format", "tex"]) == main(command) == 0
    assert not list(Path("runs/reports").rglob("*.tex"))
    assert capsys.readouterr().err.endswith(f"report: {Path('runs/reports') / STANDIN / 'README.md'}\n")


def test_an_unknown_format_is_refused(command: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--format", "docx"])
    assert ended.value.code == 2
    assert not Path("runs/reports").exists()
