"""``canonical``: what two runs with the same seed on one machine must have in common."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from tvrbench.harness.records.record import MeasurementDoc

_VOLATILE_KEYS = ("environment", "command", "started", "duration_s")
_TIME = r"[numµ]?s|sec|seconds?|min|minutes?|h|hours?"
_MEMORY = r"[KMGT]?i?B|bytes?"
_ENERGY = r"[kMm]?(J|W|Wh)"
# Times and their ratios: speed-ups, cores kept busy by other processes, clocks.
_VOLATILE_UNIT = re.compile(rf"(^|[\s/*-])({_TIME}|{_MEMORY}|{_ENERGY}|x|cores|[kMG]?Hz)($|[\s/*-])")
# Percentages of counts repeat; these are percentages of times.
_VOLATILE_SHARES = ("share_of_peak", "speedup_reached")


def canonical(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without everything that may differ between two runs with the same seed on one machine.

    Time and provenance keys are left out, and whether the learning rate was searched or taken from an earlier run.
    Costs in units of time, memory, energy or power, and ratios and shares of times, keep only their name and unit.
    """
    kept = copy.deepcopy({key: value for key, value in record.items() if key not in _VOLATILE_KEYS})
    kept["metrics"].get("training", {}).get("learning_rate_choice", {}).pop("reused", None)
    return kept | {"cost": [_repeatable(measurement) for measurement in record["cost"]]}


def _repeatable(measurement: MeasurementDoc) -> dict[str, Any]:
    name, unit = measurement["name"], measurement["unit"]
    if _VOLATILE_UNIT.search(unit) or (unit == "%" and name in _VOLATILE_SHARES):
        return {"name": name, "unit": unit}
    return dict(measurement)
