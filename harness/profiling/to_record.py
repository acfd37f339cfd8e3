"""Costs of a model, measured without data, as a record without metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tvrbench.harness.models.backbone.architecture import vision_name
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.records.provenance import environment
from tvrbench.harness.records.record import SCHEMA_VERSION, Measurement, ProtocolRef
from tvrbench.harness.records.store import RecordStore


def record_costs(
    store: RecordStore,
    protocol: ProtocolRef,
    model: RetrievalModel,
    measure: Callable[[], Sequence[Measurement]],
    *,
    device: str,
    command: str,
    weights_sha256: str | None = None,
) -> tuple[Path, Sequence[Measurement]]:
    """Measure a model and store a record of it; returns the record's path and the measurements.

    Args:
        store: the records.
        protocol: its name, and the hash of how the model is measured.
        model: what is measured, with or without values.
        measure: makes the measurements.
        device: where they run.
        command: that asked for them.
        weights_sha256: of the weights' file; None for random ones.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    costs = measure()
    shape = {"backbone": vision_name(model.clip.arch), "frames": model.frames}
    record = {
        "schema_version": SCHEMA_VERSION,
        "protocol": protocol,
        "method": {"name": model.name, "options": shape | model.spec.describe()},
        "tuning": model.spec.options.tuning,
        "seed": 0,
        "data": {"dataset": "none", "split_fingerprint": None, "frames_fingerprint": None, "skipped": []},
        "weights_sha256": weights_sha256,
        "metrics": {},
        "cost": [measurement.to_json() for measurement in costs],
        "environment": environment(device),
        "command": command,
        "started": started.isoformat(timespec="seconds"),
        "duration_s": time.monotonic() - clock,
        "status": "completed",
        "failure": None,
    }
    return store.save(record), costs
