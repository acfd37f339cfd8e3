"""Records with many methods and costs, reports made from them, and what tests read of those reports."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

from records import make_record

from tvrbench.datasets.msrvtt import MSRVTT
from tvrbench.harness.config.known_weights import OPENAI_WEIGHTS
from tvrbench.harness.config.protocol import load_protocol
from tvrbench.harness.records.record import Measurement, normalized
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.pages.report import write_report

HASH = "0123456789abcdef"
STANDIN = "standin/uniform"
TUNINGS = {"zero_shot": "frozen", "clip4clip": "full"}
GMACS = {"tempme": 34.76, "random": 0.0}


def metrics(r1: float, **changes: float) -> dict[str, float]:
    """Return the metrics of one direction."""
    return {"R1": r1, "R5": 80.0, "R10": 90.0, "MdR": 2.0, "MnR": 5.0, "RSum": r1 + 170.0, **changes}


def speed(value: float, **conditions: Any) -> Measurement:
    """Return a throughput."""
    return Measurement("throughput", value, "videos/s", conditions={"what": "inference", "batch": 32} | conditions)


def memory(value: float, **conditions: Any) -> Measurement:
    """Return a peak of the process's memory."""
    return Measurement("peak_process_memory", value, "MiB", conditions={"what": "inference"} | conditions)


def costs(method: str, **changes: Measurement | None) -> list[dict[str, Any]]:
    """Return the costs of a method; a change of None leaves one out."""
    trainable = {"zero_shot": 0, "tempme": 507_648}.get(method, 491_520)
    usual: dict[str, Measurement | None] = {
        "gmacs_video": Measurement("gmacs_video", GMACS.get(method, 52.96), "GMACs"),
        "output_tokens": Measurement("output_tokens", 97 if method == "tempme" else 600, "tokens"),
        "params_trainable": Measurement("params_trainable", trainable, "parameters"),
        "throughput": speed(31.2),
        "peak_process_memory": memory(812.3),
    }
    return [dict(m.to_json()) for m in (usual | changes).values() if m is not None]


def method_record(method: str = "tempme", r1: float = 50.0, **changes: Any) -> dict[str, Any]:
    """Return the record of a method with its tuning, costs and metrics."""
    record = make_record(method, r1, **{key: changes[key] for key in ("seed",) if key in changes})
    tuning = TUNINGS.get(method, "lora")
    if method != "tempme":
        record["method"]["options"] = {"backbone": "ViT-B-32", "frames": 12, "tuning": tuning, "rank": 8}
    record["metrics"] |= {"t2v": metrics(r1), "v2t": metrics(r1 - 2.0), "RSum": r1 + 170.0}
    return record | {"tuning": tuning, "cost": costs(method)} | changes


def full_size_record(method: str = "tempme", backbone: str = "ViT-B-32", **values: float) -> dict[str, Any]:
    """Return the record of a full-size model's costs, some of them changed."""
    record = method_record(method, metrics={}, protocol={"name": "paper-scale", "hash": HASH})
    record["method"]["options"]["backbone"] = backbone
    record["data"] = {"dataset": "none", "split_fingerprint": None, "frames_fingerprint": None, "skipped": []}
    record["cost"] = [m | {"value": values.get(m["name"], m["value"])} for m in record["cost"]]
    return record


@functools.cache
def _reference(protocol: str) -> tuple[tuple[str, str], ...]:
    """Name and hash of a protocol, which is made of every recipe."""
    return ("name", protocol), ("hash", load_protocol(protocol).hash)


def msrvtt_record(method: str, r1: float, kind: str = "published", **changes: Any) -> dict[str, Any]:
    """Return the record of a run on real data that compares with the papers: whole splits, OpenAI's weights."""
    openai = next(sha256 for sha256, backbone in OPENAI_WEIGHTS.items() if backbone == "ViT-B-32")
    given = {"protocol": dict(_reference(f"msrvtt-1ka-9k/{kind}")), "weights_sha256": openai}
    record = method_record(method, r1, **given, **{key: changes[key] for key in ("seed",) if key in changes})
    record["data"] |= {
        "dataset": "msrvtt",
        "test_videos": 1000,
        "test_captions": 1000,
        "train_videos": 9000,
        "train_pairs": 180_000,
        "split_fingerprint": MSRVTT.expected_fingerprints["test-1ka"],
        "train_fingerprint": MSRVTT.expected_fingerprints["train-9k"],
    }
    return record | changes


def write_unchecked(store: RecordStore, *records: dict[str, Any]) -> None:
    """Write records past the store, which takes no hostile names."""
    for number, record in enumerate(records):
        folder = store.folder(record["protocol"]["name"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02d}.json").write_text(json.dumps(normalized(record, "a record")), encoding="utf-8")


def report(store: RecordStore, tmp_path: Path, protocol: str = STANDIN, **options: Any) -> Path:
    """Write a report below ``tmp_path`` and return its folder."""
    return write_report(protocol, store, tmp_path / "reports", **options)[0].parent


def page(folder: Path) -> str:
    """Read the report's README.md."""
    return (folder / "README.md").read_text(encoding="utf-8")


def details(folder: Path) -> str:
    """Read the report's details.md."""
    return (folder / "details.md").read_text(encoding="utf-8")


def both_pages(folder: Path) -> str:
    """Read README.md, then details.md where there is one."""
    return page(folder) + (details(folder) if (folder / "details.md").is_file() else "")


def table_text(folder: Path, name: str = "main") -> str:
    """Return a table as a page shows it, from its caption to its footnotes, as Markdown; KeyError where none does."""
    before, link, _ = both_pages(folder).partition(f"\n[{name}.csv]")
    if not link:
        raise KeyError(name)
    return re.split(r"(?m)^\*\*(?=[^*\n]+\*\*\. )", before)[-1]


def table(folder: Path, name: str = "main") -> dict[str, dict[str, str]]:
    """Read a table of the pages by its first column, without the lines of groups; cells as Markdown.

    Raises:
        KeyError: no page shows the table.
    """
    lines = [line for line in table_text(folder, name).splitlines() if line.startswith("|")]
    header, _, *body = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert all(len(row) == len(header) for row in body)
    rows = [row for row in body if any(row[1:]) or len(row) == 1]
    return {row[0]: dict(zip(header, row, strict=True)) for row in rows}
