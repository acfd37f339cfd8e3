"""A method's signature: outputs of a tiny model with fixed weights, which show a changed computation in seconds.

Counts (tokens, GMACs, parameters) miss a swapped set, a wrong temperature or a lost term; these numbers do not.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from tvrbench.harness.config.recipe import Recipe, load_recipe
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.backbone.weights import initialize
from tvrbench.harness.models.factory import load_model, method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.scorer import COARSE, Side
from tvrbench.harness.training.trainer import Trainer

TOLERANCE = 1e-3
"""Relative: the effect of another machine's arithmetic, some of it through merges between near-equal scores."""

TINY = Architecture(
    image_size=64,
    patch_size=16,
    vision_width=64,
    vision_layers=12,
    text_width=64,
    text_layers=2,
    context_length=32,
    vocab_size=512,
    embed_dim=64,
)
"""A CLIP of 64 channels with 16 patches per frame. The test suite uses it too."""
_VIDEOS, _FRAMES, _WORDS, _STEPS, _RATE = 4, 12, 32, 3, 2e-3


def signature(method: str) -> dict[str, float]:
    """Train a method on a tiny model for a few steps and summarize its features.

    Returns:
        ``loss`` of the first and ``loss_trained`` of the last step (if the method trains),
        ``grad_norm`` of the first, ``likeness``: mean cosine between different videos, ``match``: mean similarity
        (temperature included) of videos with their texts, ``contrast``: its standard deviation over all pairs.

        Where a scorer compares more, ``match_LEVEL`` and ``contrast_LEVEL`` of each of its scores (``last`` ranks), and
        for each fine tensor ``likeness_SIDE_NAME`` between different items and ``size_SIDE_NAME``, their
        root mean square.
    """
    cls = method_class(method)
    with same_randomness(), tempfile.TemporaryDirectory(prefix="tvrbench-signature-") as folder:
        weights = Path(folder) / "tiny.safetensors"
        save_tiny_weights(weights)
        model = load_model(method, weights=weights, frames=_FRAMES, **cls.card.tiny)
        video, ids, text_mask = _inputs()
        video_mask = torch.ones(_VIDEOS, _FRAMES, dtype=torch.bool)
        training: dict[str, float] = {}
        if cls.card.trains:
            trainer = Trainer(model, _recipe(), total_steps=2 * _STEPS)
            steps = [trainer.step(video, video_mask, ids, text_mask) for _ in range(_STEPS)]
            training = {"loss": steps[0]["loss"], "grad_norm": steps[0]["grad_norm"], "loss_trained": steps[-1]["loss"]}
        model.eval()
        with torch.no_grad():
            features_VE = model.encode_video(video, video_mask)
            similarity_TV = model.similarity(model.encode_text(ids, text_mask), features_VE)
            compared = _of_sides(model, model.text_side(ids, text_mask), model.video_side(video, video_mask))
        of_vectors = {"likeness": _likeness(features_VE), **_of_scores(similarity_TV)}
        return training | of_vectors | compared


def _of_sides(model: RetrievalModel, text: Side, video: Side) -> dict[str, float]:
    """What a scorer compares beside one vector each, and its scores; nothing where it does not."""
    if not model.scorer.video_names:
        return {}
    values = dict[str, float]()
    for level in (*model.scorer.levels, None):
        if level != COARSE:
            values |= _of_scores(model.score(text, video, level), f"_{level or 'last'}")
    for kind, side in (("text", text), ("video", video)):
        for name, tensor in side.fine.items():
            values[f"likeness_{kind}_{name}"] = _likeness(tensor.flatten(1))
            values[f"size_{kind}_{name}"] = float(tensor.double().square().mean().sqrt())
    return values


def _likeness(features_VE: Tensor) -> float:
    """Mean cosine between different items."""
    unit_VE = F.normalize(features_VE.double(), dim=-1)
    return float((unit_VE @ unit_VE.T)[~torch.eye(_VIDEOS, dtype=torch.bool)].mean())


def _of_scores(scores_TV: Tensor, level: str = "") -> dict[str, float]:
    return {
        f"match{level}": float(scores_TV.double().diagonal().mean()),
        f"contrast{level}": float(scores_TV.double().std()),
    }


def _recipe() -> Recipe:
    """The uniform recipe with one rate for every tuning, large enough to move a tiny model."""
    recipe = load_recipe("uniform")
    return load_recipe("uniform", {"tuning_lr": dict.fromkeys(recipe.tuning_lr, _RATE), "warmup": 0.0})


@contextmanager
def same_randomness() -> Iterator[None]:
    """Seed torch's generator with 0, and restore the caller's state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def save_tiny_weights(path: Path, arch: Architecture = TINY) -> None:
    """Write random weights of a tiny CLIP, drawn from torch's generator, as safetensors that state their shape."""
    model = CLIP(arch)
    initialize(model)
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    save_file(state, path, metadata={"architecture": json.dumps(asdict(arch))})


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Videos [V, T, 3, H, W] of moving noise, captions [V, L] of different length, and their mask."""
    generator = np.random.default_rng(0)
    still = generator.normal(size=(_VIDEOS, 1, 3, 64, 64))
    moving = generator.normal(size=(_VIDEOS, _FRAMES, 3, 64, 64))
    video = torch.from_numpy(still + 0.5 * moving).float()
    ids = torch.from_numpy(generator.integers(1, 500, (_VIDEOS, _WORDS)))
    lengths = torch.arange(_VIDEOS) * 4 + 6
    text_mask = torch.arange(_WORDS) < lengths[:, None]
    ids[torch.arange(_VIDEOS), lengths - 1] = TINY.vocab_size - 1
    return video, ids * text_mask, text_mask
