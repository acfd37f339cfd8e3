"""Every error that the product raises has a literal, stable code; the wording of all messages is one snapshot.

After a change of wording: ``pytest tests/contract/test_messages.py --snapshot-update``, and read the difference.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion
from syrupy.extensions.json import JSONSnapshotExtension

pytestmark = pytest.mark.contract

ROOT = Path(__file__).parents[2]
PACKAGES = ("harness", "methods", "baselines", "datasets")
ROOTS = {"TvrbenchError", "UsageError", "CheckFailed", "RunFailed", "TrainingDiverged"}
CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9]+(-[a-z0-9]+)*)+")


@dataclass(frozen=True)
class Construction:
    """An error that is made somewhere in the source."""

    place: str
    code: str | None
    message: str


@cache
def _trees() -> list[tuple[Path, ast.Module]]:
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in paths]


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


@cache
def _error_classes() -> set[str]:
    """The errors for users and their subclasses, found through the names of bases."""
    classes = [node for _, tree in _trees() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    known, size = set(ROOTS), 0
    while len(known) > size:
        size = len(known)
        known |= {node.name for node in classes if known.intersection(map(_name, node.bases))}
    return known


def _template(node: ast.expr) -> str:
    """The message as its source has it: text, with ``{...}`` for every inserted value."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(part.value) if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}"
            for part in node.values
            if isinstance(part, ast.Constant | ast.FormattedValue)
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _template(node.left) + _template(node.right)
    return f"{{{ast.unparse(node)}}}"


@cache
def _constructions() -> list[Construction]:
    known, found = _error_classes(), []
    for path, tree in _trees():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and _name(node.func) in known):
                continue
            code = next((word.value for word in node.keywords if word.arg == "code"), None)
            found.append(
                Construction(
                    place=f"{path.relative_to(ROOT)}:{node.lineno}",
                    code=code.value if isinstance(code, ast.Constant) and isinstance(code.value, str) else None,
                    message=_template(node.args[0]) if node.args else "",
                )
            )
    return found


def test_every_error_has_a_literal_dotted_code() -> None:
    offenders = [c.place for c in _constructions() if c.code is None or not CODE.fullmatch(c.code)]
    assert not offenders, "errors without a literal code such as 'video.missing':\n" + "\n".join(offenders)


def test_no_error_is_raised_without_a_message() -> None:
    """``raise UsageError`` without a call would escape the walk above."""
    known = _error_classes()
    bare = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in _trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and node.exc is not None and _name(node.exc) in known
    ]
    assert bare == []


def test_messages_are_those_of_the_snapshot(snapshot: SnapshotAssertion) -> None:
    messages: dict[str, set[str]] = {}
    for construction in _constructions():
        if construction.code is not None:
            messages.setdefault(construction.code, set()).add(construction.message)
    assert {code: sorted(templates) for code, templates in sorted(messages.items())} == snapshot(
        extension_class=JSONSnapshotExtension
    )
