"""The files of a report: formats on demand, stale ones removed, and nobody else's touched."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from errors import raises
from records import make_record, save
from report_records import STANDIN, report

from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.pages.files import LISTED, replace_files
from tvrbench.harness.reporting.pages.report import write_report

pytestmark = pytest.mark.unit


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class TestReplaced:
    def test_what_an_earlier_report_wrote_goes_with_its_empty_folders(self, tmp_path: Path) -> None:
        replace_files(tmp_path, {"README.md": b"1", "cost/a.csv": b"1", "tex/main.tex": b"1", "tex/old.tex": b"1"})
        (tmp_path / "tex" / "paper.tex").write_text("mine")
        written = replace_files(tmp_path, {"README.md": b"2", "main.csv": b"2"})
        assert written == [tmp_path / "README.md", tmp_path / "main.csv"]
        assert names(tmp_path) == {"README.md", "main.csv", "tex/paper.tex", LISTED}
        assert not (tmp_path / "cost").exists()
        assert (tmp_path / "README.md").read_bytes() == b"2"

    def test_files_of_others_stay_whatever_they_are_called(self, tmp_path: Path) -> None:
        mine = {"pareto-of-mine.png", "main-old.csv", "tex/notes.tex", "equal-time.md", "notes.txt"}
        for name in mine:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("mine")
        replace_files(tmp_path, {"README.md": b"1"})
        replace_files(tmp_path, {"README.md": b"1"})
        assert names(tmp_path) == mine | {"README.md", LISTED}

    @pytest.mark.parametrize(
        "listed",
        [
            *("../outside.csv", "{outside}", "link/outside.csv", "link/../outside.csv", "link.csv", "notes.txt", ""),
            *("x" * 5000 + ".csv", "\0.csv", "README.md/x.csv"),
        ],
    )
    def test_a_list_of_another_removes_nothing_outside_the_report(self, tmp_path: Path, listed: str) -> None:
        outside, folder = tmp_path / "outside.csv", tmp_path / "report"
        folder.mkdir()
        (folder / "link").symlink_to(tmp_path)
        (folder / "link.csv").symlink_to(outside)
        for path in (outside, folder / "notes.txt"):
            path.write_text("mine")
        (folder / LISTED).write_bytes(listed.format(outside=outside).encode() + b"\nno\xff.csv\n")
        replace_files(folder, {"README.md": b"1"})
        assert outside.is_file()
        assert (folder / "notes.txt").is_file()
        assert (folder / "link.csv").is_symlink()

    def test_nothing_is_written_through_a_link_out_of_the_report(self, tmp_path: Path) -> None:
        outside, folder = tmp_path / "outside", tmp_path / "report"
        for path in (outside, folder):
            path.mkdir()
        (outside / "a.csv").write_text("mine")
        (folder / "cost").symlink_to(outside)
        with raises("report.link"):
            replace_files(folder, {"README.md": b"1", "cost/a.csv": b"1"})
        assert (outside / "a.csv").read_text() == "mine"
        assert names(folder) == set()

    def test_a_whole_folder_of_reports_may_be_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "report").symlink_to(tmp_path / "elsewhere")
        replace_files(tmp_path / "report", {"README.md": b"1", "cost/a.csv": b"1"})
        replace_files(tmp_path / "report", {"README.md": b"2"})
        assert names(tmp_path / "elsewhere") == {"README.md", LISTED}

    def test_a_stale_file_that_cannot_be_removed_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replace_files(tmp_path, {"README.md": b"1", "old.csv": b"1"})
        unlink = Path.unlink

        def refuse(path: Path, missing_ok: bool = False) -> None:
            if path.name == "old.csv":
                raise PermissionError(13, "Permission denied")
            unlink(path, missing_ok=missing_ok)

        monkeypatch.setattr(Path, "unlink", refuse)
        with raises("io.write"):
            replace_files(tmp_path, {"README.md": b"2"})


@pytest.mark.usefixtures("no_pictures")
class TestFormats:
    def test_each_table_has_a_file_per_format_that_was_asked_for(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, make_record("tempme"), make_record("lora", 40.0))
        written = names(report(store, tmp_path, formats=("tex", "md")))
        tables = {name.removesuffix(".csv") for name in written if name.endswith(".csv")}
        assert "main" in tables
        assert {f"md/{name}.md" for name in tables} == {name for name in written if name.startswith("md/")}
        assert {f"tex/{name}.tex" for name in (*tables, "tables")} == {n for n in written if n.startswith("tex/")}

    def test_a_report_without_formats_removes_those_of_the_last(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, make_record())
        folder = report(store, tmp_path, formats=("tex",))
        again = write_report(STANDIN, store, tmp_path / "reports")
        assert names(folder) == {p.relative_to(folder).as_posix() for p in again if p.parent == folder} | {LISTED}
        assert not (folder / "tex").exists()

    def test_markdown_has_no_links_that_lead_nowhere(self, store: RecordStore, tmp_path: Path) -> None:
        save(store, make_record())
        folder = report(store, tmp_path, formats=("md",))
        for path in (folder / "md").iterdir():
            assert not re.search(r"\]\((?!http)", path.read_text(encoding="utf-8")), path
