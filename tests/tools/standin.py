"""Runs on the embedded stand-in that are cut short: three training steps, no time measured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tvrbench.harness.config.protocol import Protocol, load_protocol
from tvrbench.harness.runs import suite
from tvrbench.harness.runs.config import RunConfig

STEPS = 3


def short(name: str, **changes: Any) -> Protocol:
    """Load a protocol with three steps of 8 pairs; ``changes`` replace further fields."""
    protocol = load_protocol(name)
    overrides = dict(protocol.recipe_overrides) | {"steps": STEPS, "batch_size": 8}
    return replace(protocol, recipe_overrides=overrides, **changes)


def shorten_runs(patch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Make ``tvrbench run``, called in this process, use ``short`` protocols and measure no time."""
    patch.setattr(suite, "load_protocol", lambda name: short(name, **changes))
    patch.setattr(suite, "RunConfig", lambda **values: RunConfig(**(values | {"timing": False})))
