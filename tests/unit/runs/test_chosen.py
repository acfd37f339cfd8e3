"""Which methods run: those named, all, or the default, which is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from errors import raises

from tvrbench.harness.cli.bench import BenchSettings
from tvrbench.harness.config.protocol import load_protocol
from tvrbench.harness.core import registry
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.runs.chosen import are_named, chosen_methods, what_is_left
from tvrbench.harness.runs.settings import RunSettings
from tvrbench.harness.runs.suite import Suite
from tvrbench.harness.runs.sweep import Sweep, sweep_groups

pytestmark = pytest.mark.unit

STANDIN = load_protocol("standin/uniform")
OWN = replace(STANDIN, methods=("lora",))
ALL = registry.names("baselines", "methods")
DEFAULT = [name for name in ALL if method_class(name).card.by_default]


def test_the_default_set_is_what_cards_say() -> None:
    assert list(chosen_methods((), STANDIN)) == DEFAULT
    assert DEFAULT != ALL
    assert {"zero_shot", "random", "clip4clip", "lora", "tempme"} <= set(DEFAULT)
    assert set(registry.matching("baselines", "methods", role="dense")) <= set(DEFAULT)


@pytest.mark.parametrize("protocol", [STANDIN, OWN], ids=["default set", "the protocol's own"])
def test_all_is_everything_registered_in_every_command(protocol: object) -> None:
    assert list(chosen_methods(("all",), STANDIN if protocol is STANDIN else OWN)) == ALL
    assert [choice.method for choice in BenchSettings(methods=("all",)).choices()] == ALL
    suite = Suite.of(RunSettings(protocol=STANDIN.name, methods=("all",)))
    assert [config.method for config in suite.configs] == ALL
    groups = sweep_groups(Sweep(protocols=(STANDIN.name,), methods=("all",)))
    assert sorted({config.method for config in groups[0].configs}) == sorted(ALL)


def test_run_and_sweep_take_the_default_set() -> None:
    suite = Suite.of(RunSettings(protocol=STANDIN.name))
    groups = sweep_groups(Sweep(protocols=(STANDIN.name,)))
    assert [c.method for c in suite.configs] == [c.method for c in groups[0].configs] == DEFAULT


def test_a_protocol_may_name_its_methods_and_the_user_goes_first() -> None:
    assert chosen_methods((), OWN) == ("lora",)
    assert chosen_methods(("tome",), OWN) == ("tome",)
    assert chosen_methods(("tome",), STANDIN) == ("tome",)
    assert list(chosen_methods((), replace(STANDIN, methods=("all",)))) == ALL
    assert OWN.hash == STANDIN.hash


def test_who_names_nothing_is_told_what_is_left() -> None:
    said = what_is_left((), STANDIN, "HOW")
    assert said is not None
    assert all(name in said for name in {"HOW", *ALL} - set(DEFAULT))
    assert "lora" in (what_is_left((), OWN, "HOW") or "")
    for given in (("all",), ("tome",)):
        assert what_is_left(given, STANDIN, "HOW") is None
    assert [are_named((), STANDIN), are_named(("all",), OWN), are_named((), OWN), are_named(("tome",), STANDIN)] == [
        False,
        False,
        True,
        True,
    ]


def test_all_beside_a_name_is_refused() -> None:
    with raises("option.all-and-others"):
        chosen_methods(("lora", "all"), STANDIN)


def test_options_of_a_method_outside_the_default_are_refused_in_a_sweep(tmp_path: Path) -> None:
    left = next(name for name in ALL if name not in DEFAULT)
    with raises("sweep.method-options", method=left):
        Sweep(protocols=(STANDIN.name,), method_options={left: {"rank": 4}})
    assert Sweep(protocols=(STANDIN.name,), methods=("all",), method_options={left: {"rank": 4}})
