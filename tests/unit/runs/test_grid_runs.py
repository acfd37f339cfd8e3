"""Runs over a grid: which there are, what is refused before the first, how they resume, and how they are planned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from tiny_run import run_in, stop_run, tiny_context

from tvrbench.harness.config.protocol import load_protocol
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.runs.config import RunConfig
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.runs.lr_search import who_searches
from tvrbench.harness.runs.plan import Rates, make_plan
from tvrbench.harness.runs.plan_text import plan_document, print_plan, what_first
from tvrbench.harness.runs.preflight import prepare
from tvrbench.harness.runs.resume import work_list
from tvrbench.harness.runs.settings import RunSettings, SweepSettings
from tvrbench.harness.runs.suite import Suite, _full_size_detail
from tvrbench.harness.runs.sweep import _settings, read_sweep, sweep_groups

pytestmark = pytest.mark.unit
TOME = RunConfig(method="tome", seed=0, timing=False)


@pytest.fixture
def context(small_weights: Path) -> RunContext:
    made: RunContext = tiny_context(small_weights, steps=4)
    return made


def suite(*grid: str, protocol: str = "standin/uniform", **given: Any) -> Suite:
    return Suite.of(RunSettings(protocol=protocol, device="cpu", grid=grid, **given))


def over(option: str, values: Sequence[Any], base: RunConfig = TOME) -> list[RunConfig]:
    return [replace(base, options={option: value}, point={option: value}) for value in values]


def test_every_combination_is_a_run_of_every_method_and_seed() -> None:
    made = suite("r=0,1", "proportional_attention=True,False", methods=("tome", "tempme"), seeds=(3, 4)).configs
    assert len(made) == 2 * 2 * 2 * 2
    assert [config.seed for config in made] == [3] * 8 + [4] * 8
    assert [config.title for config in made[:2]] == [
        "tome r=0, proportional_attention=True (seed 3)",
        "tome r=0, proportional_attention=False (seed 3)",
    ]
    assert made[0].options == {"r": 0, "proportional_attention": True}
    assert len({config.variant for config in made}) == 8


def test_other_options_stay_beside_the_grid() -> None:
    (one, two) = suite("r=0,1", methods=("tome",), assignments=("tuning=bias",)).configs
    assert (one.options, two.options) == ({"tuning": "bias", "r": 0}, {"tuning": "bias", "r": 1})
    assert (one.point, two.point) == ({"r": 0}, {"r": 1})


def test_the_protocols_own_grid_is_run_unless_the_command_says_otherwise() -> None:
    free = load_protocol("standin/training-free")
    made = suite(protocol=free.name).configs
    assert {config.method for config in made} == set(free.methods)
    assert [c.point for c in made if c.method == "tome"] == [{"r": r} for r in free.grid["tome"]["r"]]
    assert not any(config.timing for config in made)
    given = suite("r=7,8", protocol=free.name, methods=("tome",)).configs
    assert [config.point for config in given] == [{"r": 7}, {"r": 8}]
    (fixed,) = suite(protocol=free.name, methods=("tome",), assignments=("r=3",)).configs
    assert (fixed.options, fixed.point) == ({"r": 3}, {})


@pytest.mark.parametrize(
    ("given", "code", "fields"),
    [
        ({"grid": ("r=1,2",), "methods": ("tome", "lora")}, "grid.no-option", {"method": "lora", "option": "r"}),
        ({"grid": ("r=1,2",)}, "grid.no-option", {"method": "zero_shot", "option": "r"}),
        ({"grid": ("r=1,2",), "assignments": ("r=1",)}, "grid.and-set", {"option": "r"}),
        ({"grid": ("r=(1",), "methods": ("tome",)}, "grid.bracket", {}),
        ({"protocol": "standin/training-free", "assignments": ("tuning=lora",)}, "protocol.option-fixed", {}),
        ({"protocol": "standin/training-free", "grid": ("tuning=lora,frozen",)}, "protocol.option-fixed", {}),
    ],
)
def test_a_grid_that_does_not_fit_the_methods_is_refused(
    given: dict[str, Any], code: str, fields: dict[str, Any]
) -> None:
    with raises(code, **fields):
        Suite.of(RunSettings(**{"protocol": "standin/uniform", "device": "cpu"} | given))


@pytest.mark.parametrize(("value", "code"), [(-1, "option.value"), ("many", "option.invalid"), (1.5, "option.invalid")])
@pytest.mark.parametrize("tuning", ["lora", "frozen"])
def test_a_bad_value_anywhere_in_the_grid_is_refused_before_the_first_run(
    value: Any, code: str, tuning: str, context: RunContext, tmp_path: Path
) -> None:
    configs = [replace(c, options=c.options | {"tuning": tuning}) for c in over("r", [0, 1, value])]
    with raises(code, option="r") as caught:
        prepare(context, configs, RecordStore(tmp_path), skip=False, refuse=False, check=None)
    assert repr(value) in str(caught.value)


def test_two_combinations_of_one_meaning_are_refused(context: RunContext, tmp_path: Path) -> None:
    blocks = [None, (0, 1, 2), [0, 1, 2]]
    configs = over("blocks", blocks, replace(TOME, method="vidtome"))
    with raises("grid.same-run", method="vidtome"):
        work_list(context, configs[1:], RecordStore(tmp_path), skip=False, refuse=False)
    work_list(context, configs[:2], RecordStore(tmp_path), skip=False, refuse=False)


def test_a_grid_resumes_where_it_was_stopped(context: RunContext, tmp_path: Path) -> None:
    """The state of one combination is no other run's to the rest of its grid, and it is to a run outside of it."""
    store, configs = RecordStore(tmp_path), over("r", [0, 1, 2])
    first = run_in(tmp_path, context, configs[0])
    stop_run(tmp_path, context, configs[1], 2)
    work = work_list(context, configs, store, skip=True, refuse=True)
    assert (work.done, work.left) == ([first], configs[1:])
    with raises("state.other-run"):
        work_list(context, configs[2:], store, skip=True, refuse=True)
    for config in work.left:
        run_in(tmp_path, context, config, resume=True)
    records = {record["method"]["options"]["r"]: record for record in store.load_all()}
    assert {r: "resumed_at" in record["metrics"]["training"] for r, record in records.items()} == {
        0: False,
        1: True,
        2: False,
    }
    assert work_list(context, configs, store, skip=True, refuse=True).left == []


def test_each_combination_searches_its_own_learning_rate(small_weights: Path, tmp_path: Path) -> None:
    context = tiny_context(small_weights, steps=3, factors=(0.5, 1.0))
    seeds = [replace(config, seed=seed) for seed in (0, 1) for config in over("r", [0, 1])]
    assert who_searches(context.protocol, context, seeds, RecordStore(tmp_path)) == [True, True, False, False]


def test_a_plan_counts_every_combination(
    context: RunContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Rates, "of", lambda *_: 1e12)
    configs = [replace(config, seed=seed) for seed in (0, 1) for config in over("r", [0, 1])]
    settings = RunSettings(protocol="tiny/uniform", results=tmp_path)
    plan = make_plan(context.protocol, context.weights, configs, context, settings, Rates(torch.device("cpu")))
    dense, merged = plan.methods
    assert [(m.method, m.label, m.runs) for m in plan.methods] == [("tome", "tome r=0", 2), ("tome", "tome r=1", 2)]
    assert dense.forward_gmacs > merged.forward_gmacs
    assert plan.hours == pytest.approx(dense.hours + merged.hours)
    assert plan.runs[0].hours > plan.runs[1].hours
    first = what_first(plan, context, command="tvrbench run tiny --grid r=0,1")
    assert [run["options"]["r"] for run in plan_document(plan, first)["runs"]] == [0, 1, 0, 1]
    print_plan(plan, first)
    assert "tome r=1" in capsys.readouterr().out


def test_costs_at_full_size_are_left_out_over_a_grid_unless_asked_for() -> None:
    for grid, detail, expected in [((), "auto", "count"), (("r=0,1",), "auto", None), (("r=0,1",), "count", "count")]:
        settings = RunSettings(
            protocol="standin/uniform", device="cpu", methods=("tome",), grid=grid, full_size_costs=detail
        )
        assert _full_size_detail(Suite.of(settings), settings) == expected


class TestSweep:
    FILE = """
protocols = ["standin/uniform", "standin/training-free"]
methods = ["zero_shot", "tome"]
seeds = [0, 1]
"""

    def test_a_sweep_has_grids_too_and_each_run_is_a_command_of_its_own(self, tmp_path: Path) -> None:
        path = tmp_path / "sweep.toml"
        path.write_text(self.FILE + "[grid.tome]\nr = [0, 1]\nproportional_attention = [true]\n")
        trained, free = sweep_groups(read_sweep(path))
        assert [config.label for config in trained.configs] == [
            "zero_shot",
            *["tome r=0, proportional_attention=True", "tome r=1, proportional_attention=True"] * 2,
        ]
        assert [c.point["r"] for c in free.configs if c.method == "tome" and c.seed == 0] == [0, 1]
        config = free.configs[1]
        settings = _settings(free, config, SweepSettings(file=path))
        (again,) = Suite.of(replace(settings, device="cpu")).configs
        assert again.options == config.options

    def test_without_one_the_protocols_own_are_run(self, tmp_path: Path) -> None:
        path = tmp_path / "sweep.toml"
        path.write_text(self.FILE)
        trained, free = sweep_groups(read_sweep(path))
        assert len(trained.configs) == 3
        own = load_protocol("standin/training-free").grid["tome"]["r"]
        assert [c.point for c in free.configs if c.method == "tome" and c.seed == 0] == [{"r": r} for r in own]

    @pytest.mark.parametrize(
        ("tables", "code"),
        [
            ("[grid.lora]\nrank = [4, 8]", "sweep.method-options"),
            ("[grid.tome]\nr = []", "grid.no-value"),
            ("[grid.tome]\nr = [1, 1]", "grid.value-twice"),
            ("[options]\nr = 1\n[grid.tome]\nr = [1, 2]", "grid.and-set"),
            ("[grid.tome]\nratio = [1, 2]", "grid.no-option"),
        ],
    )
    def test_a_grid_that_does_not_fit_is_refused(self, tables: str, code: str, tmp_path: Path) -> None:
        path = tmp_path / "sweep.toml"
        path.write_text(self.FILE + tables)
        with raises(code):
            sweep_groups(read_sweep(path))
