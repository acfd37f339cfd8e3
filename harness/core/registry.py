"""Names to classes, found lazily: built-in tables and plug-in packages through entry points.

A table (group ``tvrbench.tables``) maps names to ``"module:Class"``. A plug-in package declares single entries in
``tvrbench.methods``, ``tvrbench.baselines`` or ``tvrbench.datasets``. Nothing is imported until it is looked up.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Literal, get_args

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.text import brief_repr

ALL = "all"
"""In a list of methods: every registered one."""
KINDS = ("methods", "baselines", "datasets")
Group = Literal[
    "reference", "full fine-tuning", "parameter-efficient", "token reduction", "retrieval stage", "fewer frames"
]
GROUPS: tuple[Group, ...] = get_args(Group)
"""Groups of methods in the order of tables."""


def merge_tables(kind: str, tables: list[tuple[str, Mapping[str, str]]]) -> dict[str, str]:
    """Join (provider, name -> "module:Class") tables; UsageError names both places of a duplicate name."""
    merged: dict[str, str] = {}
    for provider, table in tables:
        for name, target in table.items():
            if name in merged:
                message = f"{kind}: {name!r} is registered twice, by {merged[name]} and by {target} ({provider})"
                raise UsageError(f"{message}: rename one", code="registry.duplicate", kind=kind, name=name)
            merged[name] = target
    return merged


def table(kind: str) -> Mapping[str, str]:
    """All registered names of a kind with their targets, built-in ones first.

    Raises:
        UsageError: a name is registered twice, or as a method and as a baseline, which commands look up together.
    """
    for name in sorted(set(_table("methods")) & set(_table("baselines"))):
        message = f"{name!r} is registered as a method and as a baseline: rename one"
        raise UsageError(message, code="registry.duplicate", kind="methods", name=name)
    return _table(kind)


@cache
def _table(kind: str) -> Mapping[str, str]:
    builtin = [(e.value, e.load()) for e in entry_points(group="tvrbench.tables") if e.name == kind]
    plugins = [
        (e.dist.name if e.dist else "plug-in", {e.name: e.value}) for e in entry_points(group=f"tvrbench.{kind}")
    ]
    return merge_tables(kind, [*builtin, *plugins])


def names(*kinds: str) -> list[str]:
    """Registered names of the kinds, in order of registration."""
    return [name for kind in kinds for name in table(kind)]


def matching(*kinds: str, **attributes: Any) -> list[str]:
    """Names whose card, or class where it has none, has these values: ``matching("methods", role="dense")``."""

    def matches(name: str) -> bool:
        cls = lookup(name, *kinds)
        return all(getattr(getattr(cls, "card", cls), key, None) == value for key, value in attributes.items())

    return [name for name in names(*kinds) if matches(name)]


def declared(dataset: str, attribute: str) -> Any:
    """What the class of a data set declares under a name; None where it does not, or no such data set is registered."""
    return getattr(lookup(dataset, "datasets"), attribute, None) if dataset in table("datasets") else None


def lookup(name: str, *kinds: str) -> Any:
    """The class registered under ``name`` in one of the kinds; UsageError lists the known names."""
    for kind in kinds:
        target = table(kind).get(name)
        if target is not None:
            module, _, attribute = target.partition(":")
            return getattr(import_module(module), attribute)
    known = names(*kinds)
    close = difflib.get_close_matches(name, known, n=1)
    guess = f" (did you mean {close[0]}?)" if close else ""
    hint = " (options are given with --set NAME=VALUE)" if "=" in name else guess
    what = " or ".join(kind.removesuffix("s") for kind in kinds)
    message = f"unknown {what} {brief_repr(name)}{hint}: known are {', '.join(known)}"
    raise UsageError(message, code="registry.unknown", what=what, name=name)
