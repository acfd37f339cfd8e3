"""Folders given as checkpoints: whatever they hold, a model or one sentence; and the weights that they name."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from errors import raises
from safetensors.torch import load_file, save_file

from tvrbench.harness import load_model
from tvrbench.harness.config.known_weights import OPENAI_WEIGHTS, shipped_weights
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import file_sha256
from tvrbench.harness.models.backbone.weights import load_weights
from tvrbench.harness.models.backbone.weights_file import read_metadata
from tvrbench.harness.models.base_weights import named_spec
from tvrbench.harness.models.checkpoint import method_in, save_checkpoint
from tvrbench.harness.models.description import CONFIG, WEIGHTS, BaseWeights, Description
from tvrbench.harness.search.encoder import ModelSettings, ModelSource, load_encoder

pytestmark = pytest.mark.unit


def write_folder(folder: Path, weights: Path | str, base: BaseWeights | None, **options: Any) -> Path:
    """An exported folder of an untrained LoRA model, without card and record."""
    folder.mkdir()
    save_checkpoint(load_model("lora", weights=weights, **options), folder / WEIGHTS, base=base)
    config = Description.from_metadata(read_metadata(folder / WEIGHTS), WEIGHTS).to_config()
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


@pytest.fixture
def folder(small_weights: Path, tmp_path: Path) -> Path:
    """Tuned parameters alone."""
    base = BaseWeights(source="small.safetensors", sha256=file_sha256(small_weights))
    return write_folder(tmp_path / "exported", small_weights, base)


def changed(folder: Path, **values: Any) -> None:
    """Write other values into config.json and the file's metadata, which must say the same."""
    config = json.loads((folder / CONFIG).read_text()) | values
    (folder / CONFIG).write_text(json.dumps(config))
    meta = read_metadata(folder / WEIGHTS)
    told = {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata=meta | told)


def _text(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / CONFIG).write_text(text)


def _pipe(folder: Path) -> None:
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


NOT_EXPORTED: dict[str, Callable[[Path], object]] = {
    "no config": lambda folder: (folder / CONFIG).unlink(),
    "a CLIP of Hugging Face": _text(json.dumps({"model_type": "clip", "architectures": ["CLIPModel"]})),
    "no JSON": _text("{"),
    "a list": _text("[]"),
    "deep": _text("[" * 100_000),
    "huge": _text(json.dumps({"format": "tvrbench-export-1", "x": "y" * 2**20})),
    "a later format": _text(json.dumps({"format": "tvrbench-export-9"})),
    "a pipe": _pipe,
}


@pytest.mark.parametrize("case", NOT_EXPORTED)
def test_other_folders_are_refused(case: str, folder: Path, small_weights: Path) -> None:
    NOT_EXPORTED[case](folder)
    for read in (lambda: load_model(checkpoint=folder, weights=small_weights), lambda: method_in(folder)):
        with raises("checkpoint.not-exported"):
            read()


@pytest.mark.parametrize(
    "values",
    [
        *({"frames": 0}, {"frames": "many"}, {"frames": [12] * 1000}, {"frames": 6}),
        *({"method": None}, {"method": "tempme"}, {"options": ["rank"]}, {"selection": "mine"}, {"further": 1}),
        *({"architecture": {"vision_width": 64}}, {"base": None}, {"base": {"source": "x", "sha256": "short"}}),
        {"base": {"source": "../../etc/passwd", "sha256": "0" * 64}},
    ],
)
def test_a_config_that_is_not_of_its_weights_is_refused(
    values: dict[str, Any], folder: Path, small_weights: Path
) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | values))
    with raises("checkpoint.folder-disagrees") as refused:
        load_model(checkpoint=folder, weights=small_weights)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"method": "zap"}, "registry.unknown"),
        ({"options": {"tuning": "lora", "rank": 8, "zap": 1}}, "option.unknown"),
        ({"options": {"tuning": "lora", "rank": 4}}, "weights.shape"),
        ({"options": {"tuning": "lora", "rank": 10**9}}, "weights.shape"),  # of 100 GB and more
        ({"options": {"tuning": "lora", "rank": 10**18}}, "checkpoint.description"),
        ({"options": {"tuning": "full", "rank": 8}}, "weights.keys"),
    ],
)
def test_a_description_that_is_not_of_its_tensors_takes_no_memory(
    values: dict[str, Any], code: str, folder: Path, small_weights: Path
) -> None:
    changed(folder, **values)
    with raises(code):
        load_model(checkpoint=folder, weights=small_weights)


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "values",
    [
        {"method": "x" * 10**5},
        {"method": "\x1b[31mlora\n"},
        {"options": {"x" * 10**5: 1}},
        {"options": {"tuning": "x" * 10**5}},
        {"options": {"tuning": "lora", "rank": "x" * 10**5}},
        {"options": {"tuning": "lora", "rank": [1] * 10**4}},
        {"options": {"tuning": "lora", "rank": _nested(900)}},
        {"base": {"source": "mine\x1b[31m\n", "sha256": "0" * 64}},
        {"base": {"source": "random:" + "9" * 18, "sha256": None}},
    ],
)
@pytest.mark.parametrize("gives_weights", [True, False])
def test_refusals_are_short_and_for_any_terminal(
    values: dict[str, Any], gives_weights: bool, folder: Path, small_weights: Path
) -> None:
    changed(folder, **values)
    with pytest.raises(UsageError) as refused:
        load_model(checkpoint=folder, weights=small_weights if gives_weights else None)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 500


def test_a_folder_without_weights_or_with_a_pickle_is_refused(folder: Path, small_weights: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with raises("checkpoint.incomplete"):
        load_model(checkpoint=folder, weights=small_weights)
    (folder / WEIGHTS).write_bytes(b"\x80\x02}q\x00.")
    with raises("checkpoint.folder-disagrees"):
        load_model(checkpoint=folder, weights=small_weights)
    with raises("checkpoint.missing"):
        load_model(checkpoint=folder / "nothing")


def test_another_reading_of_the_base_weights_is_refused(folder: Path, small_weights: Path) -> None:
    with raises("checkpoint.base-reading"):
        load_model(checkpoint=folder, weights=load_weights(small_weights, activation="gelu"))
    assert load_model(checkpoint=folder, weights=small_weights).clip.arch.activation == "quick_gelu"
    assert load_model(checkpoint=folder, weights=small_weights, activation="gelu").clip.arch.activation == "gelu"


def test_base_weights_are_found_by_name(tmp_path: Path) -> None:
    standin = shipped_weights("standin")
    assert standin is not None
    of_data = BaseWeights(source=standin.name, sha256=file_sha256(standin))
    openai = next(sha256 for sha256, backbone in OPENAI_WEIGHTS.items() if backbone == "ViT-B-32")
    for base, spec in {
        of_data: "standin",
        BaseWeights(source="random:3", sha256=None): "random:3",
        BaseWeights(source="any.pt", sha256=openai): "openai",
        BaseWeights(source="ViT-B-32 laion2b_e16", sha256="0" * 64): "laion2b_e16",
        BaseWeights(source="mine.safetensors", sha256="0" * 64): None,
        BaseWeights(source="ViT-B-32 ~root", sha256="0" * 64): None,
        BaseWeights(source="ViT-B-16 laion2b_s34b_b88k", sha256="0" * 64): None,
        BaseWeights(source="random:x", sha256=None): None,
    }.items():
        assert named_spec(base, "ViT-B-32") == spec
    found = load_model(checkpoint=write_folder(tmp_path / "exported", "standin", of_data))
    assert found.name == "lora"


def test_a_search_reads_the_folder_and_finds_its_weights(small_weights: Path, tmp_path: Path) -> None:
    standin = shipped_weights("standin")
    assert standin is not None
    base = BaseWeights(source=standin.name, sha256=file_sha256(standin))
    folder = write_folder(tmp_path / "exported", "standin", base, frames=4)
    settings = ModelSettings(options={}, sampler="tempme", decoder="pyav")
    encoder = load_encoder(ModelSource(checkpoint=str(folder)), settings, "cpu")
    one = encoder.identity
    assert (one.method, one.frames, one.weights_sha256) == ("lora", 4, base.sha256)
    assert one.checkpoint_sha256 == file_sha256(folder / WEIGHTS)
    assert encoder.encode_query("a red star grows")[0].shape == (1, encoder.model.clip.arch.embed_dim)
    again = load_encoder(ModelSource(checkpoint=str(folder), weights="standin"), settings, "cpu")
    assert again.identity == one
    with raises("checkpoint.base-weights"):
        load_encoder(ModelSource(checkpoint=str(folder), weights=str(small_weights)), settings, "cpu")
