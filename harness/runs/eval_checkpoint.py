"""A trained checkpoint that a run scores instead of training: read once, and compared with the protocol."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tvrbench.harness.config.protocol import Activation, Protocol
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import file_sha256
from tvrbench.harness.models.backbone.architecture import PRESETS, Architecture, vision_name
from tvrbench.harness.models.backbone.weights import Weights
from tvrbench.harness.models.checkpoint import method_in, read_checkpoint
from tvrbench.harness.models.description import BaseWeights
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.records.record import CheckpointRef


@dataclass(frozen=True, kw_only=True)
class EvalCheckpoint:
    """A checkpoint to score.

    Attributes:
        path: the file, or an exported folder.
        method: what it is scored as.
        format: ``tvrbench`` for our own, which holds the method and its options; ``released`` for a state dict.
        sha256: of the file.
        base: the CLIP inside it; None if it holds the tuned parameters alone.
        tuned_on: the weights that these belong on, where it is our own.
        arch: of its CLIP, where the file says it.
        options: of the method, as far as the file names them.
        frames: T that it was saved with; None if the file does not say.
        selection: how it was chosen in its training: ``last``, ``best-on-test``, or ``unknown`` of a released one.
    """

    path: Path
    method: str
    format: Literal["tvrbench", "released"]
    sha256: str
    base: Weights | None
    tuned_on: BaseWeights | None
    arch: Architecture | None
    options: dict[str, Any]
    frames: int | None
    selection: str

    @property
    def needs_small_options(self) -> bool:
        """True if a protocol of small models must give the options: neither the file nor a published preset does."""
        return self.format == "released" and (self.base is None or vision_name(self.base.arch) not in PRESETS)

    def to_json(self) -> CheckpointRef:
        """Its entry in a record; no folder of this machine."""
        return CheckpointRef(file=self.path.name, sha256=self.sha256, format=self.format)


def open_checkpoint(path: Path, methods: Sequence[str], activation: Activation | None = None) -> EvalCheckpoint:
    """Read a checkpoint as the one method in ``methods``, or if that is empty as the one that the file names.

    Args:
        path: the file, or an exported folder.
        methods: given by the user.
        activation: of the CLIP inside, over what the file's sources state.

    Raises:
        UsageError: not exactly one method, or a file that is missing, damaged, holds code, was saved by another method
            or does not state its activation.
    """
    if len(methods) > 1:
        raise UsageError(
            f"--checkpoint {path.name} belongs to one method: give one with --methods, not {len(methods)}",
            code="checkpoint.one-method",
        )
    own = method_in(path)
    path = Path(os.path.abspath(path)) if path.is_dir() else path  # noqa: PTH100 - "." has no name, and pathlib keeps ".."
    method = methods[0] if methods else own
    if method is None:
        raise UsageError(
            f"--checkpoint {path.name} does not name its method: give --methods NAME", code="checkpoint.no-method"
        )
    saved = read_checkpoint(path, method, method_class(method), activation)
    return EvalCheckpoint(
        path=path,
        method=method,
        format="released" if own is None else "tvrbench",
        sha256=file_sha256(saved.path),
        base=saved.base,
        tuned_on=saved.tuned_on,
        arch=saved.base.arch if saved.base else saved.arch,
        options=saved.options,
        frames=saved.frames,
        selection=saved.selection,
    )


def protocol_for(scored: EvalCheckpoint, protocol: Protocol, backbone: str | None, weights: str | None) -> Protocol:
    """The protocol that a checkpoint is scored under: on the backbone inside it, if it holds or names one.

    Args:
        scored: the checkpoint.
        protocol: as it ships.
        backbone, weights: given instead of the protocol's own, or None.

    Raises:
        UsageError: the checkpoint contradicts what was given, or the protocol's frames, or needs --weights.
    """
    name = scored.path.name
    if scored.frames is not None and scored.frames != protocol.frames:
        raise UsageError(
            f"--checkpoint {name} encodes {scored.frames} frames per video, but protocol {protocol.name} has "
            f"{protocol.frames}: score it under a protocol of {scored.frames} frames",
            code="checkpoint.frames",
            checkpoint=scored.frames,
            protocol=protocol.frames,
        )
    if scored.arch is None:
        return protocol.on(backbone, weights)
    if scored.base is not None and weights is not None:
        raise UsageError(
            f"--checkpoint {name} holds all weights of its model: leave --weights {weights} out",
            code="checkpoint.weights",
        )
    held = vision_name(scored.arch)
    if backbone is not None and backbone.replace("/", "-") != held:
        raise UsageError(
            f"--checkpoint {name} holds a {held}: leave --backbone {backbone} out",
            code="checkpoint.backbone",
            checkpoint=held,
        )
    if not backbone and protocol.backbone_from_weights and held not in PRESETS:
        if scored.base is None and weights is None:
            raise UsageError(
                f"--checkpoint {name} was tuned on a {held}, which is not in it: give those weights with --weights",
                code="checkpoint.base-weights",
            )
        return replace(protocol, backbone=None)  # as for the training: a file of weights brings its own
    return protocol.on(held if backbone or protocol.backbone else None, weights)
