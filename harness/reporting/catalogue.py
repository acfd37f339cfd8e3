"""Every metric of a report once: its name in the records, its labels, its unit, its good end, and how it is printed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal

from tvrbench.harness.records.record import MeasurementDoc

Better = Literal["max", "min"]
Kind = Literal["retrieval", "count", "time", "memory", "energy", "published"]
Show = Callable[[float], str]

DIRECTIONS: Mapping[str, str] = {"t2v": "T→V", "v2t": "V→T"}
GALLERIES: Mapping[str, int] = {"1k": 1_000, "10k": 10_000, "100k": 100_000, "1m": 1_000_000}
"""Videos of the galleries in which the search of one query is counted, by the ending of a measurement's name."""
BYTES: Mapping[str, float] = {
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "kB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
}
"""Units of memory, in bytes."""


def printed_backbone(name: str) -> str:
    """Return a backbone as papers print it: ViT-B/32 for ViT-B-32; another name as it is."""
    return re.sub(r"^(ViT-[A-Za-z]+)-(\d+)", r"\1/\2", name)


def fixed(decimals: int) -> Show:
    """Return a format with a fixed number of decimals."""
    return lambda value: f"{value:,.{decimals}f}"


def between(low: str, high: str) -> str:
    """Return both ends of a range, ``46.1–56.3``; a dash beside a sign would be misread, so there it is a word."""
    return f"{low} to {high}" if {low[0], high[0]} & set("+-") else f"{low}–{high}"


def with_interval(value: str, low: str, high: str) -> str:
    """Return a number and its interval as papers print them: ``51.2 (46.1–56.3)``, ``+3.0 (-2.3 to +8.4)``."""
    return f"{value} ({between(low, high)})"


def significant(digits: int) -> Show:
    """Return a format with significant digits that keeps every digit before the point: 34.76, 121.4, 0.05312, 12,381.

    Args:
        digits: number of significant digits.
    """

    def show(value: float) -> str:
        exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
        return f"{value:,.{max(0, digits - 1 - exponent)}f}" if value else "0"

    return show


@dataclass(frozen=True)
class Metric:
    """One metric of retrieval or cost.

    Attributes:
        name: in the records; for retrieval the path joined by underscores, e.g. ``t2v_R1``.
        what: scenario of a cost (``inference``, ``training``, ``comparison``, ...).
        short: in the header of a column, unit included where the cells leave it out.
        label: on the axis of a figure, unit included.
        unit: of the recorded value.
        better: the good end of the scale; None where neither end is better.
        show: prints a scaled value.
        scale: printed value over recorded value.
        kind: family; a ``count`` belongs to the model alone and is the same on every machine, a ``published`` metric is
            printed by papers only.
        path: of a retrieval metric, its keys below ``metrics`` in a record; empty for costs.
    """

    name: str
    what: str
    short: str
    label: str
    unit: str
    better: Better | None
    show: Show
    scale: float = 1.0
    _: KW_ONLY
    kind: Kind
    path: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Identify the metric among all columns or axes: the name, and the scenario unless it is inference."""
        return self.name if self.what == "inference" else f"{self.name}_{self.what}"

    def text(self, recorded: float) -> str:
        """Print a recorded value."""
        return self.show(self.scale * recorded)


def metric(name: str, what: str | None = None, unit: str | None = None) -> Metric:
    """Look up a metric; a name that is not in the catalogue (of a plug-in) describes itself.

    Args:
        name: as in the records.
        what: another scenario than the usual one.
        unit: recorded unit; needed where the name may be unknown.

    Raises:
        KeyError: the name is unknown and no unit is given.
    """
    known = CATALOGUE.get(name)
    if known is None and unit is None:
        raise KeyError(name)
    if known is not None and known.kind != "memory":
        return known if what is None else replace(known, what=what)
    if known is None:
        kind: Kind = "memory" if unit in BYTES else "time"
        words = name.replace("_", " ")
        known = Metric(name, "inference", words, words, "", "min", significant(3), kind=kind)
    what, unit = what or "inference", unit or known.unit
    return replace(known, what=what, unit=unit, label=f"{known.label}, {what} ({unit})")


def retrieval(direction: str) -> list[Metric]:
    """List the metrics of one direction (``t2v`` or ``v2t``): R@1, R@5, R@10, median rank, mean rank, R-Sum."""
    short = {name: f"{DIRECTIONS[direction]} {printed}" for name, (printed, _, _) in _RANKED.items()}
    return [_retrieval(f"{direction}_{name}", name, short[name], (direction, name)) for name in _RANKED]


def subset_metric(subset: str | None, name: str) -> Metric:
    """Describe a text-to-video metric on a named subset of the queries, or on all of them."""
    path = ("t2v", name) if subset is None else ("subsets", subset, "t2v", name)
    return _retrieval(f"{subset or 'all'}_{name}", name, f"{subset or 'all'}: {_RANKED[name][0]}", path)


def recorded(measurements: Iterable[MeasurementDoc], kind: Literal["memory", "latency"]) -> list[Metric]:
    """List the kinds of memory or latency that measurements hold, each scenario apart, in order of appearance."""
    kinds = {
        (m["name"], str(m["conditions"].get("what", "inference")), m["unit"]): None
        for m in measurements
        if (_is_memory(m) if kind == "memory" else m["name"].startswith("latency"))
    }
    return [metric(*key) for key in kinds]


def in_gigabytes(memory: Metric) -> Metric:
    """Return a metric of memory that prints gigabytes, whatever its recorded unit."""
    return replace(memory, scale=BYTES[memory.unit] / BYTES["GB"])


def _is_memory(measurement: MeasurementDoc) -> bool:
    """Return True for an amount of memory; what is stored of a video, or read for a query, is none."""
    known = CATALOGUE.get(measurement["name"])
    return measurement["unit"] in BYTES and (known is None or known.kind == "memory")


_RANKED: Mapping[str, tuple[str, str, Better]] = {
    "R1": ("R@1", "%", "max"),
    "R5": ("R@5", "%", "max"),
    "R10": ("R@10", "%", "max"),
    "MdR": ("MdR", "", "min"),
    "MnR": ("MnR", "", "min"),
    "RSum": ("R-Sum", "%", "max"),
}


def _retrieval(name: str, kind: str, short: str, path: tuple[str, ...]) -> Metric:
    _, unit, better = _RANKED[kind]
    label = f"{short} ({unit})" if unit else short
    return Metric(name, "inference", short, label, unit, better, fixed(1), kind="retrieval", path=path)


EXPECTED_R1 = _retrieval("t2v_R1_ties_shared", "R1", "T→V R@1, expected over ties", ("ties_shared", "t2v", "R1"))
"""R@1 with ties broken at random, in expectation: the metric that orders rows, figures and tests."""

PAIR_ACCURACY = replace(
    _retrieval("pair_accuracy", "R1", "correct order picked, % (chance 50)", ("pair_accuracy",)),
    label="correct order picked (%, chance 50)",
)

COARSE_R1 = replace(
    _retrieval("coarse_t2v_R1", "R1", "coarse T→V R@1", ("two_stage", "coarse", "t2v", "R1")),
    label="T→V R@1 of the coarse stage (%)",
)
CEILING = replace(
    _retrieval("ceiling", "R1", "ceiling", ("two_stage", "ceiling")),
    label="queries whose video the coarse stage leaves to the last stage (%)",
)

_INFER, _FILES, _SEARCH = "inference", "end-to-end", "search"
_3, _4 = significant(3), significant(4)
# kind: (name, scenario, column header, axis label, recorded unit, good end, format[, printed over recorded value])
_COSTS: Mapping[Kind, tuple[tuple[Any, ...], ...]] = {
    "count": (
        ("gmacs_video", _INFER, "GMACs (papers' GFLOPs)", "GMACs per video (papers' GFLOPs)", "GMACs", "min", _4),
        ("gmacs_video_as_released", _INFER, "GMACs as released", "GMACs per video, as released", "GMACs", "min", _4),
        ("gmacs_video_mean", _INFER, "GMACs, mean", "GMACs per video, mean over videos", "GMACs", "min", _4),
        ("gmacs_text", _INFER, "text GMACs", "GMACs per caption", "GMACs", "min", _4),
        (
            *("gmacs_text_as_released", _INFER, "text GMACs as released"),
            *("GMACs per caption, as released", "GMACs", "min", _4),
        ),
        (
            *("gmacs_training_video", "training", "GMACs in training"),
            *("GMACs per video, forward in training", "GMACs", "min", _4),
        ),
        ("gmacs_step", "training", "step GMACs/pair", "GMACs per pair of a training step", "GMACs", "min", _4),
        ("step_memory", "training", "training step (GB)", "memory of a training step, counted (GB)", "GB", "min", _3),
        ("gmacs_reduction", _INFER, "reduction GMACs", "GMACs of the reduction itself", "GMACs", "min", _3),
        ("output_tokens", _INFER, "tokens out", "tokens that leave the video encoder", "tokens", "min", fixed(0)),
        (
            *("output_tokens_mean", _INFER, "tokens out, mean"),
            *("tokens that leave the video encoder, mean over videos", "tokens", "min", fixed(0)),
        ),
        (
            *("output_tokens_as_released", _INFER, "tokens out as released"),
            *("tokens that leave the video encoder, as released", "tokens", "min", fixed(0)),
        ),
        ("params_trainable", _INFER, "trainable params (M)", "trainable parameters (M)", "parameters", "min", _3, 1e-6),
        (
            "params_dead",
            _INFER,
            "dead params (M)",
            "trainable parameters without gradient (M)",
            "parameters",
            "min",
            _3,
            1e-6,
        ),
        ("params_total", _INFER, "params (M)", "parameters (M)", "parameters", "min", _4, 1e-6),
        *(
            (
                *(f"search_macs_{key}", _SEARCH, f"search MMACs, {key}"),
                *(f"multiply-adds of a query's search among {videos:,} videos (M)", "MMACs", "min", _4),
            )
            for key, videos in GALLERIES.items()
        ),
        # Not in records: the search and the text encoder.
        *(
            (
                *(f"query_macs_{key}", _SEARCH, f"query MMACs, {key}"),
                *(f"multiply-adds of a query among {videos:,} videos, text encoder included (M)", "MMACs", "min", _4),
            )
            for key, videos in GALLERIES.items()
        ),
        ("storage_video", _SEARCH, "stored (kB/video)", "stored per video (kB)", "B", "min", _4, 1e-3),
        *(
            (
                *(f"search_read_{key}", _SEARCH, f"MB read, {key}"),
                *(f"read per query among {videos:,} videos (MB)", "MB", "min", _4),
            )
            for key, videos in GALLERIES.items()
        ),
    ),
    "time": (
        ("speedup", "comparison", "speed-up", "speed-up over the dense encoder (x)", "x", "max", fixed(2)),
        ("speedup_reached", "comparison", "% reached", "speed-up reached of that allowed (%)", "%", "max", fixed(0)),
        ("throughput", _INFER, "videos/s", "videos encoded per second", "videos/s", "max", _3),
        ("throughput_best", _INFER, "best videos/s", "videos encoded per second, best batch", "videos/s", "max", _3),
        ("text_throughput", _INFER, "captions/s", "captions encoded per second", "queries/s", "max", _3),
        ("share_of_peak", _INFER, "% of peak", "share of the machine's peak (%)", "%", "max", fixed(0)),
        ("latency_median", _INFER, "latency, median (ms)", "latency per video, median (ms)", "ms", "min", _3),
        ("latency_p95", _INFER, "latency, p95 (ms)", "latency per video, 95th percentile (ms)", "ms", "min", _3),
        ("step_time", "training", "step (ms)", "time per training step (ms)", "ms", "min", _3),
        (
            *("training_speedup", "training-comparison", "training speed-up"),
            *("training speed-up over the dense encoder (x)", "x", "max", fixed(2)),
        ),
        ("decode_time", _FILES, "decode (ms/video)", "decoding (ms/video)", "ms/video", "min", _3),
        ("preprocess_time", _FILES, "preprocess (ms/video)", "preprocessing (ms/video)", "ms/video", "min", _3),
        ("encode_time", _FILES, "encode (ms/video)", "encoding (ms/video)", "ms/video", "min", _3),
        (
            *("end_to_end_throughput", _FILES, "videos/s from files"),
            *("videos per second, from files", "videos/s", "max", _3),
        ),
        ("search_time", _FILES, "search (ms/1,000 queries)", "search (ms per 1,000 queries)", "ms", "min", _3),
        *(
            (
                f"{way}latency_{of}",
                _SEARCH,
                f"{printed}, {of} (ms)",
                f"{printed} of one query, {of} (ms)",
                "ms",
                "min",
                _3,
            )
            for way, printed in (("search_", "search"), ("faiss_flat_", "FAISS flat"), ("faiss_hnsw_", "FAISS HNSW"))
            for of in ("median", "p95")
        ),
    ),
    # By meter: the first that both sides of a comparison have is judged, as what a paper reads off its GPU.
    "memory": (
        ("peak_memory_nvml", _INFER, "NVML, process", "peak memory, NVML", "MiB", "min", _3),
        ("peak_memory_reserved", _INFER, "allocator, reserved", "peak memory, reserved", "MiB", "min", _3),
        ("peak_memory_allocated", _INFER, "allocator, allocated", "peak memory, allocated", "MiB", "min", _3),
        ("peak_process_memory", _INFER, "process", "peak process memory", "MiB", "min", _3),
    ),
    "energy": (
        ("energy_video", "energy", "J/video", "energy per video (J)", "J/video", "min", _3),
        ("energy_queries", "energy", "J/1,000 captions", "energy per 1,000 captions (J)", "J/1000 queries", "min", _3),
    ),
    "published": (
        ("train_memory_gb", "training", "training memory", "training memory (GB)", "GB", "min", _3),
        ("train_memory_mb_per_gpu", "training", "training memory", "training memory (MB)", "MB per GPU", "min", _3),
        ("infer_memory_mb_per_gpu", _INFER, "inference memory", "inference memory (MB)", "MB per GPU", "min", _3),
        ("infer_ms_per_video", _INFER, "inference time per video", "inference time per video (ms)", "ms", "min", _3),
        ("train_speedup", "training", "training speed-up", "training speed-up (x)", "x", "max", _3),
    ),
}

_COST_METRICS = [Metric(*cost, kind=kind) for kind, costs in _COSTS.items() for cost in costs]
CATALOGUE: Mapping[str, Metric] = {
    m.name: m
    for m in (
        *(EXPECTED_R1, *retrieval("t2v"), *retrieval("v2t"), PAIR_ACCURACY, COARSE_R1, CEILING),
        *_COST_METRICS,
    )
}
"""All metrics by name; memory in order of preference."""

MEMORY = tuple(m for m in _COST_METRICS if m.kind == "memory")
COUNTS = tuple(m.name for m in _COST_METRICS if m.kind == "count")
