"""Costs of a full-size model, measured without data, as a record without metrics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.records.provenance import environment
from tvrbench.harness.records.record import SCHEMA_VERSION, Measurement, ProtocolRef
from tvrbench.harness.records.store import RecordStore


@dataclass(frozen=True, kw_only=True)
class StartTime:
    """When a measurement began: ``StartTime()`` is now."""

    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    clock: float = field(default_factory=time.monotonic)


def store_costs(
    store: RecordStore,
    protocol: ProtocolRef,
    model: RetrievalModel,
    backbone: str,
    found: Sequence[Measurement],
    *,
    device: str,
    command: str,
    began: StartTime,
    weights_sha256: str | None = None,
) -> Path:
    """Store what was measured of a model on a preset backbone; returns the record's path.

    Args:
        store: the records.
        protocol: under which name, and the hash of how it was measured.
        model: what was measured, with or without values.
        backbone: its preset.
        found: the measurements.
        device: where they ran.
        command: that asked for them.
        began: when.
        weights_sha256: of the weights' file; None for random ones.
    """
    return store.save(
        {
            "schema_version": SCHEMA_VERSION,
            "protocol": protocol,
            "method": {
                "name": model.name,
                "options": {"backbone": backbone, "frames": model.frames} | model.spec.describe(),
            },
            "tuning": model.spec.options.tuning,
            "seed": 0,
            "data": {"dataset": "none", "split_fingerprint": None, "frames_fingerprint": None, "skipped": []},
            "weights_sha256": weights_sha256,
            "metrics": {},
            "cost": [measurement.to_json() for measurement in found],
            "environment": environment(device),
            "command": command,
            "started": began.at.isoformat(timespec="seconds"),
            "duration_s": time.monotonic() - began.clock,
            "status": "completed",
            "failure": None,
        }
    )
