"""One trained checkpoint as a folder in the layout of the Hugging Face Hub: weights, config, model card and record."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tvrbench.harness.config.known_weights import shipped_weights
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.disk import check_space
from tvrbench.harness.models.backbone.architecture import vision_name
from tvrbench.harness.models.backbone.tokenizer import WORDS
from tvrbench.harness.models.backbone.weights_file import read_metadata
from tvrbench.harness.models.base_weights import named_spec
from tvrbench.harness.models.checkpoint import save_checkpoint, state_sha256
from tvrbench.harness.models.description import (
    CARD,
    CONFIG,
    RECORD,
    WEIGHTS,
    BaseWeights,
    Description,
    is_exported,
)
from tvrbench.harness.models.factory import load_model
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.tuning import is_added
from tvrbench.harness.records.record import Record, dumps, plain, trained
from tvrbench.harness.records.runs import StoredRecord
from tvrbench.harness.records.store import LAST, RecordStore, ranks_archive, read_ranks, run_name
from tvrbench.harness.reporting.pages.model_card import ExportedCheckpoint, model_card
from tvrbench.harness.runs.config import RunFiles, describe

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")


@dataclass(frozen=True, kw_only=True)
class Export:
    """A folder that was written.

    Attributes:
        folder: that holds the files.
        files: their names.
        tuned_only: it holds only what training changed.
        base: the weights that it is loaded on; None where the folder holds the whole model.
    """

    folder: Path
    files: tuple[str, ...]
    tuned_only: bool
    base: BaseWeights | None


def export_run(
    run: StoredRecord, folder: Path, results: Path, *, license: str | None = None, force: bool = False
) -> Export:
    """Write the checkpoint of a run into a folder, which appears whole or not at all.

    Args:
        run: its record.
        folder: a new or empty one.
        results: folder of records and checkpoints, where the record's file lies in none.
        license: identifier of the license of the weights on the hub, as their author states it.
        force: replace the files of an earlier export.

    Raises:
        UsageError: the run trained nothing, failed or left no checkpoint; the checkpoint is not the record's; or the
            folder holds something else or cannot be written to.
    """
    if license is not None and not _LICENSE.fullmatch(license):
        problem = f"--license {license!r}: give an identifier of the hub, for example mit, apache-2.0 or other"
        raise UsageError(problem, code="export.license", license=license)
    _check_folder(folder, force=force)
    _check_trained(run)
    file = _checkpoint_of(run, results)
    check_space(folder, file.stat().st_size, "the exported checkpoint")
    described = Description.from_metadata(read_metadata(file), file.name)
    model = load_model(checkpoint=file)
    checked = _check_same(run, described, model, file)
    base, tuned = _base_of(run.record), _is_tuned(model)
    if tuned and base is None:
        problem = f"{run.path.name} does not name the weights that it tuned, so nobody could load them: run it again"
        raise UsageError(problem, code="export.no-base", record=run.path.name)
    spec = None if base is None else named_spec(base, vision_name(model.clip.arch))
    with _new_folder(folder, force=force) as draft:
        if tuned:
            save_checkpoint(model, draft / WEIGHTS, described.selection, base)
        else:
            shutil.copyfile(file, draft / WEIGHTS)
            _copy_words(spec, draft)
        config = Description.from_metadata(read_metadata(draft / WEIGHTS), WEIGHTS).to_config()
        (draft / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (draft / WEIGHTS).chmod((draft / CONFIG).stat().st_mode)  # safetensors lets nobody else read its files
        record = _with_ranks(run, draft)
        (draft / RECORD).write_text(dumps(record), encoding="utf-8")
        files = {path.name: _CONTENT.get(path.name, "the rank of every query") for path in sorted(draft.iterdir())}
        card = ExportedCheckpoint(
            record=record,
            image_size=model.clip.arch.image_size,
            embed_dim=model.clip.arch.embed_dim,
            tuned_only=tuned,
            base=spec,
            license=license,
            checked=checked,
            files=files,
        )
        (draft / CARD).write_text(model_card(card), encoding="utf-8")
    return Export(folder=folder, files=(CARD, *files), tuned_only=tuned, base=base if tuned else None)


_CONTENT: Mapping[str, str] = {
    WEIGHTS: "the weights",
    CONFIG: "what tvrbench builds the model from",
    RECORD: "the record of the run",
    WORDS: "the words that the text encoder knows",
}


def _check_folder(folder: Path, *, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--to {folder} is not a folder: choose another", code="export.not-a-folder", path=str(folder))
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not is_exported(folder):
        problem = f"--to {folder} is not empty, and tvrbench export did not write it: choose a new folder"
        raise UsageError(problem, code="export.not-empty", path=str(folder))
    if not force:
        problem = f"--to {folder} holds an exported checkpoint: choose a new folder, or give --force to replace it"
        raise UsageError(problem, code="export.exists", path=str(folder))


def _check_trained(run: StoredRecord) -> None:
    record, name = run.record, run.path.name
    if record["status"] == "failed":
        problem = f"{name}: this run failed, so it has no trained model: run it again"
        raise UsageError(problem, code="export.failed", record=name)
    if run.scored:
        problem = f"{name}: this run scored a checkpoint and trained none: export the run that trained it"
        raise UsageError(problem, code="export.scored", record=name)
    if not record["metrics"] or not trained(record) or "training" not in record["metrics"]:
        problem = f"{name}: this run trained nothing, so there is no checkpoint to export: choose a run that trains"
        raise UsageError(problem, code="export.untrained", record=name)


def _checkpoint_of(run: StoredRecord, results: Path) -> Path:
    """The checkpoint beside the record, or below ``results``."""
    folders = run.path.parents
    roots = [folders[2]] if len(folders) > 2 and folders[1].name == "records" else []
    protocol = run.record["protocol"]["name"]
    names = dict.fromkeys((run_name(run.record), run.path.stem))  # earlier records made other names
    files = [RunFiles(RecordStore(root), protocol, name).checkpoint for root in (*roots, results) for name in names]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        problem = f"{run.path.name}: its checkpoint {files[0]} is not there: copy it to that place, or run it again"
        raise UsageError(problem, code="export.no-checkpoint", record=run.path.name, checkpoint=str(files[0]))
    return found


def _check_same(run: StoredRecord, described: Description, model: RetrievalModel, file: Path) -> bool:
    """True if the record holds the hash of the model; UsageError where the record is of another one."""
    record = run.record
    own, selection = plain(describe(model), "checkpoint"), record["metrics"].get("selection", LAST)
    facts = {
        "method": (described.method, record["method"]["name"]),
        "options": (own["options"], record["method"]["options"]),
        "selection": (described.selection, selection),
    }
    if recorded := record["metrics"]["training"].get("model_sha256"):
        facts["weights"] = (state_sha256(model.state_dict()), recorded)
    different = [name for name, (one, other) in facts.items() if one != other]
    if different:
        problem = (
            f"{file.name} is not the model that {run.path.name} measured (they differ in {', '.join(different)}): "
            "run it again, so that both are of one training"
        )
        raise UsageError(problem, code="export.disagrees", record=run.path.name, differ=different)
    return recorded is not None


def _is_tuned(model: RetrievalModel) -> bool:
    """True if most of the pre-trained weights stay as they were, so that they are left out."""
    own = [p for name, p in model.clip.named_parameters() if not is_added(name)]
    return 2 * sum(p.numel() for p in own if p.requires_grad) <= sum(p.numel() for p in own)


def _base_of(record: Record) -> BaseWeights | None:
    """The weights that the run started from; None where an early record of random weights does not name them."""
    weights, sha256 = record.get("weights"), record["weights_sha256"]
    if weights is None and sha256 is None:
        return None
    return BaseWeights(source=weights["source"] if weights else "weights", sha256=sha256)


def _copy_words(spec: str | None, draft: Path) -> None:
    """Put the word list of a data set's own weights beside a whole model, whose captions need it."""
    shipped = None if spec is None else shipped_weights(spec)
    if shipped is not None and shipped.with_name(WORDS).is_file():
        shutil.copyfile(shipped.with_name(WORDS), draft / WORDS)


def _with_ranks(run: StoredRecord, draft: Path) -> Record:
    """The record; its ranks are written into the draft, and not named where their file is lost.

    They are read first: what has their name, perhaps as a link, may be any file of this machine.
    """
    name = run.record["per_query_ranks_path"]
    if name is None or not (source := run.path.parent / name).is_file():
        return {**run.record, "per_query_ranks_path": None}
    (draft / name).write_bytes(ranks_archive(read_ranks(source)))
    return run.record


@contextmanager
def _new_folder(folder: Path, *, force: bool) -> Iterator[Path]:
    """Yield a draft beside ``folder``; its files appear there at the end of the block, or not at all."""
    target = Path(os.path.abspath(folder))  # noqa: PTH100 - pathlib keeps "..", which has no name
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        draft.mkdir(parents=True)
        yield draft
        _check_folder(folder, force=force)  # another export may have written it meanwhile
        if target.is_dir():
            _replace_files(draft, target)
        else:
            draft.rename(target)
    except OSError as error:
        problem = f"{folder} cannot be written ({error.strerror or error}): free space on that disk or choose another"
        raise UsageError(problem, code="export.write", path=str(folder)) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _replace_files(draft: Path, target: Path) -> None:
    """Move the files of a draft into an earlier export; what else lies there stays, for example a repository's own."""
    new = {path.name for path in draft.iterdir()}
    for old in [*target.glob("*.npz"), target / WORDS]:
        if old.name not in new:
            old.unlink(missing_ok=True)
    for path in draft.iterdir():
        path.replace(target / path.name)
