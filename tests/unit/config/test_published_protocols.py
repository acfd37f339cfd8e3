"""Protocols of one paper's settings, and hashes of published protocols, which recipes that ship later leave alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tvrbench.harness.config import protocol as config
from tvrbench.harness.config.protocol import load_protocol, protocol_names, recipe_digest
from tvrbench.harness.config.recipe import load_recipe, recipe_names
from tvrbench.harness.core import registry

pytestmark = pytest.mark.unit

FIRST = {
    "centerclip",
    "centerclip-activitynet",
    "centerclip-float16",
    "clip4clip",
    "clip4clip-float16",
    "tempme",
    "uniform",
}
# Of records that people have.
HASHES = {
    "activitynet/published": "ef18fe6f45255741",
    "activitynet/published-centerclip": "beb815c5e5cd7d0c",
    "didemo/published": "6e8a6cf66f95aeee",
    "lsmdc/published": "0141ee944fccf267",
    "msrvtt-1ka-7k/published": "db113a9ef181aa89",
    "msrvtt-1ka-9k/published": "6842ab986fd5d5e9",
    "msrvtt-1ka-9k/published-float16": "96a1d5134c7db4fd",
    "msrvtt-full/published": "99cefe3cbd9baefe",
    "msvd/published": "cc8eae778c61cf60",
}
PUBLISHED = [name for name in protocol_names() if load_protocol(name).kind == "published"]
OF_ONE_PAPER = [name for name in PUBLISHED if load_protocol(name).methods]


@pytest.mark.parametrize("name", HASHES)
def test_later_recipes_keep_the_hashes_of_records(name: str) -> None:
    assert load_protocol(name).hash == HASHES[name]


def test_every_later_recipe_is_listed_as_it_shipped() -> None:
    later = {name: recipe_digest(name) for name in recipe_names() if name not in FIRST}
    assert config._hash_rules()["recipes"] == later


@pytest.mark.parametrize("name", [name for name in recipe_names() if name not in FIRST])
def test_a_later_recipe_that_changes_is_in_every_published_hash(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rules, protocol, uniform = config._hash_rules(), load_protocol(PUBLISHED[0]), load_protocol("standin/uniform")
    before, load = protocol.hash, load_recipe
    changed = []
    for epochs in (98, 99):
        monkeypatch.setattr(
            config,
            "load_recipe",
            lambda n, given=None, epochs=epochs: load(
                n, {**(given or {}), **({"epochs": epochs} if n == name else {})}
            ),
        )
        changed.append(protocol.hash)
    assert len({before, *changed}) == 3
    assert uniform.hash == "5ca7c164b2a60a30"
    assert config._hash_rules() == rules


@pytest.mark.parametrize("name", recipe_names())
def test_only_the_first_recipes_are_in_the_hash_by_being_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    protocol = load_protocol("msrvtt-1ka-9k/published")
    before, all_names = protocol.hash, recipe_names()
    monkeypatch.setattr(config, "recipe_names", lambda: [each for each in all_names if each != name])
    assert (protocol.hash == before) == (name not in FIRST)


@pytest.mark.parametrize("name", OF_ONE_PAPER)
def test_a_papers_setting_runs_that_papers_method_by_its_recipe(name: str) -> None:
    protocol = load_protocol(name)
    assert set(protocol.methods) <= set(registry.names("methods", "baselines"))
    cards = [registry.lookup(method, "methods", "baselines").card for method in protocol.methods]
    assert set(protocol.recipes_replaced) <= {card.recipe for card in cards}
    for card in cards:
        assert protocol.recipe_for(card.recipe) == load_recipe(protocol.recipes_replaced.get(card.recipe, card.recipe))
    base = load_protocol(f"{name.partition('/')[0]}/published")
    for field in ("dataset", "train_split", "test_split", "train_pairs", "test_videos", "weights"):
        assert getattr(protocol, field) == getattr(base, field)
    assert replace(protocol, methods=()).hash == protocol.hash


@pytest.mark.parametrize(
    ("name", "frames", "words", "recipe", "lr", "epochs", "batch"),
    [
        ("activitynet/published-dgl", 64, 64, "dgl", 1e-2, 10, 128),
        ("lsmdc/published-dgl", 12, 32, "dgl", 1e-2, 5, 512),
        ("msrvtt-1ka-9k/published", 12, 32, "dgl", 2e-3, 5, 512),
        ("activitynet/published-mv-adapter", 32, 64, "mv_adapter", 5e-6, 15, 64),
        ("didemo/published-mv-adapter", 32, 64, "mv_adapter", 5e-6, 15, 64),
        ("msrvtt-1ka-9k/published", 12, 32, "mv_adapter", 5e-6, 5, 128),
        ("msrvtt-1ka-9k/published-float16-mv-adapter", 12, 32, "mv_adapter", 5e-6, 5, 128),
        ("msrvtt-1ka-9k/published-vop", 12, 77, "vop", None, 5, 32),
        ("msrvtt-1ka-9k/published", 12, 32, "discovla", 6e-4, 5, 128),
        ("msrvtt-1ka-9k/published", 12, 32, "eercf", 1e-4, 5, 240),
        ("msrvtt-1ka-9k/published-float16-eercf", 12, 32, "eercf", 1e-4, 5, 240),
        ("activitynet/published-centerclip", 60, 77, "centerclip", 1e-2, 8, 128),
    ],
)
def test_settings_are_the_papers(
    name: str, frames: int, words: int, recipe: str, lr: float | None, epochs: int, batch: int
) -> None:
    protocol = load_protocol(name)
    used = protocol.recipe_for(recipe)
    assert (protocol.frames, protocol.words, used.epochs, used.batch_size) == (frames, words, epochs, batch)
    assert lr is None or used.lr == lr
    assert (used.weights == "float16") == ("float16" in name)
    other = protocol.on("ViT-L/14")
    assert (other.name, other.methods) == (f"{name}@ViT-L-14", protocol.methods)
