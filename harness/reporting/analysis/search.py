"""What a search costs a row: multiply-adds of a query, bytes stored and read, and time at the measured galleries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tvrbench.harness.records.record import MeasurementDoc
from tvrbench.harness.reporting.data.rows import Cost, MethodRow

OWN, INEXACT = "search", "faiss_hnsw"
WAYS: Mapping[str, str] = {OWN: "", "faiss_flat": "FAISS flat", INEXACT: "FAISS HNSW"}
"""Ways to search, by the start of their measurements' names: the own one, and the alternatives for single vectors."""
_STORED = "storage_video"


def searched_rows(rows: Sequence[MethodRow]) -> list[MethodRow]:
    """The rows whose records hold what a search costs."""
    return [row for row in rows if row.encodes and row.holds(_STORED)]


def searched_ways(row: MethodRow) -> list[str]:
    """The ways (of ``WAYS``) in which a row's search was timed; its own also where it could not be timed."""
    return [way for way in WAYS if search_conditions(row, way) or (way == OWN and _latencies(row, way))]


def search_conditions(row: MethodRow, way: str) -> Mapping[str, Any]:
    """The conditions of a row's time in the largest gallery; empty where none was timed in this way."""
    valued = [m["conditions"] for m in _latencies(row, way) if m["value"] is not None]
    return max(valued, key=lambda conditions: int(conditions.get("gallery", 0)), default={})


def searched_galleries(rows: Sequence[MethodRow]) -> list[int]:
    """The sizes of the galleries in which rows were searched in any way, ascending."""
    timed = [m["conditions"] for row in rows for way in searched_ways(row) for m in _latencies(row, way)]
    return sorted({int(conditions["gallery"]) for conditions in timed if "gallery" in conditions})


def why_no_alternative(rows: Sequence[MethodRow]) -> str | None:
    """The reason why no alternative was timed; None where one was, or none was asked for."""
    missing = [m for row in rows for m in row.measurements if m["name"].startswith("faiss_") and m["value"] is None]
    timed = any(searched_ways(row) not in ([], [OWN]) for row in rows)
    return None if timed or not missing else str(missing[0]["conditions"]["reason"])


def text_macs(row: MethodRow) -> Cost | None:
    """Millions of multiply-adds of encoding a query's text."""
    text = row.cost("gmacs_text")
    return text if text is None or text.value is None else replace(text, value=1e3 * text.value)


def query_macs(row: MethodRow, gallery: str) -> Cost | None:
    """Millions of multiply-adds of a query in a gallery (a key of ``GALLERIES``): its text encoder and its search."""
    search, text = row.cost(f"search_macs_{gallery}", "search"), text_macs(row)
    if search is None or search.value is None:
        return search
    if text is None or text.value is None:
        return Cost(value=None, reason="the text encoder was not counted")
    return replace(search, value=search.value + text.value)


def of_one_vector(row: MethodRow) -> Cost | None:
    """What is stored of a video over the bytes of its coarse vector."""
    stored, vector = row.cost(_STORED, "search"), stored_conditions(row).get("vector_bytes")
    if stored is None or stored.value is None or not vector:
        return None
    return replace(stored, value=stored.value / vector)


def stored_conditions(row: MethodRow) -> Mapping[str, Any]:
    """What the stored bytes depend on: ``depth``, ``storage`` and the coarse vector's ``vector_bytes``."""
    found = _named(row, _STORED)
    return found[0]["conditions"] if found else {}


def _latencies(row: MethodRow, way: str) -> list[MeasurementDoc]:
    return _named(row, f"{way}_latency_median")


def _named(row: MethodRow, name: str) -> list[MeasurementDoc]:
    return [m for m in row.measurements if m["name"] == name]
