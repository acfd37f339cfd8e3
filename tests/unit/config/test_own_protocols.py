"""Protocol files of one's own: their names, what they may hold, and what broken ones get."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from errors import raises

from tvrbench.harness.config.protocol import load_protocol, protocol_name, protocol_names
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.records.record import plain
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.runs.context import weights_of

pytestmark = pytest.mark.unit

TEXT = """
title = "mine"
kind = "uniform"
dataset = "folder"
train_split = "train"
test_split = "test"
weights = "openai"
backbone = "ViT-B-32"
recipe = "uniform"
data = "clips"
[data_options]
test_share = 0.5
[recipe_overrides]
batch_size = 4
"""


def own(root: Path, text: str | bytes = TEXT, name: str = "mine.toml") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_is_a_protocol_named_by_its_stem(tmp_path: Path) -> None:
    protocol = load_protocol(str(own(tmp_path / "some where")))
    assert protocol.name == "own/mine"
    assert protocol.data == tmp_path / "some where" / "clips"
    assert protocol.recipe_for("tempme").batch_size == 4
    assert (protocol.train_pairs, protocol.test_videos) == (None, None)
    assert RecordStore(tmp_path).folder(protocol.name).name == "own__mine"
    assert protocol_name("some where/mine.toml") == protocol.name
    assert protocol_name("msvd/uniform") == "msvd/uniform"


def test_the_hash_is_that_of_the_content_wherever_file_and_data_are(tmp_path: Path) -> None:
    first = load_protocol(str(own(tmp_path / "a")))
    assert load_protocol(str(own(tmp_path / "b", TEXT.replace('data = "clips"', "")))).hash == first.hash
    assert load_protocol(str(own(tmp_path / "b", TEXT.replace("0.5", "0.4")))).hash != first.hash
    assert replace(first, test_videos=9).hash != first.hash


def test_a_record_holds_the_definition_of_a_protocol_that_does_not_ship(tmp_path: Path) -> None:
    protocol = load_protocol(str(own(tmp_path)))
    definition = plain(protocol.reference["definition"], "definition")
    assert definition["data_options"] == {"test_share": 0.5}
    assert definition["recipe_overrides"] == {"batch_size": 4}
    assert str(tmp_path) not in str(definition)
    again = "".join(
        f"{key} = {value!r}\n".replace("'", '"') for key, value in definition.items() if not isinstance(value, dict)
    )
    again += "[data_options]\ntest_share = 0.5\n[recipe_overrides]\nbatch_size = 4\n"
    assert load_protocol(str(own(tmp_path / "again", again))).hash == protocol.hash
    assert load_protocol("msvd/uniform").reference.keys() == {"name", "hash"}


def test_no_shipped_protocol_can_be_shadowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not [name for name in protocol_names() if name.startswith("own/") or name.endswith(".toml")]
    monkeypatch.chdir(tmp_path)
    own(tmp_path, name="msvd/uniform.toml")
    assert load_protocol("msvd/uniform").title != "mine"
    assert load_protocol("msvd/uniform.toml").name == "own/uniform"
    with raises("protocol.own", protocol="own/mine"):
        load_protocol("own/mine")


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ("title", "tilte", "option.unknown"),
        ('title = "mine"', "", "option.invalid"),
        ('title = "mine"', 'title = "mine"\nname = "standin/uniform"', "protocol.name"),
        ('"uniform"', '"best"', "option.invalid"),
        ('"folder"', '"floder"', "registry.unknown"),
        ('recipe = "uniform"', 'recipe = "unifrom"', "recipe.unknown"),
        ('recipe = "uniform"', "", "protocol.recipe"),
        ("batch_size", "batch_sice", "option.unknown"),
        ("batch_size = 4", 'batch_size = "four"', "option.invalid"),
        ("batch_size = 4", "batch_size = 0", "recipe.range"),
        ("batch_size = 4", "epochs = 0", "recipe.range"),
        ("batch_size = 4", "steps = 0", "recipe.range"),
        ("batch_size = 4", "lr = -1.0", "recipe.range"),
        ("batch_size = 4", "[recipe_overrides.tuning_lr]\nlora = nan", "recipe.range"),
        ('test_split = "test"', 'test_split = "train"', "protocol.same-split"),
        ("[data_options]", "frames = 0\n[data_options]", "protocol.range"),
        ("[data_options]", "words = 1\n[data_options]", "protocol.range"),
        ("[data_options]", "seeds = []\n[data_options]", "protocol.range"),
        ("[data_options]", "seeds = [1, 1]\n[data_options]", "protocol.range"),
        ("[data_options]", "seeds = [-1]\n[data_options]", "protocol.range"),
        ("[data_options]", "lr_factors = []\n[data_options]", "protocol.range"),
        ("[data_options]", "lr_factors = [inf]\n[data_options]", "protocol.range"),
        ("[data_options]", "lr_factors = [1, 2]\n[data_options]", "protocol.held-out"),
        ("[data_options]", "test_videos = 0\n[data_options]", "protocol.range"),
        ("[data_options]", 'recipes_replaced = {tempmi = "tempme"}\n[data_options]', "recipe.unknown"),
        ('data = "clips"', "data = 3", "option.invalid"),
        ("[data_options]", "[data_options", "protocol.toml"),
        ('title = "mine"', 'title = "\0"', "protocol.toml"),
        ('title = "mine"', 'title = "a"\ntitle = "b"', "protocol.toml"),
        ('"mine"', "[" * 100_000, "protocol.toml"),
        ("[data_options]", "#" * 2**20 + "\n[data_options]", "protocol.toml"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, old: str, new: str, code: str) -> None:
    assert old in TEXT
    with pytest.raises(UsageError) as caught:
        load_protocol(str(own(tmp_path, TEXT.replace(old, new, 1))))
    assert caught.value.code == code
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("name", ["my file.toml", "..toml", "a__b.toml", "a@b.toml", "é.toml", "published-x.toml"])
def test_names_that_cannot_be_a_record_s(tmp_path: Path, name: str) -> None:
    with raises("protocol.name", file=name):
        load_protocol(str(own(tmp_path, name=name)))


def test_the_name_tells_a_published_protocol_from_others(tmp_path: Path) -> None:
    text = TEXT.replace('"uniform"', '"published"', 1).replace('recipe = "uniform"\n', "")
    with raises("protocol.name"):
        load_protocol(str(own(tmp_path, text)))
    assert load_protocol(str(own(tmp_path, text, "published-mine.toml"))).kind == "published"


@pytest.mark.parametrize(("content", "code"), [(None, "protocol.read"), (b"\xff\xfe", "protocol.toml")])
def test_files_that_cannot_be_read(tmp_path: Path, content: bytes | None, code: str) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with raises(code, path=str(path)):
        load_protocol(str(path))
    (tmp_path / "folder.toml").mkdir()
    with raises("protocol.read"):
        load_protocol(str(tmp_path / "folder.toml"))


@pytest.mark.parametrize("name", ["w.safetensors", "sub/w", "tiny"])
def test_a_path_of_weights_starts_at_the_file_and_brings_the_backbone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    text = TEXT.replace('"openai"', f'"{name}"')
    (tmp_path / "a" / name).mkdir(parents=True)
    own_backbone = load_protocol(str(own(tmp_path / "a", "backbone_from_weights = true\n" + text)))
    assert own_backbone.on(None).backbone is None
    assert own_backbone.on("ViT-B-16").backbone == "ViT-B-16"
    assert own_backbone.on(None, "openai").backbone == "ViT-B-32"
    monkeypatch.chdir(tmp_path)
    first = load_protocol(str(own(Path("a"), text)))
    assert first.on(None).backbone == "ViT-B-32"
    assert Path(weights_of(first)) == Path("a") / name
    other = load_protocol(str(own(tmp_path / "b", text)))
    assert other.hash == first.hash
    assert str(tmp_path) not in str(other.reference)
    assert weights_of(other) == ("tiny" if name == "tiny" else str(tmp_path / "b" / name))


def test_the_folder_is_no_field_of_a_file(tmp_path: Path) -> None:
    with raises("protocol.name"):
        load_protocol(str(own(tmp_path, f"folder = '/'\n{TEXT}")))


def test_splits_of_a_data_set_go_by_its_synonyms(tmp_path: Path) -> None:
    texts = [TEXT.replace('"test"', f'"{name}"') for name in ("dev", "val", "Validation")]
    loaded = [load_protocol(str(own(tmp_path, text))) for text in texts]
    assert {one.test_split for one in loaded} == {"val"}
    assert len({one.hash for one in loaded}) == 1
    with raises("protocol.same-split"):
        load_protocol(str(own(tmp_path, texts[0].replace('"train"', '"val"'))))
    published = TEXT.replace('"folder"', '"msvd"').replace('"test"', '"Dev"')
    assert load_protocol(str(own(tmp_path, published))).test_split == "Dev"


@pytest.mark.parametrize("name", ["own/mine", "own/mine@ViT-B-16"])
def test_the_name_in_records_is_not_the_file(name: str) -> None:
    with raises("protocol.own", protocol=name) as caught:
        load_protocol(name)
    assert "mine.toml" in str(caught.value)
    assert "uniform" not in str(caught.value)


@pytest.mark.parametrize("weights", ["openai", "standin", "random:0", "laion2b_s34b_b79k"])
def test_names_of_weights_are_no_paths(tmp_path: Path, weights: str) -> None:
    protocol = load_protocol(str(own(tmp_path, TEXT.replace('"openai"', f'"{weights}"'))))
    assert weights_of(protocol) == weights


def test_absolute_paths_of_weights_stay(tmp_path: Path) -> None:
    text = TEXT.replace('"openai"', f"'{tmp_path / 'w.pt'}'")
    assert weights_of(load_protocol(str(own(tmp_path / "deep", text)))) == str(tmp_path / "w.pt")


def test_given_weights_bring_their_backbone_where_the_protocol_says_so(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"x")
    protocol = load_protocol("folder/uniform")
    assert protocol.on(None, str(weights)).backbone is None
    assert protocol.on(None, "random:0").backbone == protocol.on(None, "openai").backbone == "ViT-B-32"
    assert protocol.on("ViT-B-16", str(weights)).backbone == "ViT-B-16"
    assert load_protocol("msvd/uniform").on(None, str(weights)).backbone == "ViT-B-32"
