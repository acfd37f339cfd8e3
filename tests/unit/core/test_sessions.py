"""The sessions of the noxfile that no other test runs: the commands that they give."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.unit
NOXFILE = Path(__file__).parents[3] / "noxfile.py"


class Session:
    """Notes the commands that a session runs."""

    def __init__(self, *posargs: str) -> None:
        self.posargs, self.env = list(posargs), dict[str, str]()
        self.commands: list[tuple[str, ...]] = []

    def run(self, *words: str, **_: Any) -> str:
        self.commands.append(words)
        return "cuda\n"  # the answer where the session asks torch for the device

    def install(self, *_: str) -> None:
        """Install nothing."""


@pytest.fixture(scope="module")
def noxfile() -> dict[str, Any]:
    """What the noxfile defines."""
    pytest.importorskip("nox")
    return runpy.run_path(str(NOXFILE))


@pytest.mark.parametrize(
    ("posargs", "precisions"),
    [((), ["bfloat16", "float32"]), (("--repeats", "3"), ["bfloat16", "float32"])]
    + [(given, ["float16"]) for given in (("--precision", "float16"), ("--precision=float16",))],
)
def test_a_gpu_is_measured_in_bfloat16_and_then_in_float32(
    posargs: tuple[str, ...], precisions: list[str], noxfile: dict[str, Any]
) -> None:
    session = Session(*posargs)
    noxfile["efficiency"].func(session)
    benches = [" ".join(words).replace("=", " ").split() for words in session.commands if words[1] == "bench"]
    assert [words[words.index("--precision") + 1] for words in benches] == precisions
    assert all(words.count("--precision") == 1 for words in benches)
