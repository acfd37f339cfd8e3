"""The table that ``tvrbench bench`` prints: a row a method, a dash where there is no value, the reasons below it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tvrbench.harness.core.console import print_table
from tvrbench.harness.profiling.plan import Plan
from tvrbench.harness.records.record import Measurement

Found = Sequence[Measurement]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column: its header, the measurement that fills it, and how it is written."""

    header: str
    name: str
    show: Callable[[Measurement], str]
    what: str | None = None

    def cell(self, found: Found) -> str | None:
        """Of several batch sizes the largest that was measured; marked where it is not valid."""
        there = [m for m in found if m.name == self.name and m.value is not None]
        there = [m for m in there if self.what in (None, m.conditions.get("what"))]
        if not there:
            return None
        chosen = max(there, key=lambda m: m.conditions.get("batch", 0))
        return self.show(chosen) + (" !" if "invalid" in chosen.conditions else "")


def _number(digits: int) -> Callable[[Measurement], str]:
    return lambda m: f"{m.value:,.{digits}f}"


def _with_batch(digits: int) -> Callable[[Measurement], str]:
    return lambda m: f"{m.value:,.{digits}f} ({m.conditions['batch']})"


def _ratio(m: Measurement) -> str:
    return f"{m.value:.2f}x ({m.conditions['low']:.2f} to {m.conditions['high']:.2f})"


MEMORY = {
    "peak_process_memory": "process MiB",
    "peak_memory_nvml": "NVML MiB",
    "peak_memory_allocated": "allocated MiB",
    "peak_memory_reserved": "reserved MiB",
}
COLUMNS = (
    Column(header="GMACs", name="gmacs_video", show=_number(2)),
    Column(header="tokens out", name="output_tokens", show=_number(0)),
    Column(header="trainable", name="params_trainable", show=_number(0)),
    Column(header="videos/s (batch)", name="throughput_best", show=_with_batch(2)),
    Column(header="% of peak", name="share_of_peak", show=_number(0)),
    Column(header="ms, median", name="latency_median", show=_number(0)),
    Column(header="ms, p95", name="latency_p95", show=_number(0)),
    Column(header="captions/s", name="text_throughput", show=_number(1)),
    Column(header="speed-up (range)", name="speedup", show=_ratio),
    Column(header="allowed", name="speedup_reached", show=lambda m: f"{m.conditions['allowed']:.2f}x"),
    Column(header="% reached", name="speedup_reached", show=_number(0)),
    *(Column(header=text, name=name, show=_number(0), what="inference") for name, text in MEMORY.items()),
    Column(header="step ms (batch)", name="step_time", show=_with_batch(0)),
    Column(header="training speed-up", name="training_speedup", show=_ratio),
    *(Column(header=f"training {text}", name=name, show=_number(0), what="training") for name, text in MEMORY.items()),
    Column(header="decode ms", name="decode_time", show=_number(1)),
    Column(header="preprocess ms", name="preprocess_time", show=_number(1)),
    Column(header="encode ms", name="encode_time", show=_number(1)),
    Column(header="videos/s from files", name="end_to_end_throughput", show=_number(2)),
    Column(header="search ms", name="search_time", show=_number(1)),
    Column(header="J/video", name="energy_video", show=_number(2)),
    Column(header="J/1000 captions", name="energy_queries", show=_number(1)),
)


def print_rows(backbone: str, plan: Plan, rows: Mapping[str, Found]) -> None:
    """The table of one backbone on stdout, and what is missing or not to be trusted."""
    cells = {label: [column.cell(found) for column in COLUMNS] for label, found in rows.items()}
    filled = [i for i in range(len(COLUMNS)) if any(row[i] for row in cells.values())]
    print(
        f"\n{backbone}, {plan.frames} frames, {plan.device}, {plan.precision}"
        f"{', compiled' if plan.compile else ''}; speed-ups are over {plan.against.label}, rounds in one process"
    )
    print_table(
        [[label, *(row[i] for i in filled)] for label, row in cells.items()],
        ["method", *(COLUMNS[i].header for i in filled)],
    )
    for note in _notes(rows):
        print(note)


def _notes(rows: Mapping[str, Found]) -> list[str]:
    """Each reason once, with the methods and figures that it holds for."""
    notes: dict[str, dict[str, None]] = {}
    for label, found in rows.items():
        for m in found:
            if m.value is None:
                notes.setdefault(f"no {m.name}: {m.conditions['reason']}", {})[label] = None
            elif "invalid" in m.conditions:
                notes.setdefault(f"! not valid: {m.conditions['invalid']}", {})[label] = None
    return [f"  {note} ({', '.join(labels)})" for note, labels in notes.items()]
