"""Protocols: what is run and compared under one name, read from ``protocols/**/*.toml``."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from tvrbench.harness.config.recipe import Recipe, load_recipe, recipe_names
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.validation import validated

_CONFIG = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One protocol; a table may hold two runs only if their protocols have the same hash.

    Attributes:
        name: path of its file without the suffix, ``DATA/KIND``.
        kind: ``uniform`` (one recipe, methods are compared) or ``published`` (each paper's own, for verdicts).
        dataset: a registered data set.
        backbone: preset name, or None to read the architecture from the weights.
        weights: as for ``load_model``, or ``dataset`` for the weights that ship with the data set.
        frames, words: T frames per video, L tokens per caption.
        recipe: the recipe of a uniform protocol; a published one uses each method's own.
        recipe_overrides: single fields of that recipe.
        recipes_replaced: replacements of recipes in a published protocol, e.g. with float16 weights.
        held_out: number of training videos set aside for choosing the learning rate.
        lr_factors: multiples of its rate that each method tries.
        lr_search: ``once`` tries them with the first of ``seeds`` alone, whatever the seed of the run, so that all
            seeds of a method train at the same rate; ``per-seed`` tries them with the run's own.
        lr_search_share: share of a training's steps that each factor is tried for, with the whole schedule in them.
        seeds: the default seeds.
        weights_sha256: of weights given in place of the protocol's own.
        small: methods run with their options for small models.
        train_pairs, test_videos: sizes of the full splits, so that a plan needs no data.
    """

    name: str
    title: str
    kind: Literal["uniform", "published"]
    dataset: str
    train_split: str
    test_split: str
    backbone: str | None = None
    weights: str
    frames: int = 12
    words: int = 32
    recipe: str | None = None
    recipe_overrides: Mapping[str, Any] = field(default_factory=dict)
    recipes_replaced: Mapping[str, str] = field(default_factory=dict)
    held_out: int = 0
    lr_factors: tuple[float, ...] = (1.0,)
    lr_search: Literal["once", "per-seed"] = "once"
    lr_search_share: float = 1 / 3
    seeds: tuple[int, ...] = (0,)
    weights_sha256: str | None = None
    small: bool = False
    train_pairs: int
    test_videos: int

    def __post_init__(self) -> None:
        if (self.kind == "uniform") != (self.recipe is not None):
            message = f"protocol {self.name}: a uniform protocol names its recipe, a published one does not"
            raise UsageError(message, code="protocol.recipe", protocol=self.name)
        if len(self.lr_factors) > 1 and self.held_out < 1:
            message = f"protocol {self.name}: several lr_factors need held_out training videos to choose on"
            raise UsageError(message, code="protocol.held-out", protocol=self.name)
        if not self.seeds:
            message = f"protocol {self.name}: seeds is empty: give at least one"
            raise UsageError(message, code="protocol.no-seed", protocol=self.name)
        if not 0 < self.lr_search_share <= 1:
            message = f"protocol {self.name}: lr_search_share is a share of the steps, over 0 and at most 1"
            raise UsageError(message, code="protocol.lr-search-share", protocol=self.name)

    @property
    def searches_lr(self) -> bool:
        """True if methods try several learning rates."""
        return len(self.lr_factors) > 1

    def lr_search_seed(self, seed: int) -> int:
        """The seed that a run of this seed tries learning rates with."""
        return self.seeds[0] if self.lr_search == "once" else seed

    def lr_search_steps(self, steps: int) -> int:
        """Steps for which one learning rate is tried, of a training of ``steps`` steps."""
        return max(1, round(self.lr_search_share * steps))

    def recipe_for(self, method_recipe: str) -> Recipe:
        """The recipe for a method whose own recipe is ``method_recipe``."""
        own = self.recipes_replaced.get(method_recipe, method_recipe)
        return load_recipe(self.recipe or own, self.recipe_overrides)

    @property
    def hash(self) -> str:
        """SHA-256 (16 hex digits) over the protocol and the recipes it can use.

        Seeds and fields at their default do not count, so a field that a later version adds keeps the hash; nor does
        how learning rates are searched where there is one to try. See ``hash.toml`` for renamed fields.
        """
        recipes = [self.recipe] if self.recipe else recipe_names()
        left_out = {"seeds", "title"} | (set() if self.searches_lr else {"lr_search", "lr_search_share"})
        own = {key: value for key, value in _hashed(self).items() if key not in left_out}
        content = {"protocol": own, "recipes": {name: _hashed(self.recipe_for(name)) for name in recipes}}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def on(self, backbone: str | None) -> Protocol:
        """The protocol on another backbone, under a name that says so."""
        if backbone is None or backbone == self.backbone:
            return self
        return replace(self, name=f"{self.name}@{backbone.replace('/', '-')}", backbone=backbone)

    def with_weights(self, sha256: str | None) -> Protocol:
        """The protocol on weights of this content, at any path; None for random ones."""
        return replace(self, weights_sha256=sha256 or "random")


def _hashed(config: Protocol | Recipe) -> dict[str, Any]:
    """The fields that differ from their default, under the names that they have in hashes."""
    rules = tomllib.loads(_CONFIG.joinpath("hash.toml").read_text(encoding="utf-8"))
    defaults = {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(config)}
    defaults |= rules["omitted"]
    return {rules["names"].get(key, key): value for key, value in asdict(config).items() if value != defaults[key]}


def protocol_names() -> list[str]:
    """The names of the shipped protocols."""
    folder = _CONFIG / "protocols"
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.toml"))


def load_protocol(name: str) -> Protocol:
    """Load a protocol by name; UsageError lists the known ones."""
    if name not in protocol_names():
        message = f"unknown protocol {name!r}: known are {', '.join(protocol_names())}"
        raise UsageError(message, code="protocol.unknown", protocol=name)
    text = _CONFIG.joinpath(f"protocols/{name}.toml").read_text(encoding="utf-8")
    return validated(Protocol, {"name": name} | tomllib.loads(text), f"protocol {name}")
