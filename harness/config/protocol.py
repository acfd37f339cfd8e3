"""Protocols: what is run and compared under one name, read from ``protocols/**/*.toml`` or a file of one's own."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tvrbench.harness.config.grid import Grids, check_grid, each_grid
from tvrbench.harness.config.known_weights import shipped_weights, weights_on_disk
from tvrbench.harness.config.recipe import Recipe, load_recipe, recipe_names
from tvrbench.harness.core import registry
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.validation import validated

Activation = Literal["quick_gelu", "gelu"]

OWN = "own"  # the folder of names of protocols that do not ship
_CONFIG = Path(__file__).parent
_STEM = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*(_[A-Za-z0-9.+-]+)*")
_MAX_BYTES = 2**20
_NOT_HASHED = ("seeds", "methods", "grid", "timing", "title", "data", "folder", "backbone_from_weights")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One protocol; a table may hold two runs only if their protocols have the same hash.

    Attributes:
        name: path of its file without the suffix, ``DATA/KIND``, or ``own/STEM`` for a file of one's own.
        kind: ``uniform`` (one recipe, methods are compared) or ``published`` (each paper's own, for verdicts).
        dataset: a registered data set.
        backbone: preset name, or None to read the architecture from the weights.
        weights: as for ``load_model``, or ``dataset`` for the weights that the protocol's own data set ships.
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
        methods: those that run where nobody names any; empty for the default set.
        options: method options that every run has and no command changes. With the tuning ``frozen`` among them
            nothing is trained, not even the parameters that a method adds.
        grid: values of options by method; every combination is a run. Several tables of a method are several grids. Not
            part of the hash, as ``methods``.
        agreement: runs record how far their features agree with those of the plain encoder: the same weights and
            frames, nothing reduced, nothing trained.
        timing: runs measure time and memory; not part of the hash.
        weights_sha256: of weights given in place of the protocol's own.
        weights_config: how weights are read where that is not the protocol's own way: activation, mean, std, tokenizer.
        small: methods run with their options for small models.
        train_pairs, test_videos: sizes of the full splits, so that a plan needs no data; None to count them there.
        data_options: of a data set that has options.
        data: the folder of the data, if none is given; not part of the hash.
        folder: of the protocol's own file, where the path in ``weights`` starts; None for one that ships. Not hashed.
        backbone_from_weights: a file of weights, given in ``weights`` or in its place, brings its own backbone.

    Raises:
        UsageError: a value that does not fit the others, or is out of range.
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
    methods: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    grid: Mapping[str, Grids] = field(default_factory=dict)
    agreement: bool = False
    timing: bool = True
    weights_sha256: str | None = None
    weights_config: Mapping[str, Any] = field(default_factory=dict)
    small: bool = False
    train_pairs: int | None = None
    test_videos: int | None = None
    data_options: Mapping[str, Any] = field(default_factory=dict)
    data: Path | None = None
    folder: Path | None = None
    backbone_from_weights: bool = False

    def __post_init__(self) -> None:
        if (self.kind == "uniform") != (self.recipe is not None):
            message = f"protocol {self.name}: a uniform protocol names its recipe, a published one does not"
            raise UsageError(message, code="protocol.recipe", protocol=self.name)
        if len(self.lr_factors) > 1 and self.held_out < 1:
            message = f"protocol {self.name}: several lr_factors need held_out training videos to choose on"
            raise UsageError(message, code="protocol.held-out", protocol=self.name)
        if self.train_split == self.test_split:
            message = f"protocol {self.name}: it would train and test on {self.test_split}; name two splits"
            raise UsageError(message, code="protocol.same-split", protocol=self.name)
        for method, grids in self.grid.items():
            if method not in self.methods:
                problem = f"grid has {method!r:.60}, which is not among its methods"
                message = f"protocol {self.name}: {problem}: add it to methods"
                raise UsageError(message, code="protocol.grid-method", protocol=self.name, method=method)
            for grid in each_grid(grids):
                check_grid(grid, f"protocol {self.name}, grid of {method}")
                if fixed := sorted(self.options.keys() & grid.keys()):
                    message = (
                        f"protocol {self.name}: {fixed[0]} is in options and in the grid of {method}: leave one out"
                    )
                    raise UsageError(message, code="protocol.grid-option", protocol=self.name, option=fixed[0])
        ranges = {
            "frames": self.frames >= 1,
            "words": self.words >= 3,  # the start, a word and the end
            "held_out": self.held_out >= 0,
            "seeds": self.seeds and min(self.seeds) >= 0 and len(set(self.seeds)) == len(self.seeds),
            "lr_factors": self.lr_factors and all(0 < factor < math.inf for factor in self.lr_factors),
            "lr_search_share": 0 < self.lr_search_share <= 1,
            "train_pairs": self.train_pairs is None or self.train_pairs >= 1,
            "test_videos": self.test_videos is None or self.test_videos >= 1,
        }
        for key, fits in ranges.items():
            if not fits:
                message = f"protocol {self.name}: {key} is out of range: {getattr(self, key)!r:.60}"
                raise UsageError(message, code="protocol.range", protocol=self.name, option=key)

    @property
    def trains(self) -> bool:
        """False for a protocol that freezes everything."""
        return self.options.get("tuning") != "frozen"

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

        Seeds, ``methods`` and fields at their default do not count, so a field that a later version adds keeps the
        hash; nor does how learning rates are searched where there is one to try, nor a recipe that shipped later and is
        as it shipped. See ``hash.toml``.
        """
        recipes = [self.recipe] if self.recipe else _recipes_that_count()
        left_out = set(_NOT_HASHED) | (set() if self.searches_lr else {"lr_search", "lr_search_share"})
        own = {key: value for key, value in _hashed(self).items() if key not in left_out}
        content = {"protocol": own, "recipes": {name: _hashed(self.recipe_for(name)) for name in recipes}}
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]

    @property
    def reference(self) -> dict[str, Any]:
        """Name and hash for records; of a protocol of one's own also its fields, as they differ from the defaults."""
        short = {"name": self.name, "hash": self.hash}
        if not self.name.startswith(f"{OWN}/"):
            return short
        given = {key: value for key, value in _hashed(self).items() if key not in ("name", "data", "folder")}
        return short | {"definition": given}

    @property
    def located_weights(self) -> str:
        """``weights``; in a protocol file, a path starts at the folder of the file."""
        if self.folder is None or shipped_weights(self.weights):
            return self.weights
        path = self.folder / os.path.expanduser(self.weights)  # noqa: PTH111 - pathlib's raises for an unknown user
        is_path = "/" in self.weights or path.suffix or path.exists()
        return str(path) if is_path else self.weights

    def on(self, backbone: str | None, weights: str | None = None) -> Protocol:
        """The protocol on another backbone, under a name that says so, or on that of a file of weights.

        ``ViT-B/16`` is ``ViT-B-16``.
        """
        weights = weights or (self.located_weights if self.folder else None)
        if backbone is None and self.backbone_from_weights and weights:
            return replace(self, backbone=None) if weights_on_disk(weights) else self
        if backbone is None or (wanted := backbone.replace("/", "-")) == self.backbone:
            return self
        return replace(self, name=f"{self.name}@{wanted}", backbone=wanted)

    def with_weights(self, sha256: str | None, config: Mapping[str, Any]) -> Protocol:
        """The protocol on weights of this content, at any path, read in this way; None for random ones."""
        return replace(self, weights_sha256=sha256 or "random", weights_config=config)


def recipe_digest(name: str) -> str:
    """SHA-256 (16 hex digits) over a shipped recipe, by which ``hash.toml`` knows it."""
    content = json.dumps(_hashed(load_recipe(name)), sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _recipes_that_count() -> list[str]:
    """The recipes in the hash of a published protocol."""
    later = _hash_rules()["recipes"]
    return [name for name in recipe_names() if name not in later or recipe_digest(name) != later[name]]


def _hash_rules() -> dict[str, Any]:
    return tomllib.loads(_CONFIG.joinpath("hash.toml").read_text(encoding="utf-8"))


def _hashed(config: Protocol | Recipe) -> dict[str, Any]:
    """The fields that differ from their default, under the names that they have in hashes."""
    rules = _hash_rules()
    defaults = {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(config)}
    defaults |= rules["omitted"]
    return {rules["names"].get(key, key): value for key, value in asdict(config).items() if value != defaults[key]}


def protocol_names() -> list[str]:
    """The names of the shipped protocols."""
    folder = _CONFIG / "protocols"
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.toml"))


def load_protocol(name: str) -> Protocol:
    """Load a shipped protocol by name, or one of your own by the path of its file, which ends in ``.toml``.

    Raises:
        UsageError: an unknown name, a file that cannot be read, or a field that does not fit.
    """
    if Path(name).suffix.lower() == ".toml":
        return _own_protocol(Path(name))
    if name.startswith(f"{OWN}/"):
        file = f"{name.removeprefix(OWN)[1:].partition('@')[0]}.toml"
        message = f"{name} is no shipped protocol; run one of your own by the path of its file: tvrbench run {file}"
        raise UsageError(message, code="protocol.own", protocol=name)
    if name not in protocol_names():
        known = f"known are {', '.join(protocol_names())}; the path of a file of your own ends in .toml"
        raise UsageError(f"unknown protocol {name!r}: {known}", code="protocol.unknown", protocol=name)
    text = _CONFIG.joinpath(f"protocols/{name}.toml").read_text(encoding="utf-8")
    return validated(Protocol, {"name": name} | tomllib.loads(text), f"protocol {name}")


@cache
def shipped_protocol(name: str) -> Protocol | None:
    """The shipped protocol of a name in records, which may end in ``@BACKBONE``; None for one that is not shipped."""
    base, _, backbone = name.partition("@")
    return load_protocol(base).on(backbone or None) if base in protocol_names() else None


def protocol_name(text: str) -> str:
    """The name in records of the protocol that a user means by its name, or by the path of its file."""
    path = Path(text)
    return f"{OWN}/{path.stem}" if path.suffix.lower() == ".toml" else text


def _own_protocol(path: Path) -> Protocol:
    values = _read_toml(path)
    if not _STEM.fullmatch(path.stem):
        rule = "name the file with letters, digits and . + - _, a letter or digit first"
        raise UsageError(f"{path.name} cannot name a protocol: {rule}", code="protocol.name", file=path.name)
    for key in ("name", "folder"):
        if key in values:
            message = f"{path.name}: its name {protocol_name(path.name)} and its folder are those of the file"
            raise UsageError(f"{message}; remove the field {key}", code="protocol.name", file=path.name)
    protocol = validated(Protocol, values | {"name": protocol_name(path.name)}, f"protocol {path.name}")
    if (protocol.kind == "published") != path.stem.startswith("published"):
        rule = "reports take files whose name starts with published, and no others, for protocols of that kind"
        raise UsageError(f"{path.name}: {rule}; rename the file", code="protocol.name", file=path.name)
    usual = getattr(registry.lookup(protocol.dataset, "datasets"), "usual_split", str)
    if strange := sorted(set(protocol.recipes_replaced) - set(recipe_names())):
        load_recipe(strange[0])  # likewise
    _ = protocol.hash  # reads every recipe that the protocol can use
    data = None if protocol.data is None else path.parent / protocol.data
    train, test = usual(protocol.train_split), usual(protocol.test_split)
    return replace(protocol, folder=path.parent, data=data, train_split=train, test_split=test)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
        return tomllib.loads(data.decode("utf-8-sig"))
    except OSError as error:
        message = f"{path}: the protocol cannot be read: {error.strerror}"
        raise UsageError(message, code="protocol.read", path=str(path)) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a TOML file: {error!s:.200}", code="protocol.toml", path=str(path)) from None
