"""How weights are read is part of what they are: activation, normalization and tokenizer, each with its source."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from errors import raises
from open_clip.tokenizer import SimpleTokenizer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from tvrbench.datasets.standin.pretrain import config as open_clip_config
from tvrbench.harness import load_model
from tvrbench.harness.evaluation.encode import encode_videos
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.backbone.tokenizer import BYTE_PAIRS, tokenizer_for
from tvrbench.harness.models.backbone.weights import Weights, load_weights
from tvrbench.harness.models.checkpoint import save_checkpoint
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.records.reading import CLIP_MEAN, CLIP_STD
from tvrbench.harness.regression.signature import TINY

pytestmark = pytest.mark.unit
ARCH = replace(TINY, vision_layers=2)
HALF: Any = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OPEN_CLIP, HUGGING_FACE, PREPROCESSOR = "open_clip_config.json", "config.json", "preprocessor_config.json"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return dict(CLIP(ARCH).state_dict())


@pytest.fixture
def file(state: dict[str, Tensor], tmp_path: Path) -> Path:
    torch.save(state, tmp_path / "w.pt")
    return tmp_path / "w.pt"


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))


def hugging_face_config(arch: Architecture, **towers: Any) -> dict[str, Any]:
    vision = {
        "hidden_size": arch.vision_width,
        "intermediate_size": 4 * arch.vision_width,
        "num_hidden_layers": arch.vision_layers,
        "num_attention_heads": 1,
        "image_size": arch.image_size,
        "patch_size": arch.patch_size,
        "hidden_act": arch.activation,
    }
    text = {
        "hidden_size": arch.text_width,
        "intermediate_size": 4 * arch.text_width,
        "num_hidden_layers": arch.text_layers,
        "num_attention_heads": 1,
        "max_position_embeddings": arch.context_length,
        "vocab_size": arch.vocab_size,
        "hidden_act": arch.activation,
    }
    return {"projection_dim": arch.embed_dim, "vision_config": vision, "text_config": text | towers}


GELU = replace(ARCH, activation="gelu")
CONFIGS: dict[str, tuple[str, Any]] = {
    "open_clip": (OPEN_CLIP, open_clip_config(GELU)),
    "Hugging Face": (HUGGING_FACE, hugging_face_config(GELU)),
}


def test_a_state_dict_that_states_nothing_is_refused_until_the_user_says(file: Path) -> None:
    with raises("weights.activation", weights="w.pt") as error:
        load_model("zero_shot", weights=file)
    assert "--activation" in str(error.value)
    with raises("weights.activation-unknown"):
        load_weights(file, activation="relu")  # type: ignore[arg-type]
    for activation in ("quick_gelu", "gelu"):
        model = load_model("zero_shot", weights=file, activation=activation)
        assert model.clip.arch.activation == activation
        assert load_weights(file, activation=activation).activation_source == "--activation"


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_that_fits_the_shapes_states_the_activation(name: str, file: Path) -> None:
    place, config = CONFIGS[name]
    write(file.with_name(place), config)
    weights = load_weights(file)
    assert (weights.arch, weights.activation_source, weights.notes) == (GELU, place, ())
    told = load_weights(file, activation="quick_gelu")
    assert (told.arch.activation, told.stated_activation) == ("quick_gelu", "gelu")
    assert len(told.notes) == 1  # the contradiction is said


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 128},
        {"patch_size": 32},
        {"vision_width": 128},
        {"vision_layers": 12},
        {"text_width": 128},
        {"text_layers": 12},
        {"context_length": 77},
        {"vocab_size": 49408},
        {"embed_dim": 512},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_config_of_another_model_is_ignored_with_a_note(name: str, change: dict[str, int], file: Path) -> None:
    other = replace(GELU, **change)  # type: ignore[arg-type]
    config = open_clip_config(other) if name == "open_clip" else hugging_face_config(other)
    write(file.with_name(CONFIGS[name][0]), config)
    with raises("weights.activation"):
        load_weights(file)
    weights = load_weights(file, activation="quick_gelu")
    assert weights.arch == ARCH
    assert len(weights.notes) == 1
    assert next(iter(change)) in weights.notes[0]


@pytest.mark.parametrize("place", [OPEN_CLIP, HUGGING_FACE, PREPROCESSOR])
@pytest.mark.parametrize(
    "content",
    ["", "no JSON", "{}", "[1]", "null", '{"model_cfg": 3}', '{"vision_config": {"hidden_act": "gelu"}}', "[" * 10**5],
)
def test_what_is_no_config_is_no_error(place: str, content: str, file: Path) -> None:
    file.with_name(place).write_text(content)
    assert load_weights(file, activation="gelu").arch == GELU


UNSUPPORTED: dict[str, tuple[str, Any]] = {
    "other activation": (HUGGING_FACE, hugging_face_config(ARCH, hidden_act="relu")),
    "towers that differ": (HUGGING_FACE, hugging_face_config(ARCH, hidden_act="gelu")),
    "other heads": (HUGGING_FACE, hugging_face_config(ARCH, num_attention_heads=4)),
    "other epsilon": (HUGGING_FACE, hugging_face_config(ARCH, layer_norm_eps=1e-12)),
    "open_clip heads": (OPEN_CLIP, {"vision_cfg": {"head_width": 80}}),
    "open_clip pooling": (OPEN_CLIP, {"text_cfg": {"pool_type": "last"}}),
    "open_clip tokenizer": (OPEN_CLIP, {"text_cfg": {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}}),
    "open_clip mask": (OPEN_CLIP, {"text_cfg": {"no_causal_mask": True}}),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_model_that_computes_otherwise_is_refused(name: str, file: Path) -> None:
    place, config = UNSUPPORTED[name]
    if place == OPEN_CLIP:
        whole = open_clip_config(ARCH)
        for tower, changes in config.items():
            whole["model_cfg"][tower] |= changes
        config = whole
    write(file.with_name(place), config)
    with raises("weights.unsupported", config=place):
        load_weights(file, activation="gelu")


def test_transformers_and_our_model_agree_under_gelu(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = CLIPModel(CLIPConfig(**hugging_face_config(GELU), eos_token_id=511)).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="200KB")
    assert list(tmp_path.glob("*.index.json"))
    model = load_model("zero_shot", weights=tmp_path)
    frames = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        want = theirs.visual_projection(theirs.vision_model(frames).pooler_output)
        torch.testing.assert_close(model.clip.encode_image(frames), want, rtol=0, atol=1e-5)


def test_the_numbers_of_openais_archives_state_quick_gelu(state: dict[str, Tensor], tmp_path: Path) -> None:
    numbers = {"input_resolution": 64, "context_length": 32, "vocab_size": 512}
    tensors = {key: torch.tensor(value) for key, value in numbers.items()}
    torch.save(state | tensors, tmp_path / "w.pt")
    assert load_weights(tmp_path / "w.pt").arch == ARCH
    write(tmp_path / HUGGING_FACE, hugging_face_config(GELU))
    weights = load_weights(tmp_path / "w.pt")
    assert (weights.arch.activation, weights.activation_source, len(weights.notes)) == ("gelu", HUGGING_FACE, 1)
    for other in ({"vocab_size": torch.tensor(49408)}, {"input_resolution": torch.ones(2)}):
        torch.save(state | tensors | other, tmp_path / "other.pt")
        (tmp_path / HUGGING_FACE).unlink(missing_ok=True)
        with raises("weights.activation"):
            load_weights(tmp_path / "other.pt")


def test_the_known_sha256_of_an_archive_outweighs_a_config(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = load_weights(file, activation="gelu").sha256
    monkeypatch.setattr("tvrbench.harness.models.backbone.weights.OPENAI_WEIGHTS", {sha256: "ViT-B-32"})
    write(file.with_name(HUGGING_FACE), hugging_face_config(GELU))
    weights = load_weights(file)
    assert (weights.arch, len(weights.notes)) == (ARCH, 1)


@pytest.mark.parametrize("prefix", ["clip.", "module.clip.", "_orig_mod.model.clip."])
def test_a_released_checkpoint_has_quick_gelu(prefix: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "released.bin"
    torch.save({prefix + key: tensor for key, tensor in state.items()}, path)
    assert load_model("zero_shot", checkpoint=path).clip.arch == ARCH
    assert load_model("zero_shot", checkpoint=path, activation="gelu").clip.arch == GELU
    write(tmp_path / OPEN_CLIP, open_clip_config(GELU))
    assert load_model("zero_shot", checkpoint=path).clip.arch == GELU


def test_a_clip_by_itself_is_no_released_checkpoint(file: Path) -> None:
    with raises("weights.activation"):
        load_model("zero_shot", checkpoint=file)
    assert load_model("zero_shot", checkpoint=file, activation="gelu").clip.arch == GELU


NORMALIZED: dict[str, tuple[str, Any]] = {
    "open_clip": (OPEN_CLIP, open_clip_config(replace(GELU, mean=HALF[0], std=HALF[1]))),
    "preprocessor": (PREPROCESSOR, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "crop_size": 64}),
    "sizes": (PREPROCESSOR, {"image_mean": 0.5, "image_std": 0.5, "crop_size": {"height": 64, "width": 64}}),
    "no crop": (PREPROCESSOR, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"shortest_edge": 64}}),
}


def half(file: Path) -> RetrievalModel:
    """The model with a config that normalizes by one half."""
    write(file.with_name(OPEN_CLIP), NORMALIZED["open_clip"][1])
    return load_model("zero_shot", weights=file, frames=2)


@pytest.mark.parametrize("name", NORMALIZED)
def test_frames_are_normalized_as_the_weights_ask(name: str, file: Path) -> None:
    write(file.with_name(NORMALIZED[name][0]), NORMALIZED[name][1])
    model = load_model("zero_shot", weights=file, activation="gelu", frames=2)
    assert (model.clip.arch.mean, model.clip.arch.std) == HALF
    pixels = torch.full((1, 2, 3, 64, 64), 255, dtype=torch.uint8)
    frames = model.normalize(pixels, torch.tensor([[True, False]]))
    assert (frames[0, 0] == 1).all()
    assert (frames[0, 1] == 0).all()


def test_an_evaluation_feeds_the_model_its_own_normalization(file: Path) -> None:
    model = half(file)
    pixels = torch.randint(0, 256, (1, 2, 3, 64, 64), dtype=torch.uint8)
    mask = torch.ones(1, 2, dtype=torch.bool)
    loader: Any = SimpleNamespace(batches=lambda requests, device: (batch for batch in [(pixels, mask)]))
    found = encode_videos(model, ("v",), loader, 1, lambda _: None).coarse
    with torch.no_grad():
        want = model.encode_video(pixels / 255 * 2 - 1, mask)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "crop_size": 224},
        {"image_mean": [0.5] * 3, "image_std": [0.0] * 3},
        {"image_mean": [0.5] * 4, "image_std": [0.5] * 3},
        {"image_mean": "x", "image_std": [0.5] * 3},
        {"image_mean": [float("nan")] * 3, "image_std": [0.5] * 3},
        {"image_mean": [0.5] * 3, "image_std": [1e-300] * 3},
        {"image_mean": [True, 0.5, 0.5], "image_std": [0.5] * 3},
        {"image_mean": 0.5, "image_std": True},
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": "false"},
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_center_crop": 0},
    ],
    ids=["size", "zero", "four", "text", "nan", "tiny", "bool in mean", "bool", "flag in words", "flag as number"],
)
def test_a_normalization_that_does_not_fit_is_ignored_with_a_note(config: Any, file: Path) -> None:
    write(file.with_name(PREPROCESSOR), config)
    weights = load_weights(file, activation="gelu")
    assert (weights.arch.mean, weights.arch.std, len(weights.notes)) == (CLIP_MEAN, CLIP_STD, 1)


@pytest.mark.parametrize("value", [1, 0, "true", "false", None, [True]])
def test_a_flag_that_is_no_boolean_states_nothing(value: Any, file: Path) -> None:
    config = open_clip_config(ARCH)
    config["model_cfg"]["quick_gelu"] = value
    write(file.with_name(OPEN_CLIP), config)
    with raises("weights.activation") as error:
        load_weights(file)
    assert repr(value) in str(error.value)


def test_a_number_in_quotes_is_shown_in_quotes(file: Path) -> None:
    config = open_clip_config(ARCH)
    config["model_cfg"]["vision_cfg"]["layers"] = "2"
    write(file.with_name(OPEN_CLIP), config)
    (note,) = load_weights(file, activation="gelu").notes
    assert "'2'" in note


@pytest.mark.parametrize("same", [True, False])
def test_configs_that_disagree_about_normalization_are_noted(same: bool, file: Path) -> None:
    half(file)
    write(file.with_name(PREPROCESSOR), {"image_mean": [0.5] * 3, "image_std": [0.5 if same else 0.25] * 3})
    weights = load_weights(file)
    assert (weights.arch.mean, weights.arch.std, len(weights.notes)) == (*HALF, 0 if same else 1)


def test_our_own_checkpoint_holds_all_of_it(file: Path, tmp_path: Path) -> None:
    model = half(file)
    folder = tmp_path / "elsewhere"
    save_checkpoint(model, folder / "own.safetensors")
    assert load_model("zero_shot", checkpoint=folder / "own.safetensors").clip.arch == model.clip.arch
    assert load_weights(folder / "own.safetensors").arch == model.clip.arch  # as weights of another run
    told = load_model("zero_shot", checkpoint=folder / "own.safetensors", activation="quick_gelu")
    assert told.clip.arch == replace(model.clip.arch, activation="quick_gelu")


def test_a_checkpoint_from_before_normalization_was_saved_is_read(file: Path, tmp_path: Path) -> None:
    save_checkpoint(load_model("zero_shot", weights=file, activation="gelu"), tmp_path / "own.safetensors")
    with safe_open(tmp_path / "own.safetensors", framework="pt") as handle:
        tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
        metadata = dict(handle.metadata())
    shape = {key: value for key, value in asdict(GELU).items() if key not in ("mean", "std")}
    save_file(tensors, tmp_path / "old.safetensors", metadata | {"architecture": json.dumps(shape)})
    assert load_model("zero_shot", checkpoint=tmp_path / "old.safetensors").clip.arch == GELU


def test_open_clips_own_tag_states_everything(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    import open_clip
    import open_clip.pretrained

    config = {"hf_hub": "someone/w/", "mean": [0.5] * 3, "std": [0.5] * 3}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: config)
    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", lambda *_: str(file))
    monkeypatch.setattr("tvrbench.harness.models.backbone.weights.preset", lambda _: ARCH)
    weights = load_weights("some_tag", "ViT-B-32")
    assert (weights.arch, weights.source) == (replace(GELU, mean=HALF[0], std=HALF[1]), "ViT-B-32 some_tag")
    assert load_weights("some_tag", "ViT-B-32", "quick_gelu").stated_activation == "gelu"


def with_vocabulary(arch: Architecture, folder: Path) -> Weights:
    save_file(dict(CLIP(arch).state_dict()), folder / "model.safetensors")
    return load_weights(folder, activation="gelu")


def test_byte_pairs_are_taken_where_the_vocabulary_is_clips(tmp_path: Path) -> None:
    weights = with_vocabulary(replace(ARCH, vocab_size=49408, text_layers=1), tmp_path)
    assert tokenizer_for(weights).name == BYTE_PAIRS
    ids = dict(SimpleTokenizer().encoder)
    ids["<|startoftext|>"] = ids.pop("<start_of_text>")
    ids["<|endoftext|>"] = ids.pop("<end_of_text>")
    write(tmp_path / "vocab.json", ids)
    assert tokenizer_for(weights).name == BYTE_PAIRS
    write(tmp_path / "vocab.json", ids | {"dog</w>": 3})
    with raises("vocabulary.other"):
        tokenizer_for(weights)


def test_the_record_holds_how_weights_were_read(file: Path) -> None:
    half(file)
    section = load_weights(file).to_json("none")
    assert section["source"] == "w.pt"
    assert (section["activation"], section["activation_source"]) == ("gelu", OPEN_CLIP)
    assert (section["mean"], section["std"], section["image_size"]) == ([0.5] * 3, [0.5] * 3, 64)
    random = load_weights("random:0", "ViT-B-32")
    assert (random.source, random.arch.activation, random.sha256) == ("random:0", "quick_gelu", None)


def test_towers_with_other_heads_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state | {"visual.conv1.weight": torch.zeros(1280, 3, 16, 16)}, tmp_path / "w.pt")
    with raises("weights.unsupported", field="head_width"):
        load_weights(tmp_path / "w.pt", activation="gelu")
