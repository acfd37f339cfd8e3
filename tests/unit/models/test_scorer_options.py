"""Options that all scorers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from errors import raises

from tvrbench.harness import load_model
from tvrbench.harness.cli.profile import _search
from tvrbench.harness.core import registry
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.scored import ScoredMethod
from tvrbench.harness.profiling.counts.dead import dead_parameters

pytestmark = pytest.mark.unit
SCORERS = [name for name in registry.names("methods", "baselines") if issubclass(method_class(name), ScoredMethod)]


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize(("given", "depth"), [("none", None), (None, None), (0, 0), (7, 7)])
def test_a_depth_is_a_number_or_none(name: str, given: Any, depth: int | None, tiny_weights: Path) -> None:
    model = load_model(name, weights=tiny_weights, depth=given, **method_class(name).card.tiny)
    assert model.scorer.depth == depth
    assert model.spec.describe()["depth"] == depth


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"depth": -1}, "option.invalid"),
        ({"depth": 2.5}, "option.invalid"),
        ({"depth": "many"}, "option.invalid"),
        ({"reducer": "nonsense"}, "option.value"),
        ({"v2t": "mine"}, "option.invalid"),
        ({"storage": "int4"}, "option.invalid"),
    ],
)
def test_what_no_scorer_does_is_refused(options: dict[str, Any], code: str, tiny_weights: Path) -> None:
    with raises(code):
        load_model("ts2net", weights=tiny_weights, **options)


def test_large_searches_are_printed_with_all_their_digits() -> None:
    macs = {"1k": 1_557_000, "1m": 1_220_044_000_000}
    given = {"depth": None, "macs": macs, "macs_per_pair": 1, "floats_per_video": 1, "bytes_per_video": 4}
    assert "1.56 in 1k   1,220,044 in 1m videos" in _search(given)[0]


def test_dead_parameters_of_a_scorer_over_a_reducer_are_counted(tiny_weights: Path) -> None:
    """Once for equal options, which hold a dictionary."""
    given: dict[str, Any] = {"head": "meanP", "reducer": "tome"}
    made = [load_model("ts2net", weights=tiny_weights, **given, reducer_options={"r": r}) for r in (1, 1, 2)]
    assert [model.spec.options == made[0].spec.options for model in made] == [True, True, False]
    assert [dead_parameters(model) for model in made] == [{}, {}, {}]
