"""Model checkpoints: our own format (safetensors with the settings of the model) and released ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tvrbench.harness.config.protocol import Activation
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_path, file_sha256
from tvrbench.harness.models.backbone.architecture import Architecture, from_state_dict
from tvrbench.harness.models.backbone.state_dict import NamedTensors, check_tensors, named_tensors
from tvrbench.harness.models.backbone.weights import Weights, as_weights, intrinsic_statements
from tvrbench.harness.models.backbone.weights_config import Statement, read_configs
from tvrbench.harness.models.backbone.weights_file import printable, read_content, read_metadata
from tvrbench.harness.models.description import FORMAT, BaseWeights, Description, damaged, weights_file
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.model import RetrievalModel, trainable_state_dict
from tvrbench.harness.models.tuning import is_added
from tvrbench.harness.records.store import LAST


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        path: the file.
        state: tensors under our model's names.
        base: the CLIP inside it where it is complete, else None.
        tuned_on: the weights that it must be loaded on, where it is ours and holds only what training changed.
        arch: of its CLIP, where the file says it.
        options: method options saved with it, or told by its shapes.
        frames: saved with it, else None.
        selection: how it was chosen in its training: ``last``, ``best-on-test`` or ``unknown``.
    """

    path: Path
    state: dict[str, Tensor]
    base: Weights | None
    options: dict[str, Any]
    frames: int | None
    selection: str
    tuned_on: BaseWeights | None = None
    arch: Architecture | None = None


def save_checkpoint(
    model: RetrievalModel,
    path: Path,
    selection: Literal["last", "best-on-test"] = LAST,
    base: BaseWeights | None = None,
) -> None:
    """Write a model and the settings that build it, atomically.

    Args:
        model: in float32.
        path: the file.
        selection: how it was chosen in its training, so that a later evaluation of the file can report it.
        base: what it was tuned on, to write nothing but what training changes; None for the whole model.

    Raises:
        UsageError: it cannot be written.
    """
    description = Description(
        method=model.name,
        options=model.spec.describe(),
        frames=model.frames,
        architecture=model.clip.arch,
        selection=selection,
        base=base,
    )
    tensors = model.state_dict() if base is None else trainable_state_dict(model)
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    try:
        with atomic_path(path) as draft:
            save_file(state, draft, metadata=description.to_metadata())
    except (OSError, SafetensorError) as error:
        problem = f"checkpoint {path.name} cannot be written ({error}): choose another output folder"
        raise UsageError(problem, code="checkpoint.write", file=path.name) from None


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of a state dict's names, shapes and values in float32; the order of names and metadata have no part."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        values = tensor.detach().cpu().float().contiguous()
        digest.update(f"{name} {list(values.shape)}\n".encode())
        digest.update(values.numpy().data)
    return digest.hexdigest()


def read_checkpoint(
    path: Path, method: str, cls: type[Method[Any]], activation: Activation | None = None
) -> Checkpoint:
    """Read our own format, or a released state dict of the method, under any wrappers.

    Args:
        path: the file, or a folder that ``tvrbench export`` wrote.
        method, cls: that it is read as.
        activation: of the CLIP inside, over what the file's sources state.

    Raises:
        UsageError: no such file, corrupt, holds code, saved by another method, or a whole CLIP whose activation no
            source states.
    """
    path = weights_file(path)
    meta = read_metadata(path)
    if meta.get("format") == FORMAT:
        return _read_own(path, Description.from_metadata(meta, path.name), method, activation)
    tensors = named_tensors(read_content(path), path.name)
    named = {f"clip.{key}": tensor for key, tensor in tensors.clip.items()} | tensors.rest
    state = dict(cls.from_released(key, tensor) for key, tensor in named.items())
    clip = {key: tensor for key, tensor in _clip_of(state).items() if not is_added(key)}
    base = _released_base(path, replace(tensors, clip=clip), activation) if "visual.conv1.weight" in clip else None
    options = cls.released_options(state)
    return Checkpoint(path=path, state=state, base=base, options=options, frames=None, selection="unknown")


def _clip_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("clip."): tensor for key, tensor in state.items() if key.startswith("clip.")}


def _read_own(path: Path, described: Description, method: str, activation: Activation | None) -> Checkpoint:
    if described.method != method:
        problem = f"{path.name} was saved by method {printable(described.method)!r}, not {method!r}"
        raise UsageError(problem, code="checkpoint.method", method=method)
    content = read_content(path)
    check_tensors(content, path.name)
    state = {key: tensor.float() for key, tensor in content.items()}
    arch, base = described.architecture, None
    if described.base is None:
        clip = {key: tensor for key, tensor in _clip_of(state).items() if not is_added(key)}
        said = Statement(source="its own metadata", activation=arch.activation, normalization=(arch.mean, arch.std))
        base = as_weights(clip, [said], activation, source=path.name, sha256=file_sha256(path), folder=path.parent)
        if replace(base.arch, activation=arch.activation) != arch:  # before anything is made by the description
            raise damaged(path.name, "its description names another architecture than its tensors have")
    return Checkpoint(
        path=path,
        state=state,
        base=base,
        options=described.options,
        frames=described.frames,
        selection=described.selection,
        tuned_on=described.base,
        arch=arch,
    )


def _released_base(path: Path, tensors: NamedTensors, activation: Activation | None) -> Weights:
    """The CLIP of a checkpoint that other code saved.

    What TempMe, CenterCLIP and CLIP4Clip release has its CLIP under ``clip.`` and started from OpenAI's, so it has
    QuickGELU, unless a config beside it says otherwise.
    """
    sha256 = file_sha256(path)
    configs = read_configs(path, from_state_dict(tensors.clip, "quick_gelu"))
    statements = intrinsic_statements(tensors, sha256, {}, configs.statements)
    if f".{tensors.prefix}".endswith(".clip."):
        statements.append(Statement(source="released checkpoint, from OpenAI's CLIP", activation="quick_gelu"))
    return as_weights(
        tensors.clip,
        statements,
        activation,
        source=path.name,
        sha256=sha256,
        notes=configs.notes,
        folder=path.parent,
    )


def method_in(path: Path) -> str | None:
    """The method that a checkpoint of our own names; None for one that other code saved.

    Raises:
        UsageError: no such file or exported folder, or corrupt.
    """
    meta = read_metadata(weights_file(path))
    return meta.get("method", "") if meta.get("format") == FORMAT else None
