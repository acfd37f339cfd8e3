"""Protocols, recipes as data, batches, held-out slices, the registry and option parsing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from errors import raises
from hypothesis import given, settings
from hypothesis import strategies as st

from tvrbench.harness.config.protocol import load_protocol, protocol_names
from tvrbench.harness.config.recipe import load_recipe, recipe_names
from tvrbench.harness.core import registry
from tvrbench.harness.core.options import parse_assignments
from tvrbench.harness.data.open import split_holdout
from tvrbench.harness.data.pair_loader import batches
from tvrbench.harness.data.types import Split
from tvrbench.harness.training.trainer import precision_on

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]


def make_split(videos: int = 12, captions_each: int = 1, twins: bool = False) -> Split:
    pairs = [(v, c) for v in range(videos) for c in range(captions_each)]
    return Split(
        name="train",
        video_ids=tuple(f"video{v}" for v in range(videos)),
        captions=tuple(f"caption {c} of {v}" for v, c in pairs),
        caption_video=tuple(v for v, _ in pairs),
        subsets={"even": tuple(i for i, (v, _) in enumerate(pairs) if v % 2 == 0)},
        scenes=tuple(v // 2 for v in range(videos)) if twins else None,
    )


@pytest.mark.parametrize("name", protocol_names())
def test_shipped_protocols_load_and_name_known_things(name: str) -> None:
    protocol = load_protocol(name)
    assert protocol.dataset in registry.names("datasets")
    assert protocol.hash == load_protocol(name).hash
    for method in registry.names("methods", "baselines"):
        recipe = protocol.recipe_for(registry.lookup(method, "methods", "baselines").card.recipe)
        assert recipe.total_steps(protocol.train_pairs or 200) > 0


def test_hashes_are_those_of_existing_records() -> None:
    """A hash that changes parts every record that people have from the runs to come.

    Uniform protocols changed once, when they came to train in bfloat16 on a GPU.
    """
    baseline = json.loads((ROOT / "results/baselines/cpu-standin.json").read_text())
    assert load_protocol("standin/uniform").hash == baseline["standin"]["hash"]
    assert load_protocol("msrvtt-1ka-9k/uniform").hash == "99193d8bc4860932"
    assert load_protocol("msrvtt-1ka-9k/published-float16").hash == "96a1d5134c7db4fd"


def test_hashes_separate_protocols_and_ignore_titles_and_seeds() -> None:
    protocols = [load_protocol(name) for name in protocol_names()]
    assert len({p.hash for p in protocols}) == len(protocols)
    first = protocols[0]
    assert replace(first, title="other", seeds=(7,)).hash == first.hash
    assert replace(first, words=77).hash != first.hash
    assert first.on("ViT-B-16").name == f"{first.name}@ViT-B-16"


def test_how_rates_are_searched_is_in_the_hash_where_there_are_several() -> None:
    grid, single = load_protocol("msrvtt-1ka-9k/uniform"), load_protocol("standin/uniform")
    changes: list[dict[str, Any]] = [{"lr_search": "per-seed"}, {"lr_search_share": 0.5}]
    for change in changes:
        assert replace(grid, **change).hash != grid.hash
        assert replace(single, **change).hash == single.hash


def test_rates_are_tried_for_a_third_of_the_steps_with_the_first_seed() -> None:
    protocol = replace(load_protocol("msrvtt-1ka-9k/uniform"), seeds=(3, 4))
    assert protocol.lr_search_steps(7030) == 2343
    assert protocol.lr_search_steps(1) == 1
    assert protocol.lr_search_seed(9) == 3
    assert replace(protocol, lr_search="per-seed").lr_search_seed(9) == 9


@pytest.mark.parametrize(
    "change", [{"lr_search_share": 0.0}, {"lr_search_share": 1.1}, {"lr_search_share": float("nan")}, {"seeds": ()}]
)
def test_a_search_that_cannot_be_done_is_refused(change: dict[str, Any]) -> None:
    with raises("protocol.range"):
        replace(load_protocol("msrvtt-1ka-9k/uniform"), **change)


def test_the_9k_epoch_is_the_papers() -> None:
    assert load_recipe("tempme").total_steps(180_000) == 5 * 1406


@pytest.mark.parametrize("name", recipe_names())
def test_an_unknown_recipe_field_is_named(name: str) -> None:
    with raises("option.unknown", option="lerning_rate"):
        load_recipe(name, {"lerning_rate": 1})


def test_a_method_without_a_rate_for_its_tuning_is_refused() -> None:
    with raises("recipe.tuning", tuning="frozen"):
        load_recipe("uniform").for_tuning("frozen")


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3), st.integers(1, 8), st.integers(0, 5), st.booleans())
def test_batches_are_epochs_without_repeats(videos: int, each: int, size: int, seed: int, twins: bool) -> None:
    split = make_split(videos, each, twins)
    units = videos if twins else videos * each
    if units < size:
        with raises("batch.too-large", batch_size=size):
            list(batches(split, size, seed, 4, pair_scenes=twins))
        return
    per_epoch = units // size
    plan = list(batches(split, size, seed, 3 * per_epoch, pair_scenes=twins))
    for epoch in range(3):
        seen = [c for batch in plan[epoch * per_epoch : (epoch + 1) * per_epoch] for c in batch]
        assert len(seen) == len(set(seen)) == per_epoch * size
    assert list(batches(split, size, seed, 3 * per_epoch, pair_scenes=twins, start=2)) == plan[2:]


def test_twins_share_a_batch() -> None:
    split = make_split(12, 1, twins=True)
    for batch in batches(split, 4, 0, 6, pair_scenes=True):
        scenes = [split.caption_video[c] // 2 for c in batch]
        assert all(scenes.count(scene) == 2 for scene in scenes)


def test_a_held_out_slice_shares_no_scene_with_the_rest() -> None:
    split = make_split(20, 3, twins=True)
    rest, held = split_holdout(split, 5)
    assert len(held.video_ids) == 6  # whole scenes
    assert len(held.captions) == 6
    assert len(rest.video_ids) == 14
    assert not set(rest.video_ids) & set(held.video_ids)
    scene = dict(zip(split.video_ids, split.scenes or (), strict=True))
    assert not {scene[v] for v in rest.video_ids} & {scene[v] for v in held.video_ids}
    with raises("split.too-small"):
        split_holdout(split, 20)


def test_a_split_without_some_videos_keeps_its_subsets_right() -> None:
    split = make_split(6, 2)
    less = split.without(["video0", "video3"])
    assert less.video_ids == ("video1", "video2", "video4", "video5")
    assert [less.captions[i] for i in less.subsets["even"]] == [
        "caption 0 of 2",
        "caption 1 of 2",
        "caption 0 of 4",
        "caption 1 of 4",
    ]
    assert all(str(less.caption_video[i]) for i in range(8))
    assert less.fingerprint != split.fingerprint


def test_fingerprints_ignore_order_and_notice_captions() -> None:
    a = Split(name="a", video_ids=("x", "y"), captions=("1", "2"), caption_video=(0, 1))
    b = Split(name="b", video_ids=("y", "x"), captions=("2", "1"), caption_video=(0, 1))
    c = Split(name="c", video_ids=("x", "y"), captions=("1", "2"), caption_video=(1, 0))
    assert a.fingerprint == b.fingerprint != c.fingerprint


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"video_ids": ("x", "x")}, "split.duplicate"),
        ({"caption_video": (0,)}, "split.captions"),
        ({"caption_video": (0, 2)}, "split.captions"),
    ],
)
def test_broken_splits_are_refused(changes: dict[str, Any], code: str) -> None:
    good = {"name": "a", "video_ids": ("x", "y"), "captions": ("1", "2"), "caption_video": (0, 1)}
    with raises(code, split="a"):
        Split(**(good | changes))


def test_assignments() -> None:
    given_ = ["r=2", "merge_frames=(2,2,3)", "mode=unmerge", "x=1e-3", "on=True"]
    assert parse_assignments(given_) == {"r": 2, "merge_frames": (2, 2, 3), "mode": "unmerge", "x": 1e-3, "on": True}
    for bad in ("r", "=2"):
        with raises("option.assignment", value=bad):
            parse_assignments([bad])


def test_registry_refuses_duplicates_and_suggests_names() -> None:
    with raises("registry.duplicate", name="lora"):
        registry.merge_tables("methods", [("a", {"lora": "a:A"}), ("b", {"lora": "b:B"})])
    with raises("registry.unknown", name="tempmee") as caught:
        registry.lookup("tempmee", "methods", "baselines")
    assert "tempme?" in str(caught.value)
    with raises("protocol.unknown", protocol="msrvtt"):
        load_protocol("msrvtt")
    with raises("recipe.unknown", recipe="none"):
        load_recipe("none")


@pytest.mark.parametrize("name", protocol_names())
def test_a_uniform_protocol_trains_in_bfloat16_on_a_gpu_and_says_so_in_its_hash(name: str) -> None:
    """The stand-in stays in float32, so that a GPU can be compared with the CPU of its committed records; a protocol
    that trains nothing has nothing to say."""
    protocol = load_protocol(name)
    recipe = protocol.recipe_for("uniform")
    half = protocol.kind == "uniform" and protocol.trains and name != "standin/uniform"
    assert precision_on("cuda", recipe) == ("bfloat16" if half else "float32")
    assert (precision_on("cpu", recipe), recipe.weights) == ("float32", "float32")
    without = {key: value for key, value in protocol.recipe_overrides.items() if key != "precision"}
    assert (replace(protocol, recipe_overrides=without).hash != protocol.hash) == half
