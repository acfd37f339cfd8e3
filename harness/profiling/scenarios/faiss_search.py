"""FAISS on the gallery of a search: every vector compared (flat), or a graph walked (HNSW), on a CPU."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tvrbench.harness.profiling.plan import Timing
from tvrbench.harness.profiling.trackers.timing import latency_of, time_queries
from tvrbench.harness.records.record import Measurement

Vectors = npt.NDArray[np.float32]
CPU = torch.device("cpu")
LINKS, BUILDING, EF = 32, 40, 64  # M, efConstruction and efSearch of the graph
KINDS = ("flat", "hnsw")
ABSENT = "FAISS is not installed: pip install 'tvrbench[search]'"


def measure_faiss(
    queries: Vectors, gallery: Vectors, best: int, timing: Timing, conditions: Mapping[str, Any]
) -> list[Measurement]:
    """``faiss_flat_latency_median``, ``faiss_flat_latency_p95`` and those of ``faiss_hnsw``, in ms, with as many
    threads as torch has.

    Args:
        queries, gallery: [Q, E] and [N, E] factors of the score, whose inner product ranks.
        best: videos that a search returns.
        timing: how long one kind is timed.
        conditions: of the search.

    Returns:
        The measurements, whose conditions hold ``recall``: the share of the exact ``best`` that is found. Missing with
        the reason where FAISS is not installed.
    """
    given = {k: conditions[k] for k in ("gallery", "depth", "storage", "best", "inputs", "precision")}
    if find_spec("faiss") is None:
        return [Measurement.missing(f"faiss_{kind}_latency_median", "ms", ABSENT, **given) for kind in KINDS]
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    width, number = gallery.shape[1], min(best, len(gallery))
    flat, graph = faiss.IndexFlatIP(width), faiss.IndexHNSWFlat(width, LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction, graph.hnsw.efSearch = BUILDING, EF
    how = {"flat": {}, "hnsw": {"M": LINKS, "ef_construction": BUILDING, "ef": EF}}
    found, exact = list[Measurement](), None
    for kind, index in zip(KINDS, (flat, graph), strict=True):
        start = time.perf_counter()
        index.add(gallery)
        built = time.perf_counter() - start
        ids = index.search(queries, number)[1]
        exact = ids if exact is None else exact
        recall = np.mean([np.isin(a, b).mean() for a, b in zip(exact, ids, strict=True)])
        seconds = time_queries(partial(_ask, index, cycle(queries[:, None]), number), CPU, timing)
        more = given | how[kind] | {"recall": float(recall), "build_s": built, "version": faiss.__version__}
        found += latency_of(seconds, CPU, timing.warmup, f"faiss_{kind}_", more)
    return found


def _ask(index: Any, queries: Iterator[Vectors], number: int) -> None:
    index.search(next(queries), number)
