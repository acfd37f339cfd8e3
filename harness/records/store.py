"""Records on disk: one JSON file per run with its per-query ranks; a crash never damages an earlier record."""

from __future__ import annotations

import hashlib
import io
import json
import re
import uuid
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_write
from tvrbench.harness.records.reading import frame_captions_of, unusual_reading
from tvrbench.harness.records.record import Record, dumps, normalized, read_record

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.+@-]|_(?!_))*")
_DIRECTIONS = ("t2v", "v2t")
_COARSE = ("coarse_t2v", "coarse_v2t")
_DEMO = Path("results")  # in a checkout: the committed runs
# The checkpoint of a training that a run reports.
LAST: Literal["last"] = "last"
BEST_ON_TEST: Literal["best-on-test"] = "best-on-test"

RankArrays = dict[str, npt.NDArray[np.float32]]


class RecordStore:
    """The records under ``root/records/<protocol>/``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._records = root / "records"

    def folder(self, protocol: str) -> Path:
        """The folder of a protocol's records: ``/`` in its name becomes ``__``.

        Raises:
            UsageError: the name cannot be a folder's.
        """
        return self._records / "__".join(_safe(part, "protocol") for part in protocol.split("/"))

    def protocols(self) -> list[str]:
        """The protocols that have a folder of records, sorted."""
        folders = self._records.iterdir() if self._records.is_dir() else ()
        names = (path.name.replace("__", "/") for path in folders if path.is_dir())
        return sorted(name for name in names if all(map(_NAME.fullmatch, name.split("/"))))

    def searched(self, protocol: str | None = None) -> str:
        """Where records (of a protocol) were looked for, for a message, and where a checkout has its own."""
        folder, demo = (s._records if protocol is None else s.folder(protocol) for s in (self, RecordStore(_DEMO)))
        is_demo = folder.resolve() == demo.resolve()
        hint = f" (the repository's demo: --results {_DEMO})" if demo.is_dir() and not is_demo else ""
        return f"{folder}{hint}"

    def check_writable(self, protocol: str) -> None:
        """Write once to the folder, or the nearest one that exists, so that a long run does not fail at its end.

        Raises:
            UsageError: it cannot be written to.
        """
        folder = self.folder(protocol)
        folder = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        probe = folder / f".{uuid.uuid4().hex}.probe"
        atomic_write(probe, b"")
        probe.unlink()

    def save(self, record: Mapping[str, Any], ranks: Mapping[str, npt.ArrayLike] | None = None) -> Path:
        """Check the record, write the ranks and then the record that names them, and return the record's path.

        ``per_query_ranks_path`` is set here. The ranks' file is named by its content and the record is replaced last,
        so an earlier record of the same run stays whole until the new one is. A failed run has its own file: it never
        replaces a completed one, and is removed when the run completes.

        Args:
            record: see ``Record``.
            ranks: ``t2v`` and ``v2t``, [queries] each, and of a retrieval in two stages those of its coarse stage,
                ``coarse_t2v`` and ``coarse_v2t``; None for a failed run without any.

        Raises:
            UsageError: an invalid record, or a folder that cannot be written to.
            ValueError: ranks that are not finite numbers of 1 or more.
        """
        names = (*_DIRECTIONS, *(name for name in _COARSE if ranks is not None and name in ranks))
        arrays = None if ranks is None else {name: _checked(ranks[name], f"ranks {name}") for name in names}
        checked = normalized(dict(record) | {"per_query_ranks_path": None}, "record")
        folder, name = self.folder(checked["protocol"]["name"]), run_name(checked)
        stem = _with_device(name, checked) if checked["status"] == "completed" and not checked["metrics"] else name
        path = folder / f"{stem}{'-failed' if checked['status'] == 'failed' else ''}.json"
        if arrays is not None:
            digest = hashlib.sha256(b"".join(arrays[name].astype("<f4").tobytes() for name in names))
            checked["per_query_ranks_path"] = file = f"{stem}-{digest.hexdigest()[:8]}.npz"
            atomic_write(folder / file, ranks_archive(arrays))
        atomic_write(path, dumps(checked, path.name).encode())
        if checked["status"] == "completed":
            replaced = {*folder.glob(f"{stem}-*.npz"), folder / f"{name}-failed.json"}
            for old in replaced - {folder / (checked["per_query_ranks_path"] or "")}:
                old.unlink(missing_ok=True)
        return path

    def failure_since(self, record: Mapping[str, Any]) -> Path | None:
        """The failed record of the same run with the same start time, written by any process; else None."""
        path = self.folder(record["protocol"]["name"]) / f"{run_name(record)}-failed.json"
        try:
            return path if read_record(path)["started"] == record["started"] else None
        except UsageError:
            return None

    def load_all(self, protocol: str | None = None) -> list[Record]:
        """Read and check every record (of a protocol), in the order of file names.

        Raises:
            UsageError: a file that is no valid record.
        """
        folder = self._records if protocol is None else self.folder(protocol)
        return [read_record(path) for path in sorted(folder.glob("*/*.json" if protocol is None else "*.json"))]

    def find(
        self,
        protocol: str | None = None,
        *,
        method: str | None = None,
        tuning: str | None = None,
        seed: int | None = None,
        status: str | None = None,
    ) -> list[Record]:
        """The records that match every given value; errors as ``load_all``."""
        return [
            record
            for record in self.load_all(protocol)
            if method in (None, record["method"]["name"])
            and tuning in (None, record["tuning"])
            and seed in (None, record["seed"])
            and status in (None, record["status"])
        ]

    def load_ranks(self, record: Record) -> RankArrays:
        """The per-query ranks of a record, ``t2v`` and ``v2t``, float32 [queries]; also those of a coarse stage (see
        ``save``) where it keeps them.

        Raises:
            UsageError: the record names none, or their file is missing or broken.
        """
        name = record["per_query_ranks_path"]
        if name is None:
            method, seed = record["method"]["name"], record["seed"]
            message = f"the record of {method}, seed {seed}, has no per-query ranks: run it again"
            raise UsageError(message, code="ranks.missing", method=method, seed=seed)
        return read_ranks(self.folder(record["protocol"]["name"]) / name)


def read_ranks(path: Path) -> RankArrays:
    """Read a file of ranks; see ``load_ranks``."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = (*_DIRECTIONS, *(name for name in _COARSE if name in archive))
            return {name: _checked(archive[name], name) for name in names}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        message = f"{path}: the per-query ranks cannot be read: {error}"
        raise UsageError(message, code="ranks.read", path=str(path)) from None


def run_name(record: Mapping[str, Any]) -> str:
    """File name of a run without suffix: words for people, and a hash of everything that makes it another run."""
    names = [_safe(record["method"]["name"], "method")]
    if record["tuning"] is not None:
        names.append(_safe(record["tuning"], "tuning"))
    if record.get("checkpoint") is not None:
        names.append("checkpoint")
    elif record.get("metrics", {}).get("selection") == BEST_ON_TEST:
        names.append(BEST_ON_TEST)  # kept beside the run that reports its last checkpoint, never in its place
    return "-".join([*names, f"seed{record['seed']}", run_digest(record)])


def _with_device(name: str, record: Record) -> str:
    """The name with the device before its hash: costs on another machine are another run, and stand beside these."""
    words, digest = name.rsplit("-", 1)
    device = re.sub(r"[^a-z0-9]+", "-", record["environment"]["device"].lower()).strip("-")
    return f"{words}-{device}-{digest}" if device else name


def run_digest(record: Mapping[str, Any]) -> str:
    """Hash (8 hex digits) of what makes it another run, besides method, seed and selection."""
    identity = {
        "protocol": record["protocol"]["hash"],
        "options": record["method"]["options"],
        "tuning": record["tuning"],
        "weights": record["weights_sha256"],
        "split": record["data"]["split_fingerprint"],
    }
    identity |= unusual_reading(record)
    if (frame_captions := frame_captions_of(record)) is not None:
        identity["frame_captions"] = frame_captions
    if record.get("checkpoint") is not None:
        identity["checkpoint"] = record["checkpoint"]["sha256"]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def _safe(name: str, what: str) -> str:
    if not _NAME.fullmatch(name):
        rule = "use letters, digits and . _ + - @, a letter or digit first, no double underscore"
        message = f"{what} name {name!r} cannot be a file name: {rule}"
        raise UsageError(message, code="name.unsafe", what=what, name=name)
    return name


def _checked(ranks: npt.ArrayLike, name: str) -> npt.NDArray[np.float32]:
    array = np.asarray(ranks)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "fiu":
        raise ValueError(f"{name} must be a list of ranks")
    if not (np.isfinite(array) & (array >= 1)).all():
        raise ValueError(f"{name} holds a number that is no rank")
    return array.astype(np.float32)


def ranks_archive(ranks: Mapping[str, npt.NDArray[np.float32]]) -> bytes:
    """The content of a file of ranks: a compressed NumPy archive of them by name, [queries] each."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **ranks)  # type: ignore[arg-type]
    return buffer.getvalue()
