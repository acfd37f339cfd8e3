"""Many runs from one file: protocols x backbones x methods x seeds, with options for all or for one method.

protocols = ["msrvtt-1ka-9k/uniform"]
methods = ["lora", "tempme"]             # all registered ones by default
seeds = [0, 1, 2]                        # each protocol's own by default
backbones = ["ViT-B-32", "ViT-B-16"]     # each protocol's own by default
[data]                                   # a folder for each data set that does not make itself
msrvtt = "DIR"
[options]                                # of every method
[method_options.tempme]                  # of one method, over those
r = 2
[slurm]                                  # for --slurm: parameters of submitit's executor
slurm_partition = "gpu"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvrbench.harness.config.protocol import Protocol, load_protocol
from tvrbench.harness.core import registry
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.validation import validated
from tvrbench.harness.models.factory import method_class


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What the file says; see the top of this module."""

    protocols: tuple[str, ...]
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    backbones: tuple[str, ...] = ()
    weights: str | None = None
    data: Mapping[str, Path] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    method_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    slurm: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("protocols", "methods", "seeds", "backbones"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise UsageError(f"matrix: {name} names something twice")
        if not self.protocols:
            raise UsageError("matrix: protocols must name at least one")
        strangers = set(self.method_options) - set(self.chosen_methods)
        if strangers:
            raise UsageError(f"matrix: method_options names {sorted(strangers)[0]!r}, which is not among its methods")

    @property
    def chosen_methods(self) -> tuple[str, ...]:
        """The methods, or all that are registered."""
        return self.methods or tuple(registry.names("baselines", "methods"))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a matrix."""

    protocol: str
    backbone: str | None
    method: str
    seed: int
    options: Mapping[str, Any]
    data: Path | None
    weights: str | None

    @property
    def title(self) -> str:
        """The run in a few words."""
        on = f" on {self.backbone}" if self.backbone else ""
        return f"{self.method} seed {self.seed} under {self.protocol}{on}"


def read_sweep(path: Path) -> Sweep:
    """The matrix in a TOML file.

    Raises:
        UsageError: no such file, no TOML, or a key or value that does not fit; names it.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: the matrix cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a TOML file: {error}") from None
    return validated(Sweep, values, f"{path}:")


def sweep_runs(matrix: Sweep) -> list[Cell]:
    """Every run: seed by seed, so that a first seed of everything is there early. What is not trained has no seeds.

    Raises:
        UsageError: an unknown protocol or method.
    """
    trained = {method: method_class(method).card.trains for method in matrix.chosen_methods}
    cells = []
    for name in matrix.protocols:
        protocol = load_protocol(name)
        for number, seed in enumerate(matrix.seeds or protocol.seeds):
            for backbone in matrix.backbones or (None,):
                cells += [
                    _cell(matrix, protocol, backbone, method, seed)
                    for method, trains in trained.items()
                    if number == 0 or trains
                ]
    return cells


def _cell(matrix: Sweep, protocol: Protocol, backbone: str | None, method: str, seed: int) -> Cell:
    return Cell(
        protocol=protocol.name,
        backbone=backbone,
        method=method,
        seed=seed,
        options={**matrix.options, **matrix.method_options.get(method, {})},
        data=matrix.data.get(protocol.dataset),
        weights=matrix.weights,
    )
