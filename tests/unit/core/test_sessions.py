"""The sessions of the noxfile that no other test runs: the commands that they give."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.unit
NOXFILE = Path(__file__).parents[3] / "noxfile.py"


class Session:
    """Notes the commands that a session runs; torch in its environment picks ``device``."""

    def __init__(self, device: str, *posargs: str) -> None:
        self.device, self.posargs, self.env = device, list(posargs), dict[str, str]()
        self.commands: list[tuple[str, ...]] = []

    def run(self, *words: str, **_: Any) -> str:
        """Keep the command; answer the question for the device with torch's warnings before it."""
        self.commands.append(words)
        return f"a warning of torch\n{words[-1] if words[-1] == 'cpu' else self.device}\n"

    def install(self, *_: str) -> None:
        """Install nothing."""


@pytest.fixture
def noxfile(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the noxfile defines, its sessions as plain functions."""

    def session(function: Any = None, **_: Any) -> Any:
        return function if function else lambda decorated: decorated

    nox = ModuleType("nox")
    vars(nox).update(session=session, Session=object, options=SimpleNamespace(), param=lambda *_, **__: None)
    vars(nox).update(parametrize=lambda *_, **__: lambda decorated: decorated)
    monkeypatch.setitem(sys.modules, "nox", nox)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")  # nvidia-smi says nothing about torch
    return runpy.run_path(str(NOXFILE))


@pytest.mark.parametrize(
    ("posargs", "precisions"),
    [((), ["bfloat16", "float32"]), (("--repeats", "3"), ["bfloat16", "float32"])]
    + [(given, ["float16"]) for given in (("--precision", "float16"), ("--precision=float16",))],
)
def test_a_gpu_is_measured_in_bfloat16_and_then_in_float32(
    posargs: tuple[str, ...], precisions: list[str], noxfile: dict[str, Any]
) -> None:
    session = Session("cuda", *posargs)
    noxfile["efficiency"](session)
    benches = [" ".join(words).replace("=", " ").split() for words in session.commands if "--energy" in words]
    assert [words[words.index("--precision") + 1] for words in benches] == precisions
    assert all(words.count("--precision") == 1 for words in benches)


@pytest.mark.parametrize(
    ("device", "posargs", "on_gpu"),
    [("cuda", (), True), ("cpu", (), False), ("cuda", ("--device", "cpu"), False), ("cuda", ("--device=cpu",), False)],
)
def test_torch_decides_whether_a_gpu_is_measured(
    device: str, posargs: tuple[str, ...], on_gpu: bool, noxfile: dict[str, Any]
) -> None:
    session = Session(device, *posargs)
    noxfile["efficiency"](session)
    assert any("--energy" in command for command in session.commands) == on_gpu
