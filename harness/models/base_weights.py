"""The weights that a checkpoint of tuned parameters belongs on: found by name, and compared by content."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from tvrbench.harness.config.known_weights import OPENAI_WEIGHTS, shipped_weights
from tvrbench.harness.config.protocol import Activation
from tvrbench.harness.core import registry
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import file_sha256
from tvrbench.harness.models.backbone.architecture import PRESETS, Architecture, vision_name
from tvrbench.harness.models.backbone.weights import Weights, load_weights
from tvrbench.harness.models.backbone.weights_file import printable
from tvrbench.harness.models.description import BaseWeights

_RANDOM, _TAG = re.compile(r"random:\d{1,18}"), re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def base_weights(
    base: BaseWeights,
    arch: Architecture,
    given: str | Path | Weights | None,
    activation: Activation | None,
    checkpoint: str,
) -> Weights:
    """The weights to load a checkpoint of tuned parameters on.

    Args:
        base: what it was tuned on.
        arch: of the CLIP that it was tuned in.
        given: as for ``load_weights``, or loaded; None to find them by their name.
        activation: over the one in ``arch``.
        checkpoint: its name, for messages.

    Raises:
        UsageError: none are given and the name is of a file of the user's, or they are others.
    """
    named = printable(base.source)
    if isinstance(given, Weights):
        weights = given
    else:
        spec = named_spec(base, vision_name(arch)) if given is None else given
        if spec is None:
            raise UsageError(
                f"checkpoint {checkpoint} holds only what its training changed in {named} "
                f"(SHA-256 {base.sha256}): give that file with --weights (weights= in Python)",
                code="weights.missing",
                source=base.source,
                sha256=base.sha256,
            )
        weights = load_weights(spec, _preset(arch), activation or arch.activation)
        # Of the same file, if the next check passes; its configs may have been left elsewhere.
        weights = replace(weights, arch=replace(weights.arch, mean=arch.mean, std=arch.std))
    if not _same(base, weights):
        raise UsageError(
            f"checkpoint {checkpoint} was tuned on {named} (SHA-256 {base.sha256}), and {weights.source} has "
            f"SHA-256 {weights.sha256}: give the weights that it was tuned on",
            code="checkpoint.base-weights",
            wanted=base.sha256,
            given=weights.sha256,
        )
    if weights.arch != replace(arch, activation=activation or arch.activation):
        raise UsageError(
            f"{checkpoint} was tuned on another reading of {named} (shape, activation, normalization): "
            f"give the weights as it read them, with --activation {arch.activation}",
            code="checkpoint.base-reading",
        )
    return weights


def named_spec(base: BaseWeights, backbone: str) -> str | None:
    """What ``load_weights`` finds the base weights by, without a path: a data set that ships them, ``random:SEED`` or
    an open_clip tag of the backbone; None for a file of the user's.
    """
    if base.sha256 is None:
        return base.source if _RANDOM.fullmatch(base.source) else None
    for name in registry.names("datasets"):
        path = shipped_weights(name)
        if path is not None and path.is_file() and file_sha256(path) == base.sha256:
            return name
    if base.sha256 in OPENAI_WEIGHTS:
        return "openai"
    tag = base.source.removeprefix(f"{backbone} ")
    return tag if tag != base.source and _TAG.fullmatch(tag) else None


def _preset(arch: Architecture) -> str | None:
    name = vision_name(arch)
    return name if name in PRESETS else None


def _same(base: BaseWeights, weights: Weights) -> bool:
    if base.sha256 is None or weights.sha256 is None:
        return base.sha256 is weights.sha256 and base.source == weights.source
    known = OPENAI_WEIGHTS.get(base.sha256)
    return base.sha256 == weights.sha256 or (known is not None and known == OPENAI_WEIGHTS.get(weights.sha256))
