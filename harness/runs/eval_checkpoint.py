"""A trained checkpoint that a run scores instead of training one: read once, and held against the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tvrbench.harness.config.protocol import Protocol
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import file_sha256
from tvrbench.harness.models.backbone.architecture import PRESETS, vision_name
from tvrbench.harness.models.backbone.weights import Weights
from tvrbench.harness.models.checkpoint import method_in, read_checkpoint
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.records.record import CheckpointRef


@dataclass(frozen=True, kw_only=True)
class EvalCheckpoint:
    """A checkpoint to be scored.

    Attributes:
        path: the file.
        method: what it is scored as.
        format: ``tvrbench`` for our own, which holds the method and its options; ``released`` for a state dict.
        sha256: of the file.
        base: the CLIP inside it; None where it holds the tuned parameters alone.
        frames: T that it was saved with; None where the file does not say.
        selection: how it was chosen in its training: ``last``, ``best-on-test``, or ``unknown`` of a released one.
    """

    path: Path
    method: str
    format: Literal["tvrbench", "released"]
    sha256: str
    base: Weights | None
    frames: int | None
    selection: str

    @property
    def needs_small_options(self) -> bool:
        """Whether a protocol of small models must give options: neither the file nor a published preset does."""
        return self.format == "released" and (self.base is None or vision_name(self.base.arch) not in PRESETS)

    def to_json(self) -> CheckpointRef:
        """What a record says of it; no folder of this machine."""
        return CheckpointRef(file=self.path.name, sha256=self.sha256, format=self.format)


def open_checkpoint(path: Path, methods: Sequence[str]) -> EvalCheckpoint:
    """Read a checkpoint as the one method in ``methods``, or where that is empty as the one that the file names.

    Raises:
        UsageError: not exactly one method, or a file that is missing, damaged, holds code or was saved by another method.
    """
    if len(methods) > 1:
        raise UsageError(f"--checkpoint {path.name} is one method's: name that one with --methods, not {len(methods)}")
    own = method_in(path)
    method = methods[0] if methods else own
    if method is None:
        raise UsageError(f"--checkpoint {path.name} does not say which method it is of: give --methods NAME")
    found = read_checkpoint(path, method, method_class(method))
    return EvalCheckpoint(
        path=path,
        method=method,
        format="released" if own is None else "tvrbench",
        sha256=file_sha256(path),
        base=found.base,
        frames=found.frames,
        selection=found.selection,
    )


def protocol_for(scored: EvalCheckpoint, protocol: Protocol, backbone: str | None, weights: str | None) -> Protocol:
    """The protocol that a checkpoint is scored under: on the backbone that it holds, if it holds one.

    Args:
        scored: the checkpoint.
        protocol: as it ships.
        backbone, weights: what was asked for in place of the protocol's own, or None.

    Raises:
        UsageError: it contradicts what was asked for, or the protocol's frames.
    """
    name = scored.path.name
    if scored.frames is not None and scored.frames != protocol.frames:
        raise UsageError(
            f"--checkpoint {name} encodes {scored.frames} frames a video, but protocol {protocol.name} gives every "
            f"method {protocol.frames}: score it under a protocol of {scored.frames} frames"
        )
    if scored.base is None:
        return protocol.on(backbone)
    if weights is not None:
        raise UsageError(f"--checkpoint {name} holds all weights of its model: leave --weights {weights} out")
    held = vision_name(scored.base.arch)
    if backbone is not None and backbone.replace("/", "-") != held:
        raise UsageError(f"--checkpoint {name} holds a {held}: leave --backbone {backbone} out")
    return protocol.on(held if backbone or protocol.backbone else None)
