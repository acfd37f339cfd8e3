"""Counts of sides and of search: against the formula, against what is stored, and against EERCF's table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from errors import raises

from tvrbench.harness import load_model
from tvrbench.harness.cli.app import main
from tvrbench.harness.core import registry
from tvrbench.harness.evaluation.side_store import packed
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.scored import ScoredMethod
from tvrbench.harness.profiling import measure
from tvrbench.harness.profiling.counts.dead import dead_or_reason
from tvrbench.harness.profiling.counts.flops import TOLERANCE, profile, traced_macs
from tvrbench.harness.profiling.counts.formula import analytic_macs
from tvrbench.harness.profiling.counts.search import GALLERIES, search_cost
from tvrbench.harness.profiling.counts.shapes import meta_sides
from tvrbench.harness.profiling.measure import count_costs
from tvrbench.harness.profiling.plan import Job
from tvrbench.harness.records.record import Measurement

pytestmark = pytest.mark.unit
Make = Callable[..., RetrievalModel]
SCORED = [name for name in registry.names("methods") if issubclass(method_class(name), ScoredMethod)]
# Of the definition: 10^9 multiply-adds of a video, of a text; per pair; floats stored of a video.
TABLE = {
    ("eercf", "ViT-B-32"): (53.349, 1.223, 315_112, 313_856),
    ("eercf", "ViT-B-16"): (212.074, 1.223, 1_220_044, 1_217_024),
    ("xpool", "ViT-B-32"): (52.973, 1.223, 274_944, 12_800),
    ("drl", "ViT-B-32"): (53.118, 1.239, 196_608, 6_668),
    ("ts2net", "ViT-B-16"): (211.140, 1.223, 6_144, 6_656),
    ("lora", "ViT-B-32"): (52.963, 1.223, 512, 512),
}


def on_meta(name: str, backbone: str, **options: Any) -> RetrievalModel:
    return load_model(name, backbone=backbone, weights="random:0", device="meta", **options)


@pytest.mark.parametrize(("name", "backbone"), TABLE)
def test_the_whole_side_is_counted_and_traced(name: str, backbone: str) -> None:
    video, text, pair, floats = TABLE[name, backbone]
    model = on_meta(name, backbone)
    counted, traced, search = analytic_macs(model), traced_macs(model), search_cost(model)
    assert counted["video"] / 1e9 == pytest.approx(video, rel=1e-4)
    assert counted["text"] / 1e9 == pytest.approx(text, rel=1e-3)
    for side, macs in traced.items():
        assert abs(macs - counted[side]) <= TOLERANCE * counted[side]
    assert (search.macs_per_pair, search.floats) == (pair, floats)


@pytest.mark.parametrize("reducer", ["tempme", "centerclip", "testa", "vidtome"])
@pytest.mark.parametrize("name", SCORED)
def test_any_encoder_is_counted_and_traced(name: str, reducer: str, tiny_model: Make) -> None:
    model = tiny_model(name, reducer=reducer)
    counted = analytic_macs(model)
    for side, macs in traced_macs(model).items():
        assert abs(macs - counted[side]) <= TOLERANCE * counted[side]


@pytest.mark.parametrize("reducer", ["", "tempme", "centerclip"])
@pytest.mark.parametrize("name", SCORED)
def test_shapes_are_those_of_real_sides(
    name: str, reducer: str, tiny_model: Make, tiny_batch: dict[str, torch.Tensor]
) -> None:
    model = tiny_model(name, reducer=reducer)
    _, video = meta_sides(model)
    with torch.no_grad():
        real = model.video_side(tiny_batch["frames"][:1], tiny_batch["mask"][:1])
    assert [t.shape for t in video.tensors] == [t.shape for t in real.tensors]
    assert all(t.is_meta for t in video.tensors)


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
@pytest.mark.parametrize("name", SCORED)
def test_the_bytes_counted_are_those_stored(
    name: str, storage: str, tiny_model: Make, tiny_batch: dict[str, torch.Tensor]
) -> None:
    model = tiny_model(name, storage=storage)
    with torch.no_grad():
        side = model.video_side(tiny_batch["frames"][:1], tiny_batch["mask"][:1])
    stored = sum(array.nbytes for array in packed(side.fine, storage).values()) + side.coarse.numel() * 4
    assert search_cost(model).bytes_per_video == stored


def test_a_query_costs_what_the_definition_says() -> None:
    search = search_cost(on_meta("eercf", "ViT-B-32"))
    assert search.macs(1000) == 512**2 + 1000 * 512 + 50 * 315_112  # 16.5 M
    assert search.macs(30) == 512**2 + 30 * 512 + 30 * 315_112  # no more than there are
    assert search.read(1000) == 1000 * 512 * 4 + 50 * search.fine_bytes
    everything = search_cost(on_meta("eercf", "ViT-B-32", depth=None))
    assert everything.macs(1000) == 512**2 + 1000 * (512 + 315_112)  # its last stage takes the coarse score
    assert everything.read(1000) == 1000 * everything.bytes_per_video
    assert search_cost(on_meta("ts2net", "ViT-B-32")).macs(1000) == 1000 * 6_144  # and this one does not
    few = search_cost(on_meta("ts2net", "ViT-B-32", depth=50))
    assert few.macs(100_000) == 100_000 * 512 + 50 * 6_144
    none = search_cost(on_meta("eercf", "ViT-B-32", depth=0))  # nothing is scored again, so nothing more is stored
    assert (none.macs_per_pair, none.bytes_per_video, none.macs(1000)) == (512, 2048, 512**2 + 1000 * 512)


def test_behind_a_token_reduction_less_is_stored_and_scored() -> None:
    search = search_cost(on_meta("eercf", "ViT-B-32", reducer="tempme"))
    assert (search.floats, search.macs_per_pair) == (56_320, 57_073)


def test_one_vector_each_costs_its_width(tiny_model: Make) -> None:
    for name in ("lora", "clip4clip", "random"):
        search = search_cost(tiny_model(name))
        assert (search.macs_per_pair, search.floats, search.bytes_per_video) == (64, 64, 256)
        assert (search.macs(10), search.read(10), search.query) == (640, 2560, 0)


def test_records_hold_what_a_search_costs(tiny_model: Make) -> None:
    model = tiny_model("eercf", depth=5, storage="float16")
    found = profile(model)
    assert {"macs_per_pair", "floats_per_video"} <= set(found["search"])
    costs: dict[str, Measurement] = {m.name: m for m in count_costs(found)}
    search = search_cost(model)
    for name, gallery in GALLERIES.items():
        macs, read = costs[f"search_macs_{name}"], costs[f"search_read_{name}"]
        assert (macs.value, macs.unit) == (search.macs(gallery) / 1e6, "MMACs")
        assert (read.value, read.unit) == (search.read(gallery) / 1e6, "MB")
        assert macs.conditions["gallery"] == read.conditions["gallery"] == gallery
    stored = costs["storage_video"]
    assert (stored.value, stored.unit) == (search.bytes_per_video, "B")
    assert (stored.conditions["depth"], stored.conditions["storage"]) == (5, "float16")
    assert stored.conditions["floats"] == search.floats
    assert not any("upper_bound" in m.conditions for m in costs.values() if m.name.startswith(("search", "storage")))


def test_pixels_decide_what_is_stored_of_patches(tiny_model: Make) -> None:
    def bound(name: str) -> bool:
        costs = {m.name: m for m in count_costs(profile(tiny_model(name, reducer="rlt")))}
        return bool(costs["storage_video"].conditions.get("upper_bound"))

    assert bound("eercf")
    assert not bound("ts2net")  # it stores frames


def test_a_text_or_video_is_encoded_to_all_that_is_stored(
    tiny_model: Make, tiny_batch: dict[str, torch.Tensor]
) -> None:
    plain = tiny_model("lora")
    with torch.no_grad():
        (alone,) = plain.video_tensors(tiny_batch["frames"], tiny_batch["mask"])
        assert torch.equal(alone, plain.encode_video(tiny_batch["frames"], tiny_batch["mask"]))
    scored = tiny_model("drl")
    with torch.no_grad():
        side = scored.video_side(tiny_batch["frames"], tiny_batch["mask"])
        tensors = scored.video_tensors(tiny_batch["frames"], tiny_batch["mask"])
    assert all(torch.equal(a, b) for a, b in zip(side.tensors, tensors, strict=True))


def test_profile_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "ts2net", "--set", "depth=50"]) == 0
    shown = capsys.readouterr().out
    assert "6,144" in shown
    assert "26,672" in shown


@pytest.mark.parametrize("options", [{}, {"reducer": "tempme", "reducer_options": {"r": 1}}])
def test_dead_parameters_of_a_scorer_are_counted(options: dict[str, Any], tiny_model: Make) -> None:
    assert "reason" not in dead_or_reason(tiny_model("xpool", **options))


@pytest.mark.parametrize("trains", [False, True])
def test_a_run_times_a_query_in_a_small_gallery(trains: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Job] = []
    monkeypatch.setattr(measure, "try_measure", lambda job: asked.append(job) or [])
    for method in ("eercf", "random"):
        measure.time_costs(Job(method=method, latency=True), trains=trains)
    found = [(job.method, job.galleries, job.batch) for job in asked if job.scenario == "search"]
    assert found == [("eercf", (1_000,), 1), ("random", (1_000,), 1)]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"depth": -1}, "option.invalid"),
        ({"storage": "float8"}, "option.invalid"),
        ({"depth": "all"}, "option.invalid"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], code: str) -> None:
    with raises(code):
        on_meta("ts2net", "ViT-B-32", **options)
