"""Packed rows against one video at a time with loops written from the definition; costs; what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from errors import raises
from torch import Tensor

from tvrbench.harness import load_model
from tvrbench.harness.cli.visualize import _merged
from tvrbench.harness.models.backbone.clip import VisionTower
from tvrbench.harness.models.decisions import Recorder, watched
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.tokens import Packing, TokenStream
from tvrbench.harness.profiling.counts.flops import count_macs, traced_macs
from tvrbench.harness.profiling.counts.formula import video_macs, work_of
from tvrbench.methods.ops import Runs
from tvrbench.methods.rlt import RltReducer

pytestmark = pytest.mark.unit
Make = Callable[..., RetrievalModel]
VARIANTS: list[dict[str, Any]] = [
    {"scope": "held"},
    {"scope": "frame"},
    {"scope": "video"},
    {"scope": "video", "length": "none"},
]
T, L = 12, 16
CARRIED = ["lora", "adapter", "prompts", "prompts-shallow"]


def _keep(*shares: float) -> Tensor:
    """Masks [B, T, L] that keep about these shares; the second frame keeps no patch."""
    keep = (
        torch.rand(len(shares), T, L, generator=torch.Generator().manual_seed(2)) < torch.tensor(shares)[:, None, None]
    )
    keep[:, 0], keep[:, 1] = True, False
    return keep


def _features(model: RetrievalModel, frames: Tensor, keep: Tensor) -> Tensor:
    """Class features [B, T, E] where these patches are kept, whatever the pixels say."""
    with watched(model.reducer, lambda _: Runs(keep_BTL=keep)):
        return model.clip.visual.class_features(model.video_tokens(frames))


def _by_definition(visual: VisionTower, frames: Tensor, keep: Tensor, scope: str, log: bool) -> Tensor:
    """The same of one video [T, 3, H, W] with its mask [T, L], by plain loops over frames."""
    stream = visual.enter(frames, len(frames))
    x, prefix = stream.x, stream.num_prefix_tokens
    head = torch.zeros_like(keep, dtype=torch.long)
    for t in range(len(keep)):
        head[t] = torch.where(keep[t], t, head[t - 1])
    run = torch.stack([(head == t).sum(dim=0) for t in range(len(keep))])
    for block in visual.blocks:
        if scope == "held":
            held = torch.cat([x[:, :prefix], x[head, torch.arange(prefix, x.shape[1])]], dim=1)
            held = held + block.attend(held).delta
            x = held + block.feed_forward(held)
        elif scope == "frame":
            parts = []
            for t, own in enumerate(keep):
                part = torch.cat([x[t : t + 1, :prefix], x[t : t + 1, prefix:][:, own]], dim=1)
                part = part + block.attend(part).delta
                part, after = part + block.feed_forward(part), x[t].clone()
                after[:prefix] = part[0, :prefix]
                after[prefix:][own] = part[0, prefix:]
                parts.append(after)
            x = torch.stack(parts)
        else:
            classes, patches = x[:, :prefix].flatten(0, 1), x[:, prefix:][keep]
            sequence = torch.cat([classes, patches]).unsqueeze(0)
            size = torch.cat([torch.ones(len(classes)), run[keep].float()]).view(1, -1, 1) if log else None
            sequence = sequence + block.attend(sequence, size).delta
            sequence = (sequence + block.feed_forward(sequence))[0]
            after = x.clone()
            after[:, :prefix] = sequence[: len(classes)].view(len(x), prefix, -1)
            after[:, prefix:][keep] = sequence[len(classes) :]
            x = after
    out: Tensor = visual.ln_post(x[:, 0]) @ visual.proj
    return out


@pytest.mark.parametrize("tuning", CARRIED)
@pytest.mark.parametrize("options", VARIANTS)
def test_packed_rows_are_the_definition(
    options: dict[str, Any], tuning: str, tiny_model: Make, tiny_batch: dict[str, Any]
) -> None:
    model, frames, keep = tiny_model("rlt", tuning=tuning, **options), tiny_batch["frames"], _keep(0.1, 0.5, 0.9)
    log = model.spec.options.length == "log"  # type: ignore[attr-defined]
    with torch.no_grad():
        found = _features(model, frames, keep)
        for video in range(3):
            expected = _by_definition(model.clip.visual, frames[video], keep[video], options["scope"], log)
            alone = _features(model, frames[video : video + 1], keep[video : video + 1])
            torch.testing.assert_close(found[video], expected, rtol=0, atol=1e-5)
            torch.testing.assert_close(found[video], alone[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", VARIANTS)
def test_gradients_are_those_of_the_definition(
    options: dict[str, Any], tiny_model: Make, tiny_batch: dict[str, Any]
) -> None:
    model, frames, keep = tiny_model("rlt", **options), tiny_batch["frames"][:1], _keep(0.3)
    weight = model.clip.visual.blocks[5].attn.lora.B  # type: ignore[union-attr]
    log = model.spec.options.length == "log"  # type: ignore[attr-defined]
    pull = torch.randn(T, 64, generator=torch.Generator().manual_seed(3))
    expected = _by_definition(model.clip.visual, frames[0], keep[0], options["scope"], log)
    (slow,) = torch.autograd.grad((expected * pull).sum(), weight)
    (fast,) = torch.autograd.grad((_features(model, frames, keep)[0] * pull).sum(), weight)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def _still(frames: Tensor) -> Tensor:
    """The batch with stills: of each video some frames repeat the one before in most of their area."""
    out = frames.clone()
    for video, changing in enumerate((0, 16, 64)):
        for t in range(1, T):
            out[video, t, :, changing:] = out[video, t - 1, :, changing:]
    return out


@pytest.mark.parametrize("options", VARIANTS)
def test_real_masks_in_a_batch_and_alone(options: dict[str, Any], tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    model, frames, mask = tiny_model("rlt", **options), _still(tiny_batch["frames"]), tiny_batch["mask"]
    recorder = Recorder()
    with torch.no_grad(), watched(model.reducer, recorder):
        together = model.encode_video(frames, mask)
        alone = torch.cat([model.encode_video(frames[i : i + 1], mask[i : i + 1]) for i in range(3)])
    (made,) = recorder.made[:1]
    assert made.kept_S.tolist() == [L, L + (T - 1) * 4, T * L]  # type: ignore[attr-defined]
    assert together.isfinite().all()
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", VARIANTS)
def test_half_precision_takes_the_masks_of_float32(
    options: dict[str, Any], tiny_model: Make, tiny_batch: dict[str, Any]
) -> None:
    model, frames, mask = tiny_model("rlt", **options), _still(tiny_batch["frames"]), tiny_batch["mask"]
    exact, half = Recorder(), Recorder()
    with torch.no_grad():
        with watched(model.reducer, exact):
            reference = model.encode_video(frames, mask)
        with watched(model.reducer, half), torch.autocast("cpu", dtype=torch.bfloat16):
            found = model.encode_video(frames, mask).float()
    assert torch.equal(exact.made[0].representative, half.made[0].representative)
    assert torch.cosine_similarity(found, reference).min() > 0.99


@pytest.mark.parametrize("scope", ["held", "video", "frame"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_budget_fixes_all_counts(scope: str, share: float, tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    model = tiny_model("rlt", scope=scope, budget=share)
    recorder = Recorder()
    with torch.no_grad(), watched(model.reducer, recorder):
        model.encode_video(_still(tiny_batch["frames"]), tiny_batch["mask"])
    kept = max(L, round(share * T * L))
    assert recorder.made[0].kept_S.tolist() == [kept] * 3  # type: ignore[attr-defined]
    assert not model.reducer.depends_on_content
    assert model.tokens == [(1, T + kept)] * 12
    assert traced_macs(model)["video"] == video_macs(model)


def test_a_dropped_patch_belongs_to_the_one_that_stands_for_it(tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    for tuning in ("lora", "prompts-shallow"):
        model = tiny_model("rlt", tuning=tuning)
        recorder = Recorder()
        with torch.no_grad(), watched(model.reducer, recorder):
            _, trace = model.encode_video(_still(tiny_batch["frames"]), tiny_batch["mask"], trace=True)
        before = trace.tokens - L
        head = recorder.made[0].head_BTL  # type: ignore[attr-defined]
        assert torch.equal(trace.token_BTP, head * trace.tokens + before + torch.arange(L))


def test_a_picture_counts_the_tokens_that_are_computed(tiny_model: Make) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8).repeat(T, axis=0)
    shown: Any = SimpleNamespace(label="rlt", origin="", model=tiny_model("rlt"))
    merged = _merged(shown, frames.transpose(0, 3, 1, 2), np.ones(T, dtype=bool))
    assert merged.leaving == L + T


def test_packing_and_unpacking_keep_every_live_token() -> None:
    stream = TokenStream(x=torch.randn(4, 3, 5), classes=1, per_video=2, size=torch.rand(4, 3, 1))
    place = torch.tensor([[0, 1, 2], [3, 1, 2], [6, 7, 8], [9, 7, 11]])
    packing = Packing.of(place, [4, 5])
    packed = stream.pack(packing)
    assert packing.place_M.tolist() == [0, 1, 2, 3, 6, 7, 8, 9, 11]
    assert torch.equal(packing.live_SN, place == torch.arange(12).view(4, 3))
    assert torch.equal(packing.standing_SN, place)
    assert torch.equal(packed.size[0], stream.size.flatten(0, 1)[packing.place_M])  # type: ignore[index,union-attr]
    assert torch.equal(packed.unpack().x, stream.x.flatten(0, 1)[place.flatten()].view_as(stream.x))


@pytest.mark.slow
def test_graphs_follow_other_shares(small_weights: Path, tiny_batch: dict[str, Any]) -> None:
    """Compiled once, the encoder gives what it gives uncompiled for a batch that keeps other numbers of patches."""
    model, mask = load_model("rlt", weights=small_weights), tiny_batch["mask"]
    torch.compiler.reset()
    compiled = torch.compile(model.encode_video, backend="eager")
    with torch.no_grad():
        for frames in (tiny_batch["frames"], _still(tiny_batch["frames"])):
            torch.testing.assert_close(compiled(frames, mask), model.encode_video(frames, mask), rtol=0, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("tuning", CARRIED)
@pytest.mark.parametrize("options", VARIANTS)
def test_a_known_mask_costs_what_its_plan_says(
    options: dict[str, Any], tuning: str, tiny_model: Make, tiny_batch: dict[str, Any]
) -> None:
    model, frames = tiny_model("rlt", tuning=tuning, **options), _still(tiny_batch["frames"])[1:2]
    kept = L + (T - 1) * 4
    mask = torch.zeros(T, L, dtype=torch.bool)
    mask[0], mask[:, :4] = True, True

    class Video(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, frames: Tensor) -> Tensor:
            return self.model.encode_video(frames, torch.ones(1, T, dtype=torch.bool))

    with torch.no_grad():
        model.encode_video(frames, torch.ones(1, T, dtype=torch.bool))  # folds LoRA
    reducer = model.reducer
    assert isinstance(reducer, RltReducer)
    planned = video_macs(model, work_of(reducer.plan(kept)))
    assert planned == video_macs(model, work_of(reducer.plan(mask)))
    assert planned < video_macs(model)
    assert count_macs(Video(), frames).macs == planned


# GMACs at shares kept of 1, 0.75, 0.5, 0.25, without queries that are computed for no token.
TABLE = {
    ("ViT-B-32", 12, "held"): (52.96, 40.33, 27.69, 15.06),
    ("ViT-B-32", 12, "video"): (59.05, 43.69, 29.14, 15.38),
    ("ViT-B-16", 12, "held"): (210.99, 158.86, 106.73, 54.60),
    ("ViT-B-16", 12, "video"): (305.41, 210.55, 128.43, 59.05),
    ("ViT-B-32", 64, "held"): (282.5, 215.1, 147.7, 80.3),
    ("ViT-B-32", 64, "video"): (468.3, 320.5, 195.3, 92.8),
    ("ViT-B-16", 64, "held"): (1125, 847, 569, 291),
    ("ViT-B-16", 64, "video"): (4009, 2467, 1286, 468),
}


@pytest.mark.parametrize(("backbone", "frames", "scope"), TABLE)
def test_multiply_adds_at_a_share_kept(backbone: str, frames: int, scope: str) -> None:
    options = {"backbone": backbone, "weights": "random:0", "frames": frames, "device": "meta", "tuning": "frozen"}
    model: RetrievalModel = load_model("rlt", scope=scope, **options)  # type: ignore[arg-type]
    places, width = model.clip.arch.patches + 1, model.clip.arch.vision_width
    reducer = model.reducer
    assert isinstance(reducer, RltReducer)
    for share, expected in zip((1, 0.75, 0.5, 0.25), TABLE[backbone, frames, scope], strict=True):
        kept = round(share * frames * (places - 1))
        counted = video_macs(model, work_of(reducer.plan(kept)))
        dead = (frames * places - frames - kept) * 2 * places * width * 12 if scope == "held" else 0
        assert (counted - dead) / 1e9 == pytest.approx(expected, rel=0.005)
        budgeted: RetrievalModel = load_model("rlt", scope=scope, budget=share, **options)  # type: ignore[arg-type]
        assert video_macs(budgeted) == counted
    assert video_macs(model) == video_macs(model, work_of(reducer.plan(frames * (places - 1))))


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": float("inf")}, "threshold"),
        ({"budget": -0.1}, "budget"),
        ({"budget": 1.5}, "budget"),
        ({"budget": float("nan")}, "budget"),
        ({"length": "log"}, "length"),
        ({"length": "log", "scope": "frame"}, "length"),
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], option: str, tiny_weights: Path) -> None:
    with raises("option.value", option=option):
        load_model("rlt", weights=tiny_weights, **options)


def test_a_plan_of_too_many_patches_is_refused(tiny_model: Make) -> None:
    reducer = tiny_model("rlt").reducer
    assert isinstance(reducer, RltReducer)
    for kept in (L - 1, T * L + 1):
        with raises("option.value", option="kept"):
            reducer.plan(kept)


@pytest.mark.parametrize("frames", [1, 12])
def test_adapters_of_whole_frames_are_refused(frames: int, tiny_weights: Path) -> None:
    with raises("tuning.mv-adapter"):
        load_model("rlt", weights=tiny_weights, tuning="mv-adapter", frames=frames)


def test_run_lengths_count_by_default_where_all_frames_attend(tiny_model: Make) -> None:
    lengths = [tiny_model("rlt", scope=scope).spec.describe()["length"] for scope in ("held", "video", "frame")]
    assert lengths == ["none", "log", "none"]
