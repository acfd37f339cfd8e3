"""The engine: loads, trains, evaluates and measures methods that it does not know by name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvrbench.harness.core.errors import UsageError
    from tvrbench.harness.evaluation.metrics import retrieval_metrics
    from tvrbench.harness.evaluation.two_stage import two_stage_ranks
    from tvrbench.harness.models.factory import load_model
    from tvrbench.harness.training.trainer import Trainer

__all__ = ["Trainer", "UsageError", "load_model", "retrieval_metrics", "two_stage_ranks"]

_MODULES = {
    "Trainer": "training.trainer",
    "UsageError": "core.errors",
    "load_model": "models.factory",
    "retrieval_metrics": "evaluation.metrics",
    "two_stage_ranks": "evaluation.two_stage",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that the command line's --help does not wait for torch.
    if name not in _MODULES:
        raise AttributeError(name)
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
