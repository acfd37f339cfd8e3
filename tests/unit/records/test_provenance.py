"""Provenance: enough to make a number again, nothing that names a person or a place."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import platform
import subprocess
import tomllib
from importlib.machinery import all_suffixes
from pathlib import Path
from typing import Any

import pytest
import torch
from canonical import canonical
from errors import raises

from tvrbench.harness.core.io import file_sha256
from tvrbench.harness.records.provenance import (
    command_line,
    environment,
    gpu_driver,
    portable_path,
    source_revision,
)

pytestmark = pytest.mark.unit


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    subprocess.run(["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True, env=variables)


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("changed\n", encoding="utf-8")


ROOT = Path(__file__).parents[3]
SOURCES = ("harness/code.py", "methods/ours.py", "results/published/a.csv", "pyproject.toml", "constraints.txt")
OTHERS = ("README.md", "docs/a.md", "tests/a.py", "results/records/a/c.json", "reports/a/b.md", "noxfile.py")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "a checkout"
    for name in (*SOURCES, *OTHERS):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x = 1\n", encoding="utf-8")
    git(root, "init")
    git(root, "add", ".")
    git(root, "commit", "-m", "first")
    return root


class TestEnvironment:
    def test_names_the_machine_and_the_software(self) -> None:
        found = environment("cpu")
        assert found["device"]
        assert found["cpu_count"] >= 1
        assert found["driver"] is None
        assert found["versions"]["torch"] == torch.__version__
        assert found["versions"]["python"] == platform.python_version()
        packages = {"torchvision", "open_clip_torch", "transformers", "fvcore", "numpy", "av", "tvrbench"}
        assert packages <= found["versions"].keys()

    def test_names_no_person_host_or_folder(self) -> None:
        text = json.dumps(environment("cpu"))
        assert str(Path(__file__).parents[3]) not in text
        assert str(Path.home()) not in text
        for name in (getpass.getuser(), platform.node()):
            assert f'"{name}"' not in text

    def test_a_driver_that_is_not_there_is_missing(self) -> None:
        driver = gpu_driver()
        assert driver is None or driver[0].isdigit()

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_names_the_gpu_and_its_driver(self) -> None:
        found = environment("cuda")
        assert found["device"] == torch.cuda.get_device_name()
        assert found["driver"]


class TestSourceRevision:
    def test_a_clean_checkout(self, checkout: Path) -> None:
        sha, dirty = source_revision(checkout)
        assert sha is not None
        assert len(sha) == 40
        assert dirty is False

    @pytest.mark.parametrize(
        "name",
        [
            "missing-videos.txt",
            "nohup.out",
            "slurm-1.out",
            "SWEEP.toml",
            "notebook.ipynb",
            "try_it.py",
            "venv/pyvenv.cfg",
            ".venv/lib/python3.11/site-packages/a.py",
            "results/records/a/b.json",
            "reports/a/README.md",
            "runs/records/a/b.json",
            "tests/unit/test_new.py",
            "docs/new.md",
            "datasets/MSRVTT/msrvtt_data/MSRVTT_JSFUSION_test.csv",
            "datasets/MSRVTT/videos/video0.mp4",
            "harness/nohup.out",
            "datasets/standin/slurm.txt",
            "datasets/standin/notes.json",
            "datasets/standin/old.safetensors",
            "methods/foo (copy).so",
            "methods/foo.cpython-27-other.so",
            "methods/__pycache__/foo.pyc",
            "harness/__pycache__/code.cpython-311.pyc",
            "harness/code.py~",
            "harness/code.py.orig",
            "harness/code (copy).py",
            "harness/.#code.py",
            "harness/.ipynb_checkpoints/code-checkpoint.py",
            "harness/venv/lib/python3.11/site-packages/six.py",
        ],
    )
    def test_an_untracked_file_that_is_no_source_changes_nothing(self, checkout: Path, name: str) -> None:
        write(checkout / name)
        assert source_revision(checkout)[1] is False

    @pytest.mark.parametrize(
        "name",
        [
            "harness/new.py",
            "harness/runs/new.py",
            "methods/new.py",
            "baselines/new.py",
            "datasets/décor.py",
            "harness/config/protocols/my-data/uniform.toml",
            "results/published/new.csv",
            "datasets/standin/vocab.txt",
            *(f"methods/foo{suffix}" for suffix in all_suffixes()),
        ],
    )
    @pytest.mark.parametrize("ignored", [False, True])
    def test_an_untracked_source_is_dirty(self, checkout: Path, name: str, ignored: bool) -> None:
        if ignored:
            (checkout / ".git" / "info" / "exclude").write_text("*\n", encoding="utf-8")
        write(checkout / name)
        assert source_revision(checkout)[1] is True

    def test_what_the_wheel_ships_is_a_source(self, checkout: Path) -> None:
        settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
        for package, patterns in settings["package-data"].items():
            parent = ".".join(package.split(".")[:2])
            folder = Path(settings["package-dir"][parent], *package.split(".")[2:])
            for pattern in (pattern for pattern in patterns if pattern != "py.typed"):
                path = checkout / folder / pattern.replace("**", "a").replace("*", "new")
                write(path)
                assert source_revision(checkout)[1] is True, path
                path.unlink()

    @pytest.mark.parametrize("name", SOURCES)
    @pytest.mark.parametrize("staged", [False, True])
    def test_a_changed_or_deleted_source_is_dirty(self, checkout: Path, name: str, staged: bool) -> None:
        for change in (write, Path.unlink):
            change(checkout / name)
            if staged:
                git(checkout, "add", "--all")
            assert source_revision(checkout)[1] is True

    def test_a_renamed_source_is_dirty(self, checkout: Path) -> None:
        git(checkout, "mv", "harness/code.py", "docs/code.py")
        assert source_revision(checkout)[1] is True

    @pytest.mark.parametrize("name", OTHERS)
    def test_a_changed_or_deleted_file_beside_the_sources_is_not(self, checkout: Path, name: str) -> None:
        for change in (write, Path.unlink):
            change(checkout / name)
            assert source_revision(checkout)[1] is False

    def test_permission_bits_are_no_change(self, checkout: Path) -> None:
        (checkout / "harness" / "code.py").chmod(0o755)
        assert source_revision(checkout)[1] is False

    @pytest.mark.parametrize("kind", ["worktree", "shallow", "submodule"])
    def test_other_kinds_of_checkout(self, checkout: Path, tmp_path: Path, kind: str) -> None:
        other = tmp_path / "other checkout"
        if kind == "worktree":
            git(checkout, "worktree", "add", "--detach", str(other))
        elif kind == "shallow":
            git(tmp_path, "clone", "--depth", "1", checkout.as_uri(), str(other))
        else:
            git(tmp_path, "init", str(other))
            git(other, "-c", "protocol.file.allow=always", "submodule", "add", checkout.as_uri(), "part of it")
            other /= "part of it"
        assert source_revision(other) == (source_revision(checkout)[0], False)
        write(other / "harness" / "code.py")
        assert source_revision(other)[1] is True
        assert source_revision(checkout)[1] is False

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
    def test_a_checkout_of_another_owner(self, checkout: Path) -> None:
        clean = source_revision(checkout)
        for path in (checkout, checkout / ".git"):
            os.chown(path, 12345, 12345)
        assert source_revision(checkout) == clean

    def test_a_repository_around_it_is_not_ours(self, checkout: Path) -> None:
        assert source_revision(checkout / "harness") == (None, None)

    def test_the_working_directory_and_variables_do_not_matter(
        self, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        monkeypatch.chdir(checkout)
        monkeypatch.setenv("GIT_DIR", str(checkout / ".git"))
        assert source_revision(outside) == (None, None)

    def test_a_checkout_without_a_commit(self, tmp_path: Path) -> None:
        git(tmp_path, "init")
        assert source_revision(tmp_path) == (None, None)

    def test_no_git_at_all(self, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        assert source_revision(checkout) == (None, None)


def test_file_sha256(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"abc" * 100_000)
    assert file_sha256(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()
    with raises("io.read", path=str(tmp_path / "gone")):
        file_sha256(tmp_path / "gone")


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["run", "standin/uniform", "--seeds", "0,1"], "tvrbench run standin/uniform --seeds 0,1"),
            (["run", "--data", "/home/alice/msrvtt"], "tvrbench run --data msrvtt"),
            (["run", "--data=/home/alice/msrvtt/"], "tvrbench run --data=msrvtt"),
            (["check", "--against", "{cwd}/results/b.json"], "tvrbench check --against results/b.json"),
            (["check", "--against", "{cwd}/../b.json"], "tvrbench check --against b.json"),
            (["check", "--against", "../alice/b.json"], "tvrbench check --against b.json"),
            (["report", "--results", "{cwd}"], "tvrbench report --results ."),
            (["run", "--set", "checkpoint=/a/b.pt,/c/d.pt"], "tvrbench run --set checkpoint=b.pt,d.pt"),
            (["run", "--weights", "random:0"], "tvrbench run --weights random:0"),
            (["run", "--weights", "C:\\Users\\alice\\w.pt"], "tvrbench run --weights C:w.pt"),
            (["run", "--weights", "file:///home/alice/w.pt"], "tvrbench run --weights file:w.pt"),
            (["run", "--set", "x=('/home/alice/a', 1)"], """tvrbench run --set 'x=('"'"'a'"'"', 1)'"""),
            (["run", "--data", "~/msrvtt"], "tvrbench run --data msrvtt"),
            (["run", "--data", "~alice"], "tvrbench run --data '~'"),
            (["run", "--data", "{home}"], "tvrbench run --data '~'"),
            (["run", "--data", "/"], "tvrbench run --data ."),
        ],
    )
    def test_paths_are_portable(
        self, arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", "/home/alice")
        places = {"{cwd}": str(tmp_path), "{home}": "/home/alice"}
        for mark, place in places.items():
            arguments = [argument.replace(mark, place) for argument in arguments]
        assert command_line(arguments) == expected

    def test_a_path_inside_the_working_directory_stays(self) -> None:
        assert portable_path("results/baselines/cpu-standin.json") == "results/baselines/cpu-standin.json"


class TestCanonical:
    @staticmethod
    def run(**changes: Any) -> dict[str, Any]:
        cost = [
            {"name": "gmacs", "value": 34.8, "unit": "GMACs", "samples": [], "conditions": {"frames": 12}},
            {"name": "tokens", "value": 97, "unit": "tokens", "samples": [], "conditions": {}},
        ]
        return {
            "seed": 0,
            "metrics": {"RSum": 198.6},
            "cost": cost,
            "environment": {"device": "a"},
            "command": "tvrbench run a",
            "started": "2025-01-02T03:04:05Z",
            "duration_s": 1.0,
            **changes,
        }

    def test_time_and_place_do_not_count(self) -> None:
        other = self.run(environment={"device": "b"}, command="c", started="d", duration_s=2.0)
        assert canonical(self.run()) == canonical(other)

    @pytest.mark.parametrize("change", [{"seed": 1}, {"metrics": {"RSum": 198.5}}, {"cost": []}])
    def test_results_count(self, change: dict[str, Any]) -> None:
        assert canonical(self.run()) != canonical(self.run(**change))

    def test_counts_are_compared_and_the_record_is_left_alone(self) -> None:
        record = self.run()
        assert canonical(record)["cost"] == record["cost"]
        assert "command" in record

    @pytest.mark.parametrize(
        "unit", ["ms", "s", "videos/s", "MiB", "bytes", "GB", "J", "J/video", "W", "ms/video", "x", "cores", "MHz"]
    )
    def test_timings_and_memory_keep_name_and_unit_only(self, unit: str) -> None:
        measured = {"name": "m", "value": 1.0, "unit": unit, "samples": [1.0], "conditions": {"gap": 3}}
        assert canonical(self.run(cost=[measured]))["cost"] == [{"name": "m", "unit": unit}]

    @pytest.mark.parametrize("name", ["share_of_peak", "speedup_reached"])
    def test_shares_of_times_are_timings(self, name: str) -> None:
        measured = {"name": name, "value": 71.0, "unit": "%", "samples": [], "conditions": {}}
        assert canonical(self.run(cost=[measured]))["cost"] == [{"name": name, "unit": "%"}]

    @pytest.mark.parametrize("unit", ["GMACs", "parameters", "tokens", "count", "%"])
    def test_counts_are_no_timings(self, unit: str) -> None:
        measured = {"name": "m", "value": 1.0, "unit": unit, "samples": [], "conditions": {}}
        assert canonical(self.run(cost=[measured]))["cost"] == [measured]
