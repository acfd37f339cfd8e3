"""Saved embeddings ranked again: as the run did, or with another depth, direction or storage."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.memory import is_out_of_memory
from tvrbench.harness.evaluation.embeddings import SavedEmbeddings
from tvrbench.harness.evaluation.evaluate import Evaluation, Sides, score, score_sides
from tvrbench.harness.evaluation.side_store import SideStore, Storage, scratch_folder, store_sides
from tvrbench.harness.models.scorer import Side

_SECOND_STAGE = {"depth", "v2t", "storage"}
_BLOCK_BYTES = 2**26  # of a side that is stored otherwise, at a time


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
    if saved.scorer is None and options.keys() >= _SECOND_STAGE and options["depth"] != 0:
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
            store_sides(folder / f"{name}.safetensors", len(side), _blocks(side), storage)
            for name, side in (("text", saved.sides.text), ("video", saved.sides.video))
        )
        yield Sides(text=text, video=video)


def _blocks(side: SideStore) -> Iterator[tuple[int, Side]]:
    rows = max(1, _BLOCK_BYTES // (4 * side.part(slice(0, 1)).floats))
    return ((start, side.part(slice(start, start + rows))) for start in range(0, len(side), rows))
