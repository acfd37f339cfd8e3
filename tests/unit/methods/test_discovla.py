"""DiscoVLA against a naive form written from its definition, other readings of it, and its losses."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from tvrbench.harness import load_model
from tvrbench.harness.models.backbone.architecture import HEAD_WIDTH, Architecture
from tvrbench.harness.models.backbone.blocks import Block
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.precision import FrozenCasts
from tvrbench.harness.profiling.counts.flops import profile_by_name
from tvrbench.harness.profiling.counts.formula import analytic_macs
from tvrbench.harness.regression.signature import TINY, same_randomness, save_tiny_weights
from tvrbench.methods.discovla import Bottleneck, DiscoVLAModel, DiscoVLATextPath, frame_similarity, losses

pytestmark = pytest.mark.unit
WIDE = replace(TINY, vision_width=128, vision_layers=3, text_layers=3, image_size=48, context_length=20)


def made(folder: Path, arch: Architecture, frames: int, **options: Any) -> DiscoVLAModel:
    """A model whose every trained tensor has a value that shows."""
    with same_randomness():
        save_tiny_weights(folder / "weights.safetensors", arch)
        model = load_model("discovla", weights=folder / "weights.safetensors", frames=frames, **options)
        for name, parameter in model.named_parameters():
            if ".lora.B" in name or ".bottlenecks." in name:
                nn.init.normal_(parameter, std=0.3)
    assert isinstance(model, DiscoVLAModel)
    return model


def inputs(arch: Architecture, frames: int, videos: int = 2, length: int = 7) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    words = torch.randint(1, arch.vocab_size - 1, (videos, frames + 1, length), generator=generator)
    mask = torch.zeros_like(words, dtype=torch.bool)
    for row, (ids, valid) in enumerate(zip(words.flatten(0, 1), mask.flatten(0, 1), strict=True)):
        end = 2 + row % (length - 2)
        ids[end], ids[end + 1 :], valid[: end + 1] = arch.vocab_size - 1, 0, True
    shape = (videos, frames, 3, arch.image_size, arch.image_size)
    valid = torch.ones(videos, frames, dtype=torch.bool)
    valid[0, frames - 1 :] = frames == 1
    return {
        "frames": torch.randn(shape, generator=generator),
        "mask": valid,
        "ids": words[:, 0],
        "text_mask": mask[:, 0],
        "frame_ids": words[:, 1:],
        "frame_mask": mask[:, 1:],
    }


def attention(block: Block, queries_ND: Tensor, seen_KD: Tensor, mask: Tensor | None = None) -> Tensor:
    """Multi-head attention of normed tokens over normed tokens, head by head, with LoRA; [N, D]."""
    attn = block.attn
    assert attn.lora is not None
    weight = attn.in_proj_weight + attn.lora.B @ attn.lora.A
    (wq, wk, wv), (bq, bk, bv) = weight.chunk(3), attn.in_proj_bias.chunk(3)
    q, k, v = queries_ND @ wq.T + bq, seen_KD @ wk.T + bk, seen_KD @ wv.T + bv
    heads = []
    for head in range(q.shape[1] // HEAD_WIDTH):
        part = slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)
        scores = q[:, part] @ k[:, part].T / math.sqrt(HEAD_WIDTH)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        heads.append(scores.softmax(dim=1) @ v[:, part])
    return torch.cat(heads, dim=1) @ attn.out_proj.weight.T + attn.out_proj.bias


def bottleneck(module: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(module, Bottleneck)
    inner = x @ module.down.weight.T + module.down.bias
    return inner * torch.sigmoid(1.702 * inner) @ module.up.weight.T + module.up.bias


def naive_frames(model: DiscoVLAModel, video_TCHW: Tensor, *, last: int) -> Tensor:
    """The frame features of one video [T, E], token by token."""
    visual = model.clip.visual
    frames = list(visual.embed(video_TCHW))
    for index, block in enumerate(visual.blocks):
        normed = [block.ln_1(x) for x in frames]
        deltas = [attention(block, x, x) for x in normed]
        if index >= len(visual.blocks) - last:
            everything = torch.cat(normed)
            for x, delta in zip(normed, deltas, strict=True):
                through = bottleneck(model.reducer.bottlenecks[str(index)], delta[:1])  # type: ignore[index]
                delta[:1] = through + attention(block, x[:1], everything)
        frames = [x + delta for x, delta in zip(frames, deltas, strict=True)]
        frames = [x + block.feed_forward(x) for x in frames]
    return torch.stack([visual.ln_post(x[0]) @ visual.proj for x in frames])


def naive_captions(model: DiscoVLAModel, ids_TL: Tensor, mask_TL: Tensor, *, last: int) -> Tensor:
    """The features of one video's frame captions [T, E], without any padding, token by token."""
    clip = model.clip
    words = [ids[valid] for ids, valid in zip(ids_TL, mask_TL, strict=True)]
    texts = [clip.token_embedding(ids) + clip.positional_embedding[: len(ids)] for ids in words]
    for index, block in enumerate(clip.transformer.blocks):
        normed = [block.ln_1(x) for x in texts]
        deltas = [attention(block, x, x, torch.ones(len(x), len(x), dtype=torch.bool).tril()) for x in normed]
        if index >= len(clip.transformer.blocks) - last:
            everything = torch.cat(normed)
            for x, delta in zip(normed, deltas, strict=True):
                through = bottleneck(model.text_path.bottlenecks[str(index)], delta[-1:])  # type: ignore[index]
                delta[-1:] = through + attention(block, x[-1:], everything)
        texts = [x + delta for x, delta in zip(texts, deltas, strict=True)]
        texts = [x + block.feed_forward(x) for x in texts]
    return torch.stack([clip.ln_final(x[-1]) @ clip.text_projection for x in texts])


CASES: list[tuple[Architecture, int, dict[str, Any]]] = [
    (replace(TINY, vision_layers=4), 3, {}),
    (WIDE, 5, {"vision_blocks": 2, "text_blocks": 3, "rank": 3}),
    (WIDE, 1, {"vision_blocks": 3, "text_blocks": 1}),
    (WIDE, 2, {"vision_blocks": 0, "text_blocks": 0}),
]


@pytest.mark.parametrize(("arch", "frames", "options"), CASES)
@torch.no_grad()
def test_the_naive_form(arch: Architecture, frames: int, options: dict[str, Any], tmp_path: Path) -> None:
    model, given = made(tmp_path, arch, frames, **options), inputs(arch, frames)
    last = {"vision_blocks": 4, "text_blocks": 2} | options
    of_frames = torch.stack([naive_frames(model, video, last=last["vision_blocks"]) for video in given["frames"]])
    weight = given["mask"].float().unsqueeze(2)
    video = (F.normalize(of_frames, dim=2) * weight).sum(dim=1) / weight.sum(dim=1)
    captions = torch.stack(
        [
            naive_captions(model, ids, mask, last=last["text_blocks"])
            for ids, mask in zip(given["frame_ids"], given["frame_mask"], strict=True)
        ]
    )
    text, encoded, of_captions, features = model(**given)
    torch.testing.assert_close(features, of_frames, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(of_captions, captions, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoded, video, rtol=0, atol=1e-5)
    assert torch.equal(encoded, model.encode_video(given["frames"], given["mask"]))
    assert torch.equal(text, model.encode_text(given["ids"], given["text_mask"]))


@torch.no_grad()
def test_other_readings_give_other_features(tmp_path: Path) -> None:
    arch, frames = WIDE, 3
    model, given = made(tmp_path, arch, frames, vision_blocks=2, text_blocks=2), inputs(arch, frames)
    _, _, captions, features = model(**given)
    video, ids, mask = given["frames"][0], given["frame_ids"][0], given["frame_mask"][0]
    assert (naive_frames(model, video, last=1) - features[0]).abs().max() > 1e-2  # fewer blocks
    assert (naive_captions(model, ids, mask, last=1) - captions[0]).abs().max() > 1e-2
    alone = torch.cat([naive_frames(model, frame.unsqueeze(0), last=2) for frame in video])
    assert (alone - features[0]).abs().max() > 1e-2  # class tokens that see their own frame alone
    apart = torch.cat(
        [
            naive_captions(model, one.unsqueeze(0), valid.unsqueeze(0), last=2)
            for one, valid in zip(ids, mask, strict=True)
        ]
    )
    assert (apart - captions[0]).abs().max() > 1e-2
    padded = model.encode_frame_captions(given["frame_ids"], torch.ones_like(given["frame_mask"]))
    assert (padded - captions).abs().max() > 1e-3  # padding that is seen


@torch.no_grad()
def test_the_caption_of_a_video_is_that_of_lora_bit_for_bit(tiny_model: Callable[..., RetrievalModel]) -> None:
    model, lora = tiny_model("discovla"), tiny_model("lora")
    shared = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("clip.")}
    lora.load_state_dict(shared)
    given = inputs(model.clip.arch, 12)
    ids, mask = given["ids"], given["text_mask"]
    assert torch.equal(model.encode_text(ids, mask), lora.encode_text(ids, mask))
    video = given["frames"], given["mask"]
    assert not torch.allclose(model.encode_video(*video), lora.encode_video(*video), atol=1e-3)
    plain = tiny_model("discovla", vision_blocks=0, text_blocks=0)
    plain.load_state_dict(shared)
    assert torch.equal(plain.encode_video(*video), lora.encode_video(*video))


@torch.no_grad()
def test_how_long_captions_are_padded_changes_nothing(tmp_path: Path) -> None:
    model, given = made(tmp_path, WIDE, 3, vision_blocks=1), inputs(WIDE, 3)
    ids, mask = given["frame_ids"], given["frame_mask"]
    longer = model.encode_frame_captions(F.pad(ids, (0, 4)), F.pad(mask, (0, 4)))
    torch.testing.assert_close(longer, model.encode_frame_captions(ids, mask), rtol=0, atol=1e-5)
    alone = torch.cat([model.encode_frame_captions(ids[i : i + 1], mask[i : i + 1]) for i in range(len(ids))])
    torch.testing.assert_close(longer, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tuning", ["prompts", "prompts-shallow", "adapter", "full", "own"])
def test_frame_captions_go_with_any_tuning(tuning: str, tmp_path: Path) -> None:
    model, given = made(tmp_path, WIDE, 2, vision_blocks=1, tuning=tuning), inputs(WIDE, 2)
    loss = model.own_loss(*model(**given))
    assert loss is not None
    loss.backward()
    unreached = {name for name, p in model.trainable().items() if p.grad is None or not p.grad.any()}
    assert not {name for name in unreached if "bottlenecks" in name}


@pytest.mark.parametrize("tuning", ["prompts", "prompts-shallow", "lora"])
@torch.no_grad()
def test_all_tokens_but_the_end_go_as_without_fusion(tuning: str, tmp_path: Path) -> None:
    """Prompts included, which the start token does not see."""
    model, given = made(tmp_path, WIDE, 3, vision_blocks=1, text_blocks=1, tuning=tuning), inputs(WIDE, 3)
    ids, block, path = given["frame_ids"], model.clip.transformer.blocks[-1], model.text_path
    assert isinstance(path, DiscoVLATextPath)
    further = 0 if model.clip.prompts is None else len(model.clip.prompts)
    x = torch.randn(ids.shape[0] * ids.shape[1], ids.shape[2] + further, WIDE.text_width)
    fused = path.of_frames(ids, given["frame_mask"]).attend(x, len(model.clip.transformer.blocks) - 1, block).delta
    same = (fused - block.attend(x, causal=True).delta).abs().amax(dim=2) < 1e-5
    ends = (ids.flatten(0, 1) == WIDE.vocab_size - 1).long().argmax(dim=1) + further
    assert torch.equal(same, torch.arange(x.shape[1]) != ends.unsqueeze(1))


@pytest.mark.parametrize("vision_blocks", [0, 2])
@pytest.mark.parametrize("text_blocks", [0, 3])
@pytest.mark.parametrize("wrapper", ["", "module."])
@torch.no_grad()
def test_a_released_checkpoint_tells_its_options(
    wrapper: str, text_blocks: int, vision_blocks: int, tmp_path: Path
) -> None:
    options = {"vision_blocks": vision_blocks, "text_blocks": text_blocks, "rank": 3}
    model, given = made(tmp_path, WIDE, 5, **options), inputs(WIDE, 5)
    renamed = {}
    for name, tensor in model.state_dict().items():
        inside = re.fullmatch(r"(reducer|text_path)\.bottlenecks\.(\d+)\.(down|up)\.(weight|bias)", name)
        if inside:
            side, index, layer, kind = inside.groups()
            tower = "visual." * (side == "reducer")
            name = f"clip.{tower}transformer.resblocks.{index}.attn.TVPt_{layer}_{kind}"
        renamed[wrapper + re.sub(r"lora\.([AB])", lambda m: f"TVPt_LoRA_{m[1].lower()}", name)] = tensor
    torch.save(renamed, tmp_path / "released.bin")
    released: dict[str, Any] = {"checkpoint": tmp_path / "released.bin", "frames": 5, "activation": "quick_gelu"}
    again = load_model("discovla", **released)
    assert again.spec.options == model.spec.options
    assert all(map(torch.equal, model(**given), again(**given)))
    with raises("weights.keys"):  # a given option comes first
        load_model("discovla", **released, vision_blocks=1)


def test_frame_captions_in_bfloat16(tmp_path: Path) -> None:
    """Under autocast, with the casts of frozen weights that training on a GPU puts in for a call."""
    model, given = made(tmp_path, WIDE, 3, vision_blocks=2).train(), inputs(WIDE, 3)
    exact = model(**given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = model(**given)
        cast = functional_call(model, FrozenCasts(model, torch.bfloat16)(), kwargs=given, tie_weights=False)
    assert all(map(torch.equal, plain, cast))
    for ours, wanted in zip(cast, exact, strict=True):
        assert F.cosine_similarity(ours.float(), wanted, dim=-1).min() > 0.99
    loss, wanted_loss = model.own_loss(*(feature.float() for feature in cast)), model.own_loss(*exact)
    assert loss is not None
    assert wanted_loss is not None
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.trainable().values())


def by_definition(similarity: Tensor, captions: Tensor, frames: Tensor, scale: float) -> dict[str, Tensor]:
    """The terms in float64, entry by entry."""
    similarity, captions, frames = similarity.double(), captions.double(), frames.double()
    N = len(captions)
    unit_c, unit_f = F.normalize(captions, dim=2), F.normalize(frames, dim=2)
    W = torch.zeros(N, N, dtype=torch.float64)
    for a in range(N):
        for b in range(N):
            Z = unit_c[a] @ unit_f[b].T
            A, B = Z.max(dim=1).values, Z.max(dim=0).values
            W[a, b] = ((A * (scale * A).softmax(0)).sum() + (B * (scale * B).softmax(0)).sum()) / 2

    def crossed(logits: Tensor) -> Tensor:
        return -(logits.log_softmax(1).diag().mean() + logits.log_softmax(0).diag().mean()) / 2

    def divergence(p_logits: Tensor, q_logits: Tensor) -> Tensor:
        p, q = p_logits.softmax(1), q_logits.softmax(1)
        return 100 / N**2 * (p * (p.log() - q.log())).sum()

    sW = scale * W
    return {
        "W": W,
        "video": crossed(similarity),
        "frame": crossed(sW),
        "distill": (divergence(sW, similarity) + divergence(sW.T, similarity.T)) / 2,
        "other way": (divergence(similarity, sW) + divergence(similarity.T, sW.T)) / 2,
    }


@pytest.mark.parametrize(("pairs", "captions", "frames", "scale"), [(3, 12, 12, 20.0), (4, 5, 7, 3.0), (1, 1, 1, 9.0)])
def test_the_losses_by_definition(pairs: int, captions: int, frames: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(2)
    of_captions = torch.randn(pairs, captions, 6, generator=generator)
    of_frames = torch.randn(pairs, frames, 6, generator=generator)
    similarity = scale * torch.randn(pairs, pairs, generator=generator).tanh()
    want = by_definition(similarity, of_captions, of_frames, scale)
    ours = losses(similarity, of_captions, of_frames, torch.tensor(scale))
    of_them = frame_similarity(of_captions, of_frames, torch.tensor(scale))
    torch.testing.assert_close(of_them.double(), want["W"], rtol=0, atol=1e-6)
    for name in ("video", "frame", "distill"):
        torch.testing.assert_close(getattr(ours, name).double(), want[name], rtol=1e-4, atol=1e-4)
    total = want["video"] + 0.3 * want["frame"] + want["distill"]
    torch.testing.assert_close(ours.total.double(), total, rtol=1e-4, atol=1e-4)
    if pairs > 1:
        assert (ours.distill - want["other way"]).abs() > 0.1


def test_the_divergence_is_stable_and_stops_no_gradient() -> None:
    captions, frames = torch.randn(4, 3, 6, requires_grad=True), torch.randn(4, 3, 6, requires_grad=True)
    similarity = (100 * torch.eye(4) - 50).requires_grad_()
    terms = losses(similarity, captions, frames, torch.tensor(100.0))
    assert all(term.isfinite() for term in terms)
    terms.distill.backward()  # type: ignore[no-untyped-call]
    for tensor in (captions, frames, similarity):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"vision_blocks": 13}, "vision_blocks"),
        ({"vision_blocks": -1}, "vision_blocks"),
        ({"text_blocks": 3}, "text_blocks"),
    ],
)
def test_blocks_that_are_not_there_are_refused(
    options: dict[str, int], option: str, tiny_model: Callable[..., RetrievalModel]
) -> None:
    with raises("option.value", option=option):
        tiny_model("discovla", **options)


def test_captions_of_another_number_of_frames_are_refused(tiny_model: Callable[..., RetrievalModel]) -> None:
    model = tiny_model("discovla")
    assert isinstance(model, DiscoVLAModel)
    ids = torch.ones(2, 11, 5, dtype=torch.long)
    with raises("text.input"):
        model.encode_frame_captions(ids, ids.bool())
    with raises("text.input"):
        model.encode_frame_captions(ids[:, 0], ids[:, 0].bool())


@pytest.mark.parametrize("pairs", [1, 3])
def test_frame_captions_of_another_number_of_videos_are_refused(pairs: int, tmp_path: Path) -> None:
    model, given = made(tmp_path, WIDE, 2, vision_blocks=1), inputs(WIDE, 2)
    others = {key: tensor[:1].repeat(pairs, 1, 1) for key, tensor in given.items() if key.startswith("frame_")}
    with raises("text.input"):
        model(**given | others)


# Multiply-adds of the LoRA row, of which the released code's own are within 0.2 %, and what class tokens that see all
# tokens add: attention, one more projection of each, and the bottleneck.
@pytest.mark.parametrize(("backbone", "lora", "tokens"), [("ViT-B-32", 52.96, 600), ("ViT-B-16", 210.99, 2364)])
def test_published_costs(backbone: str, lora: float, tokens: int) -> None:
    found, T, D = profile_by_name("discovla", backbone), 12, 768
    plain = analytic_macs(load_model("lora", backbone=backbone, weights="random:0", device="meta"))
    more = 4 * (2 * T * tokens * D + T * D * D + 2 * T * D * 8) / 1e9
    assert found["gmacs"]["video"] == pytest.approx(lora + more, rel=0.002)
    assert found["gmacs"]["video"] - plain["video"] / 1e9 == pytest.approx(more, rel=1e-6)
    if backbone == "ViT-B-32":
        assert more == pytest.approx(0.07, abs=0.005)
    assert found["gmacs"]["text"] == plain["text"] / 1e9
    assert found["params"]["trainable"] == 561_200
    assert found["output_tokens"] == tokens
