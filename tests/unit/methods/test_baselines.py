"""Baselines: ToMe inside frames, fewer frames, random embeddings, and CLIP4Clip's sequential transformer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from torch import Tensor

from tvrbench.baselines.clip4clip import CLIP4Clip
from tvrbench.baselines.frame_subsample import FrameSubsample
from tvrbench.harness import load_model
from tvrbench.harness.config.recipe import load_recipe
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.evaluation.metrics import retrieval_metrics
from tvrbench.harness.models.backbone.architecture import PRESETS, Architecture
from tvrbench.harness.models.checkpoint import save_checkpoint
from tvrbench.harness.models.heads import SequenceTransformer
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.flops import count_macs, traced_macs
from tvrbench.harness.profiling.counts.formula import analytic_macs
from tvrbench.harness.training.trainer import parameter_groups

pytestmark = pytest.mark.unit


def encode(model: RetrievalModel, batch: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model.encode_video(batch["frames"], batch["mask"])


# ToMe


def test_merging_nothing_is_the_plain_encoder(tiny_weights: Path, tiny_batch: Any) -> None:
    tome, plain = load_model("tome", weights=tiny_weights, r=0), load_model("zero_shot", weights=tiny_weights)
    torch.testing.assert_close(encode(tome, tiny_batch), encode(plain, tiny_batch), rtol=0, atol=1e-6)


def test_tome_is_tempme_without_joined_clips(tiny_weights: Path, tiny_batch: Any) -> None:
    tome = load_model("tome", weights=tiny_weights, r=1)
    tempme = load_model("tempme", weights=tiny_weights, r=1, merge_blocks=(), merge_frames=())
    assert torch.equal(encode(tome, tiny_batch), encode(tempme, tiny_batch))
    assert tome.tokens == tempme.tokens


@pytest.mark.parametrize("proportional", [True, False])
def test_r_is_clamped_to_half_the_patches(proportional: bool, tiny_weights: Path, tiny_batch: Any) -> None:
    model = load_model("tome", weights=tiny_weights, r=7, proportional_attention=proportional)
    assert [tokens for _, tokens in model.tokens] == [10, 6, 4, 3, 2, 2, 2, 2, 2, 2, 2, 2]
    with torch.no_grad():
        stream = model.video_tokens(tiny_batch["frames"])
    assert stream.size is not None
    assert stream.size[:, :, 0].tolist() == [[1.0, 16.0]] * 36


def test_sizes_weigh_merges_even_where_they_do_not_bias_attention(tiny_weights: Path, tiny_batch: Any) -> None:
    on = load_model("tome", weights=tiny_weights, r=3)
    off = load_model("tome", weights=tiny_weights, r=3, proportional_attention=False)
    assert not torch.allclose(encode(on, tiny_batch), encode(off, tiny_batch), atol=1e-4)


def test_a_negative_r_is_named(tiny_weights: Path) -> None:
    with raises("option.value", option="r"):
        load_model("tome", weights=tiny_weights, r=-1)


# Fewer frames


@pytest.mark.parametrize(
    ("keep", "frames"),
    [(8, (0, 1, 3, 4, 6, 7, 9, 11)), (7, (0, 1, 3, 5, 7, 9, 11)), (2, (0, 11)), (1, (0,)), (12, tuple(range(12)))],
)
def test_frames_are_chosen_evenly(keep: int, frames: tuple[int, ...], tiny_weights: Path) -> None:
    model = load_model("frame_subsample", weights=tiny_weights, keep=keep)
    assert model.reducer.select_frames() == frames
    assert model.reducer.frames_encoded == keep


@pytest.mark.parametrize("keep", [1, 5, 12])
def test_fewer_frames_are_the_plain_encoder_on_them(keep: int, tiny_weights: Path, tiny_batch: Any) -> None:
    model = load_model("frame_subsample", weights=tiny_weights, keep=keep)
    plain = load_model("zero_shot", weights=tiny_weights, frames=keep)
    mask = tiny_batch["mask"].clone()
    mask[1, 6:] = False
    chosen = list(model.reducer.select_frames() or ())
    ours = encode(model, tiny_batch | {"mask": mask})
    fewer = {"frames": tiny_batch["frames"][:, chosen], "mask": mask[:, chosen]}
    torch.testing.assert_close(ours, encode(plain, fewer), rtol=0, atol=1e-6)


def test_frames_left_out_never_enter_the_tower(tiny_weights: Path, tiny_batch: Any) -> None:
    model = load_model("frame_subsample", weights=tiny_weights, keep=5)
    seen: list[int] = []
    model.clip.visual.conv1.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    with torch.no_grad():
        stream = model.video_tokens(tiny_batch["frames"], trace=True)
    assert seen == [15]
    assert stream.origin is not None
    entered = (stream.origin.view(3, 12, 16) >= 0).all(dim=2)
    assert entered[0].nonzero().flatten().tolist() == [0, 2, 5, 8, 11]
    kept = stream.origin.view(3, 12, 16)[0][entered[0]].flatten()
    assert kept.tolist() == [f * 17 + p for f in range(5) for p in range(1, 17)]


@pytest.mark.parametrize(("backbone", "keep"), [("ViT-B-32", 8), ("ViT-B-16", 7), ("ViT-L-14", 8)])
def test_the_presets_cost_what_tempme_costs(backbone: str, keep: int) -> None:
    method = FrameSubsample.configure("frame_subsample", PRESETS[backbone], 12, {})
    assert method.options.keep == keep
    assert FrameSubsample.configure("frame_subsample", PRESETS["ViT-B-16"], 64, {}).options.keep == 37


@pytest.mark.parametrize("keep", [0, 13])
def test_impossible_frame_counts_are_named(keep: int, tiny_weights: Path) -> None:
    with raises("option.value", option="keep"):
        load_model("frame_subsample", weights=tiny_weights, keep=keep)


# Random embeddings

N = 100


def chance(weights: Path, seed: int) -> dict[str, Any]:
    model = load_model("random", weights=weights, frames=1, seed=seed)
    ids = torch.arange(N).unsqueeze(1) + torch.arange(3)
    text = model.encode_text(ids, torch.ones_like(ids).bool())
    frames = torch.arange(float(N)).view(N, 1, 1, 1, 1).expand(N, 1, 3, 64, 64)
    video = model.encode_video(frames, torch.ones(N, 1).bool())
    return retrieval_metrics(model.similarity(text, video).detach().numpy())  # type: ignore[return-value]


def test_recall_is_at_chance(tiny_weights: Path) -> None:
    runs = [chance(tiny_weights, seed) for seed in range(10)]
    queries = 10 * N
    for direction in ("t2v", "v2t"):
        for k in (1, 5, 10):
            p = k / N
            recall = sum(run[direction][f"R{k}"] for run in runs) / len(runs)
            assert recall == pytest.approx(100 * p, abs=4 * 100 * (p * (1 - p) / queries) ** 0.5)
        rank = sum(run[direction]["MnR"] for run in runs) / len(runs)
        assert rank == pytest.approx((N + 1) / 2, abs=4 * ((N**2 - 1) / 12 / queries) ** 0.5)


def test_random_features_are_the_items_own(tiny_weights: Path, tiny_batch: Any) -> None:
    model = load_model("random", weights=tiny_weights)
    other = load_model("random", weights=tiny_weights, seed=1)
    frames, ids, text_mask = tiny_batch["frames"], tiny_batch["ids"], tiny_batch["text_mask"]
    mask = tiny_batch["mask"].clone()
    mask[0, 7:] = False
    video, text = model.encode_video(frames, mask), model.encode_text(ids, text_mask)
    assert torch.equal(video[1:2], model.encode_video(frames[1:2], mask[1:2]))
    padded = frames.clone()
    padded[0, 7:] = 5.0
    assert torch.equal(video, model.encode_video(padded, mask))
    assert torch.equal(text[:1], model.encode_text(ids[:1, :7], text_mask[:1, :7]))
    assert not torch.equal(video, other.encode_video(frames, mask))
    assert torch.equal(video, load_model("random", weights=tiny_weights).encode_video(frames, mask))
    same = frames[:1].expand_as(frames)
    assert len(model.encode_video(same, tiny_batch["mask"]).unique(dim=0)) == 1


def test_random_keeps_its_seed_in_a_checkpoint(tiny_weights: Path, tiny_batch: Any, tmp_path: Path) -> None:
    model = load_model("random", weights=tiny_weights, seed=7)
    save_checkpoint(model, tmp_path / "random.safetensors")
    again = load_model("random", checkpoint=tmp_path / "random.safetensors")
    assert torch.equal(encode(model, tiny_batch), encode(again, tiny_batch))


def test_random_runs_no_tower(tiny_weights: Path, tiny_batch: Any) -> None:
    model = load_model("random", weights=tiny_weights)
    assert model.tokens == []
    assert model.reducer.frames_encoded == 0
    assert count_macs(model, *tiny_batch.values()).macs == 0
    assert analytic_macs(model) == {"video": 0, "text": 0}


@pytest.mark.parametrize(
    ("name", "options"),
    [("tome", {"r": 3}), ("tome", {"r": 9}), ("frame_subsample", {"keep": 5}), ("clip4clip", {"head": "seqTransf"})],
)
def test_the_planned_multiply_adds_are_the_traced_ones(name: str, options: Any, tiny_weights: Path) -> None:
    model = load_model(name, weights=tiny_weights, **options)
    assert traced_macs(model)["video"] == analytic_macs(model)["video"]


# CLIP4Clip's sequential transformer


@pytest.fixture
def sequential(tiny_weights: Path) -> RetrievalModel:
    return load_model("clip4clip", weights=tiny_weights, head="seqTransf")


def test_it_starts_from_the_text_tower_whatever_the_tuning_added(tiny_weights: Path) -> None:
    model = load_model("clip4clip", weights=tiny_weights, head="seqTransf", tuning="lora")
    assert isinstance(model.head, SequenceTransformer)
    assert torch.equal(model.head.frame_positions, model.clip.positional_embedding)
    text = model.clip.transformer.state_dict()
    own = model.head.transformer.state_dict()
    for key, tensor in own.items():  # the tiny text tower has 2 blocks; the other 2 start fresh
        if key.split(".")[1] in "01":
            assert torch.equal(tensor, text[key])
    assert len({key.split(".")[1] for key in own}) == 4
    assert {m.eps for m in model.head.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-12}


def test_padded_frames_have_no_say(sequential: RetrievalModel, tiny_batch: Any) -> None:
    mask = tiny_batch["mask"].clone()
    mask[:, 8:] = False
    frames = tiny_batch["frames"].clone()
    first = encode(sequential, {"frames": frames, "mask": mask})
    frames[:, 8:] = 3.0
    torch.testing.assert_close(encode(sequential, {"frames": frames, "mask": mask}), first, rtol=0, atol=1e-6)
    nothing = encode(sequential, {"frames": frames, "mask": torch.zeros_like(mask)})
    assert torch.equal(nothing, torch.zeros_like(nothing))


def test_half_precision_hides_padding_too(sequential: RetrievalModel) -> None:
    head = sequential.head.half()
    frames = torch.randn(2, 12, 64, dtype=torch.float16)
    mask = torch.arange(12) < torch.tensor([[5], [0]])
    out = head(frames, mask)
    assert torch.isfinite(out).all()
    changed = frames.clone()
    changed[0, 5:] += 1
    torch.testing.assert_close(head(changed, mask), out)


def test_order_matters_to_it_and_not_to_the_mean(
    sequential: RetrievalModel, tiny_weights: Path, tiny_batch: Any
) -> None:
    backwards = tiny_batch | {"frames": tiny_batch["frames"].flip(1)}
    mean = load_model("clip4clip", weights=tiny_weights)
    assert torch.equal(encode(mean, tiny_batch), encode(mean, backwards))
    assert not torch.allclose(encode(sequential, tiny_batch), encode(sequential, backwards), atol=1e-4)


def test_new_modules_learn_at_the_full_rate(sequential: RetrievalModel) -> None:
    groups = parameter_groups(sequential, load_recipe("clip4clip"))
    new = {id(p) for group in groups if group["scale"] == 1.0 for p in group["params"]}
    assert new == {id(p) for p in sequential.head.parameters()}
    assert {group["scale"] for group in groups} == {1.0, 1e-3}


def test_its_multiply_adds_are_what_it_runs(sequential: RetrievalModel) -> None:
    traced = count_macs(sequential.head, torch.randn(1, 12, 64), torch.ones(1, 12).bool())
    assert sequential.head.macs(12) == traced.macs


@pytest.mark.parametrize(
    ("change", "code"), [({"embed_dim": 128}, "head.backbone"), ({"context_length": 8}, "head.frames")]
)
def test_shapes_that_do_not_fit_are_named(change: dict[str, int], code: str, tiny_arch: Architecture) -> None:
    method = CLIP4Clip.configure("clip4clip", replace(tiny_arch, **change), 12, {"head": "seqTransf"})
    with raises(code):
        method.build_head()


def test_an_unknown_head_is_named(tiny_weights: Path) -> None:
    with pytest.raises(UsageError, match="head"):
        load_model("clip4clip", weights=tiny_weights, head="seqLSTM")
