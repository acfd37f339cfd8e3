"""The model behind an index: how it was given, what identifies it, and how it encodes videos and queries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from tvrbench.harness.config.known_weights import shipped_weights, weights_on_disk
from tvrbench.harness.config.protocol import Activation
from tvrbench.harness.core import registry
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import Clip, FrameSpec
from tvrbench.harness.models.backbone.architecture import vision_name
from tvrbench.harness.models.backbone.tokenizer import Tokenizer, tokenizer_for
from tvrbench.harness.models.backbone.weights import Weights, load_weights
from tvrbench.harness.models.base_weights import base_weights
from tvrbench.harness.models.checkpoint import method_in
from tvrbench.harness.models.factory import load_model, method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.records.record import plain
from tvrbench.harness.runs.eval_checkpoint import EvalCheckpoint, open_checkpoint

DEFAULT_WEIGHTS, DEFAULT_BACKBONE, DEFAULT_FRAMES = "openai", "ViT-B-32", 12
COARSE_ONLY = (
    "{} scores the best videos again by more than one vector each, and an index holds one vector of each video: a "
    "search ranks by the coarse score alone"
)
UNCUT = 1_000_000  # more tokens than a query has
Features = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model is read from.

    Attributes:
        weights: as for ``load_model``, or a data set that ships weights; None if the checkpoint holds them.
        checkpoint: a trained model.
        backbone: a preset; None if the weights determine it.
        activation: over what the weights' own sources state; None for theirs.
    """

    weights: str | None = None
    checkpoint: str | None = None
    backbone: str | None = None
    activation: Activation | None = None

    @property
    def name(self) -> str:
        """The checkpoint's or the weights' name, without a folder."""
        return Path(self.checkpoint or self.weights or DEFAULT_WEIGHTS).name

    def absolute(self) -> ModelSource:
        """The same source for a command that runs in another folder."""
        file = weights_on_disk(self.weights) if self.weights and not shipped_weights(self.weights) else None
        weights = str(file.absolute()) if file else self.weights
        return replace(self, weights=weights, checkpoint=self.checkpoint and str(Path(self.checkpoint).absolute()))


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """What is chosen beside the source.

    Attributes:
        method: its name; None for the one that the checkpoint names, or for CLIP as it is.
        options: of the method.
        frames: T; None for the checkpoint's own, or 12.
        sampler: picks the frames.
        decoder: of the videos.
        precision: of the stored features.
    """

    method: str | None = None
    options: Mapping[str, Any]
    frames: int | None = None
    sampler: str
    decoder: str
    precision: Literal["float32", "float16"] = "float32"


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """Everything that decides the features of a video, up to rounding; two indexes with the same one are the same.

    Attributes:
        weights: the name of weights that are no file, for example ``random:0``.
        weights_sha256, checkpoint_sha256: of the files.
        tokenizer: its name, see ``Tokenizer``.
    """

    method: str
    options: dict[str, Any]
    backbone: str
    activation: Activation
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    tokenizer: str
    frames: int
    sampler: str
    decoder: str
    precision: Literal["float32", "float16"]
    weights: str | None
    weights_sha256: str | None
    checkpoint_sha256: str | None

    @property
    def name(self) -> str:
        """A name for a folder, different for every identity."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.method}-{self.backbone}-{digest[:10]}"

    def differences(self, other: ModelIdentity) -> list[str]:
        """The names of the fields that differ."""
        return [field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)]

    def settings(self) -> ModelSettings:
        """The settings that give this identity again."""
        return ModelSettings(**{field.name: getattr(self, field.name) for field in fields(ModelSettings)})


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A loaded model with what it needs to encode videos and queries.

    Attributes:
        model: in evaluation mode.
        tokenizer: of its weights.
        identity: of its features.
        notes: what to know about how it was read.
    """

    model: RetrievalModel
    tokenizer: Tokenizer
    identity: ModelIdentity
    notes: tuple[str, ...] = ()

    @cached_property
    def spec(self) -> FrameSpec:
        """The frames that it takes of a video."""
        one = self.identity
        return FrameSpec(sampler=one.sampler, frames=one.frames, size=one.image_size, decoder=one.decoder)

    @torch.inference_mode()
    def encode_clips(self, clips: list[Clip]) -> Features:
        """Clips (pixels [T, 3, S, S], mask [T]) -> features [B, E], not normalized."""
        pixels, mask = (torch.from_numpy(np.stack(part)) for part in zip(*clips, strict=True))
        frames = self.model.normalize(pixels, mask)
        features = self.model.encode_video(frames, mask.to(frames.device))
        return features.float().cpu().numpy().astype(self.identity.precision)

    @torch.inference_mode()
    def encode_query(self, text: str) -> tuple[Features, bool]:
        """A text -> its feature [1, E], not normalized, and whether words beyond the context were cut off.

        Raises:
            UsageError: no word in it, or one that the weights do not know.
        """
        clip = self.model.clip
        whole, _ = self.tokenizer([text], UNCUT)
        if whole.shape[1] <= 2:  # start and end
            raise UsageError("the query holds no word; describe what the video shows", code="query.empty")
        read = 1 + int((whole[0] == whole[0, -1]).nonzero()[0])  # the text tower reads up to the first end token
        ids, mask = (part.to(clip.logit_scale.device) for part in self.tokenizer([text], clip.max_words))
        feature = self.model.encode_text(ids, mask).float().cpu().numpy()
        return feature, min(read, ids.shape[1]) < whole.shape[1]


def load_encoder(source: ModelSource, settings: ModelSettings, device: str) -> Encoder:
    """Load a model from its files.

    Raises:
        UsageError: as ``load_model``; a checkpoint that contradicts what is given beside it, or weights without a
            vocabulary.
    """
    scored = _checkpoint(source, settings)
    name = scored.method if scored else settings.method or _plain_clip()
    shipped, trains = shipped_weights(source.weights or DEFAULT_WEIGHTS), method_class(name).card.trains
    path = str(shipped or source.weights or DEFAULT_WEIGHTS)
    backbone = source.backbone or (None if (scored and scored.arch) or weights_on_disk(path) else DEFAULT_BACKBONE)
    weights = (_inside(scored, source) if scored else None) or _weights(path, backbone, source)
    model = load_model(
        name,
        backbone=backbone,
        weights=weights,
        checkpoint=scored.path if scored else None,
        activation=source.activation,
        frames=_frames(settings, scored),
        device=device,
        **((method_class(name).card.tiny if shipped and not scored else {}) | dict(settings.options)),
    )
    # A checkpoint lacks the word list of small weights, so it may take that of the data set that ships them.
    tokenizer = tokenizer_for(replace(weights, folder=shipped.parent) if shipped else weights)
    arch = model.clip.arch
    identity = ModelIdentity(
        method=name,
        options=plain(model.spec.describe(), "options"),
        backbone=vision_name(arch),
        activation=arch.activation,
        image_size=arch.image_size,
        mean=arch.mean,
        std=arch.std,
        tokenizer=tokenizer.name,
        frames=model.frames,
        sampler=settings.sampler,
        decoder=settings.decoder,
        precision=settings.precision,
        weights=None if weights.sha256 else weights.source,
        weights_sha256=weights.sha256,
        checkpoint_sha256=scored.sha256 if scored else None,
    )
    untrained = f"{name} is not trained, so results are those of an untrained model; give --checkpoint"
    notes = (*weights.notes, untrained) if trains and scored is None else weights.notes
    if model.scorer.two_stage:
        notes = (*notes, COARSE_ONLY.format(name))
    return Encoder(model=model, tokenizer=tokenizer, identity=identity, notes=notes)


def _inside(scored: EvalCheckpoint, source: ModelSource) -> Weights | None:
    """The weights that a checkpoint holds or names; None for one of tuned parameters that other code saved."""
    if scored.base or scored.tuned_on is None or scored.arch is None:
        return scored.base
    return base_weights(scored.tuned_on, scored.arch, source.weights, source.activation, scored.path.name)


def _weights(path: str, backbone: str | None, source: ModelSource) -> Weights:
    try:
        return load_weights(path, backbone, source.activation)
    except UsageError as error:
        if error.code != "weights.download" or source.weights is not None:
            raise
        hint = "to try this without them, give --weights standin and clips of tvrbench data demo"
        raise UsageError(f"{error}; {hint}", code="weights.download", **error.fields) from None


def _plain_clip() -> str:
    """The registered baseline that is CLIP as it was pre-trained."""
    return registry.matching("baselines", "methods", trains=False, encodes=True)[0]


def _checkpoint(source: ModelSource, settings: ModelSettings) -> EvalCheckpoint | None:
    if source.checkpoint is None:
        return None
    path = Path(source.checkpoint)
    if settings.method is None and method_in(path) is None:
        message = f"--checkpoint {path.name} does not name its method: give --method NAME"
        raise UsageError(message, code="checkpoint.no-method")
    scored = open_checkpoint(path, [settings.method] if settings.method else [], source.activation)
    if scored.base and source.weights and not shipped_weights(source.weights):
        message = f"--checkpoint {scored.path.name} holds all weights of its model: leave --weights out"
        raise UsageError(message, code="checkpoint.weights")
    return scored


def _frames(settings: ModelSettings, scored: EvalCheckpoint | None) -> int:
    own = scored.frames if scored else None
    if scored and own is not None and settings.frames not in (None, own):
        message = f"--checkpoint {scored.path.name} encodes {own} frames per video: leave --frames out"
        raise UsageError(message, code="checkpoint.frames", checkpoint=own)
    return own or (DEFAULT_FRAMES if settings.frames is None else settings.frames)
