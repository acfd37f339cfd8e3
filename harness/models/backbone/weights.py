"""CLIP weights from every source of the contract: tensors under OpenAI's names, and how they are to be read.

A state dict names neither its activation nor the normalization of its frames. Both are part of its identity, so each is
taken from a source that knows it, and recorded with that source; without one, the weights are refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from tvrbench.harness.config.known_weights import OPENAI_WEIGHTS, weights_on_disk
from tvrbench.harness.config.protocol import Activation
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.backbone.architecture import VISION_SHAPE, Architecture, from_state_dict, preset
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.backbone.download_cache import in_cache
from tvrbench.harness.models.backbone.sharded import file_in_folder, read_weights_content
from tvrbench.harness.models.backbone.state_dict import NamedTensors, named_tensors
from tvrbench.harness.models.backbone.weights_config import Channels, Normalization, Statement, read_configs
from tvrbench.harness.models.backbone.weights_file import printable, read_metadata
from tvrbench.harness.records.reading import CLIP_MEAN, CLIP_STD
from tvrbench.harness.records.record import WeightsRef

OPTION = "--activation"
_SHOWN = 200  # characters of an option in a message
CLIP_NORMALIZATION: Normalization = (CLIP_MEAN, CLIP_STD)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A CLIP state dict in float32 with OpenAI's key names.

    Attributes:
        state: name -> tensor.
        arch: the shape, read from the file where it can be, with activation and normalization.
        sha256: of the file (of shards, see ``sharded.Content``), or None for random weights.
        source: a file or folder by its name, an open_clip tag, or ``random:SEED``.
        activation_source, normalization_source: where ``arch`` has them from.
        stated_activation: of the best source but the option; None where there is none.
        notes: what a user should know: configs that were passed over, contradictions.
        folder: may hold a tokenizer vocabulary beside the weights; None for other sources.
    """

    state: dict[str, Tensor]
    arch: Architecture
    sha256: str | None
    source: str
    activation_source: str
    normalization_source: str
    stated_activation: Activation | None
    notes: tuple[str, ...] = ()
    folder: Path | None = None

    def to_json(self, tokenizer: str | None) -> WeightsRef:
        """Their entry in a record; no folder of this machine.

        Args:
            tokenizer: the name of the tokenizer that captions are read with; None where there are none.
        """
        return WeightsRef(
            source=self.source,
            sha256=self.sha256,
            activation=self.arch.activation,
            activation_source=self.activation_source,
            image_size=self.arch.image_size,
            mean=list(self.arch.mean),
            std=list(self.arch.std),
            normalization_source=self.normalization_source,
            tokenizer=tokenizer,
        )


def load_weights(spec: str | Path, backbone: str | None = None, activation: Activation | None = None) -> Weights:
    """Resolve the ``weights`` option.

    Args:
        spec: ``random:SEED``; a data set that ships weights; ``openai`` or an open_clip pretrained tag; a local file or
            folder.
        backbone: preset name; needed for random weights and tags, otherwise only compared with the file.
        activation: ``quick_gelu`` or ``gelu``, over what the weights' own sources state.

    Raises:
        UsageError: nothing there, not a CLIP state dict, code in a pickle, no network for a download, or no source
            that states the activation.
    """
    if activation not in (None, "quick_gelu", "gelu"):
        problem = f"activation {activation!r} is not known: give quick_gelu or gelu"
        raise UsageError(problem, code="weights.activation-unknown", activation=activation)
    text = str(spec)
    shown = printable(text, _SHOWN)
    if text.startswith("random:"):
        return _random_weights(text, backbone, activation)
    if (path := weights_on_disk(text)) is not None:
        weights = _from_path(path, activation)
    elif not backbone or not _can_be_tag(text):
        raise UsageError(
            f"weights {shown!r}: there is no such file or folder (also known: random:SEED, a data set that ships "
            "weights, openai, an open_clip tag together with a backbone)",
            code="weights.missing",
            weights=shown,
        )
    else:
        weights = _from_open_clip(text, backbone, activation)
    wanted = preset(backbone) if backbone else weights.arch
    for name in VISION_SHAPE:
        if getattr(weights.arch, name) != getattr(wanted, name):
            problem = f"have {name} {getattr(weights.arch, name)}, but backbone {backbone} has {getattr(wanted, name)}"
            remedy = "leave backbone out, then the weights bring theirs, or give weights of that backbone"
            message = f"weights {shown!r} {problem}: {remedy}"
            raise UsageError(message, code="weights.backbone", field=name, backbone=backbone)
    return weights


def as_weights(
    state: dict[str, Tensor],
    statements: Sequence[Statement],
    activation: Activation | None,
    *,
    source: str,
    sha256: str | None,
    notes: Sequence[str] = (),
    folder: Path | None = None,
) -> Weights:
    """Weights as the first statements that speak say they are to be read.

    Args:
        state: a CLIP under OpenAI's names.
        statements: what sources state, the best first.
        activation: the user's own, over every statement.
        source, sha256, notes, folder: see ``Weights``.

    Raises:
        UsageError: not a CLIP, or neither the user nor a statement gives the activation.
    """
    stated = next((each for each in statements if each.activation is not None), None)
    chosen = stated if activation is None else _option(activation, stated)
    if chosen is None:
        because = f" ({'; '.join(notes)})" if notes else ""
        raise UsageError(
            f"{source}: does not say whether its activation is QuickGELU or GELU, and no config beside it does"
            f"{because}: give --activation quick_gelu (OpenAI's and what was fine-tuned from it) or --activation gelu "
            "(most other open_clip weights)",
            code="weights.activation",
            weights=source,
        )
    contradictions = [
        f"{source}: {each.source} says {each.activation}; {chosen.activation} is used ({chosen.source})"
        for each in statements
        if each.activation not in (None, chosen.activation)
    ]
    normalized = next((each for each in statements if each.normalization is not None), None)
    mean, std = CLIP_NORMALIZATION if normalized is None else cast(Normalization, normalized.normalization)
    contradictions += [
        f"{source}: {each.source} normalizes frames otherwise; mean {_numbers(mean)}, std {_numbers(std)} are used "
        f"({normalized.source})"
        for each in statements
        if normalized is not None and each.normalization not in (None, (mean, std))
    ]
    arch = from_state_dict(state, cast(Activation, chosen.activation))
    return Weights(
        state=state,
        arch=replace(arch, mean=mean, std=std),
        sha256=sha256,
        source=source,
        activation_source=chosen.source,
        normalization_source="CLIP's own" if normalized is None else normalized.source,
        stated_activation=None if stated is None else cast(Activation, stated.activation),
        notes=(*notes, *contradictions),
        folder=folder,
    )


def _numbers(channels: Channels) -> str:
    return ", ".join(f"{value:.4g}" for value in channels)


def _option(activation: Activation, stated: Statement | None) -> Statement:
    """The user's own statement; its source names the one that it contradicts."""
    over = "" if stated is None or stated.activation == activation else f", over {stated.activation} of {stated.source}"
    return Statement(source=f"{OPTION}{over}", activation=activation)


def intrinsic_statements(
    tensors: NamedTensors, sha256: str, metadata: Mapping[str, str], configs: Sequence[Statement]
) -> list[Statement]:
    """What is known of a file, the best source first: its SHA-256, configs beside it, its metadata, its numbers.

    Args:
        tensors: of the file.
        sha256: of the file.
        metadata: of a safetensors file; ours holds the architecture.
        configs: that lie beside the file and belong to it.
    """
    statements = [*configs, _described(metadata)]
    if sha256 in OPENAI_WEIGHTS:
        archive = f"SHA-256 of OpenAI's {OPENAI_WEIGHTS[sha256]}"
        statements.insert(0, Statement(source=archive, activation="quick_gelu", normalization=CLIP_NORMALIZATION))
    shape = from_state_dict(tensors.clip, "quick_gelu")
    numbers = {
        "input_resolution": shape.image_size,
        "context_length": shape.context_length,
        "vocab_size": shape.vocab_size,
    }
    if tensors.numbers == numbers:
        statements.append(Statement(source="the numbers that OpenAI's archives hold", activation="quick_gelu"))
    return [each for each in statements if each is not None]


def _described(metadata: Mapping[str, str]) -> Statement | None:
    """What the metadata of a file of our own states; None in one of others."""
    try:
        shape = json.loads(metadata["architecture"])
        activation, mean, std = shape["activation"], shape.get("mean", CLIP_MEAN), shape.get("std", CLIP_STD)
        normalization = cast(Normalization, (tuple(map(float, mean)), tuple(map(float, std))))
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    if activation not in ("quick_gelu", "gelu") or [len(each) for each in normalization] != [3, 3]:
        return None
    return Statement(source="its own metadata", activation=activation, normalization=normalization)


def _from_path(path: Path, activation: Activation | None) -> Weights:
    file, source = (file_in_folder(path), path.resolve().name) if path.is_dir() else (path, path.name)
    content = read_weights_content(file)
    tensors = named_tensors(content.data, file.name)
    # What is no part of the CLIP stays, so that building the model refuses it by name.
    state = tensors.clip | {key: tensor for key, tensor in tensors.rest.items() if key not in tensors.clip}
    configs = read_configs(file, from_state_dict(state, "quick_gelu"))
    statements = intrinsic_statements(tensors, content.sha256, _metadata(file), configs.statements)
    return as_weights(
        state,
        statements,
        activation,
        source=source,
        sha256=content.sha256,
        notes=configs.notes,
        folder=file.parent,
    )


def _metadata(file: Path) -> dict[str, str]:
    return {} if file.suffix == ".json" else read_metadata(file)


def _random_weights(spec: str, backbone: str | None, activation: Activation | None) -> Weights:
    """``random:SEED`` weights with OpenAI's initialization, the same on every machine."""
    seed = spec.removeprefix("random:")
    if not (seed.isascii() and seed.isdigit() and len(seed) < 19):  # as torch takes
        spec = printable(spec, _SHOWN)
        raise UsageError(
            f"weights {spec!r}: give a whole number as seed, for example random:0", code="weights.seed", weights=spec
        )
    if not backbone:
        raise UsageError(
            f"weights {spec!r} need a backbone, for example ViT-B-32", code="weights.no-backbone", weights=spec
        )
    arch = preset(backbone)
    stated = Statement(source="random weights", activation=arch.activation, normalization=CLIP_NORMALIZATION)
    arch = arch if activation is None else replace(arch, activation=activation)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        model = CLIP(arch)
        if not model.logit_scale.is_meta:  # there, shapes are all there is
            initialize(model)
    return as_weights(dict(model.state_dict()), [stated], activation, source=spec, sha256=None)


def initialize(model: CLIP) -> None:
    """OpenAI CLIP's initialization of embeddings and blocks (arXiv 2103.00020, released code's constants)."""
    nn.init.normal_(model.token_embedding.weight, std=0.02)
    for transformer, width in (
        (model.visual.transformer, model.arch.vision_width),
        (model.transformer, model.arch.text_width),
    ):
        residual = width**-0.5 * (2 * len(transformer.resblocks)) ** -0.5
        for block in transformer.blocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=residual)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=residual)
            for linear in (block.attn.out_proj, block.mlp.c_fc, block.mlp.c_proj):
                nn.init.zeros_(linear.bias)


def shapes_or_weights(spec: str | Path, backbone: str | None = None, activation: Activation | None = None) -> Weights:
    """``load_weights`` without a download: random weights, and those of a tag that is not here yet, without values.

    Arguments and errors as ``load_weights``, but for the download's.
    """
    if str(spec).startswith("random:"):
        with torch.device("meta"):
            return load_weights(spec, backbone, activation)
    if is_downloaded(spec, backbone):
        return load_weights(spec, backbone, activation)
    with torch.device("meta"):
        return _random_weights("random:0", backbone, activation)


def is_downloaded(spec: str | Path, backbone: str | None = None) -> bool:
    """False for an open_clip tag whose file is still to be fetched.

    Raises:
        UsageError: an unknown tag.
    """
    text = str(spec)
    is_tag = backbone and _can_be_tag(text) and not text.startswith("random:") and weights_on_disk(text) is None
    return not is_tag or in_cache(_tag_config(text, str(backbone)))


def _can_be_tag(spec: str) -> bool:
    return "/" not in spec and not Path(spec).suffix


def _tag_config(tag: str, backbone: str) -> dict[str, Any]:
    """open_clip's entry of a tag."""
    import open_clip

    preset(backbone)
    config: dict[str, Any] = open_clip.get_pretrained_cfg(backbone.replace("/", "-"), tag)
    if not config:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(backbone.replace("/", "-")))
        tag = printable(tag, _SHOWN)
        problem = f"weights {tag!r}: no file of that name, and no open_clip tag for {backbone} (tags: {known})"
        raise UsageError(problem, code="weights.missing", weights=tag)
    return config


def _from_open_clip(tag: str, backbone: str, activation: Activation | None) -> Weights:
    from open_clip.constants import HF_WEIGHTS_NAME
    from open_clip.pretrained import download_pretrained

    config = _tag_config(tag, backbone)
    try:
        path = Path(download_pretrained(config))
    except Exception as error:  # noqa: BLE001 - whatever the hub client raises means the same to the user
        repository, file = os.path.split(config.get("hf_hub") or "")
        wanted = f"{file or HF_WEIGHTS_NAME} of huggingface.co/{repository}" if repository else config.get("url", tag)
        reason = "" if isinstance(error, FileNotFoundError) else f" ({type(error).__name__})"
        raise UsageError(
            f"weights {tag!r} for {backbone} are not on this machine and could not be downloaded{reason}: "
            f"fetch {wanted} elsewhere and pass its file as --weights FILE",
            code="weights.download",
            source=wanted,
        ) from None
    stated = Statement(
        source=f"open_clip tag {tag}",
        activation="quick_gelu" if config.get("quick_gelu") or tag == "openai" else "gelu",
        normalization=(tuple(config["mean"]), tuple(config["std"])) if "mean" in config and "std" in config else None,
    )
    content = read_weights_content(path)
    state = named_tensors(content.data, path.name).clip
    return as_weights(state, [stated], activation, source=f"{backbone.replace('/', '-')} {tag}", sha256=content.sha256)
