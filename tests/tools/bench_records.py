"""Made-up efficiency records, for the tests of what is reported from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tvrbench.harness.records.record import Measurement
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.data.bench_rows import Bench, benches
from tvrbench.harness.reporting.data.records import stored_records
from tvrbench.harness.reporting.papers.published import load_variants
from tvrbench.harness.reporting.tables.table import Cell, Table

CPU, GPU = "Some CPU", "Some GPU"
TEMPME = {
    "rank": 8,
    "r": 10,
    "clip_ratio": 0.4,
    "intra_ratio": 0.2,
    "merge_blocks": [8, 9, 10],
    "merge_frames": [2, 2, 3],
    "frame_positions": True,
    "proportional_attention": True,
}
ROWS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "lora": ("lora", {"rank": 8}),
    "clip4clip": ("full", {"rank": 8, "head": "meanP"}),
    "tempme": ("lora", TEMPME),
    "centerclip": ("full", {"clustering": "kmedoids", "schedule": [[6, 4, 160]]}),
    "frame_subsample": ("lora", {"keep": 6}),
}


def speed(value: float, batch: int = 4, device: str = "cpu", **said: Any) -> Measurement:
    """Videos a second, with quartiles 2 % off."""
    conditions = {"what": "inference", "precision": "float32", "compile": False, "device": device, "batch": batch}
    return Measurement("throughput", value, "videos/s", [0.98 * value, value, 1.02 * value], conditions | said)


def counts(gmacs: float, tokens: int, trainable: int = 0, frames: int = 12) -> list[Measurement]:
    """What is counted; tokens that are the same after every block."""
    blocks = [[frames, tokens // frames]] * 2 if tokens and tokens % frames == 0 else [[frames, 50], [1, tokens]]
    return [
        Measurement("gmacs_video", gmacs, "GMACs"),
        Measurement("output_tokens", tokens, "tokens", conditions={"leaving_blocks": blocks}),
        Measurement("params_trainable", trainable, "parameters"),
    ]


def ratio(value: float, allowed: float, spread: float = 0.05, device: str = "cpu", **said: Any) -> list[Measurement]:
    """A paired speed-up of one round, and so much to both sides of it."""
    conditions: dict[str, Any] = {"what": "comparison", "batch": 4, "against": "lora", "device": device} | said
    conditions |= {"against_options": {"tuning": "lora"}, "low": (1 - spread) * value, "high": (1 + spread) * value}
    return [
        Measurement("speedup", value, "x", [value], conditions),
        Measurement("speedup_reached", 100 * value / allowed, "%", (), conditions | {"allowed": allowed}),
    ]


def save(
    root: Path,
    method: str,
    cost: Sequence[Measurement],
    *,
    device: str = CPU,
    hash: str = "aaaaaaaa",
    backbone: str = "ViT-B-16",
    tuning: str | None = None,
    started: str = "2025-03-01T10:00:00+00:00",
    protocol: str = "efficiency",
    given: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Store one efficiency record of a method below ``root``."""
    usual, preset = ROWS.get(method, ("frozen", {}))
    return RecordStore(root).save(
        {
            "schema_version": 1,
            "protocol": {"name": protocol, "hash": hash},
            "method": {
                "name": method,
                "options": {"backbone": backbone, "frames": 12, "tuning": tuning or usual} | dict(preset) | options,
                **({} if given is None else {"given": dict(given)}),
            },
            "tuning": tuning or usual,
            "seed": 0,
            "data": {"dataset": "none", "split_fingerprint": None, "frames_fingerprint": None, "skipped": []},
            "weights_sha256": None,
            "metrics": {},
            "cost": [measurement.to_json() for measurement in cost],
            "environment": {
                "device": device,
                "cpu_count": 2,
                "driver": None,
                "versions": {"torch": "2"},
                "git_sha": None,
                "dirty": None,
            },
            "command": f"tvrbench bench {method}",
            "started": started,
            "duration_s": 60.0,
            "status": "completed",
            "failure": None,
        }
    )


def step(gmacs: float, gigabytes: float, batch: int = 32, precision: str = "bfloat16") -> list[Measurement]:
    """What is counted of a training step."""
    said = {"what": "training", "batch": batch, "precision": precision}
    return [
        Measurement("gmacs_step", gmacs, "GMACs", conditions={"what": "training"}),
        Measurement("step_memory", gigabytes, "GB", conditions=said),
    ]


def save_counted(
    root: Path, method: str, cost: Sequence[Measurement], frames: int, hash: str = "cccccccc", **options: Any
) -> Path:
    """Store one record of ``bench --count-only``; every option but the tuning is one that was given."""
    shape = {name: options.pop(name) for name in ("backbone", "tuning", "started") if name in options}
    given: dict[str, Any] = {"protocol": "efficiency/counted", "device": "meta", "given": options, "frames": frames}
    return save(root, method, cost, hash=hash, **shape, **given, **options)


def found(root: Path) -> list[Bench]:
    """The benches that the records below ``root`` make up."""
    return benches(stored_records(RecordStore(root), "efficiency"), load_variants())[0]


def column(table: Table, key: str) -> dict[str, Cell]:
    """The cells of a column, of the page or of the CSV alone, by the first value of their row."""
    for columns, rows in ((table.columns, table.rows), (table.csv_columns, table.csv_rows)):
        if key in (keys := [column.key for column in columns]):
            return {str(row[0].value): row[keys.index(key)] for row in rows}
    names = (str(row[0].value) for row in table.csv_rows)
    return {name: Cell(text=text or "", value=text) for name, text in zip(names, table.csv_texts[key], strict=True)}
