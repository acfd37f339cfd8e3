"""Model checkpoints: our own format (safetensors with the settings of the model) and released ones."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_path, file_sha256
from tvrbench.harness.core.validation import validated
from tvrbench.harness.models.backbone.architecture import Architecture, from_state_dict
from tvrbench.harness.models.backbone.state_dict import read_metadata, read_state_dict
from tvrbench.harness.models.backbone.weights import Weights
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
        options: method options saved with it.
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


def read_checkpoint(path: Path, method: str, cls: type[Method[Any]]) -> Checkpoint:
    """Read our own format, or a released state dict of the method (see ``openai_names``).

    Raises:
        UsageError: no such file, corrupt, holds code, or saved by another method.
    """
    meta = read_metadata(path)
    ours = meta.get("format") == FORMAT
    arch, options, frames, selection = _description(path, meta, method) if ours else (None, {}, None, "unknown")
    state = read_state_dict(path)
    if not ours:
        state = dict(cls.from_released(key, tensor) for key, tensor in state.items())
    clip = {k.removeprefix("clip."): t for k, t in state.items() if k.startswith("clip.") and not is_added(k)}
    base = None
    if ours or "visual.conv1.weight" in clip:
        read = from_state_dict(clip, arch.activation if arch else "quick_gelu")
        if arch not in (None, read):  # before anything is made by the description
            raise _damaged(path, "its description names another architecture than its tensors have")
        base = Weights(state=clip, arch=read, sha256=file_sha256(path), folder=path.parent)
    return Checkpoint(path=path, state=state, base=base, options=options, frames=frames, selection=selection)


def method_in(path: Path) -> str | None:
    """The method that a checkpoint of our own names; None for one that other code saved.

    Raises:
        UsageError: no such file, or corrupt.
    """
    meta = read_metadata(path)
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
