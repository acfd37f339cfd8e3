"""The timed search: its ranking, what it reads, its conditions, FAISS beside it, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from quick_machine import make_quick

from tvrbench.harness.evaluation.side_store import packed
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.scorer import Side
from tvrbench.harness.profiling.counts.search import search_cost
from tvrbench.harness.profiling.launcher.worker import run_job
from tvrbench.harness.profiling.plan import Job, Timing, plan_for
from tvrbench.harness.profiling.scenarios import faiss_search
from tvrbench.harness.profiling.scenarios import search as searching
from tvrbench.harness.profiling.scenarios.faiss_search import KINDS, measure_faiss
from tvrbench.harness.profiling.scenarios.search import BEST, Gallery, search
from tvrbench.harness.records.record import Measurement

pytestmark = pytest.mark.unit
Make = Callable[..., RetrievalModel]
LATENCY = ["search_latency_median", "search_latency_p95"]


@pytest.fixture
def job(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    make_quick(monkeypatch)
    timing = Timing(min_iterations=1, min_seconds=0.0, warmup=0)
    return Job(
        method="ts2net",
        weights=str(tiny_weights),
        scenario="search",
        batch=1,
        threads=1,
        timing=timing,
        galleries=(20, 150),
        options={"depth": 7},
    )


def named(job: Job, *names: str) -> list[Measurement]:
    return [m for m in run_job(job) if m.name in (names or LATENCY)]


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("ts2net", {"depth": 7}),
        ("ts2net", {"depth": None, "storage": "float16"}),
        ("drl", {"depth": 7, "storage": "int8"}),
        ("eercf", {"depth": 500}),
        ("xpool", {"depth": 0}),
    ],
)
def test_a_query_is_timed_in_every_gallery(method: str, options: dict[str, Any], job: Job, tiny_model: Make) -> None:
    found = named(replace(job, method=method, options=options))
    cost = search_cost(tiny_model(method, **options))
    assert [m.name for m in found] == LATENCY * 2
    assert [m.conditions["gallery"] for m in found] == [20, 20, 150, 150]
    for m in found:
        assert m.unit == "ms"
        assert m.value is not None
        assert m.value > 0
        assert len(m.samples) >= 20
        said, gallery = m.conditions, m.conditions["gallery"]
        assert said["what"] == "search"
        assert (said["depth"], said["storage"], said["batch"], said["best"]) == (cost.depth, cost.storage, 1, BEST)
        assert said["read_bytes"] == cost.read(gallery)
        assert said["memory"] <= said["memory_limit"]


def test_median_and_p95_are_of_the_same_queries(job: Job) -> None:
    median, p95, *_ = named(job)
    assert median.samples == p95.samples
    assert median.value <= p95.value


def test_a_gallery_beyond_memory_is_missing_with_the_limit(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "_free_memory", lambda _: 400_000)
    small, _, large = named(job)
    assert small.value is not None
    assert large.value is None
    assert large.conditions["gallery"] == 150
    assert large.conditions["memory"] > large.conditions["memory_limit"] == 200_000
    assert "--galleries" in large.conditions["reason"]


def test_a_gallery_of_any_size_ends_in_a_reason(job: Job) -> None:
    (missing,) = named(replace(job, galleries=(10**15,)))
    assert missing.value is None


@pytest.mark.parametrize("depth", [None, 0, 1, 7, 40, 500])
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_the_search_returns_what_scoring_the_definition_does(depth: int | None, storage: str, tiny_model: Make) -> None:
    scorer = tiny_model("ts2net", depth=depth, storage=storage).scorer
    torch.manual_seed(0)
    texts = Side(coarse=torch.randn(1, 64))
    frames = torch.nn.functional.normalize(torch.randn(40, 12, 64), dim=-1)
    videos = Side(coarse=torch.randn(40, 64), fine={"frames": frames, "mask": torch.ones(40, 12)})
    stored = {name: torch.from_numpy(array) for name, array in packed(videos.fine, storage).items()}
    gallery = Gallery(coarse=videos.coarse, factors=scorer.coarse_video(videos.coarse), stored=stored)
    coarse, fine = (scorer.score(texts, videos, level)[0].tolist() for level in ("coarse", None))
    by_coarse = sorted(range(40), key=lambda v: -coarse[v])
    again = 40 if depth is None else min(depth, 40)
    expected = sorted(by_coarse[:again], key=lambda v: -fine[v]) + by_coarse[again:]
    if storage == "float32":
        assert search(scorer, gallery, texts).tolist() == expected[:BEST]
    else:
        assert len(set(search(scorer, gallery, texts).tolist()) & set(expected[:BEST])) >= BEST - 1


def test_faiss_searches_the_gallery_of_single_vectors(job: Job) -> None:
    pytest.importorskip("faiss")
    found = run_job(replace(job, method="lora", options={}, galleries=(150,)))
    names = [m.name for m in found if "latency" in m.name]
    assert names == LATENCY + [f"faiss_{kind}_latency_{of}" for kind in KINDS for of in ("median", "p95")]
    told = {m.name: m.conditions for m in found}
    assert told["faiss_flat_latency_median"]["recall"] == 1.0
    graph = told["faiss_hnsw_latency_p95"]
    assert 0.9 <= graph["recall"] <= 1.0
    assert (graph["M"], graph["ef"], graph["gallery"], graph["threads"]) == (32, 64, 150, 1)


def test_faiss_searches_no_gallery_of_more_than_vectors(job: Job) -> None:
    assert not [m for m in run_job(job) if m.name.startswith("faiss")]


def test_without_faiss_its_times_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss_search, "find_spec", lambda name: None)
    vectors = torch.eye(4).numpy()
    given = dict.fromkeys(("depth", "storage", "best", "inputs", "precision")) | {"gallery": 4}
    found = measure_faiss(vectors, vectors, 10, Timing(), given)
    assert [m.name for m in found] == ["faiss_flat_latency_median", "faiss_hnsw_latency_median"]
    assert all(m.value is None and "tvrbench[search]" in m.conditions["reason"] for m in found)


def test_a_gallery_has_videos() -> None:
    with raises("option.range"):
        Job(method="lora", galleries=(0,))
    with raises("option.range"):
        plan_for("cpu", galleries=(10, -1))


def test_galleries_ask_for_the_search() -> None:
    assert not plan_for("cpu").search
    assert plan_for("cpu", search=True).galleries == (1_000, 10_000)
    plan = plan_for("cpu", galleries=(50, 10, 50))
    assert plan.search
    assert plan.galleries == (10, 50)
    assert plan.hash == plan_for("cpu").hash  # what else is measured changes nothing about encoding
