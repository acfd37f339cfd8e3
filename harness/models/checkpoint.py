"""Model checkpoints: our own format (safetensors with the settings of the model) and released ones."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tvrbench.harness.config.protocol import Activation
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_path, file_sha256
from tvrbench.harness.core.validation import validated
from tvrbench.harness.models.backbone.architecture import Architecture, from_state_dict
from tvrbench.harness.models.backbone.state_dict import NamedTensors, check_tensors, named_tensors
from tvrbench.harness.models.backbone.weights import Weights, as_weights, intrinsic_statements
from tvrbench.harness.models.backbone.weights_config import Statement, read_configs
from tvrbench.harness.models.backbone.weights_file import printable, read_content, read_metadata
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.tuning import is_added
from tvrbench.harness.records.store import BEST_ON_TEST, LAST

FORMAT = "tvrbench-model-1"
_SELECTIONS = (LAST, BEST_ON_TEST)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The content of a checkpoint file.

    Attributes:
        path: the file.
        state: tensors under our model's names.
        base: the CLIP inside it where it is complete, else None.
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


def save_checkpoint(model: RetrievalModel, path: Path, selection: str = LAST) -> None:
    """Write the whole model and the settings that build it, atomically.

    ``selection`` records how it was chosen in its training, so that a later evaluation of the file can report it.
    """
    description = {
        "format": FORMAT,
        "method": model.name,
        "options": json.dumps(model.spec.describe()),
        "frames": str(model.frames),
        "architecture": json.dumps(asdict(model.clip.arch)),
    } | ({} if selection == LAST else {"selection": selection})
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    try:
        with atomic_path(path) as draft:
            save_file(state, draft, metadata=description)
    except (OSError, SafetensorError) as error:
        problem = f"checkpoint {path.name} cannot be written ({error}): choose another output folder"
        raise UsageError(problem, code="checkpoint.write", file=path.name) from None


def read_checkpoint(
    path: Path, method: str, cls: type[Method[Any]], activation: Activation | None = None
) -> Checkpoint:
    """Read our own format, or a released state dict of the method, under any wrappers.

    Args:
        path: the file.
        method, cls: that it is read as.
        activation: of the CLIP inside, over what the file's sources state.

    Raises:
        UsageError: no such file, corrupt, holds code, saved by another method, or a whole CLIP whose activation no
            source states.
    """
    meta = _metadata(path)
    if meta.get("format") == FORMAT:
        return _read_own(path, meta, method, activation)
    tensors = named_tensors(read_content(path), path.name)
    named = {f"clip.{key}": tensor for key, tensor in tensors.clip.items()} | tensors.rest
    state = dict(cls.from_released(key, tensor) for key, tensor in named.items())
    clip = {key: tensor for key, tensor in _clip_of(state).items() if not is_added(key)}
    base = _released_base(path, replace(tensors, clip=clip), activation) if "visual.conv1.weight" in clip else None
    options = cls.released_options(state)
    return Checkpoint(path=path, state=state, base=base, options=options, frames=None, selection="unknown")


def _metadata(path: Path) -> dict[str, str]:
    if not os.path.exists(path) or path.is_dir():  # noqa: PTH110 - pathlib's raises for a long name
        shown = printable(path, 200)
        raise UsageError(f"checkpoint {shown}: there is no such file", code="checkpoint.missing", file=shown)
    return read_metadata(path)


def _clip_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("clip."): tensor for key, tensor in state.items() if key.startswith("clip.")}


def _read_own(path: Path, meta: dict[str, str], method: str, activation: Activation | None) -> Checkpoint:
    arch, options, frames, selection = _description(path, meta, method)
    content = read_content(path)
    check_tensors(content, path.name)
    state = {key: tensor.float() for key, tensor in content.items()}
    clip = {key: tensor for key, tensor in _clip_of(state).items() if not is_added(key)}
    described = Statement(source="its own metadata", activation=arch.activation, normalization=(arch.mean, arch.std))
    base = as_weights(clip, [described], activation, source=path.name, sha256=file_sha256(path), folder=path.parent)
    if replace(base.arch, activation=arch.activation) != arch:  # before anything is made by the description
        raise _damaged(path, "its description names another architecture than its tensors have")
    return Checkpoint(path=path, state=state, base=base, options=options, frames=frames, selection=selection)


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
        UsageError: no such file, or corrupt.
    """
    meta = _metadata(path)
    return meta.get("method", "") if meta.get("format") == FORMAT else None


def _damaged(path: Path, problem: str) -> UsageError:
    return UsageError(f"{path.name}: {problem}", code="checkpoint.description", file=path.name)


def _description(path: Path, meta: dict[str, str], method: str) -> tuple[Architecture, dict[str, Any], int, str]:
    """Architecture, options, frames and selection of a checkpoint of our own."""
    if meta.get("method") != method:
        problem = f"{path.name} was saved by method {meta.get('method')!r}, not {method!r}"
        raise UsageError(problem, code="checkpoint.method", method=method)
    try:
        options, shape, frames = json.loads(meta["options"]), json.loads(meta["architecture"]), int(meta["frames"])
    except (KeyError, ValueError, RecursionError):
        options, shape, frames = None, None, 0
    selection = meta.get("selection", LAST)
    if not isinstance(options, dict) or not isinstance(shape, dict) or frames < 1 or selection not in _SELECTIONS:
        raise _damaged(path, "its description (options, architecture, frames) is damaged")
    return validated(Architecture, shape, f"{path.name} architecture"), options, frames, selection
