"""Methods as a plug-in package would bring them, registered by entry point: that of docs/adding-a-method.md, others."""

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

DOCUMENT = Path(__file__).parents[2] / "docs" / "adding-a-method.md"
NAME = "every_nth"


@contextmanager
def registered_plugin(folder: Path) -> Iterator[None]:
    """Register the documented method for the block."""
    code = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert code is not None
    assert sum(1 for line in code.group(1).splitlines() if line) <= 30
    with registered(folder, NAME, code.group(1), "EveryNth"):
        yield


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
