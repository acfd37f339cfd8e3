"""Learning rates are searched once per method, on a shortened schedule, and the choice serves the other seeds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from tiny_run import ActAt, only, run_in, stop_run
from tiny_run import tiny_context as context_of

from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.runs.config import RunConfig
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.runs.lr_search import who_searches
from tvrbench.harness.runs.preflight import prepare

pytestmark = pytest.mark.unit
CONFIG = RunConfig(method="lora", seed=0, timing=False)
HALF = {"lr_search_share": 0.5, "seeds": (0, 1, 2)}


@pytest.fixture
def context(small_weights: Path) -> RunContext:
    """Two rates, each tried for 2 of 4 steps."""
    made: RunContext = context_of(small_weights, steps=4, factors=(0.5, 1.0), search=HALF)
    return made


@pytest.fixture(scope="module")
def once(small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one run that searched; tests work on copies."""
    folder = tmp_path_factory.mktemp("searched")
    run_in(folder, context_of(small_weights, steps=4, factors=(0.5, 1.0), search=HALF), CONFIG)
    return folder


@pytest.fixture
def searched(once: Path, tmp_path: Path) -> Path:
    """A folder of results in which the first seed has searched."""
    return Path(shutil.copytree(once, tmp_path / "searched"))


def steps_of(folder: Path, context: RunContext, config: RunConfig, **settings: Any) -> list[str]:
    """Do a run; every step that it took, for example ``1/2`` of a rate and ``1/4`` of the training."""
    progress = ActAt()
    run_in(folder, context, config, progress, **settings)
    return progress.steps


def choices(folder: Path) -> dict[int, dict[str, Any]]:
    """The choice in the record of every seed."""
    records = RecordStore(folder).load_all("tiny/uniform")
    return {record["seed"]: dict(record["metrics"]["training"]["learning_rate_choice"]) for record in records}


def found_by(folder: Path, seed: int) -> dict[str, Any]:
    """The choice in the record of a seed, whoever searched."""
    return choices(folder)[seed] | {"reused": None}


def test_rates_are_tried_shortly_and_once_for_all_seeds(context: RunContext, tmp_path: Path) -> None:
    training = ["1/4", "2/4", "3/4", "4/4"]
    assert steps_of(tmp_path, context, CONFIG) == ["1/2", "2/2"] * 2 + training
    for seed in (1, 2):
        assert steps_of(tmp_path, context, replace(CONFIG, seed=seed)) == training
    found = choices(tmp_path)
    assert [found[seed]["reused"] for seed in (0, 1, 2)] == [False, True, True]
    assert found_by(tmp_path, 0) == found_by(tmp_path, 1) == found_by(tmp_path, 2)
    assert (found[0]["seed"], found[0]["steps"], found[0]["factors"]) == (0, 2, [0.5, 1.0])
    assert set(found[0]["held_out_rsum"]) == {"0.5", "1.0"}
    assert found[0]["protocol_hash"] == context.protocol.hash


def test_whoever_searches_finds_the_same_choice(context: RunContext, once: Path, tmp_path: Path) -> None:
    """Jobs of a cluster that start together search with the protocol's seed, each for itself."""
    steps_of(tmp_path, context, replace(CONFIG, seed=2))
    assert choices(once)[0] == choices(tmp_path)[2]
    kept = [only(folder, "*.lr") for folder in (once, tmp_path)]
    assert kept[0].name == kept[1].name
    assert kept[0].read_bytes() == kept[1].read_bytes()


def test_a_run_is_the_same_whether_it_searched_or_took_the_choice(
    context: RunContext, searched: Path, tmp_path: Path
) -> None:
    folders = tmp_path / "own", searched
    for folder in folders:
        steps_of(folder, context, replace(CONFIG, seed=1))
    own, taken = (next(r for r in RecordStore(folder).load_all("tiny/uniform") if r["seed"] == 1) for folder in folders)
    assert [one["metrics"]["training"]["learning_rate_choice"].pop("reused") for one in (own, taken)] == [False, True]
    assert own["metrics"] == taken["metrics"]


def test_per_seed_every_seed_searches_for_itself(small_weights: Path, tmp_path: Path) -> None:
    context = context_of(small_weights, steps=2, factors=(0.5, 1.0), search=HALF | {"lr_search": "per-seed"})
    for seed in (0, 1):
        assert steps_of(tmp_path, context, replace(CONFIG, seed=seed)) == ["1/1", "1/1", "1/2", "2/2"]
    assert {seed: choice["seed"] for seed, choice in choices(tmp_path).items()} == {0: 0, 1: 1}


@pytest.mark.parametrize("change", ["options", "method", "rates", "weights", "held out", "share"])
def test_the_choice_of_another_search_is_not_taken(
    change: str, context: RunContext, tiny_weights: Path, searched: Path
) -> None:
    config = replace(CONFIG, seed=1)
    protocol = context.protocol
    match change:
        case "options":
            config = replace(config, options={"rank": 4})
        case "method":
            config = replace(config, method="bias")
        case "rates":
            context = replace(context, protocol=replace(protocol, lr_factors=(1.0, 2.0)))
        case "weights":
            context = context_of(tiny_weights, steps=4, factors=(0.5, 1.0), search=HALF)
        case "held out":
            context = replace(context, protocol=replace(protocol, held_out=6))
        case "share":
            context = replace(context, protocol=replace(protocol, lr_search_share=0.25))
    context.blueprints.clear()
    steps = steps_of(searched, context, config)
    assert len([step for step in steps if not step.endswith("/4")]) == (2 if change == "share" else 4)
    assert len(list(searched.rglob("*.lr"))) == 2


def test_a_run_that_selects_on_the_test_set_takes_the_choice_too(context: RunContext, searched: Path) -> None:
    steps = steps_of(searched, context, replace(CONFIG, seed=1, selection="best-on-test"))
    assert steps == ["1/4", "2/4", "3/4", "4/4"]


@pytest.mark.parametrize("stopped_at", [1, 3, 6])
def test_a_crash_between_search_and_record_loses_no_choice(
    stopped_at: int, context: RunContext, once: Path, tmp_path: Path
) -> None:
    """In the first rate, the second, and the training itself; another seed goes on meanwhile."""
    broken = tmp_path / "broken"
    first = stop_run(broken, context, CONFIG, stopped_at)
    assert len(list(broken.rglob("*.lr"))) == (stopped_at > 4)
    other = steps_of(broken, context, replace(CONFIG, seed=1))
    assert len(other) == (4 if stopped_at > 4 else 8)
    last = steps_of(broken, context, CONFIG, resume=True)
    assert len(first.steps) + len(last) == {1: 1 + 4, 3: 3 + 4, 6: 8}[stopped_at]  # the kept choice ends the search
    assert found_by(broken, 0) == found_by(once, 0)


@pytest.fixture(scope="module")
def whole(once: Path, small_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a run that searched and of one that took its choice."""
    folder = Path(shutil.copytree(once, tmp_path_factory.mktemp("whole") / "results"))
    context = context_of(small_weights, steps=4, factors=(0.5, 1.0), search=HALF)
    run_in(folder, context, replace(CONFIG, seed=1))
    return folder


@pytest.mark.parametrize("meanwhile", ["changed", "lost", "damaged"])
@pytest.mark.parametrize("seed", [0, 1], ids=["searched", "taken"])
def test_a_training_keeps_its_rate_whatever_becomes_of_the_file(
    seed: int, meanwhile: str, context: RunContext, once: Path, whole: Path, tmp_path: Path
) -> None:
    """Stopped twice in its final training: the choice survives a save by the resumed run too."""
    config, broken = replace(CONFIG, seed=seed), tmp_path / "broken"
    if seed == 1:
        shutil.copytree(once, broken)
    stop_run(broken, context, config, 4 * (seed == 0) + 1)
    path = only(broken, "*.lr")
    document = json.loads(path.read_text())
    document["choice"]["chosen"] = {0.5: 1.0, 1.0: 0.5}[document["choice"]["chosen"]]
    match meanwhile:
        case "changed":
            path.write_text(json.dumps(document))
        case "lost":
            path.unlink()
        case "damaged":
            path.write_text("{")
    assert stop_run(broken, context, config, 1, resume=True).steps == ["2/4"]
    assert steps_of(broken, context, config, resume=True) == ["3/4", "4/4"]
    assert path.is_file() == (meanwhile != "lost")  # who deleted it wants another search
    assert choices(broken)[seed] == choices(whole)[seed]
    assert rates(broken, seed) == rates(whole, seed)


def rates(folder: Path, seed: int) -> list[Any]:
    """Learning rates of every step of the final training of a seed, from its log."""
    lines = [json.loads(line) for line in only(folder, f"*-seed{seed}-*.jsonl").read_text().splitlines()]
    return [(line["step"], line["lr"]) for line in lines if line["phase"] == "train"]


def test_a_state_without_a_choice_takes_the_kept_one(context: RunContext, tmp_path: Path) -> None:
    """As earlier versions wrote it."""
    stop_run(tmp_path, context, CONFIG, 6)
    path = only(tmp_path, "*.training")
    document = torch.load(path, weights_only=True)
    assert document["state"].pop("lr_choice")["chosen"] in {0.5, 1.0}
    torch.save(document, path)
    assert steps_of(tmp_path, context, CONFIG, resume=True) == ["3/4", "4/4"]


@pytest.mark.parametrize("damage", [{"chosen": 7.0}, {"factors": "all"}, {"seed": None}], ids=lambda d: next(iter(d)))
def test_a_state_with_a_damaged_choice_is_refused(damage: dict[str, Any], context: RunContext, tmp_path: Path) -> None:
    stop_run(tmp_path, context, CONFIG, 6)
    path = only(tmp_path, "*.training")
    document = torch.load(path, weights_only=True)
    document["state"]["lr_choice"] |= damage
    torch.save(document, path)
    with raises("state.damaged"):
        run_in(tmp_path, context, CONFIG, resume=True)


@pytest.mark.parametrize("damage", ["cut", "empty", "a rate never tried", "rates of another", "a list", "nested"])
def test_a_damaged_choice_is_refused_and_nothing_is_trained(damage: str, context: RunContext, searched: Path) -> None:
    path = only(searched, "*.lr")
    document = json.loads(path.read_text())
    changes = {"a rate never tried": {"chosen": 7.0}, "rates of another": {"factors": [7.0], "chosen": 7.0}}
    document["choice"] |= changes.get(damage, {})
    text = json.dumps(document)
    contents = {"cut": text[:99], "empty": "", "a list": "[]", "nested": "[" * 99_999}
    path.write_text(contents.get(damage, text))
    progress = ActAt()
    with raises("lr-choice.damaged"):
        run_in(searched, context, replace(CONFIG, seed=1), progress)
    assert progress.steps == []


@pytest.mark.parametrize("fact", ["method", "search seed", "training split", "kind"])
def test_the_choice_of_another_search_is_refused_with_what_differs(
    fact: str, context: RunContext, searched: Path
) -> None:
    """As when a file was copied by hand; a fact that only another version knows differs too."""
    path = only(searched, "*.lr")
    document = json.loads(path.read_text())
    document["search"][fact] = "other"
    path.write_text(json.dumps(document))
    with raises("lr-choice.damaged", fact=fact):
        run_in(searched, context, replace(CONFIG, seed=1))


def test_a_run_that_takes_a_choice_names_its_file(context: RunContext, searched: Path) -> None:
    progress = ActAt()
    run_in(searched, context, replace(CONFIG, seed=1), progress)
    assert any(str(only(searched, "*.lr")) in line for line in progress.lines)


def test_one_run_of_a_command_searches_for_the_others(context: RunContext, searched: Path, tmp_path: Path) -> None:
    configs = [replace(CONFIG, method=method, seed=seed) for seed in (1, 2) for method in ("zero_shot", "lora", "bias")]
    store, protocol = RecordStore(tmp_path), context.protocol
    once = [False, True, True, False, False, False]
    assert who_searches(protocol, context, configs, store) == once == who_searches(protocol, None, configs, store)
    each = replace(protocol, lr_search="per-seed")
    assert who_searches(each, None, configs, store) == [False, True, True, False, True, True]
    assert not any(who_searches(replace(protocol, lr_factors=(1.0,)), None, configs, store))
    store = RecordStore(searched)
    assert who_searches(protocol, context, configs, store) == [False, False, True, False, False, False]


def fewer_videos(context: RunContext) -> RunContext:
    """The context after a check that leaves three training videos."""
    return replace(context, train=context.train.without(context.train.video_ids[3:]))


def never(context: RunContext) -> RunContext:
    """A check that must not be reached."""
    raise AssertionError("videos were decoded first")


@pytest.mark.parametrize(("held_out", "check"), [(20, never), (500, never), (5, fewer_videos), (5, None)])
def test_too_few_videos_to_hold_out_are_refused_before_videos_are_decoded(
    held_out: int, check: Callable[[RunContext], RunContext] | None, context: RunContext, tmp_path: Path
) -> None:
    wide = replace(context, protocol=replace(context.protocol, held_out=held_out))
    wide = wide if check is not None else fewer_videos(wide)
    store = RecordStore(tmp_path)
    with raises("split.too-small"):
        prepare(wide, [CONFIG], store, skip=True, refuse=True, check=check)
    assert prepare(wide, [replace(CONFIG, method="zero_shot")], store, skip=True, refuse=True, check=None)[1].left
    alone = replace(wide, protocol=replace(wide.protocol, lr_factors=(1.0,)))
    assert prepare(alone, [CONFIG], store, skip=True, refuse=True, check=None)[1].left


def test_a_plan_refuses_a_state_and_leaves_out_a_record_as_a_run_does(context: RunContext, tmp_path: Path) -> None:
    store, other = RecordStore(tmp_path), replace(CONFIG, options={"rank": 4})
    stop_run(tmp_path, context, CONFIG, 2)
    with raises("state.other-run", key="options"):
        prepare(context, [other], store, skip=True, refuse=True, check=None)
    assert prepare(context, [CONFIG], store, skip=True, refuse=True, check=None)[1].left == [CONFIG]
    steps_of(tmp_path, context, CONFIG, resume=True)
    assert prepare(context, [CONFIG], store, skip=True, refuse=True, check=None)[1].left == []
