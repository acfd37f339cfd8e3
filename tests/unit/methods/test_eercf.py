"""EERCF against its definition pair by pair, at other widths, frames and patches; options, checkpoints, counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import naive_eercf
import pytest
import torch
from errors import raises
from naive_eercf import Naive
from torch import Tensor

from tvrbench.harness import load_model
from tvrbench.harness.models import scorer as scorer_module
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.scorer import Side, TextFeatures, VideoFeatures
from tvrbench.harness.profiling.counts.flops import analytic_macs, traced_macs
from tvrbench.harness.training.trainer import Trainer
from tvrbench.methods.eercf import _WEIGHTS, CoarseToFine, EERCFOptions

Make = Callable[..., RetrievalModel]
SHAPES = [(5, 4, 3, 7), (8, 1, 6, 5), (16, 7, 2, 4)]  # width, frames, patches a frame, pairs
WEIGHTS = [
    {},
    {"strongpatch_weight": 0.7, "cdcl_patch_weight": 0.3, "cdcl_loss_weight": 0.5},
    {"video_weight": 0.0, "weakpatch_weight": 2.0, "weak_loss_weight": 0.1, "strong_loss_weight": 1.5},
    {"weak_loss_weight": 0.0, "cdcl_frame_weight": 0.0, "cdcl_loss_weight": 0.2},
    {"strong_loss_weight": 0.0, "cdcl_loss_weight": 0.0},
]


def features(width: int, frames: int, patches: int, pairs: int) -> tuple[TextFeatures, VideoFeatures]:
    """Of any length (norm), in float64; of video 0 all frames are valid, of the others one less each, one at least."""
    generator = torch.Generator().manual_seed(width)

    def draw(*shape: int) -> Tensor:
        return torch.randn(pairs, *shape, width, generator=generator, dtype=torch.float64)

    related = draw(frames)
    mask = torch.arange(frames).expand(pairs, -1) < (frames - torch.arange(pairs).unsqueeze(1)).clamp(min=1)
    unit, weight = naive_eercf.unit(related), mask.double().unsqueeze(2)
    video = VideoFeatures(
        frames=draw(frames),
        related=related,
        pooled=(unit * weight).sum(dim=1) / weight.sum(dim=1),
        mask=mask,
        patches=draw(frames * patches),
        patch_mask=mask.repeat_interleave(patches, dim=1),
    )
    return TextFeatures(end=draw(), words=None, mask=torch.ones(pairs, 3, dtype=torch.bool)), video


def scorer(width: int, frames: int, **options: Any) -> CoarseToFine:
    """With matrices that are not the identity."""
    made = CoarseToFine(EERCFOptions(tuning="full", **options), width, frames).double()
    generator = torch.Generator().manual_seed(2)
    for matrix in made.parameters():
        matrix.data += 0.3 * torch.randn(matrix.shape, generator=generator, dtype=torch.float64)
    return made


def naive_of(made: CoarseToFine, text: TextFeatures, video: VideoFeatures) -> Naive:
    assert video.patches is not None
    assert video.patch_mask is not None
    exact = made.options.gate_mask == "exact"
    return Naive(
        text=text.end,
        raw=video.frames,
        temporal=video.related,
        patches=video.patches,
        mask=video.mask.bool(),
        kept=video.mask.bool() if exact else torch.ones_like(video.mask, dtype=torch.bool),
        kept_patches=video.patch_mask if exact else torch.ones_like(video.patch_mask),
        M=made.text_matrix.detach(),
        L=made.frame_matrix.detach(),
    )


def close(found: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(found, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("block", [1, 40, scorer_module.BLOCK])
@pytest.mark.parametrize("gate_mask", ["exact", "released"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_level_and_the_last_stage(
    shape: Sequence[int], gate_mask: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scorer_module, "BLOCK", block)
    text, video = features(*shape)
    made = scorer(*shape[:2], gate_mask=gate_mask)
    naive, sides = naive_of(made, text, video), (made.text_side(text), made.video_side(video))
    for level, score in naive_eercf.SCORES.items():
        close(made.score(*sides, level), naive.scores(score))
    want = naive.scores(naive_eercf.ranking)
    close(made.score(*sides), want)
    for texts, videos in ((slice(1, 3), slice(0, 1)), (slice(2, 3), slice(0, 3))):
        close(made.score(sides[0].part(texts), sides[1].part(videos)), want[texts, videos])
    assert made.score(sides[0].part(slice(0, 0)), sides[1]).shape == (0, len(want))


@pytest.mark.parametrize("options", WEIGHTS)
@pytest.mark.parametrize("gate_mask", ["exact", "released"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_loss_of_a_batch(shape: Sequence[int], gate_mask: str, options: dict[str, float]) -> None:
    text, video = features(*shape)
    made = scorer(*shape[:2], gate_mask=gate_mask, **options)
    sides, naive, o = (made.text_side(text), made.video_side(video)), naive_of(made, text, video), made.options
    scale = torch.tensor(7.0, dtype=torch.float64)
    weak = o.video_weight * naive.scores(naive_eercf.coarse) + o.weakframe_weight * naive.scores(naive_eercf.weak_frame)
    weak = weak + o.weakpatch_weight * naive.scores(naive_eercf.weak_patch)
    strong = o.strongframe_weight * naive.strong_in_training(naive_eercf.gated_frames)
    strong = strong + o.strongpatch_weight * naive.strong_in_training(naive_eercf.gated_patches)
    want = o.weak_loss_weight * naive_eercf.cross_entropies(scale * weak)
    want = want + o.strong_loss_weight * naive_eercf.cross_entropies(scale * strong)
    own = [naive.pair(i, i) for i in range(len(text.end))]
    vectors = {
        "cdcl_video_weight": naive_eercf.unit(video.pooled),
        "cdcl_frame_weight": torch.stack([naive_eercf.unit(naive_eercf.gated_frames(pair)) for pair in own]),
        "cdcl_patch_weight": torch.stack([naive_eercf.unit(naive_eercf.gated_patches(pair)) for pair in own]),
    }
    for name, vector in vectors.items():
        constraint = naive_eercf.pearson(naive_eercf.unit(text.end), vector)
        want = want + o.cdcl_loss_weight * getattr(o, name) * constraint
    close(made.loss(sides[0], made.columns(*sides, 0), scale), want)
    parts = [made.columns(sides[0], sides[1].part(slice(first, first + 2)), first) for first in range(0, len(own), 2)]
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    assert not {"patches", "frames", "temporal"} & joined.keys()
    close(made.loss(sides[0], joined, scale), want)


def test_the_gate_is_constant_in_training_and_weak_scores_are_not() -> None:
    text, video = features(8, 4, 3, 5)
    text.end.requires_grad_()
    video.frames.requires_grad_()
    video.related.requires_grad_()
    made = scorer(8, 4, weakpatch_weight=0.0)
    columns = made.columns(made.text_side(text), made.video_side(video), 0)
    given = (text.end, video.frames, video.related)
    vector = torch.autograd.grad(columns["strong_frame"].sum(), given, allow_unused=True, retain_graph=True)
    assert [gradient is None for gradient in vector] == [True, True, False]
    weak = torch.autograd.grad(columns["weak"].sum(), given[:2])
    assert all(gradient.abs().sum() > 0 for gradient in weak)


def test_padding_changes_nothing_where_it_is_left_out() -> None:
    text, video = features(8, 6, 3, 5)
    made = scorer(8, 6)
    noisy = {"frames": video.frames, "related": video.related, "patches": video.patches}
    for name, tensor in noisy.items():
        assert tensor is not None
        mask = video.patch_mask if name == "patches" else video.mask
        assert mask is not None
        noisy[name] = torch.where(mask.bool().unsqueeze(2), tensor, 9 * torch.randn_like(tensor))
    other = VideoFeatures(**{**vars(video), **noisy})
    close(
        made.score(made.text_side(text), made.video_side(other)),
        made.score(made.text_side(text), made.video_side(video)),
    )


def test_a_video_without_any_valid_frame_scores_zero() -> None:
    text, video = features(8, 4, 3, 5)
    assert video.patch_mask is not None
    empty = {"mask": video.mask & False, "patch_mask": video.patch_mask & False, "pooled": 0 * video.pooled}
    made = scorer(8, 4)
    sides = made.text_side(text), made.video_side(VideoFeatures(**{**vars(video), **empty}))
    for level in (*made.levels, None):
        assert torch.equal(made.score(*sides, level), torch.zeros(5, 5, dtype=torch.float64))


def test_options_that_do_not_fit_are_refused(tiny_model: Make) -> None:
    for name in _WEIGHTS:
        with raises("option.value", option=name):
            tiny_model("eercf", **{name: -0.1})
    zero = dict.fromkeys(("weak_loss_weight", "strong_loss_weight", "cdcl_loss_weight"), 0.0)
    with raises("option.value", option="weak_loss_weight"):
        tiny_model("eercf", **zero)
    with raises("option.invalid", option="depth"):
        tiny_model("eercf", depth=-1)


def test_a_constraint_on_one_pair_is_refused(tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    batch = [tiny_batch[key][:1] for key in ("frames", "mask", "ids", "text_mask")]
    with raises("scorer.batch", pairs=1):
        Trainer(tiny_model("eercf"), "eercf", 4).step(*batch)
    Trainer(tiny_model("eercf", cdcl_loss_weight=0.0), "eercf", 4).step(*batch)


def test_weights_in_float16_are_those_of_clip_alone(tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    trainer = Trainer(tiny_model("eercf"), "eercf-float16", 4)
    batch = [tiny_batch[key] for key in ("frames", "mask", "ids", "text_mask")]
    assert all(torch.tensor(trainer.step(*batch)["loss"]).isfinite() for _ in range(2))
    half = {name for name, p in trainer.model.named_parameters() if p.dtype == torch.float16}
    assert "clip.visual.proj" in half
    assert all(name.startswith("clip.") for name in half)


def released(model: RetrievalModel, path: Path, wrapper: str = "") -> Path:
    """The checkpoint of a model under the released code's names."""
    names = {"scorer.text_matrix": "global_mat_weight", "scorer.frame_matrix": "frame_logit_weight"}
    names["head.frame_positions"] = "frame_position_embeddings.weight"
    state = {}
    for key, tensor in model.state_dict().items():
        theirs = names.get(key, key.replace("head.transformer.", "transformerClip."))
        state[wrapper + theirs] = tensor + 0.01
    torch.save(state, path)
    return path


@pytest.mark.parametrize("head", ["seqTransf", "meanP"])
@pytest.mark.parametrize("frames", [5, 12])
def test_released_checkpoints_hold_the_head_and_the_frames(
    frames: int, head: str, tiny_weights: Path, tmp_path: Path
) -> None:
    model = load_model("eercf", weights=tiny_weights, frames=frames, head=head)
    path = released(model, tmp_path / "released.bin", "module.")
    again = load_model("eercf", checkpoint=path, frames=frames)
    assert again.spec.options == model.spec.options
    for key, tensor in again.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key] + 0.01)
    with raises("weights.shape", frames=frames, needed=7):
        load_model("eercf", checkpoint=path, frames=7)


@pytest.mark.parametrize(
    ("reducer", "options", "frames", "patches"),
    [
        ("", {}, 12, 192),
        ("tempme", {}, 12, None),
        ("centerclip", {"schedule": ((6, 4, 16),)}, 4, 64),
        ("frame_subsample", {"keep": 5}, 5, 80),
    ],
)
def test_sides_hold_what_leaves_a_reducer(
    reducer: str,
    options: dict[str, Any],
    frames: int,
    patches: int | None,
    tiny_model: Make,
    tiny_batch: dict[str, Any],
) -> None:
    model = tiny_model("eercf", reducer=reducer, reducer_options=options)
    with torch.no_grad():
        side = model.video_side(tiny_batch["frames"], tiny_batch["mask"])
        text = model.text_side(tiny_batch["ids"], tiny_batch["text_mask"])
        assert model.score(text, side).isfinite().all()
    left = patches or model.tokens[-1][0] * model.tokens[-1][1] - frames
    assert model.scorer.frame_matrix.shape == (frames, frames)
    assert side.fine["frames"].shape[1:] == side.fine["temporal"].shape[1:] == (frames, 64)
    assert side.fine["patches"].shape[1:] == (left, 64)
    assert side.floats - side.fine["mask"][0].numel() - side.fine["patch_mask"][0].numel() == 64 * (
        1 + 2 * frames + left
    )


@pytest.mark.parametrize(
    ("backbone", "fine", "floats", "video"),
    [("ViT-B-32", 315_112, 313_856, 53.349), ("ViT-B-16", 1_220_044, 1_217_024, 212.074)],
)
def test_counts_of_full_size_models(backbone: str, fine: int, floats: int, video: float) -> None:
    model = load_model("eercf", backbone=backbone, weights="random:0", device="meta")
    assert sum(p.numel() for p in model.trainable().values()) == 136_452_241
    assert sum(p.numel() for name, p in model.named_parameters() if not name.startswith("clip.")) == 12_911_248
    with torch.device("meta"), torch.no_grad():
        side = model.video_side(torch.empty(1, 12, 3, 224, 224), torch.ones(1, 12, dtype=torch.bool))
        text = Side(coarse=torch.empty(1, 512))
    assert (model.scorer.text_macs(), model.scorer.coarse_macs(512), model.scorer.fine_macs(text, side)) == (
        512**2,
        512,
        fine,
    )
    masks = side.fine["mask"].numel() + side.fine["patch_mask"].numel()
    assert side.floats - masks == floats
    for macs in (analytic_macs(model), traced_macs(model)):
        assert macs["video"] / 1e9 == pytest.approx(video, abs=5e-4)
        assert macs["text"] / 1e9 == pytest.approx(1.223, abs=5e-4)
