"""The installed package holds what the tree holds, and the folder `datasets` hides nobody else's package."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[3]


def _source_files() -> set[str]:
    """Every file under the package folders, as the wheel should name it."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = set()
    for package, folder in config["package-dir"].items():
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.add(f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}")
    return found


@pytest.mark.slow
def test_the_wheel_holds_the_tree(tmp_path: Path) -> None:
    code = "from setuptools.build_meta import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    copy = tmp_path / "tree"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(copy)], check=False)
    if not (copy / "pyproject.toml").is_file():
        pytest.skip("not a git checkout")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=copy, capture_output=True, text=True, check=False
    )
    if "No module named 'setuptools'" in done.stderr:
        pytest.skip("setuptools is not in this environment")
    assert done.returncode == 0, done.stderr
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    tracked = subprocess.run(["git", "ls-files"], cwd=copy, capture_output=True, text=True, check=True).stdout.split()
    config = tomllib.loads((copy / "pyproject.toml").read_text())["tool"]["setuptools"]
    for package, folder in config["package-dir"].items():
        for file in tracked:
            if file.startswith(f"{folder}/"):
                assert f"{package.replace('.', '/')}/{file.removeprefix(folder + '/')}" in names
    assert {name for name in names if name.startswith("tvrbench/")} <= _source_files()


def test_a_bare_import_of_datasets_does_not_find_our_folder() -> None:
    code = "import importlib.util as u; s = u.find_spec('datasets'); print(s.origin if s else None)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(ROOT) not in done.stdout
    if sys.flags.safe_path:  # as in every nox session; `python -m pytest` from here puts the folder back by itself
        assert not any(Path(entry).resolve() == ROOT for entry in sys.path if entry)
