"""The features of a test split in a file, so that they can be ranked again without model, videos or captions.

One safetensors file: ``text`` [Nt, E] and ``video`` [Nv, E] float32 as the model gave them, ``caption_video`` [Nt],
and where the split has them ``scenes`` [Nv] and ``subset.NAME``, captions by index. Its metadata says which run they
are of, with the fingerprints of model and data, and holds a checksum of the tensors.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import file_sha256
from tvrbench.harness.evaluation.evaluate import Evaluation, Relevance, score

FORMAT = "tvrbench-embeddings-1"
_SUBSET = "subset."
_KINDS = {"text": ("F32", 2), "video": ("F32", 2), "caption_video": ("I64", 1), "scenes": ("I64", 1)}
_NEEDED = {"text", "video", "caption_video"}


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What a file of features holds; metrics are made of it as of a ``Split``.

    Attributes:
        run: what the features are of, as ``save_embeddings`` was told.
        text, video: [Nt, E], [Nv, E].
    """

    run: dict[str, Any]
    text: Tensor
    video: Tensor
    caption_video: tuple[int, ...]
    subsets: Mapping[str, tuple[int, ...]]
    scenes: tuple[int, ...] | None


def embedded_run(record: Mapping[str, Any], selection: str, model: Path | None) -> dict[str, Any]:
    """What a file of features says of its run.

    Args:
        record: of the run.
        selection: which checkpoint of the training it is.
        model: the file of the trained model; None where nothing was trained.
    """
    data = {key: record["data"][key] for key in ("dataset", "test_split", "split_fingerprint", "frames_fingerprint")}
    return {
        "protocol": record["protocol"],
        "method": record["method"],
        "tuning": record["tuning"],
        "seed": record["seed"],
        "selection": selection,
        "data": data,
        "weights_sha256": record["weights_sha256"],
        "model_sha256": None if model is None else file_sha256(model),
        "checkpoint": record.get("checkpoint"),
    }


def save_embeddings(path: Path, result: Evaluation, judged: Relevance, run: Mapping[str, Any]) -> None:
    """Write the features behind an evaluation; what was there stays until the new file is safely on the disk.

    Args:
        path: the file; its folder is made.
        result: with the features.
        judged: the split that was scored.
        run: plain data that says what was encoded, and by what.

    Raises:
        UsageError: it cannot be written.
    """
    tensors = {"text": result.text, "video": result.video, "caption_video": torch.tensor(judged.caption_video)}
    tensors |= {} if judged.scenes is None else {"scenes": torch.tensor(judged.scenes)}
    tensors |= {_SUBSET + name: torch.tensor(rows, dtype=torch.int64) for name, rows in judged.subsets.items() if rows}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    said = {"format": FORMAT, "run": json.dumps(dict(run), sort_keys=True), "checksum": _checksum(tensors)}
    draft = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, draft, metadata=said)
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"the embeddings {path.name} cannot be written ({error}): free space on that disk") from None
    finally:
        draft.unlink(missing_ok=True)


def load_embeddings(path: Path) -> Saved:
    """Read what ``save_embeddings`` wrote; nothing in it is run.

    Raises:
        UsageError: no such file, damaged, or not such a file.
    """
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file of embeddings")
    try:
        with safe_open(path, framework="pt") as handle:
            said = dict(handle.metadata() or {})
            if said.get("format") != FORMAT:
                raise UsageError(f"{path}: not embeddings that tvrbench run --save-embeddings wrote")
            names = set(handle.keys())
            if strange := sorted(name for name in names if not _fits(handle, name)) or sorted(_NEEDED - names):
                raise UsageError(f"{path}: the embeddings are damaged at {strange[0]!r}: save them again")
            tensors = {name: handle.get_tensor(name) for name in sorted(names)}
    except OSError as error:
        raise UsageError(f"{path}: the embeddings cannot be read: {error.strerror or error}") from None
    except SafetensorError:
        raise UsageError(f"{path}: not a safetensors file, or cut off: save the embeddings again") from None
    if _checksum(tensors) != said.get("checksum"):
        raise UsageError(f"{path}: the embeddings are not what was written (another checksum): save them again")
    return Saved(
        run=_run(said, path),
        text=tensors["text"],
        video=tensors["video"],
        caption_video=tuple(tensors["caption_video"].tolist()),
        subsets={
            name.removeprefix(_SUBSET): tuple(tensor.tolist())
            for name, tensor in tensors.items()
            if name.startswith(_SUBSET)
        },
        scenes=tuple(tensors["scenes"].tolist()) if "scenes" in tensors else None,
    )


def score_again(saved: Saved, path: Path) -> Evaluation:
    """The metrics and ranks of saved features, equal to those of the run to the last bit.

    Raises:
        UsageError: they cannot be ranked.
    """
    count = len(saved.text)
    if any(not 0 <= row < count for rows in saved.subsets.values() for row in rows):
        raise UsageError(f"{path}: a subset names a caption that is not in the file")
    try:
        found = score(saved.text, saved.video, saved)
    except ValueError as error:
        raise UsageError(f"{path}: these embeddings cannot be ranked: {error}") from None
    found.metrics["selection"] = saved.run["selection"]
    return found


def _fits(handle: Any, name: str) -> bool:
    """Whether a tensor is one that the format knows, before anything of it is read."""
    kind, axes = _KINDS.get(name, ("I64", 1) if name.startswith(_SUBSET) else ("", 0))
    part = handle.get_slice(name)
    return part.get_dtype() == kind and len(part.get_shape()) == axes


def _run(said: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        run: dict[str, Any] = json.loads(said.get("run", ""))
        names = [run["protocol"]["name"], run["method"]["name"], run["selection"], str(int(run["seed"]))]
    except (ValueError, KeyError, TypeError, RecursionError):
        names = [None]
    if not all(isinstance(name, str) and name.isprintable() for name in names):
        raise UsageError(f"{path}: the embeddings do not say which run they are of: save them again")
    return run


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {list(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()
