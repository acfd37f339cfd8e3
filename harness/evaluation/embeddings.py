"""The features of a test split in a file, so that they can be ranked again without model, videos or captions.

One safetensors file: ``text`` [Nt, E] and ``video`` [Nv, E] float32 as the model gives them, ``caption_video`` [Nt],
and where the split has them ``scenes`` [Nv] and ``subset.NAME``, captions by index. Its metadata holds the run, with
the fingerprints of model and data, and a checksum of the tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_path, file_sha256
from tvrbench.harness.evaluation.evaluate import Evaluation, Relevance, score

FORMAT = "tvrbench-embeddings-1"
_SUBSET = "subset."
_KINDS = {"text": ("F32", 2), "video": ("F32", 2), "caption_video": ("I64", 1), "scenes": ("I64", 1)}
_REQUIRED = {"text", "video", "caption_video"}


@dataclass(frozen=True, kw_only=True)
class SavedEmbeddings:
    """The content of a file of features; it has the fields of a ``Split`` that metrics need.

    Attributes:
        run: as given to ``save_embeddings``.
        text, video: [Nt, E], [Nv, E].
    """

    run: dict[str, Any]
    text: Tensor
    video: Tensor
    caption_video: tuple[int, ...]
    subsets: Mapping[str, tuple[int, ...]]
    scenes: tuple[int, ...] | None


def embedded_run(record: Mapping[str, Any], selection: str, model: Path | None) -> dict[str, Any]:
    """Describe a run for the file of its features.

    Args:
        selection: ``last`` or ``best-on-test``: the checkpoint of the training.
        model: the file of the trained model; None where nothing was trained.
    """
    data = {key: record["data"][key] for key in ("dataset", "test_split", "split_fingerprint", "frames_fingerprint")}
    names = ("protocol", "method", "tuning", "seed", "weights_sha256", "weights")
    same = {key: record[key] for key in names if key in record}
    model_sha256 = None if model is None else file_sha256(model)
    checkpoint = record.get("checkpoint")
    return same | {"selection": selection, "data": data, "model_sha256": model_sha256, "checkpoint": checkpoint}


def save_embeddings(path: Path, result: Evaluation, relevance: Relevance, run: Mapping[str, Any]) -> None:
    """Write the features behind an evaluation; the old file stays until the new one is safely on the disk.

    Args:
        path: the file; its folder is made.
        relevance: the split that was scored.
        run: plain data: what was encoded, and by which model.

    Raises:
        UsageError: it cannot be written.
    """
    tensors = {"text": result.text, "video": result.video, "caption_video": torch.tensor(relevance.caption_video)}
    tensors |= {} if relevance.scenes is None else {"scenes": torch.tensor(relevance.scenes)}
    tensors |= {_SUBSET + name: torch.tensor(rows) for name, rows in relevance.subsets.items() if rows}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "run": json.dumps(dict(run), sort_keys=True), "checksum": _checksum(tensors)}
    try:
        with atomic_path(path, draft_name=f".{path.name}.part") as draft:
            save_file(tensors, draft, metadata=metadata)
    except (OSError, SafetensorError) as error:
        message = f"the embeddings {path.name} cannot be written ({error}): free space on that disk"
        raise UsageError(message, code="embeddings.write", path=str(path)) from None


def load_embeddings(path: Path) -> SavedEmbeddings:
    """Read a file of ``save_embeddings``; nothing in it is executed.

    Raises:
        UsageError: no such file, a damaged one, or one of another kind.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = dict(handle.metadata() or {})
            if metadata.get("format") != FORMAT:
                raise ValueError("not a file of tvrbench run --save-embeddings")
            names = set(handle.keys())
            if wrong := sorted(name for name in names if not _fits(handle, name)) or sorted(_REQUIRED - names):
                raise ValueError(f"the tensor {wrong[0]!r} is missing or damaged")
            tensors = {name: handle.get_tensor(name) for name in sorted(names)}
        if _checksum(tensors) != metadata.get("checksum"):
            raise ValueError("another checksum than when it was written")
        run = _run(metadata)
    except OSError as error:
        message = f"{path}: the embeddings cannot be read: {error.strerror or error}"
        raise UsageError(message, code="embeddings.read", path=str(path)) from None
    except (SafetensorError, ValueError) as error:
        message = f"{path}: damaged, or not embeddings ({error}): save them again"
        raise UsageError(message, code="embeddings.damaged", path=str(path)) from None
    subsets = {n.removeprefix(_SUBSET): tuple(t.tolist()) for n, t in tensors.items() if n.startswith(_SUBSET)}
    return SavedEmbeddings(
        run=run,
        text=tensors["text"],
        video=tensors["video"],
        caption_video=tuple(tensors["caption_video"].tolist()),
        subsets=subsets,
        scenes=tuple(tensors["scenes"].tolist()) if "scenes" in tensors else None,
    )


def rescore(saved: SavedEmbeddings, path: Path) -> Evaluation:
    """Metrics and ranks of saved features, equal to those of the run to the last bit.

    Raises:
        UsageError: they cannot be ranked.
    """
    try:
        if any(not 0 <= row < len(saved.text) for rows in saved.subsets.values() for row in rows):
            raise ValueError("a subset names a caption that is not in the file")
        result = score(saved.text, saved.video, saved)
    except ValueError as error:
        message = f"{path}: these embeddings cannot be ranked: {error}"
        raise UsageError(message, code="embeddings.unrankable", path=str(path)) from None
    result.metrics["selection"] = saved.run["selection"]
    return result


def _fits(handle: Any, name: str) -> bool:
    """Check a tensor's name, type and number of axes before any of it is read."""
    kind, axes = _KINDS.get(name, ("I64", 1) if name.startswith(_SUBSET) else ("", 0))
    part = handle.get_slice(name)
    return part.get_dtype() == kind and len(part.get_shape()) == axes


def _run(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        run: dict[str, Any] = json.loads(metadata.get("run", ""))
        names = [run["protocol"]["name"], run["method"]["name"], run["selection"], str(int(run["seed"]))]
    except (ValueError, KeyError, TypeError, RecursionError):
        names = [None]
    if not all(isinstance(name, str) and name.isprintable() for name in names):
        raise ValueError("it does not name its run")
    return run


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()
