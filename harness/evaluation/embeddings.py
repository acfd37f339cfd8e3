"""The features of a test split in a file, so that they can be ranked again without model, videos or captions.

One safetensors file: ``text`` [Nt, E] and ``video`` [Nv, E] float32 as the model gives them, ``caption_video`` [Nt],
and where the split has them ``scenes`` [Nv] and ``subset.NAME``, captions by index. Its metadata holds the run, with
the fingerprints of model and data, and a checksum of the tensors.

The second format is for a model with a scorer of its own. It adds what the last stage compares, ``text.fine.NAME`` and
``video.fine.NAME`` as ``side_store`` stores them, the scorer's parameters as ``scorer.NAME``, and in its metadata what
the scorer is built from. So these ranks need no model and no data either, and may be made again with another depth,
direction or storage.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_path, file_sha256
from tvrbench.harness.core.memory import is_out_of_memory
from tvrbench.harness.data.disk import check_space
from tvrbench.harness.evaluation.evaluate import Evaluation, Relevance, Sides, score, score_sides
from tvrbench.harness.evaluation.side_store import SCALE, SideStore, scratch_folder, store_sides
from tvrbench.harness.evaluation.tensor_file import Array, Kind, Layout, TensorFile, TensorWriter
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.saved_scorer import describe_scorer, rebuild_scorer
from tvrbench.harness.models.scorer import Scorer, Side, Storage

VECTORS, SIDES = "tvrbench-embeddings-1", "tvrbench-embeddings-2"
_SUBSET, _SCORER = "subset.", "scorer."
_FINE = {"text": "text.fine.", "video": "video.fine."}
_KINDS = {"text": ("f4", 2), "video": ("f4", 2), "caption_video": ("i8", 1), "scenes": ("i8", 1)}
_REQUIRED = {"text", "video", "caption_video"}
_SECOND_STAGE = {"depth", "v2t", "storage"}
_COPIED = 2**26  # bytes of fine tensors at a time


@dataclass(frozen=True, kw_only=True)
class SavedEmbeddings:
    """The content of a file of features; it has the fields of a ``Split`` that metrics need.

    Attributes:
        run: as given to ``save_embeddings``.
        text, video: [Nt, E], [Nv, E].
        scorer: of the model; None where it compares ``text`` and ``video`` by their cosine.
        sides: what the scorer compares, its fine tensors memory-mapped.
    """

    run: dict[str, Any]
    text: Tensor
    video: Tensor
    caption_video: tuple[int, ...]
    subsets: Mapping[str, tuple[int, ...]]
    scenes: tuple[int, ...] | None
    scorer: Scorer | None
    sides: Sides


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


def save_embeddings(
    path: Path, result: Evaluation, relevance: Relevance, run: Mapping[str, Any], model: RetrievalModel | None = None
) -> None:
    """Write the features behind an evaluation; the old file stays until the new one is safely on the disk.

    Args:
        path: the file; its folder is made.
        result: with the ``sides`` that were ranked, where its model has a scorer of its own.
        relevance: the split that was scored.
        run: plain data: what was encoded, and by which model.
        model: whose scorer ranked ``sides``; not needed without.

    Raises:
        UsageError: it cannot be written.
    """
    arrays = {"text": result.text.numpy(), "video": result.video.numpy()}
    arrays["caption_video"] = np.asarray(relevance.caption_video, dtype=np.int64)
    arrays |= {} if relevance.scenes is None else {"scenes": np.asarray(relevance.scenes, dtype=np.int64)}
    arrays |= {_SUBSET + name: np.asarray(rows, dtype=np.int64) for name, rows in relevance.subsets.items() if rows}
    metadata = {"format": VECTORS, "run": json.dumps(dict(run), sort_keys=True)}
    if result.sides is not None and model is not None:
        metadata |= {"format": SIDES, "scorer": describe_scorer(model)}
        arrays |= {_FINE["text"] + name: array for name, array in result.sides.text.stored.items()}
        arrays |= {_FINE["video"] + name: array for name, array in result.sides.video.stored.items()}
        arrays |= {_SCORER + name: _parameter(tensor) for name, tensor in model.scorer.state_dict().items()}
    layout = Layout({name: Kind.of(array) for name, array in arrays.items()}, metadata)
    try:
        check_space(path.parent, layout.nbytes, f"the file of embeddings {path.name}")
        with atomic_path(path, draft_name=f".{path.name}.part") as draft:
            layout.create(draft)
            with TensorWriter(layout, draft) as writer:
                for name, array in arrays.items():
                    _write(writer, name, array)
            layout.finish(draft)
    except OSError as error:
        message = f"the embeddings {path.name} cannot be written ({error}): free space on that disk"
        raise UsageError(message, code="embeddings.write", path=str(path)) from None


def _write(writer: TensorWriter, name: str, array: Array) -> None:
    rows = max(1, _COPIED // max(1, array[:1].nbytes)) if array.ndim else 1
    for start in range(0, len(array) if array.ndim else 1, rows):
        writer.write(name, array[start : start + rows] if array.ndim else array, start)


def _parameter(tensor: Tensor) -> Array:
    """In a type that NumPy has, and that holds the same number."""
    kept = tensor.detach().cpu()
    return (kept.float() if kept.dtype in (torch.bfloat16, torch.float16) else kept).contiguous().numpy()


def load_embeddings(path: Path) -> SavedEmbeddings:
    """Read a file of ``save_embeddings``; nothing in it is executed.

    Raises:
        UsageError: no such file, a damaged one, one of another kind, or one whose method is not here.
    """
    with _read_errors(path):
        file = TensorFile.read(path)
        run, tensors = _run(file.metadata), file.tensors
        two = file.metadata["format"] == SIDES
        wrong = sorted(name for name, array in tensors.items() if not _fits(name, array, two=two))
        if wrong := wrong or sorted(_REQUIRED - tensors.keys()):
            raise ValueError(f"the tensor {wrong[0]!r} is missing or damaged")
        if not file.whole:
            raise ValueError("another checksum than when it was written")
        sides = Sides(text=_side(tensors, "text"), video=_side(tensors, "video"))
    values = {name: tuple(array.tolist()) for name, array in tensors.items() if array.dtype == np.int64}
    return SavedEmbeddings(
        run=run,
        text=sides.text.coarse,
        video=sides.video.coarse,
        caption_video=values["caption_video"],
        subsets={n.removeprefix(_SUBSET): rows for n, rows in values.items() if n.startswith(_SUBSET)},
        scenes=values.get("scenes"),
        scorer=_scorer(path, file, sides) if two else None,
        sides=sides,
    )


def read_run(path: Path) -> dict[str, Any]:
    """Read which run a file of ``save_embeddings`` belongs to, without its features; errors as ``load_embeddings``."""
    with _read_errors(path), safe_open(path, framework="pt") as handle:
        return _run(dict(handle.metadata() or {}))


def rescore(saved: SavedEmbeddings, path: Path, changed: Mapping[str, Any] | None = None) -> Evaluation:
    """Metrics and ranks of saved features, equal to those of the run to the last bit unless something is ``changed``.

    Args:
        saved: what was read.
        path: from where, for messages.
        changed: ``depth``, ``v2t`` and ``storage`` of the scorer in place of the run's.

    Raises:
        UsageError: they cannot be ranked, hold no second stage, or cannot be stored so.
    """
    changed = changed or {}
    _check_stage(saved, path, changed)
    try:
        if any(not 0 <= row < len(saved.text) for rows in saved.subsets.values() for row in rows):
            raise ValueError("a subset names a caption that is not in the file")
        result = score(saved.text, saved.video, saved) if saved.scorer is None else _ranked(saved, path, changed)
    except (ValueError, RuntimeError) as error:  # torch's, of widths that do not fit
        if isinstance(error, UsageError) or is_out_of_memory(error):
            raise
        message = f"{path}: these embeddings cannot be ranked: {error}"
        raise UsageError(message, code="embeddings.unrankable", path=str(path)) from None
    result.metrics["selection"] = saved.run["selection"]
    return replace(result, sides=None)


def _check_stage(saved: SavedEmbeddings, path: Path, changed: Mapping[str, Any]) -> None:
    """UsageError where a second stage is asked for, or belongs to the run, and the file lacks it."""
    method = saved.run["method"]
    name, options = method["name"], method.get("options") or {}
    if saved.scorer is None:
        lacking = options.keys() >= _SECOND_STAGE and options["depth"] != 0
    else:
        lacking = saved.scorer.two_stage and not saved.sides.video.stored
    if lacking:
        message = (
            f"{path} holds one vector of each text and video, and {name} ranks by more: save its embeddings again "
            "with tvrbench run --save-embeddings"
        )
        raise UsageError(message, code="embeddings.coarse-only", path=str(path), method=name)
    if changed and (saved.scorer is None or not saved.sides.video.stored):
        message = f"{path} holds one vector of each text and video, so there is no second stage to change: leave out "
        message += ", ".join(f"--{option}" for option in changed)
        raise UsageError(message, code="rescore.no-second-stage", path=str(path), method=name)


def _ranked(saved: SavedEmbeddings, path: Path, changed: Mapping[str, Any]) -> Evaluation:
    scorer = copy.deepcopy(saved.scorer)
    assert scorer is not None, "checked by the caller"
    now = scorer.storage
    scorer.depth, scorer.v2t = changed.get("depth", scorer.depth), changed.get("v2t", scorer.v2t)
    scorer.storage = changed.get("storage", now)
    with _stored_as(saved, path, now, scorer.storage) as sides:
        return score_sides(scorer, sides, saved)


@contextmanager
def _stored_as(saved: SavedEmbeddings, path: Path, now: str, storage: Storage) -> Iterator[Sides]:
    """The sides as they would be after another storage; what a smaller type has lost does not come back."""
    if storage == now:
        yield saved.sides
        return
    if now != "float32":
        message = f"{path} was stored as {now}, of which {storage} cannot be made: give a file of a run with float32"
        raise UsageError(message, code="rescore.storage", path=str(path), stored=now, asked=storage)
    with scratch_folder() as folder:
        text, video = (
            store_sides(folder / f"{name}.safetensors", len(side), _read(side), storage)
            for name, side in (("text", saved.sides.text), ("video", saved.sides.video))
        )
        yield Sides(text=text, video=video)


def _read(side: SideStore) -> Iterator[tuple[int, Side]]:
    rows = max(1, _COPIED // (4 * side.part(slice(0, 1)).floats))
    return ((start, side.part(slice(start, start + rows))) for start in range(0, len(side), rows))


def _side(tensors: Mapping[str, Array], kind: str) -> SideStore:
    prefix = _FINE[kind]
    stored = {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
    for name, array in stored.items():
        scale = stored.get(name + SCALE)
        scaled = array.dtype != np.int8 or (scale is not None and scale.shape == array.shape[:-1])
        if len(array) != len(tensors[kind]) or not scaled:
            raise ValueError(f"the tensor {prefix + name!r} is missing or damaged")
    return SideStore(coarse=torch.from_numpy(np.array(tensors[kind])), stored=stored)


def _scorer(path: Path, file: TensorFile, sides: Sides) -> Scorer:
    state = {
        name.removeprefix(_SCORER): torch.from_numpy(np.array(array))
        for name, array in file.tensors.items()
        if name.startswith(_SCORER)
    }
    try:
        scorer = rebuild_scorer(file.metadata.get("scorer", ""), state)
        names = (sides.text.fine_names, sides.video.fine_names)
        if any(names) and names != (tuple(sorted(scorer.text_names)), tuple(sorted(scorer.video_names))):
            raise ValueError("it holds other tensors than the scorer compares")
    except ValueError as error:
        message = f"{path}: its scorer cannot be built ({error}): use the version and plug-ins that saved it"
        raise UsageError(message, code="embeddings.scorer", path=str(path)) from None
    return scorer


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"{path}: the embeddings cannot be read: {error.strerror or error}"
        raise UsageError(message, code="embeddings.read", path=str(path)) from None
    except (SafetensorError, ValueError) as error:
        message = f"{path}: damaged, or not embeddings ({error}): save them again"
        raise UsageError(message, code="embeddings.damaged", path=str(path)) from None


def _fits(name: str, array: Array, *, two: bool) -> bool:
    """Check a tensor's name, type and number of axes before any of its values is read."""
    kind = array.dtype.str[1:]
    if two and name.startswith(_SCORER):
        return True
    if two and name.startswith(tuple(_FINE.values())):
        return (kind == "f4" and array.ndim > 0) or (kind in ("f2", "i1") and array.ndim > 2)
    return (kind, array.ndim) == _KINDS.get(name, ("i8", 1) if name.startswith(_SUBSET) else ("", 0))


def _run(metadata: Mapping[str, str]) -> dict[str, Any]:
    if metadata.get("format") not in (VECTORS, SIDES):
        raise ValueError("not a file of tvrbench run --save-embeddings")
    try:
        run: dict[str, Any] = json.loads(metadata.get("run", ""))
        names = [run["protocol"]["name"], run["method"]["name"], run["selection"], str(int(run["seed"]))]
    except (ValueError, KeyError, TypeError, RecursionError):
        names = [None]
    if not all(isinstance(name, str) and name.isprintable() for name in names):
        raise ValueError("it does not name its run")
    return run
