"""Methods as a plug-in package would bring them, by entry point: those of the documents, and others."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pytest

from tvrbench.harness.core import registry

DOCUMENTS = Path(__file__).parents[2] / "docs"
NAME = "every_nth"
SCORER = "best_frames"


@contextmanager
def registered_plugin(folder: Path, name: str = NAME) -> Iterator[None]:
    """Register a documented method for the block: the reducer, or the scorer."""
    code = documented(name)
    kind, lines = {NAME: ("EveryNth", 30), SCORER: ("BestFramesMethod", 45)}[name]
    assert sum(1 for line in code.splitlines() if line) <= lines
    with registered(folder, name, code, kind):
        yield


def documented(name: str) -> str:
    """Return the code of a documented method."""
    page = {NAME: "adding-a-method.md", SCORER: "adding-a-scorer.md"}[name]
    (code,) = re.findall(r"```python\n(.*?)```", (DOCUMENTS / page).read_text(encoding="utf-8"), re.DOTALL)
    return str(code)


@contextmanager
def registered(folder: Path, name: str, code: str, kind: str) -> Iterator[None]:
    """Write ``code`` to a module in ``folder`` and register its class ``kind`` as a method for the block."""
    (folder / "my_package.py").write_text(code)
    entry = EntryPoint(name=name, value=f"my_package:{kind}", group="tvrbench.methods")

    def with_plugin(**wanted: str) -> Any:
        more = (entry,) if wanted.get("group") == "tvrbench.methods" else ()
        return (*entry_points(**wanted), *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(registry, "entry_points", with_plugin)
        registry._table.cache_clear()
        yield
    registry._table.cache_clear()
    sys.modules.pop("my_package", None)
