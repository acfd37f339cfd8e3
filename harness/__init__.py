"""The engine: loads, trains, evaluates and measures methods that it does not know by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvrbench.harness.models.factory import load_model

__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    # Lazy, so that the command line's --help does not wait for torch.
    if name == "load_model":
        from tvrbench.harness.models.factory import load_model

        return load_model
    raise AttributeError(name)
