"""A plan: counted hours, memory, disk, decoding and advice, without a training step and without a value in a weight."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from tiny_run import Clips, tiny_context

from tvrbench.harness.config.protocol import Protocol, load_protocol
from tvrbench.harness.core import registry
from tvrbench.harness.models.backbone.architecture import Architecture, preset
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.backbone.weights import Weights, is_downloaded, shapes_or_weights
from tvrbench.harness.profiling.trackers import rate
from tvrbench.harness.profiling.trackers.rate import measure_training_rate
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.runs import plan as planning
from tvrbench.harness.runs import plan_memory
from tvrbench.harness.runs.config import RunConfig
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.runs.plan import Plan, Rates, make_plan, sizes
from tvrbench.harness.runs.plan_text import Advice, plan_document, print_plan, what_first
from tvrbench.harness.runs.preflight import prepare
from tvrbench.harness.runs.settings import RunSettings
from tvrbench.harness.training.trainer import Trainer

pytestmark = pytest.mark.unit
MAIN = load_protocol("msrvtt-1ka-9k/uniform")
RATE = 1e12
GIB = 2**30


class OneRate(Rates):
    """Every encoder at the same rate; notes the precisions asked for."""

    def of(self, arch: Architecture, frames: int, precision: Any) -> float:
        self._measured[arch, frames, precision] = RATE
        return RATE


@pytest.fixture(autouse=True)
def _no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: Any) -> None:
        raise AssertionError("a plan trains nothing")

    monkeypatch.setattr(Trainer, "step", step)
    set_memory(monkeypatch, 64)


def set_memory(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    """A device of this size; a GPU has all of it free."""
    for name in ("device_memory", "usable_memory"):
        monkeypatch.setattr(plan_memory, name, lambda device: int(gib * GIB))
    monkeypatch.setattr(planning, "device_memory", lambda device: int(gib * GIB))


@pytest.fixture(scope="module")
def full_shapes() -> Weights:
    return shapes_or_weights("random:0", "ViT-B-32")


@pytest.fixture(scope="module")
def shapes(full_shapes: Weights) -> Weights:
    """ViT-B/32 with two blocks in each tower, counted and weighed in a sixth of the time."""
    arch = replace(full_shapes.arch, vision_layers=2, text_layers=2)
    with torch.device("meta"):
        return replace(full_shapes, arch=arch, state=CLIP(arch).state_dict())


def plan_of(
    protocol: Protocol,
    weights: Weights,
    methods: Sequence[str],
    seeds: Sequence[int] = (0, 1, 2),
    context: RunContext | None = None,
    options: dict[str, Any] | None = None,
    device: str = "cpu",
    **settings: Any,
) -> Plan:
    configs = [RunConfig(method=method, seed=seed, options=options or {}) for seed in seeds for method in methods]
    wanted = RunSettings(protocol=protocol.name, **settings)
    return make_plan(protocol, weights, configs, context, wanted, OneRate(torch.device(device)))


@pytest.mark.slow
def test_every_registered_method_is_planned(full_shapes: Weights, tmp_path: Path) -> None:
    names = registry.names("methods", "baselines")
    plan = plan_of(MAIN, full_shapes, names, seeds=[0], results=tmp_path / "r")
    assert [run.method for run in plan.runs] == names
    for method in plan.methods:
        trains = registry.lookup(method.method, "methods", "baselines").card.trains
        assert (method.steps, method.hours > 0) == (7030 * trains, method.forward_gmacs > 0)
        assert (method.memory_mib is not None) == trains
        if trains:
            assert 1.0 < method.step_gmacs / method.forward_gmacs < 3.0  # masked training drops half of the tokens
    json.dumps(plan_document(plan, what_first(plan, None, command="tvrbench run X")), allow_nan=False)
    assert not list(tmp_path.iterdir())


def test_hours_are_multiply_adds_by_the_rate(shapes: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, count = list[str](), planning.count_step
    monkeypatch.setattr(planning, "count_step", lambda model: counted.append(model.name) or count(model))
    plan = plan_of(MAIN, shapes, ["lora"])
    assert counted == ["lora"]  # once for all seeds
    (method,) = plan.methods
    forward, step = method.forward_gmacs * 1e9, method.step_gmacs * 1e9
    training = (7030 * 128 * step + 1000 * forward) / RATE / 3600
    search = 3 * (2343 * 128 * step + 500 * forward) / RATE / 3600
    assert [run.hours for run in plan.runs] == pytest.approx([training + search, training, training])
    assert plan.hours == method.hours == pytest.approx(3 * training + search)
    assert method.search_hours == pytest.approx(search)
    assert [run.trainings for run in plan.runs] == [4, 1, 1]
    assert plan.runs[0].samples == (7030 + 3 * 2343) * 128
    assert plan.search is not None
    assert (plan.search.mode, plan.search.steps_per_rate) == ("once", 2343)
    assert (plan.search.steps, plan.search.steps_per_seed) == (3 * 2343, 9 * 2343)
    assert plan.search.hours_saved == pytest.approx(2 * search)


def test_a_protocol_without_a_grid_has_no_search(shapes: Weights) -> None:
    plan = plan_of(load_protocol("msrvtt-1ka-9k/published"), shapes, ["lora", "clip4clip"])
    assert plan.search is None
    assert {run.search_steps for run in plan.runs} == {0}


@pytest.mark.slow  # the whole backbone; disk and memory of two blocks are in the tests below and of the command
def test_memory_and_disk(full_shapes: Weights, tmp_path: Path) -> None:
    parameters = sum(tensor.numel() for tensor in full_shapes.state.values())
    full, lora = plan_of(MAIN, full_shapes, ["clip4clip", "lora"], results=tmp_path).methods
    assert full.checkpoint_mib == pytest.approx(4 * parameters / 2**20)
    assert full.state_mib > 2 * full.checkpoint_mib > 50 * lora.state_mib
    assert full.memory_mib is not None
    assert lora.memory_mib is not None
    assert full.memory_mib > lora.memory_mib > 128 * 100  # MiB per pair on ViT-B/32 with 12 frames
    small = plan_of(MAIN, full_shapes, ["lora"], micro_batch_size=4).methods[0]
    assert small.memory_mib is not None
    assert small.memory_mib < lora.memory_mib / 10
    assert small.micro_batch == 4
    assert small.hours > 1.3 * lora.hours  # every pair is encoded twice
    limited = plan_of(MAIN, full_shapes, ["lora"], memory_limit=8 * GIB).methods[0]
    assert limited.memory_mib is not None
    assert 6 * 1024 < limited.memory_mib <= 8 * 1024
    assert limited.micro_batch == limited.largest_micro_batch
    assert 4 < limited.micro_batch < 128


@pytest.mark.parametrize(("gib", "fits"), [(0.1, 0), (4, None), (64, 128)])
def test_advice_about_memory(gib: float, fits: int | None, shapes: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    set_memory(monkeypatch, gib)
    plan = plan_of(MAIN, shapes, ["lora"])
    advice = [each.do for each in what_first(plan, None, command="tvrbench run X")]
    assert any(each.startswith("add --memory-limit") for each in advice) == (fits is None)
    assert any("more memory" in each for each in advice) == (fits == 0)
    assert fits in (None, plan.methods[0].largest_micro_batch)


@pytest.mark.parametrize(
    ("share", "settings", "micro_batch"),
    [
        (1.1, {}, 128),
        (0.45, {}, 32),  # the first of the whole, its half, its quarter that fits, so that trials are few
        (0.002, {}, 1),
        (1.1, {"micro_batch_size": 4}, 4),
        (1.1, {"memory_limit": 8 * GIB}, None),
    ],
)
def test_a_gpu_plans_the_micro_batch_that_the_run_would_choose(
    share: float,
    settings: dict[str, Any],
    micro_batch: int | None,
    shapes: Weights,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``share`` of what a step of the whole batch takes is free."""
    whole = plan_of(MAIN, shapes, ["lora"], [0], device="cuda").methods[0].memory
    assert whole is not None
    set_memory(monkeypatch, share * whole.whole_batch_mib / 1024)
    plan = plan_of(MAIN, shapes, ["lora"], [0], device="cuda", **settings)
    (method,) = plan.methods
    memory = method.memory
    assert memory is not None
    precision = MAIN.recipe_for("uniform").precision
    assert (method.precision, memory.precision, memory.batch) == (precision, precision, 128)
    assert memory.micro_batch == (micro_batch or memory.largest_micro_batch)
    assert memory.fits == (memory.largest_micro_batch > 0) == (share > 0.1)
    parts = (memory.weights_mib, memory.gradients_mib, memory.optimizer_mib, memory.activations_mib)
    assert memory.total_mib == method.memory_mib == pytest.approx(sum(parts))
    assert memory.total_mib <= memory.whole_batch_mib
    if memory.fits:
        assert memory.total_mib <= memory.limit_mib
    first = what_first(plan, None, command="tvrbench run X")
    assert not any("--memory-limit" in each.do for each in first)
    assert any("more memory" in each.do for each in first) != memory.fits
    document = plan_document(plan, first)["methods"][0]
    assert document["memory"]["per_pair_mib"] == memory.per_pair_mib
    print_plan(plan, first)
    assert ("does not fit" in capsys.readouterr().out) != memory.fits


def test_what_comes_first(shapes: Weights) -> None:
    plan = plan_of(MAIN, shapes, ["zero_shot", "random", "clip4clip", "lora"])
    long = replace(plan, hours=1e4)  # as of twelve blocks
    done = [each.do for each in what_first(long, None, command="tvrbench run X")]
    assert done[0] == "add --data DIR"
    untrained, trained = (next(n for n, text in enumerate(done) if name in text) for name in ("zero_shot", "lora"))
    assert untrained < trained
    assert done[trained] == "tvrbench run X --methods lora --seeds 0"
    assert done[-1] == "take a machine with a GPU"


class Cached:
    """A frame cache without a clip."""

    def clip(self, video_id: str, seed: int) -> None:
        return None


@pytest.fixture
def context(small_weights: Path) -> RunContext:
    return tiny_context(small_weights, steps=4, factors=(0.5, 1.0), search={"lr_search_share": 0.5})


def test_sizes_come_from_the_data_where_it_is_open(context: RunContext) -> None:
    opened = sizes(context.protocol, context)
    assert (opened.source, opened.train_pairs, opened.search_pairs) == ("data", 40, 30)
    assert (opened.train_videos, opened.test_videos) == (20, 9)
    stated = sizes(MAIN, None)
    assert (stated.source, stated.train_pairs, stated.train_videos, stated.test_videos) == (
        "protocol",
        180000,
        None,
        1000,
    )
    with raises("plan.sizes"):
        sizes(replace(MAIN, train_pairs=None, test_videos=None), None)


def test_decoding_with_and_without_a_cache(
    shapes: Weights, context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = plan_of(MAIN, shapes, ["lora"], seeds=[0]).decoding
    assert (unknown.clip_ms, unknown.hours_with_cache) == (None, None)
    assert unknown.reason
    assert unknown.clips_without_cache == (7030 + 3 * 2343) * 128 + 1000

    def decoding() -> Any:
        return plan_of(context.protocol, context.weights, ["lora"], [0], context, results=tmp_path).decoding

    kept = decoding()  # 29 small clips stay in memory
    assert (kept.clips_without_cache, kept.clips_with_cache) == (29 + 29, 29)
    assert kept.clip_ms is not None
    monkeypatch.setattr("tvrbench.harness.data.frame_loader.FrameLoader.keeps_clips", False)
    again = decoding()
    assert again.clips_without_cache == 29 + (4 + 2 * 2) * 4 + 9
    assert again.hours_without_cache == pytest.approx(
        again.clips_without_cache * again.clip_ms / 1e3 / again.threads / 3600
    )
    for loader in context.loaders.values():
        loader.cached = Cached()  # type: ignore[assignment]
    assert decoding().cached


def test_a_clip_that_cannot_be_decoded_is_left_to_the_check(context: RunContext, tmp_path: Path) -> None:
    assert isinstance(context.dataset, Clips)
    context.dataset.bad = "v0"  # the first that is tried
    plan = plan_of(context.protocol, context.weights, ["lora"], [0], context, results=tmp_path)
    assert plan.decoding.clip_ms is not None


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"nonsense": 1}, "option.unknown"),
        ({"tuning": "nonsense"}, "tuning.unknown"),
        ({"tuning": "frozen"}, "trainer.nothing-trainable"),
        ({"rank": 0}, "option.value"),
    ],
)
def test_options_are_checked_on_shapes(options: dict[str, Any], code: str, shapes: Weights) -> None:
    with raises(code):
        plan_of(MAIN, shapes, ["lora"], options=options)


def test_what_scorers_store_is_planned(shapes: Weights, capsys: pytest.CaptureFixture[str]) -> None:
    """1,000 videos of 12 unit frames and their mask, and a vector of each side; one vector each is no file."""
    frames, vectors = 1000 * (12 * 512 + 12), 2 * 1000 * 512
    plan = plan_of(MAIN, shapes, ["ts2net", "lora"], seeds=[0])
    assert [method.sides_mib for method in plan.methods] == [4 * (frames + vectors) / 2**20, 0]
    (half,) = plan_of(MAIN, shapes, ["ts2net"], seeds=[0], options={"storage": "float16"}).methods
    assert half.sides_mib == (2 * 1000 * 12 * 512 + 4 * (1000 * 12 + vectors)) / 2**20
    print_plan(plan, [])
    assert "while a run is scored: ts2net" in capsys.readouterr().out


def test_a_disk_without_room_for_sides_is_known_before_training(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(**options: Any) -> None:
        config = RunConfig(method="ts2net", seed=0, options=options)
        prepare(context, [config], RecordStore(tmp_path), skip=False, refuse=False, check=None)

    check()
    monkeypatch.setattr("tvrbench.harness.data.disk.RESERVE", 2**60)
    with raises("disk.full"):
        check()
    check(depth=0)


def test_printing(shapes: Weights, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(MAIN, shapes, ["zero_shot", "lora"])
    print_plan(replace(plan, notes=["a note"]), [Advice(do="this", why="because")])
    out = capsys.readouterr().out
    assert "7,029 steps" in out
    assert "21,087" in out
    assert "1. this (because)" in out
    assert "a note" in out
    print_plan(replace(plan, hours=0.001, disk_mib=1.0, state_mib=0.0), [])
    out = capsys.readouterr().out
    assert "under a minute" in out
    assert "under 0.1 GiB of checkpoints" in out
    assert "up to 0.0 GiB" in out
    assert " saved" not in print_saved(plan, 0.0, capsys)
    assert " saved" in print_saved(plan, 1.0, capsys)


def test_tables_fit_a_terminal_of_100_columns(
    shapes: Weights, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_memory(monkeypatch, 0.1)  # words in place of a micro-batch
    plan = plan_of(MAIN, shapes, ["clip4clip", "frame_subsample"], device="cuda")
    print_plan(replace(plan, methods=[replace(method, hours=87_000.5) for method in plan.methods]), [])
    tables = capsys.readouterr().out.partition("\nruns:")[0].splitlines()[1:]
    assert len(tables) == 8
    assert max(map(len, tables)) <= 100


def print_saved(plan: Plan, hours: float, capsys: pytest.CaptureFixture[str]) -> str:
    assert plan.search is not None
    print_plan(replace(plan, search=replace(plan.search, hours_saved=hours)), [])
    return capsys.readouterr().out


def test_weights_that_are_not_here_are_planned_without_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvrbench.harness.models.backbone.download_cache.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("open_clip.pretrained.download_pretrained", lambda *_: pytest.fail("it was downloaded"))
    assert not is_downloaded("openai", "ViT-B-32")
    assert is_downloaded("random:0", "ViT-B-32")
    assert all(tensor.is_meta for tensor in shapes_or_weights("openai", "ViT-B-32").state.values())
    with raises("weights.missing"):
        is_downloaded("no_such_tag", "ViT-B-32")
    with raises("weights.missing"):
        shapes_or_weights("/nowhere/x.pt", "ViT-B-32")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("x"), RuntimeError("CUDA error: out of memory")])
def test_the_probe_takes_what_fits(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = list[int]()

    def probe(arch: Architecture, shown: int, frames: int, device: torch.device, precision: Any) -> float:
        tried.append(shown)
        if len(tried) < 3:
            raise error
        return RATE

    monkeypatch.setattr(rate, "_rate", probe)
    assert measure_training_rate(preset("ViT-B-32"), 12, torch.device("cpu"), "float32") == RATE
    assert tried == [tried[0], tried[0] // 2, tried[0] // 4]


def test_the_probe_counts_what_it_times(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(preset("ViT-B-32"), vision_width=64, text_width=64, image_size=64, patch_size=16, embed_dim=64)
    found = measure_training_rate(small, 12, torch.device("cpu"), "float32")
    assert 1e8 < found < 1e14
