"""What a checkpoint is: in the metadata of its file and, where it was exported as a folder, in config.json."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.validation import validated
from tvrbench.harness.models.backbone.architecture import Architecture, vision_name
from tvrbench.harness.models.backbone.weights_file import printable, read_json, read_metadata
from tvrbench.harness.records.store import BEST_ON_TEST, LAST

FORMAT = "tvrbench-model-1"  # of a file
FOLDER_FORMAT = "tvrbench-export-1"
# Of an exported folder, under the names that the Hugging Face Hub knows.
WEIGHTS, CONFIG, CARD, RECORD = "model.safetensors", "config.json", "README.md", "record.json"
_LONGEST = 2**20
_DEEPEST, _MOST_FRAMES = 8, 10**5  # lists in lists of an option; a sampler lists the frames
_SOURCE = re.compile(r"[^/\\]{1,200}")


@dataclass(frozen=True, kw_only=True)
class BaseWeights:
    """The weights that a training started from, by name and content.

    Attributes:
        source: a file or folder by its name, a backbone with its open_clip tag, or ``random:SEED``.
        sha256: of the file; None for random weights.
    """

    source: str
    sha256: str | None

    def __post_init__(self) -> None:
        known = self.sha256 is None or re.fullmatch("[0-9a-f]{64}", self.sha256)
        if not _SOURCE.fullmatch(self.source) or not known:
            problem = "the base weights of a checkpoint have a name without folder, and the SHA-256 of their file"
            raise UsageError(problem, code="checkpoint.base-name")


@dataclass(frozen=True, kw_only=True)
class Description:
    """What builds the model that a checkpoint's tensors belong to.

    Attributes:
        frames: T, frames per video.
        selection: the checkpoint of its training, ``last`` or ``best-on-test``.
        base: what the model was tuned on, where the file holds nothing but what training changes; None where it holds
            the whole model.
    """

    method: str
    options: dict[str, Any]
    frames: int
    architecture: Architecture
    selection: Literal["last", "best-on-test"] = LAST
    base: BaseWeights | None = None

    def to_metadata(self) -> dict[str, str]:
        """The metadata of a safetensors file."""
        return (
            {
                "format": FORMAT,
                "method": self.method,
                "options": json.dumps(self.options),
                "frames": str(self.frames),
                "architecture": json.dumps(asdict(self.architecture)),
            }
            | ({} if self.selection == LAST else {"selection": self.selection})
            | ({} if self.base is None else {"base": json.dumps(asdict(self.base))})
        )

    def to_config(self) -> dict[str, Any]:
        """The content of an exported folder's ``config.json``."""
        head = {"format": FOLDER_FORMAT, "library_name": "tvrbench", "backbone": vision_name(self.architecture)}
        content: dict[str, Any] = json.loads(json.dumps(head | asdict(self)))
        return content

    @classmethod
    def from_metadata(cls, meta: Mapping[str, str], name: str) -> Description:
        """Read the metadata of the file ``name``; UsageError for a damaged one."""
        try:
            options, shape, frames = json.loads(meta["options"]), json.loads(meta["architecture"]), int(meta["frames"])
            base = json.loads(meta.get("base", "null"))
        except (KeyError, ValueError, RecursionError):
            options, shape, frames, base = None, None, 0, None
        selection = meta.get("selection", LAST)
        readable = isinstance(options, dict) and isinstance(shape, dict) and isinstance(base, dict | None)
        possible = 1 <= frames <= _MOST_FRAMES and not _is_deep(options, _DEEPEST)
        if not readable or not possible or selection not in (LAST, BEST_ON_TEST):
            raise damaged(name, "its description (options, architecture, frames) is damaged")
        return cls(
            method=meta.get("method", ""),
            options=options,
            frames=frames,
            architecture=validated(Architecture, shape, f"{name} architecture"),
            selection=selection,
            base=None if base is None else validated(BaseWeights, base, f"{name} base weights"),
        )


def damaged(name: str, problem: str) -> UsageError:
    """The error for a checkpoint whose description cannot be used."""
    return UsageError(f"{name}: {problem}", code="checkpoint.description", file=name)


def _is_deep(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return any(levels == 0 or _is_deep(each, levels - 1) for each in inner)


def weights_file(path: Path) -> Path:
    """The file of a checkpoint: the path itself, or the weights in an exported folder.

    Raises:
        UsageError: there is nothing, or a folder that was not exported here or whose files do not belong together.
    """
    shown = printable(path, 200)
    if not os.path.exists(path):  # noqa: PTH110 - pathlib's raises for a long name
        raise UsageError(f"checkpoint {shown}: there is no such file or folder", code="checkpoint.missing", file=shown)
    if not path.is_dir():
        return path
    if not is_exported(path):
        raise UsageError(
            f"checkpoint {shown}: this folder was not written by tvrbench export ({CONFIG} of format {FOLDER_FORMAT}): "
            "give such a folder, a checkpoint file with --checkpoint, or plain CLIP weights with --weights",
            code="checkpoint.not-exported",
            file=shown,
        )
    file = path / WEIGHTS
    if not file.is_file():
        problem = f"checkpoint {shown}: {WEIGHTS} is not in this folder: export or download it again"
        raise UsageError(problem, code="checkpoint.incomplete", file=shown)
    meta = read_metadata(file)
    described = Description.from_metadata(meta, WEIGHTS) if meta.get("format") == FORMAT else None
    if described is None or described.to_config() != read_json(path / CONFIG, _LONGEST):
        problem = (
            f"checkpoint {shown}: {CONFIG} and {WEIGHTS} do not describe the same model: export or download it again"
        )
        raise UsageError(problem, code="checkpoint.folder-disagrees", file=shown)
    return file


def is_exported(folder: Path) -> bool:
    """True for a folder whose ``config.json`` says that it was exported here."""
    try:
        content = read_json(folder / CONFIG, _LONGEST)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("format") == FOLDER_FORMAT
