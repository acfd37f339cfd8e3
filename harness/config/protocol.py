"""Protocols: what is run and compared under one name, read from ``protocols/**/*.toml``."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, Literal

from tvrbench.harness.config.recipe import Recipe, load_recipe, recipe_names
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.validation import validated

# A renamed field keeps its old name inside the hash, so that existing records keep their protocol.
_HASHED_AS = {"optimizer": "optimiser"}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One protocol; two runs may stand in one table only if their protocols have the same hash.

    Attributes:
        name: e.g. ``msrvtt-1ka-9k/uniform``.
        kind: ``uniform`` (one recipe, methods are compared) or ``published`` (each paper's own, for verdicts).
        dataset: a registered data set.
        backbone: preset name, or None where the weights tell.
        weights: as ``load_model`` takes them, or ``dataset``: the ones that the data set ships.
        frames, words: T frames a video, L tokens a caption.
        recipe: the recipe of a uniform protocol; a published one takes each method's own.
        recipe_overrides: single fields of that recipe.
        recipes_replaced: recipes of a published protocol that others stand in for, e.g. with float16 weights.
        held_out: training videos kept apart to choose the learning rate on.
        lr_factors: each method tries these multiples of its rate, the same for all.
        seeds: run by default.
        weights_sha256: of weights given in place of the protocol's own.
        small: methods run with the options that they declare for small models.
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
    small: bool = False
    train_pairs: int
    test_videos: int

    def __post_init__(self) -> None:
        if (self.kind == "uniform") != (self.recipe is not None):
            raise UsageError(f"protocol {self.name}: a uniform protocol names its recipe, a published one does not")
        if len(self.lr_factors) > 1 and self.held_out < 1:
            raise UsageError(f"protocol {self.name}: several lr_factors need held_out training videos to choose on")

    def recipe_for(self, method_recipe: str) -> Recipe:
        """The recipe that a method whose own is ``method_recipe`` runs with."""
        own = self.recipes_replaced.get(method_recipe, method_recipe)
        return load_recipe(self.recipe or own, self.recipe_overrides)

    @property
    def hash(self) -> str:
        """SHA-256 (16 hex digits) over the protocol and the recipes it can use.

        Seeds may be added without a change, and so may fields that stand at their default: a new field of a later
        version does not part old records from new ones.
        """
        recipes = [self.recipe] if self.recipe else recipe_names()
        content = {
            "protocol": {key: value for key, value in _stated(self).items() if key not in ("seeds", "title")},
            "recipes": {name: _stated(self.recipe_for(name)) for name in recipes if name},
        }
        text = json.dumps(content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def on(self, backbone: str | None) -> Protocol:
        """The protocol on another backbone, under a name that says so."""
        if backbone is None or backbone == self.backbone:
            return self
        return replace(self, name=f"{self.name}@{backbone.replace('/', '-')}", backbone=backbone)

    def with_weights(self, sha256: str | None) -> Protocol:
        """The protocol on weights of this content, wherever they lie; None for random ones."""
        return replace(self, weights_sha256=sha256 or "random")


def _stated(config: Protocol | Recipe) -> dict[str, Any]:
    """The fields that differ from their default, under the names that records' hashes are made of."""
    values = asdict(config)
    plain = {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(config)}
    return {_HASHED_AS.get(name, name): value for name, value in values.items() if value != plain[name]}


def _walk(folder: Traversable, prefix: str = "") -> list[str]:
    names = []
    for entry in folder.iterdir():
        if entry.is_dir():
            names += _walk(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".toml"):
            names.append(prefix + entry.name.removesuffix(".toml"))
    return sorted(names)


def protocol_names() -> list[str]:
    """The protocols that ship."""
    return _walk(resources.files("tvrbench.harness.config.protocols"))


def load_protocol(name: str) -> Protocol:
    """A protocol by name; UsageError lists the known ones."""
    if name not in protocol_names():
        raise UsageError(f"unknown protocol {name!r}: known are {', '.join(protocol_names())}")
    file = resources.files("tvrbench.harness.config.protocols").joinpath(f"{name}.toml")
    return validated(Protocol, {"name": name} | tomllib.loads(file.read_text(encoding="utf-8")), f"protocol {name}")
