"""Every error that the product raises has a literal, stable code; the wording of all messages is one snapshot.

After a change of wording: ``pytest tests/contract/test_messages.py --snapshot-update``, and read the difference.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
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
TEXT_PARAMETERS = {"problem", "reason", "message", "cause", "text", "fault", "what"}
"""Names of parameters with which a helper such as ``malformed(place, problem)`` is told the words of its message."""
CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9]+(-[a-z0-9]+)*)+")


@dataclass(frozen=True)
class Construction:
    """An error that is made somewhere in the source."""

    place: str
    scope: ast.AST
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


def _template(node: ast.expr, texts: Mapping[str, ast.expr]) -> str:
    """The message as its source has it: text, with ``{...}`` for every inserted value that is not text itself.

    Args:
        node: the message.
        texts: what local names hold, so that ``message = ...; raise UsageError(message, ...)`` shows its words.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_template(part, texts) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _template(node.value, texts)
    if isinstance(node, ast.BinOp) and _is_text(node):
        return _template(node.left, texts) + _template(node.right, texts)
    if isinstance(node, ast.Name) and node.id in texts:
        return _template(texts[node.id], {name: text for name, text in texts.items() if name != node.id})
    return f"{{{ast.unparse(node)}}}"


def _is_text(node: ast.expr) -> bool:
    """True for a string, an f-string, or a sum with one of them."""
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Add) and (_is_text(node.left) or _is_text(node.right))
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _own_nodes(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a module, class or function, in the order of the source, without those of functions inside it."""
    for child in ast.iter_child_nodes(scope):
        yield child
        if not isinstance(child, ast.FunctionDef):
            yield from _own_nodes(child)


def _calls(tree: ast.Module) -> Iterator[tuple[ast.Call, ast.AST, dict[str, ast.expr]]]:
    """Every call, with the function that it is in and what that function's names hold there."""
    for scope in [tree, *(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))]:
        texts: dict[str, ast.expr] = {}
        for node in _own_nodes(scope):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                texts.pop(node.targets[0].id, None)
                texts |= {node.targets[0].id: node.value} if _is_text(node.value) else {}
            elif isinstance(node, ast.Call):
                yield node, scope, dict(texts)


@cache
def _helpers() -> dict[str, list[tuple[str, str, list[str]]]]:
    """Functions that build an error from texts they are given: name -> code, message, names of parameters."""
    helpers: dict[str, list[tuple[str, str, list[str]]]] = {}
    for construction in _constructions():
        if isinstance(function := construction.scope, ast.FunctionDef) and construction.code is not None:
            names = [parameter.arg for parameter in function.args.args]
            if any(f"{{{name}}}" in construction.message for name in names if name in TEXT_PARAMETERS):
                helpers.setdefault(function.name, []).append((construction.code, construction.message, names))
    return helpers


def _messages() -> Iterator[tuple[str, str]]:
    """Code and template of every message; those that a helper builds, once for each of its callers."""
    for construction in _constructions():
        called = isinstance(construction.scope, ast.FunctionDef) and construction.scope.name in _helpers()
        if construction.code is not None and not called:
            yield construction.code, construction.message
    for _, tree in _trees():
        for call, _, texts in _calls(tree):
            for code, message, names in _helpers().get(_name(call.func), []):
                given = dict(zip(names, call.args, strict=False)) | {k.arg: k.value for k in call.keywords if k.arg}
                for name in TEXT_PARAMETERS & given.keys():
                    message = message.replace(f"{{{name}}}", _template(given[name], texts))
                yield code, message


@cache
def _constructions() -> list[Construction]:
    known, constructions = _error_classes(), []
    for path, tree in _trees():
        for call, scope, texts in _calls(tree):
            if _name(call.func) in known:
                code = next((word.value for word in call.keywords if word.arg == "code"), None)
                literal = code.value if isinstance(code, ast.Constant) and isinstance(code.value, str) else None
                message = _template(call.args[0], texts) if call.args else ""
                place = f"{path.relative_to(ROOT)}:{call.lineno}"
                constructions.append(Construction(place=place, scope=scope, code=literal, message=message))
    return constructions


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
    for code, message in _messages():
        messages.setdefault(code, set()).add(message)
    assert {code: sorted(templates) for code, templates in sorted(messages.items())} == snapshot(
        extension_class=JSONSnapshotExtension
    )
