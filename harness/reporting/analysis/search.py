"""What a search costs a row: multiply-adds of a query, bytes stored and read, and time at the measured galleries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvrbench.harness.records.record import MeasurementDoc
from tvrbench.harness.reporting.data.rows import Cost, MethodRow

OWN, INEXACT = "search", "faiss_hnsw"
WAYS: Mapping[str, str] = {OWN: "", "faiss_flat": "FAISS flat", INEXACT: "FAISS HNSW"}
"""Ways to search, by the start of their measurements' names: the own one, and the alternatives for single vectors."""
_STORED = "storage_video"


@dataclass(frozen=True, kw_only=True)
class TimedSearch:
    """A row searched in one way.

    Attributes:
        row: whose gallery is searched.
        way: one of ``WAYS``.
    """

    row: MethodRow
    way: str

    def latency(self, of: str, gallery: int) -> Cost | None:
        """The ``median`` or ``p95`` of one query among so many videos; None where that was not measured."""
        per_run = [_named(run.record["cost"], self._name(of), gallery) for run in self.row.runs]
        first = [found[0] for found in per_run if found]
        return Cost.mean(first, len(self.row.runs)) if first else None

    @property
    def galleries(self) -> list[int]:
        """The sizes of the galleries that were searched."""
        return sorted({int(m["conditions"]["gallery"]) for m in self._measured if "gallery" in m["conditions"]})

    @property
    def conditions(self) -> Mapping[str, Any]:
        """Those of the measurement in the largest gallery."""
        valued = [m["conditions"] for m in self._measured if m["value"] is not None]
        return max(valued, key=lambda said: int(said.get("gallery", 0)), default={})

    @property
    def _measured(self) -> list[MeasurementDoc]:
        return _named(self.row.measurements, self._name("median"))

    def _name(self, of: str) -> str:
        return f"{self.way}_latency_{of}"


def searched_rows(rows: Sequence[MethodRow]) -> list[MethodRow]:
    """The rows whose records hold what a search costs."""
    return [row for row in rows if row.encodes and row.holds(_STORED)]


def timed_searches(rows: Sequence[MethodRow]) -> list[TimedSearch]:
    """Every row in every way that was timed; a row whose own search could not be timed is there with the reason."""
    found = [TimedSearch(row=row, way=way) for row in rows for way in WAYS if row.holds(f"{way}_latency_median")]
    return [one for one in found if one.conditions or not WAYS[one.way]]


def why_no_alternative(rows: Sequence[MethodRow]) -> str | None:
    """The reason why no alternative was timed; None where one was, or none was asked for."""
    missing = [m for row in rows for m in row.measurements if m["name"].startswith("faiss_") and m["value"] is None]
    timed = any(WAYS[one.way] for one in timed_searches(rows))
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
    found = _named(row.measurements, _STORED)
    return found[0]["conditions"] if found else {}


def _named(measurements: Sequence[MeasurementDoc], name: str, gallery: int | None = None) -> list[MeasurementDoc]:
    named = (m for m in measurements if m["name"] == name)
    return [m for m in named if gallery is None or m["conditions"].get("gallery") == gallery]
