"""What documents show is found, run or listed with its reason."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest
from document_commands import check, plugin_package, run, shown

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]

TEXT = """# Title
```bash
echo one    # a comment
echo two \\
  three
nox -s tests
tvrbench run x --data DIR
OMP_NUM_THREADS=1 pip install x
tvrbench bench lora --device cuda
```
```bash not-run: takes an hour
sleep 3600
```
```python
print("hello")
```
```
echo not a shell block
```
"""


def test_commands_are_found_with_their_place_and_reason() -> None:
    found = [(piece.place, piece.text, piece.reason) for piece in shown("x.md", TEXT)]
    assert found == [
        ("x.md:3", "echo one", None),
        ("x.md:4", "echo two three", None),
        ("x.md:6", "nox -s tests", "a session of its own"),
        ("x.md:7", "tvrbench run x --data DIR", "DIR is the reader's"),
        ("x.md:8", "OMP_NUM_THREADS=1 pip install x", "sets up an environment"),
        ("x.md:9", "tvrbench bench lora --device cuda", "wants a GPU"),
        ("x.md:12", "sleep 3600", "takes an hour"),
        ("x.md:15", 'print("hello")\n', None),
    ]


def test_a_failing_command_is_shown(tmp_path: Path) -> None:
    good, bad, code = shown("x.md", "```bash\ntrue\nls no-such-file\n```\n```python\n1 / 0\n```\n")
    assert run(good, tmp_path, {}) is None
    assert "no-such-file" in (run(bad, tmp_path, {}) or "")
    assert "ZeroDivisionError" in (run(code, tmp_path, {}) or "")


def test_a_document_that_fails_fails_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "adding-a-method.md").write_text((ROOT / "docs" / "adding-a-method.md").read_text())
    (tmp_path / "README.md").write_text("```bash\nfalse\nnox -s x\n```\n")
    assert check(tmp_path) == 1
    said = capsys.readouterr().err
    assert "FAILED    README.md:2: false" in said
    assert "not run   README.md:3: nox -s x (a session of its own)" in said
    assert "ok        docs/adding-a-method.md: tvrbench profile every_nth --json" in said


def test_the_example_is_laid_out_as_a_package(tmp_path: Path) -> None:
    name = plugin_package((ROOT / "docs" / "adding-a-method.md").read_text(), tmp_path)
    (distribution,) = importlib.metadata.distributions(path=[str(tmp_path)])
    (entry,) = distribution.entry_points
    assert (entry.name, entry.group) == (name, "tvrbench.methods")
    with pytest.raises(ValueError, match="no example"):
        plugin_package("nothing", tmp_path)
