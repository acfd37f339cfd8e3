"""The generated parts of ``README.md``: its first sentence, and the counted cost of every method, from records."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from tvrbench.datasets.published import PublishedDataset
from tvrbench.harness.core import registry
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.catalogue import fixed, metric, printed_backbone, significant
from tvrbench.harness.reporting.data.long_videos import NAME, CountedMethod, long_videos
from tvrbench.harness.reporting.data.records import stored_records
from tvrbench.harness.reporting.figures.cost import FRAMES, compared_costs
from tvrbench.harness.reporting.tables.markdown import Markdown, escaped
from tvrbench.harness.reporting.tables.table import Cell, Column, Table, make_table, text_column

BACKBONE = "ViT-B-32"
_PAPER = re.compile(
    r"(?P<name>[\w-]+) \((?:arXiv (?P<number>\d{4}\.\d{5})|(?P<where>[^()]+))\)|arXiv (?P<alone>[\d.]+\d)"
)


def sentence() -> str:
    """Say what the benchmark holds, counted from the registry."""
    methods, baselines = (len(registry.names(kind)) for kind in ("methods", "baselines"))
    return (
        f"A benchmark of efficient text-video retrieval: {methods} methods, {baselines} baselines and "
        f"{len(published_datasets())} data sets under one protocol.\n"
        "It reports accuracy, GFLOPs, speed-up and memory, with confidence intervals."
    )


def published_datasets() -> list[str]:
    """List the data sets that papers report on."""
    kinds = {name: registry.lookup(name, "datasets") for name in registry.names("datasets")}
    return [name for name, kind in kinds.items() if issubclass(kind, PublishedDataset) and not kind.is_generated()]


def cost_table(results: Path = Path("results")) -> Table:
    """Make the table of costs from the counted records in ``results``; ValueError where there are none."""
    counted, _ = long_videos(stored_records(RecordStore(results), NAME), [])
    found = next((one for one in counted if one.backbone == BACKBONE), None)
    if found is None:
        raise ValueError(f"{results} holds no counted record on {BACKBONE}")
    columns = [
        text_column("method", "Method", lambda method: method.label),
        Column("gmacs_video", "GFLOPs†", _gflops),
        _count("output_tokens", "Tokens", fixed(0)),
        _count("params_trainable", "Trainable params (M)", lambda value: significant(3)(1e-6 * value)),
        Column("paper", "Paper", lambda method: _papers(method.method), left=True),
    ]
    return make_table(
        "readme",
        "Cost per video",
        (
            f"{printed_backbone(BACKBONE)}, {FRAMES} frames, counted, so the same on every machine.",
            "Tokens: those that leave the encoder.",
            "† Multiply-adds as fvcore counts them; the papers call them GFLOPs.",
        ),
        columns,
        compared_costs(found),
        group=lambda method: method.group.capitalize(),
    )


def _gflops(method: CountedMethod) -> Cell:
    cost, released = (method.value(name, FRAMES) for name in ("gmacs_video", "gmacs_video_as_released"))
    show = metric("gmacs_video").show
    if cost is None:
        raise ValueError(f"{method.label} has no multiply-adds")
    note = "An upper bound: the number of tokens depends on the video." if method.at_most else None
    if released is not None and released > cost:
        note = f"{show(released)} with work of the released code whose results it drops."
    return Cell(text=f"{'≤ ' * method.at_most}{show(cost)}", value=cost, note=note)


def _count(name: str, header: str, show: Callable[[float], str]) -> Column:
    def cell(method: CountedMethod) -> Cell:
        value = method.value(name, FRAMES)
        if value is None:
            raise ValueError(f"{method.label} has no {name}")
        return Cell(text=f"{'≤ ' * (method.at_most and name == 'output_tokens')}{show(value)}", value=value)

    return Column(name, header, cell)


def _papers(method: str) -> Cell:
    """Return the papers that a card names, each a link where it has an arXiv number."""
    card = registry.lookup(method, "methods", "baselines").card
    found = []
    for match in _PAPER.finditer(card.paper):
        number = match["number"] or match["alone"]
        name = match["name"] or f"arXiv {number}"
        link = f"[{escaped(name)}](https://arxiv.org/abs/{number})"
        found.append(link if number else escaped(f"{name}, {match['where'].split(', ')[-1]}"))
    text = Markdown(", ".join(found))
    return Cell(text=text, value=text)
