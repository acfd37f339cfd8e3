"""``load_model``: from a method's name and some weights to a model."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tvrbench.harness.config.protocol import Activation
from tvrbench.harness.core import registry
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.backbone.state_dict import brief_keys
from tvrbench.harness.models.backbone.weights import Weights, load_weights
from tvrbench.harness.models.base_weights import base_weights
from tvrbench.harness.models.checkpoint import Checkpoint, method_in, read_checkpoint
from tvrbench.harness.models.description import damaged
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.model import RetrievalModel, trainable_state_dict
from tvrbench.harness.models.tokens import TokenReducer
from tvrbench.harness.models.tuning import apply_tuning


@torch.inference_mode(mode=False)
def load_model(
    method: str | None = None,
    *,
    backbone: str | None = None,
    weights: str | Path | Weights | None = None,
    checkpoint: str | Path | None = None,
    activation: Activation | None = None,
    frames: int = 12,
    device: str | torch.device = "cpu",
    seed: int = 0,
    **options: Any,
) -> RetrievalModel:
    """Build a method on a backbone; inside inference mode too, whose own tensors could neither learn nor be watched.

    Args:
        method: a registered method or baseline (``tvrbench list methods``); None for the one that the checkpoint names.
        backbone: a preset such as ``ViT-B-32``; not needed where the weights determine it.
        weights: ``random:SEED``, ``openai`` or an open_clip tag, a local file or folder, a data set that ships weights;
            or weights that have been loaded.
        checkpoint: a trained model, ours (a file, or a folder of ``tvrbench export``) or one under the names of a
            paper's released code; a full one replaces ``backbone`` and ``weights``, and an exported one of tuned
            parameters finds the weights that it names.
        activation: ``quick_gelu`` or ``gelu``, over what the weights' own sources state; needed where none does.
        frames: T, frames per video.
        device: of the model; ``meta`` gives shapes without values, for counting.
        seed: of newly initialized parameters (LoRA's A).
        options: the method's options; the backbone's published preset fills the rest.

    Raises:
        UsageError: an unknown name, an option that does not fit, or weights with missing or unexpected keys
            or without a source that states their activation.
    """
    if frames < 1:
        raise UsageError(f"frames must be at least 1, not {frames}", code="frames.range", frames=frames)
    method = method or _named_in(checkpoint)
    cls, saved = method_class(method), None
    on_meta = str(device) == "meta"
    if checkpoint is not None and not on_meta:
        saved = read_checkpoint(Path(checkpoint), method, cls, activation)
        frames, options = saved.frames or frames, saved.options | options
    with torch.device("meta") if on_meta else nullcontext():
        if saved and saved.base:
            base = saved.base
        elif saved and saved.tuned_on and saved.arch:
            base = base_weights(saved.tuned_on, saved.arch, weights, activation, saved.path.name)
        elif weights is not None:
            base = weights if isinstance(weights, Weights) else load_weights(weights, backbone, activation)
        else:
            what = f"checkpoint {saved.path.name} holds only the tuned parameters, so" if saved else "load_model:"
            raise UsageError(
                f"{what} give weights= (random:SEED, openai, an open_clip tag, a file or a folder)",
                code="weights.missing",
            )
        configured = cls.configure(method, base.arch, frames, options)
        if saved and saved.arch:
            _refuse_misfit(method, configured, base, saved)
        model = build(method, configured, base, seed)
        if saved:
            state = saved.state if saved.arch else configured.fit_released(saved.state)
            _check_state(model, state, saved.path.name, _wanted(model, saved))
            model.load_state_dict(state, strict=False)
    return model.to(device).eval()


def method_class(name: str) -> type[Method[Any]]:
    """The class of a registered method or baseline; UsageError lists the known names."""
    cls: type[Method[Any]] = registry.lookup(name, "methods", "baselines")
    return cls


def _named_in(checkpoint: str | Path | None) -> str:
    name = None if checkpoint is None else method_in(Path(checkpoint))
    if name is None:
        problem = "load_model: give the name of a method, or a checkpoint that names its own"
        raise UsageError(problem, code="checkpoint.no-method")
    return name


def build(name: str, method: Method[Any], base: Weights, seed: int) -> RetrievalModel:
    """Assemble the model; new parameters come from ``seed`` alone, the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = CLIP(base.arch)
        _check_state(clip, base.state, "weights", set(clip.state_dict()))
        clip.load_state_dict(base.state)
        apply_tuning(clip, method)
        reducer = method.build_reducer()
        text_path = method.build_text_path(reducer)
        head, scorer = method.build_head(), method.build_scorer()
        model = method.Model(method.spec(name), clip, reducer, head, text_path, scorer)
        carried = text_path.carries_prompts and (reducer.carries_prompts or type(reducer) is TokenReducer)
        if clip.visual.prompts is not None and not carried:
            raise UsageError(
                f"{name}: tuning 'prompts-shallow' sends prompts through the blocks, and this method does not declare "
                "that it keeps them in place (carries_prompts of its reducer and its text path); tuning 'prompts' "
                "works with every method",
                code="tuning.prompts-not-carried",
                method=name,
            )
        reducer.attach(clip.visual)
        text_path.attach(clip)
        model.head.attach(clip)
        model.scorer.attach(clip)
        return model


def _wanted(model: RetrievalModel, saved: Checkpoint) -> set[str]:
    """The names that a checkpoint must hold."""
    if saved.tuned_on:
        return set(trainable_state_dict(model))
    return set(model.state_dict() if saved.base else model.trainable())


def _refuse_misfit(name: str, method: Method[Any], base: Weights, saved: Checkpoint) -> None:
    """UsageError for a checkpoint that does not fit its own description, before that description takes any memory."""
    shapes = {key: tensor.to("meta") for key, tensor in base.state.items()}
    try:
        with torch.device("meta"):
            model = build(name, method, replace(base, state=shapes), 0)
    except (RuntimeError, OverflowError, MemoryError, TypeError):
        raise damaged(saved.path.name, "no model can be built by the options in its description") from None
    _check_state(model, saved.state, saved.path.name, _wanted(model, saved))


def _check_state(module: nn.Module, state: dict[str, torch.Tensor], what: str, wanted: set[str]) -> None:
    """UsageError lists missing and unexpected keys and wrong shapes."""
    own = module.state_dict()
    missing, unexpected = sorted(wanted - set(state)), sorted(set(state) - set(own))
    if missing or unexpected:
        raise UsageError(
            f"{what}: {len(missing)} missing keys ({brief_keys(missing)}), {len(unexpected)} unexpected keys "
            f"({brief_keys(unexpected)}): give weights or a checkpoint of this method's model",
            code="weights.keys",
            missing=missing,
            unexpected=unexpected,
        )
    for key, tensor in state.items():
        if own[key].shape != tensor.shape:
            raise UsageError(
                f"{what}: {key} has shape {list(tensor.shape)}, the model needs {list(own[key].shape)}",
                code="weights.shape",
                key=key,
            )
