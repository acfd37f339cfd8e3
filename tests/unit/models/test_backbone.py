"""The dual encoder against open_clip and transformers with the same weights, and every source of weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from errors import raises
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel

from tvrbench.harness import load_model
from tvrbench.harness.core import registry
from tvrbench.harness.models.backbone.architecture import Architecture, from_state_dict, preset
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.backbone.weights import is_downloaded, load_weights

pytestmark = pytest.mark.unit


def _text(vocabulary: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.zeros(2, length, dtype=torch.long)
    ids[:, :7] = torch.randint(1, vocabulary - 2, (2, 7), generator=generator)
    ids[0, 5], ids[1, 7], ids[0, 6:] = vocabulary - 1, vocabulary - 1, 0
    mask = torch.arange(length) <= torch.tensor([[5], [7]])
    return ids, mask


def _tiny_open_clip(arch: Architecture) -> open_clip.CLIP:
    vision = {"layers": 12, "width": 64, "patch_size": 16, "image_size": 64}
    text = {"context_length": 32, "vocab_size": 512, "width": 64, "heads": 1, "layers": 2}
    return open_clip.CLIP(arch.embed_dim, vision, text, quick_gelu=True)


@pytest.mark.parametrize(
    "backbone", ["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ViT-B-32", "ViT-B-16"))]
)
def test_same_features_as_open_clip(backbone: str, tiny_arch: Architecture) -> None:
    torch.manual_seed(0)
    tiny = backbone == "tiny"
    theirs = _tiny_open_clip(tiny_arch) if tiny else open_clip.create_model(f"{backbone}-quickgelu", pretrained=None)
    theirs.eval()
    state = {k: v for k, v in theirs.state_dict().items() if k != "attn_mask"}
    ours = CLIP(tiny_arch if tiny else preset(backbone)).eval()
    ours.load_state_dict(state)
    frames = torch.randn(2, 3, ours.arch.image_size, ours.arch.image_size)
    ids, mask = _text(ours.arch.vocab_size, ours.arch.context_length)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_image(frames), theirs.encode_image(frames), rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.encode_text(ids, mask), theirs.encode_text(ids), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def hugging_face() -> CLIPModel:
    torch.manual_seed(0)
    text = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 1,
        "intermediate_size": 256,
        "max_position_embeddings": 32,
        "vocab_size": 512,
        "eos_token_id": 511,
    }
    vision = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 1,
        "intermediate_size": 256,
        "image_size": 64,
        "patch_size": 16,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)).eval()


def test_same_features_as_transformers(hugging_face: CLIPModel, tmp_path: Path) -> None:
    hugging_face.save_pretrained(tmp_path)
    weights = load_weights(tmp_path)
    ours = CLIP(weights.arch).eval()
    ours.load_state_dict(weights.state)
    frames = torch.randn(2, 3, 64, 64)
    ids, mask = _text(512, 32)
    with torch.no_grad():
        image = hugging_face.visual_projection(hugging_face.vision_model(frames).pooler_output)
        text = hugging_face.text_projection(hugging_face.text_model(ids).pooler_output)
        torch.testing.assert_close(ours.encode_image(frames), image, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.encode_text(ids, mask), text, rtol=0, atol=1e-5)


def test_architecture_is_read_from_the_state_dict(tiny_arch: Architecture, tiny_weights: Path) -> None:
    assert from_state_dict(load_file(tiny_weights), tiny_arch.activation) == tiny_arch


def test_padding_does_not_reach_the_text_feature(tiny_weights: Path, tiny_batch: dict[str, Any]) -> None:
    model = load_model("zero_shot", weights=tiny_weights)
    ids, mask = tiny_batch["ids"], tiny_batch["text_mask"]
    junk = torch.where(mask, ids, 511)
    with torch.no_grad():
        assert torch.equal(model.encode_text(ids, mask), model.encode_text(junk, mask))


def test_random_weights_are_the_same_for_the_same_seed_and_leave_the_generator_alone(
    tiny_arch: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tvrbench.harness.models.backbone.weights.preset", lambda _name: tiny_arch)
    before = torch.get_rng_state()
    a, b, c = (load_weights(f"random:{seed}", "tiny").state for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not torch.equal(a["visual.proj"], c["visual.proj"])


def test_plain_and_wrapped_state_dicts_load_alike(tiny_weights: Path, tmp_path: Path) -> None:
    state = load_file(tiny_weights)
    extra = {"input_resolution": torch.tensor(64), "context_length": torch.tensor(32), "vocab_size": torch.tensor(512)}
    torch.save(state | extra, tmp_path / "openai.pt")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "wrapped.pt")
    for name in ("openai.pt", "wrapped.pt"):
        loaded = load_weights(tmp_path / name, activation="quick_gelu").state
        assert set(loaded) == set(state)


def test_missing_and_unexpected_keys_are_listed(tiny_weights: Path, tmp_path: Path) -> None:
    state = load_file(tiny_weights)
    state["visual.extra"] = state.pop("visual.ln_post.bias")
    save_file(state, tmp_path / "odd.safetensors")
    with raises("weights.keys", missing=["visual.ln_post.bias"], unexpected=["visual.extra"]):
        load_model("zero_shot", weights=tmp_path / "odd.safetensors", activation="quick_gelu")


@pytest.mark.parametrize(
    ("spec", "backbone", "code"),
    [
        ("random:x", "ViT-B-32", "weights.seed"),
        ("random:0", None, "weights.no-backbone"),
        ("random:0", "ViT-Z-1", "backbone.unknown"),
        ("nowhere/weights.pt", None, "weights.missing"),
        ("no_such_tag", "ViT-B-32", "weights.missing"),
    ],
)
def test_weight_options_that_do_not_resolve(spec: str, backbone: str | None, code: str) -> None:
    with raises(code):
        load_weights(spec, backbone)


def test_weights_of_another_shape_than_the_backbone(tiny_weights: Path) -> None:
    with raises("weights.backbone", field="image_size", backbone="ViT-B-32"):
        load_weights(tiny_weights, "ViT-B-32")


def test_a_failed_download_says_what_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip.pretrained

    def offline(*_: Any, **__: Any) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", offline)
    with raises("weights.download") as caught:
        load_weights("openai", "ViT-B-32")
    source = caught.value.fields["source"]
    assert source == "open_clip_pytorch_model.bin of huggingface.co/timm/vit_base_patch32_clip_224.openai"


@pytest.mark.parametrize(("field", "value"), [("patch_size", 15), ("vision_width", 65), ("text_layers", 0)])
def test_impossible_architectures_are_refused(tiny_arch: Architecture, field: str, value: int) -> None:
    with raises("architecture.value", field=field):
        replace(tiny_arch, **{field: value})


def test_weights_that_a_data_set_ships_go_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "standin").mkdir()  # a folder of data, say
    path = registry.lookup("standin", "datasets").weights_path
    named, by_path = load_weights("standin"), load_weights(path)
    assert named.to_json(None) == by_path.to_json(None)
    assert (named.arch, named.folder) == (by_path.arch, by_path.folder)
    assert is_downloaded("standin", "ViT-B-32")
    for name in ("folder", "msvd"):
        with raises("weights.missing"):
            load_weights(name, "ViT-B-32")
