"""Records made from one fixture, a stand-in run of TempMe, and what tests read of the reports on them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

from tvrbench.harness.records.reading import USUAL_READING
from tvrbench.harness.records.store import RecordStore

FIXTURE = Path(__file__).parents[1] / "fixtures" / "standin_record.json"


def weights_section(**changes: Any) -> dict[str, Any]:
    """Return a record's account of weights that were read in the usual way, from a file with a config beside it."""
    told = "open_clip_config.json"
    section = {"source": "w.pt", "sha256": None, "image_size": 224, "activation_source": told}
    return section | {"normalization_source": told} | dict(USUAL_READING) | changes


def make_record(
    method: str = "tempme", r1: float | None = None, protocol: str | None = None, **changes: Any
) -> dict[str, Any]:
    """Copy the fixture.

    Args:
        method: its name.
        r1: text-to-video R@1 in percent; its interval becomes 5 points to both sides.
        protocol: the protocol's name.
        changes: replace whole top-level keys; another seed took another time, as two trainings do.
    """
    record: dict[str, Any] = json.loads(FIXTURE.read_text(encoding="utf-8"))
    record["method"]["name"] = method
    if r1 is not None:
        record["metrics"]["t2v"]["R1"] = r1
        record["metrics"]["intervals"]["t2v"]["R1"] = [r1 - 5, r1 + 5]
    if protocol is not None:
        record["protocol"]["name"] = protocol
    return record | {"duration_s": record["duration_s"] + changes.get("seed", 0)} | changes


def failed_record(**changes: Any) -> dict[str, Any]:
    """Make the record of a run that failed."""
    return make_record(**({"status": "failed", "metrics": {}, "failure": "out of memory"} | changes))


def save(store: RecordStore, *records: dict[str, Any]) -> None:
    """Store each record."""
    for record in records:
        store.save(record)


def csv_rows(folder: Path, name: str = "main") -> list[dict[str, str]]:
    """Read one table of a report, a dictionary per row."""
    with (folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def html(markdown: str) -> str:
    """Render Markdown as GitHub does: tables, strikethrough and raw HTML."""
    return str(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown))
