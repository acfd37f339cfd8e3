"""Generated documents: every switch they name exists, and what is stale is found."""

from __future__ import annotations

import re
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from bench_records import counts, save
from deviations import DEVIATIONS, Deviation, MethodOption, RecipeField, RunOption, RunProtocol
from generate import deviations_page, documents, stale
from readme_table import BEGIN, END, with_results

from tvrbench.datasets.standin.dataset import StandIn
from tvrbench.harness.cli import app as cli
from tvrbench.harness.cli.report import report
from tvrbench.harness.config.protocol import load_protocol, protocol_names
from tvrbench.harness.config.recipe import Recipe
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.figures.all_figures import Picture
from tvrbench.harness.reporting.pages.report import write_report

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
SWITCHES = [d.switch for d in DEVIATIONS if d.switch is not None]


def default_of(method: str, key: str) -> Any:
    (field,) = [field for field in fields(method_class(method).Options) if field.name == key]
    return field.default


def test_every_switch_exists_and_is_not_the_default() -> None:
    for switch in SWITCHES:
        if isinstance(switch, MethodOption):
            assert default_of(switch.method, switch.key) != switch.value
        elif isinstance(switch, RecipeField):
            assert switch.field in {field.name for field in fields(Recipe)}
        elif isinstance(switch, RunProtocol):
            assert switch.name in protocol_names()
            assert load_protocol(switch.name).kind == "published"
        elif isinstance(switch, RunOption):
            assert signature(cli.run).parameters[switch.option].default != switch.value
            assert switch.value in get_args(get_type_hints(cli.run)[switch.option])
    assert any(isinstance(switch, MethodOption) for switch in SWITCHES)


def test_switches_on_the_command_line_are_taken() -> None:
    from tvrbench.harness import load_model

    for switch in SWITCHES:
        if isinstance(switch, MethodOption):
            model = load_model(switch.method, backbone="ViT-B-32", weights="random:0", **{switch.key: switch.value})
            assert getattr(model.method.options, switch.key) == switch.value


def test_what_has_no_switch_says_why() -> None:
    with pytest.raises(ValueError, match="must say why"):
        Deviation(area="x", whose="x", theirs="x", ours="x", source="x")


def test_files_that_the_list_names_exist() -> None:
    for path in re.findall(r"`?((?:tests|docs|harness)/[\w/.-]+\.(?:py|md))", deviations_page()):
        assert (ROOT / path).is_file(), path


def test_the_committed_documents_are_what_the_data_gives() -> None:
    for path, text in documents().items():
        assert (ROOT / path).read_text(encoding="utf-8") == text


def test_what_is_stale_is_named(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for path, text in documents().items():
        (tmp_path / path).write_text(text, encoding="utf-8")
    assert list(stale(tmp_path)) == []
    (tmp_path / "docs" / "deviations.md").write_text("old")
    (found,) = stale(tmp_path)
    assert found.startswith("docs/deviations.md is stale")


def test_the_readme_shows_the_records_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generate.documents", dict)
    store, fixture = RecordStore(tmp_path / "results"), Path(__file__).parents[2] / "fixtures" / "standin_record.json"
    folder = store.folder("standin/uniform")
    folder.mkdir(parents=True)
    (folder / "tempme.json").write_bytes(fixture.read_bytes())
    readme = with_results(f"# Before\n{BEGIN}an old table\n{END}after\n", tmp_path / "results")
    assert readme.startswith(f"# Before\n{BEGIN}\n**Retrieval and cost, standin/uniform**")
    assert readme.endswith(f"{END}after\n")
    assert "an old table" not in readme
    assert "| tempme " in readme
    assert StandIn.notice in readme
    assert with_results(readme, tmp_path / "results") == readme
    for broken in ("no marks", END + BEGIN, BEGIN + BEGIN + END):
        with pytest.raises(UsageError, match=r"README.md must hold"):
            with_results(broken, tmp_path / "results")
    (tmp_path / "README.md").write_text(readme, encoding="utf-8")
    assert list(stale(tmp_path)) == []
    (tmp_path / "README.md").write_text(readme.replace("tempme", "tempmee"), encoding="utf-8")
    (found,) = stale(tmp_path)
    assert found.startswith("README.md is stale")


def test_the_report_of_costs_is_compared_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generate.documents", dict)
    save(tmp_path / "results", "lora", counts(200.0, 2364))
    report("efficiency", tmp_path / "results", tmp_path / "reports", as_json=True)
    assert list(stale(tmp_path)) == []
    (tmp_path / "reports" / "efficiency" / "page.html").write_text("old", encoding="utf-8")
    (found,) = stale(tmp_path)
    assert "efficiency/page.html is stale" in found


def test_reports_are_made_again_and_compared(tmp_path: Path) -> None:
    store, fixture = RecordStore(tmp_path / "results"), Path(__file__).parents[2] / "fixtures" / "standin_record.json"
    folder = store.folder("standin/uniform")
    folder.mkdir(parents=True)
    (folder / "tempme.json").write_bytes(fixture.read_bytes())
    report = write_report("standin/uniform", store, tmp_path / "reports")[0].parent
    for path, text in documents().items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    assert list(stale(tmp_path)) == []
    assert not list(tmp_path.glob(".docs-check*"))
    (report / "main.md").write_text("edited by hand")
    (report / "old.csv").write_text("")
    (report / "main.csv").unlink()
    found = "\n".join(stale(tmp_path))
    for words in ("main.md is stale", "old.csv is left over", "main.csv is missing"):
        assert words in found
    assert len(found.splitlines()) == 3


def test_pictures_made_from_models_stay_and_pictures_in_pages_are_compared_as_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Picture(file="pareto.png", data=b"\x89PNG\r\n", alternative="a", caption="c", kind="pareto")
    monkeypatch.setattr("tvrbench.harness.reporting.pages.report.pictures", lambda *_: [drawn])
    monkeypatch.setattr("generate.documents", dict)
    store, fixture = RecordStore(tmp_path / "results"), Path(__file__).parents[2] / "fixtures" / "standin_record.json"
    folder = store.folder("standin/uniform")
    folder.mkdir(parents=True)
    (folder / "tempme.json").write_bytes(fixture.read_bytes())
    report = tmp_path / "reports" / "standin" / "uniform"
    report.mkdir(parents=True)
    (report / "tokens.png").write_bytes(b"a picture")
    write_report("standin/uniform", store, tmp_path / "reports")
    assert "![Which patches of a clip share a token" in (report / "README.md").read_text(encoding="utf-8")
    assert list(stale(tmp_path)) == []
    page = (report / "page.html").read_bytes()
    (report / "page.html").write_bytes(page.replace(b"data:image/png;base64,iVBOR", b"data:image/png;base64,AAAA"))
    assert list(stale(tmp_path)) == []
    (report / "page.html").write_bytes(page.replace(b"<h1>", b"<h1>edited "))
    (found,) = stale(tmp_path)
    assert "page.html is stale" in found
