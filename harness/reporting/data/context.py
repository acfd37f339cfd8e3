"""The subject of a report, and what every table and figure of it must say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvrbench.harness.config.protocol import OWN
from tvrbench.harness.core import registry
from tvrbench.harness.records.runs import StoredRecord
from tvrbench.harness.reporting.data.device_names import printed_device
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.tables.table import Column, Table, link_column, make_table

SEEDS_FOR_A_CLAIM = 3


@dataclass(frozen=True, kw_only=True)
class ReportContext:
    """The protocol that a report is about.

    Attributes:
        protocol: its name.
        dataset: the records' data set.
        folder: where the report is written; links are relative to it.
        banner: what keeps runs from being compared, one sentence each; shown above everything and in every CSV.
    """

    protocol: str
    dataset: str
    folder: Path
    banner: tuple[str, ...] = ()

    @property
    def standin(self) -> bool:
        """True if the data set runs in place of another one."""
        return self.stands_for != self.dataset

    @property
    def stands_for(self) -> str:
        """The data set whose published numbers apply."""
        return str(registry.declared(self.dataset, "stands_for") or self.dataset)

    @property
    def notice(self) -> str | None:
        """The data set's notice, for every title, caption and figure."""
        notice: str | None = registry.declared(self.dataset, "notice")
        return notice

    @property
    def title(self) -> str:
        """The protocol's name, with the start of the notice."""
        notice = self.notice
        return f"{self.protocol}: {notice[0].lower()}{notice[1:].partition(':')[0]}" if notice else self.protocol

    @property
    def data_title(self) -> str:
        """The data set as papers print it; its name where its class, not one that it derives from, has no title."""
        known = self.dataset in registry.table("datasets")
        own = vars(registry.lookup(self.dataset, "datasets")) if known else {}
        return str(own.get("title", self.dataset))

    @property
    def compares(self) -> bool:
        """True if rows may be compared with each other: never under each paper's own recipe."""
        return compares_methods(self.protocol)

    @property
    def arguments(self) -> list[str]:
        """The arguments that name the protocol, its backbone and its data in a command; a person fills in capitals."""
        base, _, backbone = self.protocol.partition("@")
        own = base.removeprefix(f"{OWN}/")
        words = [base if own == base else f"{own}.toml", *(["--backbone", backbone] if backbone else [])]
        return words if registry.declared(self.dataset, "generated") else [*words, "--data", "DIR"]

    def comparable(self, rows: Sequence[MethodRow]) -> list[MethodRow]:
        """Return the rows that may be compared with each other."""
        return [row for row in rows if self.compares and row.apart is None]

    @property
    def note(self) -> str | None:
        """The notice and the banner."""
        return " ".join(filter(None, (self.notice, *self.banner))) or None

    def table(self, name: str, title: str, *content: Any, **options: Any) -> Table:
        """Fill a table (``make_table``): its title names the protocol, its CSV holds the note."""
        return make_table(name, f"{title}, {self.protocol}", *content, note=self.note, **options)

    def record_column(self) -> Column:
        """Return the column of links to a row's records, one per seed."""
        return link_column("records", "records", lambda row: self.links(row.runs))

    def link(self, run: StoredRecord) -> tuple[str, str | None]:
        """Return a link to a run's record, named for people."""
        return run.name, run.link_from(self.folder)

    def links(self, runs: Sequence[StoredRecord]) -> tuple[tuple[str, str | None], ...]:
        """Return a link to each run's record, named by its seed; costs alone and scored checkpoints have none."""
        return tuple(
            (f"seed {run.record['seed']}" if run.record["metrics"] and not run.scored else "record", target)
            for run in runs
            for target in [run.link_from(self.folder)]
        )


def compares_methods(protocol: str) -> bool:
    """Return True if a protocol runs every method with one recipe; ``published`` runs each paper's own."""
    return not protocol.rpartition("/")[2].startswith("published")


def setting(rows: Sequence[MethodRow]) -> str:
    """Return the conditions of time and memory: devices, batch sizes and precisions."""
    conditions = [m["conditions"] for row in rows for m in row.measurements if m["name"] == "throughput"]
    words = [printed_device(run.record["environment"]["device"]) for row in rows for run in row.runs]
    words += [f"batch {c['batch']}" for c in conditions if "batch" in c]
    words += [c["precision"] for c in conditions if "precision" in c]
    return ", ".join(dict.fromkeys(words))
