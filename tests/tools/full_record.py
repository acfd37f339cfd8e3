"""``make_record``: a record with every key filled, of a run that never was."""

from __future__ import annotations

from typing import Any

from tvrbench.harness.records.record import Measurement

DIRECTION = {"R1": 46.1, "R5": 71.8, "R10": 80.7, "MdR": 2.0, "MnR": 14.8, "RSum": 198.6}


def make_record(**changes: Any) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "protocol": {"name": "standin/uniform", "hash": "0123456789abcdef"},
        "method": {"name": "tempme", "options": {"r": 1, "merge_blocks": (8, 9, 10), "clip_ratio": 0.3}},
        "tuning": "lora",
        "seed": 0,
        "data": {
            "dataset": "standin",
            "split_fingerprint": "a" * 64,
            "frames_fingerprint": None,
            "skipped": ["video7"],
            "train_split": "train-9k",
        },
        "weights_sha256": "b" * 64,
        "metrics": {
            "t2v": DIRECTION,
            "v2t": DIRECTION,
            "RSum": 198.6,
            "subsets": {"order-only": {"t2v": DIRECTION, "pair_accuracy": 98.0}},
            "pair_accuracy": None,
            "selection": "last",
            "intervals": {"confidence": 0.95, "t2v": {"R1": [43.0, 49.2]}},
            "learning_rate_grid": {"6e-4": {"R1": 44.0}},
        },
        "per_query_ranks_path": None,
        "cost": [
            Measurement("video_gmacs", 34.76, "GMACs").to_json(),
            Measurement.missing("peak_memory", "MiB", "no GPU", instrument="NVML").to_json(),
        ],
        "environment": {
            "device": "a CPU",
            "cpu_count": 2,
            "driver": None,
            "versions": {"python": "3.11.7", "fvcore": None},
            "git_sha": "c" * 40,
            "dirty": False,
        },
        "command": "tvrbench run standin/uniform",
        "started": "2025-01-02T03:04:05Z",
        "duration_s": 12.5,
        "status": "completed",
        "failure": None,
        **changes,
    }


def failed_record(**changes: Any) -> dict[str, Any]:
    return make_record(status="failed", failure="out of memory", metrics={}, **changes)
