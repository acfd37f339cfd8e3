"""Weights in a folder: which file to take, and sets of shards with an index that says which tensor is where."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import file_sha256
from tvrbench.harness.models.backbone.weights_file import printable, read_content, read_json, refuse_special

INDEX = ".index.json"
_LONGEST_INDEX = 32 * 2**20
_LONGEST_NAME = 255  # bytes, in the usual file systems
_SHARD = re.compile(r".+-\d{5}-of-(?!00001)\d{5}\.[a-z]+")  # one of several
# In order of preference; of equal rank, a folder may hold only one.
_PATTERNS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "*.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
    "*.index.json",
    "*.pt",
    "*.pth",
    "*.bin",
)


@dataclass(frozen=True, kw_only=True)
class Content:
    """What weights hold.

    Attributes:
        data: a dict of tensors, or the nested dicts of a training script.
        sha256: of the file; of shards, of their sorted hashes in hex, one per line.
    """

    data: Any
    sha256: str


def file_in_folder(folder: Path) -> Path:
    """The weights file or index in a folder: safetensors first, and no single shard.

    Raises:
        UsageError: none, or several of the same kind.
    """
    for pattern in _PATTERNS:
        files = sorted(path for path in folder.glob(pattern) if path.is_file() and not _SHARD.fullmatch(path.name))
        if len(files) > 1:
            problem = f"weights folder {folder.name}: several files match {pattern}; name the one to load"
            raise UsageError(problem, code="weights.ambiguous", files=[path.name for path in files])
        if files:
            return files[0]
    if any(_SHARD.fullmatch(path.name) for path in folder.iterdir()):
        raise UsageError(
            f"weights folder {folder.name}: has shards but no index (model{INDEX} or the like): copy it here too",
            code="weights.shard",
            index=None,
        )
    problem = f"weights folder {folder.name}: no model.safetensors, pytorch_model.bin or *.pt in it"
    raise UsageError(problem, code="weights.missing", weights=folder.name)


def read_weights_content(path: Path) -> Content:
    """Read a weights file, or all shards of an index.

    Raises:
        UsageError: one of several shards, a damaged set, or a file that holds no weights.
    """
    refuse_special(path)
    if path.name.endswith(INDEX):
        return _read_shards(path)
    _refuse_single_shard(path)
    sha256 = file_sha256(path)
    return Content(data=read_content(path, sha256), sha256=sha256)


def _refuse_single_shard(path: Path) -> None:
    sets = {index: _shards_or_nothing(index) for index in path.parent.glob(f"*{INDEX}")}
    indexes = sorted(index for index, shards in sets.items() if path.name in shards and len(shards) > 1)
    if indexes or _SHARD.fullmatch(path.name):
        remedy = f"give {indexes[0].name}" if indexes else "give the folder, with the index of all shards"
        raise UsageError(
            f"{path.name}: is one of several shards: {remedy}",
            code="weights.shard",
            index=indexes[0].name if indexes else None,
        )


def _shards_or_nothing(index: Path) -> Mapping[str, set[str]]:
    try:
        return _index(index)
    except UsageError:  # another index of the folder may be broken; it says nothing of this file
        return {}


def _bad_index(path: Path, problem: str) -> UsageError:
    return UsageError(f"{path.name}: {problem}", code="weights.index", file=path.name)


def _index(path: Path) -> dict[str, set[str]]:
    """The names of tensors in each shard.

    Raises:
        UsageError: not an index, or one that names a file outside its folder.
    """
    try:
        names = read_json(path, _LONGEST_INDEX)["weight_map"]
        shards: dict[str, set[str]] = {}
        for key, name in names.items():
            shards.setdefault(name, set()).add(key)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise _bad_index(path, "is no index of shards (a JSON object with weight_map): download it again") from None
    for name in shards:
        fits = isinstance(name, str) and re.fullmatch(r"\w[\w.-]*", name) and len(name.encode()) <= _LONGEST_NAME
        if not fits or name.endswith(INDEX):
            raise _bad_index(path, f"names {printable(name)!r}, which is no file of its folder: download it again")
    if not shards:
        raise _bad_index(path, "names no shard: download it again")
    return shards


def _read_shards(path: Path) -> Content:
    shards = _index(path)
    absent = sorted(name for name in shards if not path.with_name(name).is_file())
    if absent:
        several = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise _bad_index(
            path, f"the shard {printable(absent[0])}{several} is not in its folder: download or copy it there"
        )
    tensors: dict[str, Any] = {}
    hashes = []
    for name, keys in sorted(shards.items()):
        shard = path.with_name(name)
        hashes.append(file_sha256(shard))
        content = read_content(shard, hashes[-1])
        held = set(content) if isinstance(content, dict) else set()
        if twice := sorted(map(str, held & tensors.keys())):
            raise _bad_index(
                path, f"{printable(twice[0])} is in {printable(name)} and in another shard: download the shards again"
            )
        if other := sorted(map(str, held ^ keys)):
            raise _bad_index(
                path, f"it and {printable(name)} disagree about {printable(other[0])}: download both again"
            )
        tensors |= content
    sha256 = hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()
    return Content(data=tensors, sha256=sha256)
