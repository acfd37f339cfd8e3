"""Grids: text into values, their combinations, and the grids of protocols."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
from errors import raises
from hypothesis import given
from hypothesis import strategies as st

from tvrbench.harness.config.grid import MOST, check_grid, combinations, each_grid, grid_text, parse_grid
from tvrbench.harness.config.protocol import Protocol, load_protocol, protocol_names
from tvrbench.harness.core.options import parse_assignments
from tvrbench.harness.models.backbone.weights import shapes_or_weights
from tvrbench.harness.runs.config import RunConfig, blueprint, describe
from tvrbench.harness.runs.context import weights_of

pytestmark = pytest.mark.unit

FREE = [name for name in protocol_names() if name.endswith("/training-free")]
PLAIN = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=6), st.none())
VALUES = st.recursive(PLAIN, lambda part: st.one_of(st.lists(part, max_size=3), st.tuples(part, part)), max_leaves=6)


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_values_are_read_as_they_are_written(values: list[Any]) -> None:
    """Commas inside brackets and quotes separate no values, whatever the texts hold."""
    different = [value for place, value in enumerate(values) if value not in values[:place]]
    assert parse_grid([f"r={', '.join(map(repr, different))}"]) == {"r": tuple(different)}


@given(st.sampled_from(["2", "0.5", "mean", "(3, 6, 9)", "((6, 4, 49),)", "True", "None", "'a,b'"]))
def test_a_value_of_a_grid_is_that_of_set(value: str) -> None:
    assert parse_grid([f"x={value}"]) == {"x": (parse_assignments([f"x={value}"])["x"],)}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("r=1,2,4", (1, 2, 4)),
        ("r = 1 , 2", (1, 2)),
        ("frames_r=(0,1)", ((0, 1),)),
        ("blocks=(3,6,9),(2,5)", ((3, 6, 9), (2, 5))),
        ("schedule=((6,4,24),),()", (((6, 4, 24),), ())),
        ("mode=unmerge,persistent", ("unmerge", "persistent")),
        ("x=[1,2],{3: (4,5)}", ([1, 2], {3: (4, 5)})),
        ("formula=a=b,c", ("a=b", "c")),
    ],
)
def test_commas_outside_of_brackets_separate_values(text: str, values: tuple[Any, ...]) -> None:
    assert tuple(parse_grid([text]).values()) == (values,)


@pytest.mark.parametrize(
    ("texts", "code"),
    [
        (["r"], "option.assignment"),
        (["=1,2"], "option.assignment"),
        (["r="], "grid.no-value"),
        (["r=1,,2"], "grid.no-value"),
        (["r=1,"], "grid.no-value"),
        (["r=(1,2"], "grid.bracket"),
        (["r=1),2"], "grid.bracket"),
        (["r=(1],2"], "grid.bracket"),
        (["r='1,2"], "grid.bracket"),
        (["r=1,2", "r=3"], "grid.option-twice"),
        (["r=1,2,1"], "grid.value-twice"),
        (["seed=1,2"], "option.reserved"),
        (["a=" + ",".join(map(str, range(MOST // 2))), "b=1,2,3"], "grid.size"),
    ],
)
def test_a_grid_that_cannot_be_read_is_refused(texts: list[str], code: str) -> None:
    with raises(code):
        parse_grid(texts)


@given(st.dictionaries(st.text(min_size=1), st.lists(st.integers(), min_size=1, max_size=4, unique=True), max_size=4))
def test_combinations_are_the_product_each_once(grid: dict[str, list[int]]) -> None:
    made = combinations(grid)
    assert len(made) == prod(map(len, grid.values()))
    assert all(list(point) == list(grid) for point in made)
    assert len({tuple(point.values()) for point in made}) == len(made)
    assert made == sorted(made, key=lambda point: [grid[key].index(point[key]) for key in grid])


def test_several_grids_are_run_one_after_the_other() -> None:
    both = ({"threshold": (0.1, 0.2)}, {"budget": (0.5,)}, {"threshold": (0.2,)})
    assert combinations(both) == [{"threshold": 0.1}, {"threshold": 0.2}, {"budget": 0.5}]
    assert combinations({}) == [{}]
    assert grid_text({"r": 2, "blocks": (3, 6)}) == "r=2, blocks=(3, 6)"
    with raises("grid.no-value", option="r"):
        check_grid({"r": ()}, "here")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"grid": {"tome": {"r": (1,)}}}, "protocol.grid-method"),
        ({"methods": ("tome",), "grid": {"tome": {"r": ()}}}, "grid.no-value"),
        ({"methods": ("tome",), "grid": {"tome": ({"r": (1,)}, {"r": (2, 2)})}}, "grid.value-twice"),
        ({"methods": ("tome",), "grid": {"tome": {"r": (1,)}}, "options": {"r": 1}}, "protocol.grid-option"),
    ],
)
def test_a_protocol_with_a_grid_that_does_not_fit_is_refused(changes: dict[str, Any], code: str) -> None:
    with raises(code):
        replace(load_protocol("standin/uniform"), **changes)


def test_a_file_of_ones_own_may_have_a_grid(tmp_path: Path) -> None:
    head = Path(__file__).parents[3] / "harness/config/protocols/standin/uniform.toml"
    tables = 'methods = ["tome"]\n[grid]\ntome = [{ r = [1, 2] }, { proportional_attention = [false] }]\n'
    path = tmp_path / "mine.toml"
    path.write_text(head.read_text().replace("[recipe_overrides]\n", tables + "[recipe_overrides]\n", 1))
    grids = each_grid(load_protocol(str(path)).grid["tome"])
    assert combinations(tuple(grids)) == [{"r": 1}, {"r": 2}, {"proportional_attention": False}]


def test_the_hash_covers_what_a_run_does_and_not_which_runs_are_done() -> None:
    uniform, free = load_protocol("standin/uniform"), load_protocol("standin/training-free")
    assert replace(free, grid={}, timing=True, methods=("tome",)).hash == free.hash
    for changes in ({"options": {}}, {"agreement": False}):
        assert replace(free, **changes).hash != free.hash
    assert (uniform.trains, free.trains) == (True, False)


def _points(name: str) -> list[tuple[Protocol, str, dict[str, Any]]]:
    protocol = load_protocol(name)
    return [(protocol, m, point) for m in protocol.methods for point in combinations(protocol.grid.get(m, {}))]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name.startswith("standin") else pytest.mark.slow) for name in FREE]
)
def test_every_combination_of_a_shipped_grid_fits_and_is_another_run(name: str) -> None:
    points = _points(name)
    protocol = points[0][0]
    if protocol.weights != "dataset":
        protocol = replace(protocol, weights="random:0")
    weights = shapes_or_weights(weights_of(protocol), protocol.backbone, None)
    made = [
        (method, describe(blueprint(protocol, weights, RunConfig(method=method, seed=0, options=point, point=point))))
        for _, method, point in points
    ]
    assert all(description["tuning"] == "frozen" for _, description in made)
    assert len({f"{method} {description}" for method, description in made}) == len(points)
