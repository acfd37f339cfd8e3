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

Activation = Literal["quick_gelu", "gelu"]

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
        seeds: the default seeds.
        weights_sha256: of weights given in place of the protocol's own.
        weights_config: how weights are read where that is not the protocol's own way: activation, mean, std, tokenizer.
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
    seeds: tuple[int, ...] = (0,)
    weights_sha256: str | None = None
    weights_config: Mapping[str, Any] = field(default_factory=dict)
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

    def recipe_for(self, method_recipe: str) -> Recipe:
        """The recipe for a method whose own recipe is ``method_recipe``."""
        own = self.recipes_replaced.get(method_recipe, method_recipe)
        return load_recipe(self.recipe or own, self.recipe_overrides)

    @property
    def hash(self) -> str:
        """SHA-256 (16 hex digits) over the protocol and the recipes it can use.

        Seeds and fields at their default do not count, so a field that a later version adds keeps the hash. See
        ``hash.toml`` for renamed fields.
        """
        recipes = [self.recipe] if self.recipe else recipe_names()
        own = {key: value for key, value in _hashed(self).items() if key not in ("seeds", "title")}
        content = {"protocol": own, "recipes": {name: _hashed(self.recipe_for(name)) for name in recipes}}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def on(self, backbone: str | None) -> Protocol:
        """The protocol on another backbone, under a name that says so."""
        if backbone is None or backbone == self.backbone:
            return self
        return replace(self, name=f"{self.name}@{backbone.replace('/', '-')}", backbone=backbone)

    def with_weights(self, sha256: str | None, config: Mapping[str, Any]) -> Protocol:
        """The protocol on weights of this content, at any path, read in this way; None for random ones."""
        return replace(self, weights_sha256=sha256 or "random", weights_config=config)


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
