"""pytest plugin that runs the commands and code that documents show: ``pytest -p snippets README.md docs``.

Each command of a ``bash`` block and each ``python`` block is a test. A comment ``<!-- skip: next "reason" -->`` skips
one. Commands are also skipped if they contain a placeholder (DIR, FILE, ...), set up an environment, take long or need
a GPU or a cluster; their ``tvrbench`` options must exist all the same, as must those of a ``tvrbench`` command in a
sentence, and files of the repository that are named. A ``toml`` block with the entry point of a method installs the
document's last ``python`` block as a plug-in.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sybil import Document, Example, Region, Sybil
from sybil.parsers.markdown import SkipParser
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

ROOT = Path(__file__).parents[2]
LIMIT_S = 600
_COMMAND = re.compile(r"(?:.*\\\n)*.+")  # a line and those that continue it
_COMMENT = re.compile(r"(^|\s)#.*$")
_PLACEHOLDER = re.compile(r"(?<![\w-])(DIR|FILE|NAME|URL|ID|SHA256|A|B|METHOD|PROTOCOL|DATASET)(?![\w-])")
_PATH = re.compile(r"`((?:harness|methods|baselines|datasets|tests|docs)/[a-z0-9_/.-]+)`")
_IN_PROSE = re.compile(r"(?<!`)`(tvrbench [^`]+)`(?!`)")
_ENTRY_POINT = re.compile(r'^(\w+) = "(\w+):\w+"$', re.MULTILINE)
_LONG = {"tvrbench run standin/uniform", "tvrbench bench tempme centerclip"}
_ELSEWHERE = {
    "pip": "sets up an environment",
    "nox": "sets up an environment",
    "torchrun": "needs several GPUs",
    "sbatch": "needs a cluster",
    "git": "changes a checkout",
    "apt-get": "installs system packages",
}


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make a folder to run in, with the committed records and an importable folder ``plugins``."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "plugins").mkdir()
    shutil.copytree(ROOT / "results" / "records", folder / "runs" / "records")  # as if the reader had run them
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
        patch.setenv("PYTHONPATH", str(folder / "plugins"))
        yield folder


def snippets(document: Document) -> Iterator[Region]:
    """Yield the commands, Python blocks, entry points and names of files and commands of a document."""
    for match in _PATH.finditer(document.text):
        yield Region(match.start(), match.end(), match[1], find_file)
    for match in _IN_PROSE.finditer(document.text):
        yield Region(match.start(), match.end(), " ".join(match[1].split()), find_command)
    for block in FencedCodeBlockLexer("bash|python|toml")(document):
        language, source = block.lexemes["language"], block.lexemes["source"]
        if language == "python":
            yield Region(block.start, block.end, source, run_python)
        elif language == "toml" and _ENTRY_POINT.search(source):
            yield Region(block.start, block.end, source, install_plugin)
        elif language == "bash":
            start = block.start + source.offset
            for match in _COMMAND.finditer(source):
                if command := " ".join(_COMMENT.sub("", match[0].replace("\\\n", "")).split()):
                    yield Region(start + match.start(), start + match.end(), command, run_command)


def run_command(example: Example) -> str | None:
    """Run a command, or skip it where it cannot run here."""
    command = str(example.parsed)
    if unknown := unknown_options(command):
        return f"{command}: no such command or option ({', '.join(unknown)})"
    if reason := why_elsewhere(command):
        pytest.skip(f"{Path(example.path).name}:{example.line}: {command} ({reason})")
    return _run(["bash", "-euo", "pipefail", "-c", command], example.namespace["workplace"])


def run_python(example: Example) -> str | None:
    """Run a block in an interpreter of its own."""
    example.namespace["python"] = str(example.parsed)
    return _run([sys.executable, "-c", str(example.parsed)], example.namespace["workplace"])


def install_plugin(example: Example) -> str | None:
    """Lay the document's last Python block out as an installed package, and profile the method that it registers."""
    workplace: Path = example.namespace["workplace"]
    entry = _ENTRY_POINT.search(example.parsed)
    if entry is None or "python" not in example.namespace:
        return "there is no Python block before the entry point"
    method, module = entry.groups()
    about = workplace / "plugins" / f"{module}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8")
    point = entry[0].replace('"', "")
    (about / "entry_points.txt").write_text(f"[tvrbench.methods]\n{point}\n", encoding="utf-8")
    (workplace / "plugins" / f"{module}.py").write_text(example.namespace["python"], encoding="utf-8")
    return _run(["tvrbench", "profile", method, "--json"], workplace)


def find_file(example: Example) -> str | None:
    """Check that a file exists in the repository."""
    return None if (ROOT / example.parsed).exists() else f"{example.parsed} does not exist"


def find_command(example: Example) -> str | None:
    """Check that a command in a sentence exists, and its options with it; ``[--option]`` may be left out."""
    unknown = unknown_options(re.sub(r"[][]", "", example.parsed))
    return f"{example.parsed}: no such command or option ({', '.join(unknown)})" if unknown else None


def why_elsewhere(command: str) -> str | None:
    """Say why a command cannot run here; None where it can."""
    program = next((word for word in command.split() if "=" not in word), "")
    if program in _ELSEWHERE:
        return _ELSEWHERE[program]
    if command in _LONG:
        return "takes minutes"
    if placeholder := _PLACEHOLDER.search(command):
        return f"{placeholder[1]} is the reader's"
    return "needs a GPU" if re.search(r"cuda|gpu", command) else None


def unknown_options(command: str) -> list[str]:
    """List the options of a ``tvrbench`` command that its help does not name; all of them where it has no help."""
    words = command.partition("tvrbench ")[2].split()
    if not words:
        return []
    used = {word.partition("=")[0] for word in words if word.startswith("--")} | {"--help"}
    return sorted(used - _options(*words[: 2 if words[0] == "data" else 1]))


@functools.cache
def _options(*subcommand: str) -> set[str]:
    command = ["tvrbench", *subcommand]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
    exists = done.stdout.startswith(f"usage: {' '.join(command)} ")
    return set(re.findall(r"--[\w-]+", done.stdout)) if exists else set()


def _run(command: list[str], folder: Path) -> str | None:
    """Run a command in a folder; returns the end of its output where it failed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    output = "\n".join((done.stderr or done.stdout).splitlines()[-20:])
    return None if done.returncode == 0 else f"exit code {done.returncode}\n{output}"


pytest_collect_file = Sybil(
    parsers=[SkipParser(), snippets],
    path=str(ROOT),
    filenames=["README.md", "CONTRIBUTING.md"],
    patterns=["docs/*.md", "docs/appendix/*.md"],
    fixtures=["workplace"],
).pytest()
