"""The document tooling: snippets are found and run, bad deviations are refused, stale reports are noticed."""

from __future__ import annotations

import io
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from committed_reports import different_files
from deviations import Deviation, switch_text
from PIL import Image
from readme_table import cost_table, sentence
from snippets import find_command, find_file, run_command, run_python, snippets, unknown_options
from sybil import Document

from tvrbench.harness.core import registry

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
TEXT = """# Title
```bash
echo one    # a comment
echo two \\
  three
```
```python
print("hello")
```
```
echo not a shell block
```
See `docs/methods.md` and `tests/no_such.py`; `tvrbench list
methods` lists them.
```toml
[not-an-entry-point]
```
"""


def test_snippets_are_found_where_they_are() -> None:
    document = Document(TEXT, "x.md")
    regions = sorted(snippets(document), key=lambda region: region.start)
    found = [(document.line_column(region.start), region.parsed) for region in regions]
    assert found == [
        ("line 3, column 1", "echo one"),
        ("line 4, column 1", "echo two three"),
        ("line 7, column 1", 'print("hello")\n'),
        ("line 13, column 5", "docs/methods.md"),
        ("line 13, column 27", "tests/no_such.py"),
        ("line 13, column 47", "tvrbench list methods"),
    ]


def example(text: str, folder: Path) -> Any:
    return SimpleNamespace(parsed=text, namespace={"workplace": folder}, path="x.md", line=1)


def test_a_snippet_that_fails_shows_its_output(tmp_path: Path) -> None:
    assert run_command(example("true", tmp_path)) is None
    assert "no-such-file" in (run_command(example("ls no-such-file", tmp_path)) or "")
    assert find_file(example("docs/methods.md", tmp_path)) is None
    assert "no_such" in (find_file(example("tests/no_such.py", tmp_path)) or "")
    assert "ZeroDivisionError" in (run_python(example("1 / 0", tmp_path)) or "")


@pytest.mark.parametrize(
    "command",
    [
        "nox -s tests",
        "OMP_NUM_THREADS=1 pip install x",
        "cat FILE",
        "python train.py --device cuda",
        "torchrun x",
        "tvrbench run standin/uniform",
    ],
)
def test_what_cannot_run_here_is_skipped(command: str, tmp_path: Path) -> None:
    with pytest.raises(pytest.skip.Exception, match=command):
        run_command(example(command, tmp_path))


def test_options_that_do_not_exist_are_found_in_commands_that_are_not_run() -> None:
    assert unknown_options("torchrun tvrbench list methods --json --jsno") == ["--jsno"]
    assert unknown_options("tvrbench lsit methods") == ["--help"]  # it has no help either
    assert unknown_options("echo --json") == []


@pytest.mark.parametrize(
    ("command", "exists"),
    [
        ("tvrbench list methods", True),
        ("tvrbench data cache DATASET --root DIR [--native]", True),
        ("tvrbench data cache DATASET --root DIR [--naive]", False),
        ("tvrbench lsit", False),
    ],
)
def test_a_command_in_a_sentence_must_exist(command: str, exists: bool, tmp_path: Path) -> None:
    assert (find_command(example(command, tmp_path)) is None) is exists


@pytest.mark.parametrize(
    "switch",
    [
        {"method": "tempme", "set": {"frame_positions": True}},  # the default
        {"method": "tempme", "set": {"no_such_option": True}},
        {"protocol": "msrvtt-1ka-9k/uniform"},  # restores nobody's behavior
        {"protocol": "no/such"},
        {"recipe": "no_such_field", "value": "1"},
        {"run": "device", "value": "auto"},  # the default
        {"run": "device", "value": "tpu"},
        {"run": "no-such-option", "value": "x"},
        {"unknown": "kind"},
    ],
)
def test_a_switch_must_exist_and_not_be_the_default(switch: dict[str, Any]) -> None:
    with pytest.raises((ValueError, AttributeError)):
        switch_text(switch)


def test_a_switch_is_shown_as_it_is_given() -> None:
    assert switch_text({"run": "device", "value": "cpu"}) == "`tvrbench run PROTOCOL --device cpu`"
    switch = {"method": "centerclip", "set": {"segment_mask": "last"}}
    assert switch_text(switch) == "`--methods centerclip --set segment_mask=last`"


@pytest.mark.parametrize("change", [{"because": None}, {"area": "x"}, {"more": "x"}])
def test_an_incomplete_deviation_is_refused(change: dict[str, Any]) -> None:
    entry = {"area": "Videos", "whose": "x", "theirs": "x", "ours": "x", "because": "x", "source": "x"}
    assert "Switch: none, because x." in str(Deviation(**entry))
    with pytest.raises(ValueError, match="validation error"):
        Deviation(**(entry | change))


def test_the_readme_has_the_cost_of_every_method_that_encodes() -> None:
    table = cost_table(ROOT / "results")
    assert len(table.columns) <= 7
    assert 10 <= len(table.rows) <= 30
    shown = {str(row[0].value).partition(" ")[0] for row in table.rows}
    names = registry.names("methods", "baselines")
    cards = {name: registry.lookup(name, "methods", "baselines").card for name in names}
    assert shown == {name for name, card in cards.items() if card.encodes}
    groups = [group.lower() for group in table.groups]
    assert [group for group, _ in groupby(groups)] == [group for group in registry.GROUPS if group in groups]
    assert all(cells[-1].value for cells in table.rows)  # a paper each


def test_costs_of_the_readme_need_records(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ViT-B-32"):
        cost_table(tmp_path)


def test_the_readme_counts_what_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    assert f" {len(registry.names('methods'))} methods, " in sentence()
    monkeypatch.setattr(registry, "names", lambda *kinds: ["msrvtt", "standin", "folder"])
    assert " 3 methods, 3 baselines and 1 data sets " in sentence()


def png(gray: int, corner: int | None = None) -> bytes:
    picture, buffer = Image.new("L", (8, 8), gray), io.BytesIO()
    picture.putpixel((0, 0), gray if corner is None else corner)
    picture.save(buffer, "png")
    return buffer.getvalue()


def test_files_of_reports_are_compared(tmp_path: Path) -> None:
    made, kept = tmp_path / "made", tmp_path / "kept"
    for folder, embedded in ((made, b"AAAA"), (kept, b"BBBB")):
        (folder / "cost").mkdir(parents=True)
        (folder / "same.csv").write_text("1")
        (folder / "page.html").write_bytes(b'<img src="data:image/png;base64,' + embedded + b'">')
    (made / "font.png").write_bytes(png(100))
    (kept / "font.png").write_bytes(png(100, corner=130))  # less than the tolerance on average
    assert different_files(made, kept) == []
    (made / "main.csv").write_text("new")
    (kept / "old.csv").write_text("left over")
    (made / "cost" / "a.md").write_text("1")
    (kept / "cost" / "a.md").write_text("2")
    (kept / "page.html").write_text("edited")
    (kept / "font.png").write_bytes(png(200))
    assert different_files(made, kept) == ["cost/a.md", "font.png", "main.csv", "old.csv", "page.html"]
