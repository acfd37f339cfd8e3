"""EERCF against what the released code computed: features, scores, losses, gradients, ranks and twelve steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import naive_eercf
import pytest
import torch
from naive_eercf import Naive
from torch import Tensor
from torch.nn import functional as F

from tvrbench.harness import load_model, two_stage_ranks
from tvrbench.harness.config.recipe import load_recipe
from tvrbench.harness.models.contrastive import contrastive_loss
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.scorer import Side
from tvrbench.harness.training.loss import whole_loss
from tvrbench.harness.training.trainer import Pairs, Trainer
from tvrbench.methods.eercf import EERCF, RANKING, pearson

pytestmark = pytest.mark.golden
FEATURES, SCORES, LOSSES = 1e-5, 5e-5, 1e-5
MASKS = ("full", "partial")
LEVELS = ("coarse", "weak_frame", "strong_frame", "weak_patch", "strong_patch")
# The weight of a level in training, and the key of the contrastive loss that it belongs to.
WEIGHTS = {
    "coarse": ("video_weight", "weak"),
    "weak_frame": ("weakframe_weight", "weak"),
    "weak_patch": ("weakpatch_weight", "weak"),
    "strong_frame": ("strongframe_weight", "strong"),
    "strong_patch": ("strongpatch_weight", "strong"),
}


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    data: dict[str, Any] = torch.load(shared / "golden" / "eercf.pt", weights_only=True)
    return data


def load(golden: dict[str, Any], folder: Path, wrapper: str = "", **options: Any) -> RetrievalModel:
    """A released checkpoint: OpenAI's names after ``clip.``, and the trained tensors under their own."""
    torch.save({wrapper + key: tensor for key, tensor in golden["state_dict"].items()}, folder / "released.bin")
    given = {"gate_mask": "released"} | options
    return load_model("eercf", checkpoint=folder / "released.bin", frames=golden["config"]["frames"], **given)


def pairs(golden: dict[str, Any], which: str, rows: Tensor) -> Pairs:
    videos = golden["caption_video"][rows]
    mask = golden[which]["video_mask"][videos].bool()
    return Pairs(
        video=golden["video_int8"][videos].float() / 32 * mask[:, :, None, None, None],
        video_mask=mask,
        ids=golden["text_ids"][rows],
        text_mask=golden["text_mask"][rows].bool(),
    )


def sides(golden: dict[str, Any], which: str, model: RetrievalModel) -> tuple[Side, Side]:
    given = pairs(golden, which, torch.arange(len(golden["text_ids"])))
    with torch.no_grad():
        return model.text_side(given.ids, given.text_mask), model.video_side(given.video, given.video_mask)


def close(got: Tensor, want: Tensor, bar: float) -> None:
    torch.testing.assert_close(got, want.to(got.dtype), rtol=0, atol=bar)


@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize("which", MASKS)
def test_features(which: str, wrapper: str, golden: dict[str, Any], tmp_path: Path) -> None:
    want, model = golden[which]["features"], load(golden, tmp_path, wrapper)
    text, video = sides(golden, which, model)
    close(text.coarse, want["text"], FEATURES)
    close(F.normalize(video.coarse, dim=-1), want["video_unit"], FEATURES)
    close(video.fine["frames"], F.normalize(want["frame_raw"], dim=-1), FEATURES)
    close(video.fine["temporal"], F.normalize(want["frame_temporal"], dim=-1), FEATURES)
    patches = F.normalize(want["patch"], dim=-1).flatten(1, 2)
    close(video.fine["patches"][golden[which]["patch_rows"]], patches, FEATURES)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("which", MASKS)
def test_scores_of_every_level(which: str, level: str, golden: dict[str, Any], tmp_path: Path) -> None:
    model = load(golden, tmp_path)
    text, video = sides(golden, which, model)
    with torch.no_grad():
        close(model.score(text, video, level), golden[which]["sim_eval"][level], SCORES)


@pytest.mark.parametrize("which", MASKS)
def test_the_mask_of_padding_changes_only_scores_of_padded_videos(
    which: str, golden: dict[str, Any], tmp_path: Path
) -> None:
    model = load(golden, tmp_path, gate_mask="exact")
    text, video = sides(golden, which, model)
    padded = ~golden[which]["video_mask"].bool().all(dim=1)
    with torch.no_grad():
        for level in LEVELS:
            found, want = model.score(text, video, level), golden[which]["sim_eval"][level]
            close(found[:, ~padded], want[:, ~padded], SCORES)
            assert level == "coarse" or not padded.any() or (found - want)[:, padded].abs().max() > 0.1
        close(model.score(text, video, "coarse"), golden[which]["sim_eval"]["coarse"], SCORES)


def ranks_of_own_best(coarse: Tensor, fine: Tensor, depth: int) -> list[int]:
    """Ranks of video to text where each video's best captions are scored again; one caption a video."""
    best = torch.zeros_like(coarse, dtype=torch.bool).scatter_(0, coarse.topk(depth, dim=0).indices, 1)
    final = torch.where(best, 100 + fine, coarse)
    ranks: list[int] = (1 + (final > final.diagonal()).sum(dim=0)).tolist()
    return ranks


@pytest.mark.parametrize("depth", [1, 4, 10])
@pytest.mark.parametrize("which", MASKS)
def test_ranks_in_two_stages(which: str, depth: int, golden: dict[str, Any], tmp_path: Path) -> None:
    want, model = golden[which]["two_stage"][depth], load(golden, tmp_path)
    text, video = sides(golden, which, model)
    with torch.no_grad():
        coarse, fine = model.score(text, video, "coarse"), model.score(text, video)
    chosen = torch.zeros_like(coarse, dtype=torch.bool).scatter_(1, coarse.topk(depth).indices, 1)
    final = torch.where(chosen, 100 + fine, coarse)
    close(final, want["final"], SCORES)
    # One caption a video, in the order of the videos.
    assert torch.equal(1 + (final > final.diagonal().unsqueeze(1)).sum(dim=1), want["t2v_rank"])
    assert torch.equal(1 + (final > final.diagonal()).sum(dim=0), want["v2t_rank"])
    captions = golden["caption_video"]
    t2v, v2t = two_stage_ranks(model, text, video, captions, depth=depth, v2t="transposed")
    assert list(t2v) == want["t2v_rank"].tolist()
    assert list(v2t) == want["v2t_rank"].tolist()
    _, own = two_stage_ranks(model, text, video, captions, depth=depth, v2t="own")
    assert list(own) == ranks_of_own_best(coarse, fine, depth)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("which", MASKS)
def test_scores_in_training(which: str, level: str, golden: dict[str, Any], tmp_path: Path) -> None:
    """Each level alone: only its weight is 1."""
    name, loss = WEIGHTS[level]
    alone = dict.fromkeys((weight for weight, _ in WEIGHTS.values()), 0.0) | {name: 1.0}
    model = load(golden, tmp_path, **alone)
    rows = golden["train_rows"]
    with torch.no_grad():
        text, video = model.sides(*model(*pairs(golden, which, rows).tensors.values()))
        columns = model.scorer.columns(text, video, 0)
        close(model.clip.logit_scale.exp() * columns[loss].T, golden[which]["train"]["sim"][level], SCORES)


@pytest.mark.parametrize("which", MASKS)
def test_losses(which: str, golden: dict[str, Any], tmp_path: Path) -> None:
    want, model = golden[which]["train"], load(golden, tmp_path, cdcl_patch_weight=1.0)
    with torch.no_grad():
        features = model(*pairs(golden, which, golden["train_rows"]).tensors.values())
        text, video = model.sides(*features)
        columns = model.scorer.columns(text, video, 0)
        scale, unit = model.clip.logit_scale.exp(), F.normalize(text.coarse, dim=-1)
        close(contrastive_loss(scale * columns["weak"].T), want["weak_loss"], LOSSES)
        close(contrastive_loss(scale * columns["strong"].T), want["strong_loss"], LOSSES)
        constraints = [pearson(unit, columns[level]) for level in ("coarse", "strong_frame", "strong_patch")]
        for found, name in zip(constraints, ("video", "frame", "patch"), strict=True):
            close(found, want[f"pearson_{name}"], LOSSES)
        close(constraints[0] + constraints[1], want["intra_loss"], LOSSES)
        close(whole_loss(load(golden, tmp_path), *features), want["loss"], LOSSES)


@pytest.mark.parametrize("micro_batch_size", [None, 2, 3])
@pytest.mark.parametrize("which", MASKS)
def test_gradients(which: str, micro_batch_size: int | None, golden: dict[str, Any], tmp_path: Path) -> None:
    want = golden[which]["train"]
    trainer = Trainer(load(golden, tmp_path), "eercf", 12, micro_batch_size=micro_batch_size)
    loss = trainer.backward(pairs(golden, which, golden["train_rows"]))
    assert loss == pytest.approx(float(want["loss"]), abs=LOSSES)
    learned = trainer.model.trainable()
    assert [name for name, p in learned.items() if p.grad is None] == want["without_grad"]
    norm = torch.stack([p.grad.norm() for p in learned.values() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(float(want["grad_norm"]), rel=1e-4)
    for key, grad in want["grads"].items():
        name, grad = EERCF.from_released(key, grad)
        found = learned[name].grad
        assert found is not None
        assert (found - grad).norm() <= 1e-4 * grad.norm(), key


@pytest.mark.parametrize("rates", ["released_rates", "large_rates"])
def test_recipe_follows_the_released_trajectory(rates: str, golden: dict[str, Any], tmp_path: Path) -> None:
    want, rows = golden["trajectory"][rates], golden["trajectory"]["rows"]
    recipe = replace(load_recipe("eercf"), lr=want["lr"], clip_lr_scale=want["coef_lr"])
    assert rates != "released_rates" or recipe == load_recipe("eercf")
    trainer = Trainer(load(golden, tmp_path), recipe, want["steps"])
    for step in range(want["steps"]):
        batch = pairs(golden, golden["trajectory"]["mask"], rows[step % len(rows)])
        out = trainer.step(*batch.tensors.values())
        assert out["loss"] == pytest.approx(float(want["loss"][step]), abs=1e-5)
    for key, value in want["final"].items():
        name, value = EERCF.from_released(key, value)
        close(trainer.model.state_dict()[name], value, 2e-6)


@pytest.fixture(scope="module")
def naive(golden: dict[str, Any]) -> Naive:
    """The released features of padded videos, scored pair by pair; patches are those of the videos that are stored."""
    features, state = golden["partial"]["features"], golden["state_dict"]
    patches = torch.ones(len(features["frame_raw"]), 1, features["text"].shape[1])
    every = torch.ones_like(golden["partial"]["video_mask"], dtype=torch.bool)
    return Naive(
        text=features["text"],
        raw=features["frame_raw"],
        temporal=features["frame_temporal"],
        patches=patches,
        mask=golden["partial"]["video_mask"].bool(),
        kept=every,
        kept_patches=torch.ones(patches.shape[:2], dtype=torch.bool),
        M=state["global_mat_weight"],
        L=state["frame_logit_weight"],
    )


@pytest.mark.parametrize(
    ("level", "reading", "change"),
    [
        ("weak_frame", "mask in the weak frame softmax", 0.89),
        ("weak_frame", "L left out", 0.97),
        ("weak_frame", "L transposed", 1.77),
        ("coarse", "M left out", 3.6),
        ("coarse", "M transposed", 5.2),
        ("strong_frame", "mask in the gate", 1.38),
        ("strong_frame", "raw frames as values", 3.43),
        ("strong_frame", "weights from temporal frames", 0.56),
        ("strong_frame", "values not unit", 0.056),
        ("strong_frame", "temperature of the weak score in the gate", 2.2),
    ],
)
def test_wrong_readings_of_scores_show(
    level: str, reading: str, change: float, golden: dict[str, Any], naive: Naive
) -> None:
    """The scores that the product is compared with are far from those of every wrong reading."""
    scale, want = golden["state_dict"]["clip.logit_scale"].exp(), golden["partial"]["sim_eval"][level]
    close(scale * naive.scores(naive_eercf.SCORES[level]), want, SCORES)
    wrong = scale * naive.scores(naive_eercf.SCORES[level], reading)
    assert float((wrong - want).abs().max()) == pytest.approx(change, rel=0.02)


def test_wrong_readings_of_training_show(golden: dict[str, Any], naive: Naive) -> None:
    """The test form in the place of the training form, and deviations of B in those of B - 1."""
    want, scale = golden["partial"]["train"], golden["state_dict"]["clip.logit_scale"].exp()
    close(scale * naive.strong_in_training(naive_eercf.gated_frames), want["sim"]["strong_frame"], SCORES)
    wrong = scale * naive.scores(naive_eercf.strong_frame)
    assert float((wrong - want["sim"]["strong_frame"]).abs().max()) == pytest.approx(0.75, rel=0.02)
    units = naive_eercf.unit(naive.text), golden["partial"]["features"]["video_unit"]
    close(naive_eercf.pearson(*units), want["pearson_video"], LOSSES)
    biased = naive_eercf.pearson(*units, biased=True)
    assert float((biased - want["pearson_video"]).abs()) > 0.1


def test_the_transposed_rule_ranks_otherwise_than_the_best_captions_of_each_video(golden: dict[str, Any]) -> None:
    want, scores = golden["partial"]["two_stage"][4], golden["partial"]["sim_eval"]
    fine = torch.stack([weight * scores[level] for level, weight in RANKING.items()]).sum(dim=0)
    assert ranks_of_own_best(scores["coarse"], fine, 4) != want["v2t_rank"].tolist()
