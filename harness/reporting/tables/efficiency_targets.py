"""What this benchmark asks of its own figures, and whether each device's records show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvrbench.harness.records.record import MeasurementDoc
from tvrbench.harness.reporting.data.bench_rows import Bench, figure, value_of, variant_name, why_not
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.papers.published import load_variants
from tvrbench.harness.reporting.tables.table import Cell, Column, Table, links, words

CPU_MINUTES = 15.0
REACHED = 90.0  # per cent of the speed-up that multiply-adds allow
PEAK = 40.0  # per cent of the measured matrix-product peak


@dataclass(frozen=True, kw_only=True)
class Target:
    """A figure of one method that is asked to be at least so large, on a GPU.

    Attributes:
        text: in words.
        method, options: whose figure; options that its rows must have.
        figure: by its name in the records.
        least: the value asked for.
        unit: of both.
        backbones: on which.
        precision: of encoding; None: any.
        exclusive: more than ``least`` is asked for.
    """

    text: str
    method: str
    options: tuple[tuple[str, object], ...] = ()
    figure: str
    least: float
    unit: str
    backbones: tuple[str, ...] = ("ViT-B-32", "ViT-B-16")
    precision: str | None = None
    exclusive: bool = False

    def met_by(self, value: float) -> bool:
        """Whether the value is enough."""
        return value > self.least if self.exclusive else value >= self.least


TARGETS = (
    Target(
        text="speed-up over the plain encoder, as a share of what its GMACs allow, at least 90 %",
        method="tempme",
        figure="speedup_reached",
        least=REACHED,
        unit="%",
    ),
    Target(
        text="with k-medoids++ faster than the plain encoder",
        method="centerclip",
        options=(("clustering", "kmedoids"),),
        figure="speedup",
        least=1.0,
        unit="x",
        exclusive=True,
    ),
    Target(
        text="encoding at 40 % of the measured bfloat16 peak or more",
        method="lora",
        figure="share_of_peak",
        least=PEAK,
        unit="%",
        backbones=("ViT-B-16",),
        precision="bfloat16",
    ),
)


def targets_table(benches: Sequence[Bench], scope: ReportContext) -> Table:
    """One line for each target, device and backbone; without a GPU's records the GPU's targets are open."""
    lines: list[tuple[Cell, ...]] = []
    for bench in benches:
        if not bench.on_gpu:
            rows = bench.encoding_only
            minutes = sum(run.record["duration_s"] for row in rows for run in row.runs) / 60
            said = f"{minutes:.1f} minutes for {len(rows)} rows on {len(bench.backbones)} backbones"
            if others := len(bench.rows) - len(rows):
                said += f"; {others} more rows also measured training or stages and are not in it"
            met = _word(minutes < CPU_MINUTES)
            what = f"the table of encoding on a CPU in under {CPU_MINUTES:g} minutes"
            lines.append((words(what), words(None), words(said), words(met), words(bench.name), links(())))
    on_gpu = [bench for bench in benches if bench.on_gpu]
    for target in TARGETS:
        for backbone in target.backbones:
            fitting = [b for b in on_gpu if target.precision in (None, b.precision)]
            found = [line for bench in fitting for line in _lines(target, bench, backbone, scope)]
            blank = (words(f"{target.method}: {target.text}"), words(backbone), words(None))
            lines += found or [(*blank, words("not measured: no such record of a GPU"), words(None), links(()))]
    columns = tuple(
        Column(key=key, header=key, left=True) for key in ("target", "backbone", "measured", "met", "device", "records")
    )
    return Table(
        name="targets",
        title="What is asked of these figures",
        caption=scope.caption("By the project itself; figures that are not valid count for nothing."),
        columns=columns,
        rows=tuple(lines),
    )


def _lines(target: Target, bench: Bench, backbone: str, scope: ReportContext) -> list[tuple[Cell, ...]]:
    found: list[tuple[Cell, ...]] = []
    for row in bench.on(backbone):
        if row.method != target.method or variant_name(row, load_variants()) is not None:
            continue
        if any(row.options.get(key) != value for key, value in target.options):
            continue
        m = figure(row, target.figure) if target.figure != "share_of_peak" else _best_share(row)
        value = value_of(m)
        met = "not measured" if value is None else _word(target.met_by(value))
        said = why_not(m) if value is None else f"{value:.{2 if target.unit == 'x' else 0}f} {target.unit}"
        found.append(
            (
                words(f"{row.label}: {target.text}"),
                words(backbone),
                words(said),
                words(met),
                words(bench.name),
                links(scope.links(row.runs)),
            )
        )
    return found


def _best_share(row: MethodRow) -> MeasurementDoc | None:
    """The largest valid share of the peak over the batch sizes."""
    shares = [m for run in row.runs for m in run.record["cost"] if m["name"] == "share_of_peak"]
    return max(shares, key=lambda m: value_of(m) or 0.0, default=None)


def _word(met: bool) -> str:
    return "yes" if met else "no"
