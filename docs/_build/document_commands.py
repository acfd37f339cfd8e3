"""The commands and code that documents show, run: ``python docs/_build/document_commands.py``.

Blocks marked ``bash`` and ``python`` are run where the reader could run them as they stand. A block whose first line
says ``bash not-run: REASON`` is listed with its reason; so is a command with a placeholder (DIR, FILE, ...), one that
sets up an environment of its own (pip, nox) and one that wants a GPU or a cluster. The working folder holds a copy of
the committed records. The example of
``docs/adding-a-method.md`` is installed as a plug-in package and run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tvrbench.harness.core.console import say

LIMIT_S = 600
PLUGIN = Path("docs/adding-a-method.md")
_FENCE = re.compile(r"^```(?P<kind>bash|python|toml)(?: not-run: (?P<reason>[^\n]+))?\n(?P<body>.*?)^```$", re.M | re.S)
_COMMENT = re.compile(r"(^|\s)#.*$")
_PLACEHOLDER = re.compile(r"(?<![\w-])(DIR|FILE|NAME|URL|ID|SHA256|A|B|METHOD|PROTOCOL|DATASET)(?![\w-])")
_ELSEWHERE: Mapping[str, str] = {
    "pip": "sets up an environment",
    "nox": "a session of its own",
    "torchrun": "wants several GPUs",
    "sbatch": "wants a cluster",
    "git": "changes a checkout",
    "apt-get": "installs system packages",
}


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One command or piece of code in a document.

    Attributes:
        place: file and line.
        kind: ``bash`` or ``python``.
        text: what is run.
        reason: why it is not run here; None where it is.
    """

    place: str
    kind: str
    text: str
    reason: str | None


def shown(name: str, text: str) -> Iterator[Shown]:
    """Every command and piece of code in a document, in order."""
    for fence in _FENCE.finditer(text):
        line = text.count("\n", 0, fence.start("body")) + 1
        if fence["kind"] == "python":
            yield Shown(place=f"{name}:{line}", kind="python", text=fence["body"], reason=fence["reason"])
        elif fence["kind"] == "bash":
            for offset, command in _commands(fence["body"]):
                reason = fence["reason"] or _elsewhere(command)
                yield Shown(place=f"{name}:{line + offset}", kind="bash", text=command, reason=reason)


def _commands(body: str) -> Iterator[tuple[int, str]]:
    """(line in the block, command): continued lines joined, comments and empty lines left out."""
    joined, start = "", 0
    for offset, line in enumerate(body.splitlines()):
        start = start if joined else offset
        joined += line.removesuffix("\\")
        if not line.endswith("\\"):
            command = " ".join(_COMMENT.sub("", joined).split())
            if command:
                yield start, command
            joined = ""


def _elsewhere(command: str) -> str | None:
    words = command.split()
    first = next((word for word in words if "=" not in word), "")
    if first in _ELSEWHERE:
        return _ELSEWHERE[first]
    if found := _PLACEHOLDER.search(command):
        return f"{found.group(1)} is the reader's"
    return "wants a GPU" if "cuda" in command else None


def run(piece: Shown, folder: Path, extra: Mapping[str, str]) -> str | None:
    """Run it in ``folder``; None, or the end of what it said where it failed."""
    argv = (
        ["bash", "-euo", "pipefail", "-c", piece.text] if piece.kind == "bash" else [sys.executable, "-c", piece.text]
    )
    # The commands of this interpreter's environment, whether or not it was activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    try:
        done = subprocess.run(
            argv,
            cwd=folder,
            env={**os.environ, "PATH": path, **extra},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {LIMIT_S} s"
    lines = (done.stderr or done.stdout).strip().splitlines()
    return None if done.returncode == 0 else "\n".join(lines[-5:]) or f"exit code {done.returncode}"


def plugin_package(text: str, folder: Path) -> str:
    """Lay the example out in ``folder`` as an installed package would lie; returns the method's name.

    Raises:
        ValueError: the document holds no example, or no entry point.
    """
    blocks = {fence["kind"]: fence["body"] for fence in _FENCE.finditer(text) if fence["kind"] != "bash"}
    entry = re.search(r'^(\w+) = "(\w+):\w+"$', blocks.get("toml", ""), re.MULTILINE)
    if "python" not in blocks or entry is None:
        raise ValueError(f"{PLUGIN} holds no example with an entry point")
    name, module = entry.group(1), entry.group(2)
    (folder / f"{module}.py").write_text(blocks["python"], encoding="utf-8")
    about = folder / f"{module}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8")
    line = entry.group(0).replace('"', "")
    (about / "entry_points.txt").write_text(f"[tvrbench.methods]\n{line}\n", encoding="utf-8")
    return name


def check(root: Path) -> int:
    """Run everything; the number of failures."""
    documents = [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]
    failures = ran = 0
    with tempfile.TemporaryDirectory() as work, tempfile.TemporaryDirectory() as installed:
        method = plugin_package((root / PLUGIN).read_text(encoding="utf-8"), Path(installed))
        if (records := root / "results" / "records").is_dir():
            shutil.copytree(records, Path(work) / "results" / "records")
        use = [f"tvrbench profile {method} --json", f"tvrbench list methods | grep -w {method}"]
        pieces = [
            piece
            for document in documents
            if document.is_file()
            for piece in shown(document.relative_to(root).as_posix(), document.read_text(encoding="utf-8"))
        ]
        pieces += [Shown(place=str(PLUGIN), kind="bash", text=command, reason=None) for command in use]
        for piece in pieces:
            first = piece.text.strip().splitlines()[0]
            if piece.reason is not None:
                say(f"not run   {piece.place}: {first} ({piece.reason})")
                continue
            fault = run(piece, Path(work), {"PYTHONPATH": installed})
            ran, failures = ran + 1, failures + (fault is not None)
            say(f"{'ok        ' if fault is None else 'FAILED    '}{piece.place}: {first}")
            if fault is not None:
                say(fault)
    say(f"documents: {ran} commands and pieces of code run, {failures} failed, {len(pieces) - ran} not run")
    return failures


def main() -> int:
    """Exit code 1 where something that a document shows does not work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(), help="the repository; the working directory by default")
    return 1 if check(parser.parse_args().root) else 0


if __name__ == "__main__":
    sys.exit(main())
