"""The runs of a command: methods x the combinations of their grids x seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from tvrbench.harness.config.grid import Grids, combinations, each_grid
from tvrbench.harness.config.protocol import Protocol
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.runs.config import RunConfig


def run_configs(
    protocol: Protocol, seeds: Sequence[int], options: Mapping[str, Mapping[str, Any]], given: Mapping[str, Grids]
) -> list[RunConfig]:
    """Every run, seed by seed; a method that is not trained has one seed.

    Args:
        protocol: of the runs.
        seeds: of the runs.
        options: those given, by method.
        given: grids in place of the protocol's own, by method.

    Raises:
        UsageError: an option that the method of a grid does not have, or that the protocol gives itself.
    """
    points = {}
    for method, fixed in options.items():
        points[method] = combinations(_grids_of(protocol, method, given.get(method, {}), fixed))
        varied = {option for point in points[method] for option in point}
        _check_options(protocol, method, varied, varied | fixed.keys())
    return [
        RunConfig(method=method, seed=seed, options={**fixed, **point}, point=point)
        for seed in seeds
        for method, fixed in options.items()
        for point in points[method]
        if method_class(method).card.trains or seed == seeds[0]
    ]


def _grids_of(protocol: Protocol, method: str, given: Grids, options: Mapping[str, Any]) -> Grids:
    """The grids that are ``given``, or else the protocol's own but for the ``options`` that have a value already."""
    own = each_grid(protocol.grid.get(method, {}))
    return given or tuple({key: values for key, values in grid.items() if key not in options} for grid in own)


def _check_options(protocol: Protocol, method: str, varied: set[str], given: set[str]) -> None:
    if fixed := sorted(given & protocol.options.keys()):
        message = (
            f"protocol {protocol.name} runs every method with {fixed[0]}={protocol.options[fixed[0]]}: give no other "
            f"{fixed[0]}, or take another protocol"
        )
        raise UsageError(message, code="protocol.option-fixed", protocol=protocol.name, option=fixed[0])
    known = [option.name for option in fields(method_class(method).Options)]
    if strange := sorted(varied - set(known)):
        message = (
            f"{method} has no option {strange[0]!r}, which the grid gives values of: name the --methods that have it, "
            f"or give each method a grid of its own in a protocol file ([grid.METHOD]); options of {method} are "
            f"{', '.join(known)}"
        )
        raise UsageError(message, code="grid.no-option", method=method, option=strange[0])
