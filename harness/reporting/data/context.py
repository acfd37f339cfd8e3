"""What a report is about and what must be said wherever one of its numbers stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tvrbench.harness.reporting.data.records import StoredRecord
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.tables.table import Cell, Column, Table

STANDIN = "standin"
STANDIN_FOR = "msrvtt"
STANDIN_NOTICE = "Embedded stand-in, not MSR-VTT: no ranking here carries over to MSR-VTT."
COST_NOTICE = (
    "Costs of full-size models, measured without data. The rest of this report is on the embedded stand-in: "
    "no ranking there carries over to MSR-VTT."
)
SEEDS_FOR_A_CLAIM = 3


@dataclass(frozen=True, kw_only=True)
class ReportContext:
    """One protocol's report.

    Attributes:
        protocol: its name.
        dataset: the records' data set.
        folder: where the report is written; links are relative to it.
    """

    protocol: str
    dataset: str
    folder: Path

    @property
    def standin(self) -> bool:
        """Whether the runs are on the embedded stand-in."""
        return self.dataset == STANDIN

    @property
    def stands_for(self) -> str:
        """The data set whose published numbers are asked after."""
        return STANDIN_FOR if self.standin else self.dataset

    @property
    def compares(self) -> bool:
        """Whether rows may be compared with each other: never under each paper's own recipe."""
        return compares_methods(self.protocol)

    @property
    def notice(self) -> str | None:
        """What every title, caption and figure says."""
        return STANDIN_NOTICE if self.standin else None

    def caption(self, *sentences: str | None) -> str:
        """The sentences that there are, and the notice."""
        return " ".join(sentence for sentence in (*sentences, self.notice) if sentence)

    def table(
        self,
        name: str,
        title: str,
        sentences: Sequence[str | None],
        columns: Sequence[Column],
        rows: Sequence[tuple[Cell, ...]],
    ) -> Table:
        """A table of this protocol: its title names the protocol, its caption (the sentences) and CSV the notice."""
        return Table(
            name=name,
            title=f"{title}, {self.protocol}",
            caption=self.caption(*sentences),
            columns=tuple(columns),
            rows=tuple(rows),
            note=self.notice,
        )

    def links(self, runs: Sequence[StoredRecord]) -> tuple[tuple[str, str | None], ...]:
        """A link to each run's record, named by its seed; costs alone and scored checkpoints have none that matters."""
        seeded = (run.record["metrics"] and not run.scored for run in runs)
        return tuple(
            (f"seed {run.record['seed']}" if named else "record", run.link_from(self.folder))
            for run, named in zip(runs, seeded, strict=True)
        )


def compares_methods(protocol: str) -> bool:
    """Whether a protocol runs every method with one recipe: ``published`` and its variants run each paper's own."""
    return not protocol.rpartition("/")[2].startswith("published")


def disturbed(rows: Sequence[MethodRow]) -> str | None:
    """What a "!" in a table of rows stands for; None where every figure is valid."""
    reasons = dict.fromkeys(
        str(m["conditions"]["invalid"])
        for row in rows
        for run in row.runs
        for m in run.record["cost"]
        if "invalid" in m["conditions"]
    )
    return f"! not valid, and counted for nothing: {'; '.join(reasons)}." if reasons else None


def setting(rows: Sequence[MethodRow]) -> str:
    """What time and memory of rows were measured on and with: devices, then videos a call and precision."""
    runs = [run.record for row in rows for run in row.runs]
    found = [record["environment"]["device"] for record in runs]
    for key, words in (("batch", "batch {}"), ("precision", "{}")):
        found += [
            words.format(m["conditions"][key])
            for record in runs
            for m in record["cost"]
            if m["name"] == "throughput" and key in m["conditions"]
        ]
    return ", ".join(dict.fromkeys(found))
