"""What a weights file is, by its content and never by its suffix, and what it holds; no code in it ever runs."""

from __future__ import annotations

import json
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from tvrbench.harness.config.known_weights import OPENAI_ARCHIVES
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import file_sha256

# Objects of training scripts that often lie beside the tensors. An object without behavior is made in their place.
HARMLESS = (
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float16", "Float32", "Float64", "Int32", "Int64", "UInt8", "Bool")),
    "argparse.Namespace",
    "types.SimpleNamespace",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "datetime.datetime",
    "datetime.timedelta",
)
Format = Literal["safetensors", "torchscript", "pickle"]

_HEAD = 512  # bytes that tell a format
_LONGEST_HEADER = 100 * 2**20  # of a safetensors file, in its specification
_FOREIGN: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"version https://git-lfs", "git-lfs", "is a git-lfs pointer, not the file itself: fetch it with git lfs pull"),
    (0, b"\x1f\x8b", "gzip", "is compressed with gzip: unpack it first"),
    (0, b"BZh", "bzip2", "is compressed with bzip2: unpack it first"),
    (0, b"\xfd7zXZ\x00", "xz", "is compressed with xz: unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "zstd", "is compressed with Zstandard: unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z", "is a 7z archive: unpack it and name the file inside"),
    (257, b"ustar", "tar", "is a tar archive: unpack it and name the file inside"),
    (0, b"\x89HDF\r\n\x1a\n", "hdf5", "is an HDF5 file: convert it to safetensors"),
    (0, b"\x93NUMPY", "numpy", "is a NumPy array: save a state dict instead"),
    (0, b"GGUF", "gguf", "is a GGUF file: give the safetensors or PyTorch weights that it was made from"),
)


def unreadable(path: Path, problem: str, kind: str) -> UsageError:
    """The error for a file that holds no weights that can be read; ``kind`` says what it is."""
    return UsageError(f"{path.name}: {problem}", code="weights.unreadable", file=path.name, kind=kind)


def refuse_special(path: Path) -> None:
    """UsageError for a pipe or a device, whose reading might never end."""
    if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113 - pathlib's raise for long names
        raise unreadable(path, "is a folder, a pipe or a device: give a regular file", "special")


def printable(text: object, limit: int = 80) -> str:
    """Text from a file for a message: cut, and without control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in str(text)[:limit])


def format_of(path: Path) -> Format:
    """Tell the format of a file by its content.

    Raises:
        UsageError: no regular file, or it holds no weights; says what it is and what to do.
    """
    refuse_special(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", code="io.read", path=str(path)) from None
    if not head:
        raise unreadable(path, "is empty: download or copy it again", "empty")
    for offset, magic, kind, problem in _FOREIGN:
        if head.startswith(magic, offset):
            raise unreadable(path, problem, kind)
    length = struct.unpack("<Q", head[:8])[0] if len(head) > 8 else 0
    if head[8:9] == b"{" and 2 <= length <= _LONGEST_HEADER:
        if 8 + length > size:
            raise _cut(path)
        return "safetensors"
    if head.startswith(b"PK"):
        return _format_of_zip(path)
    _refuse_text(path, head)
    if head[:1] != b"\x80":
        problem = "has no format that is known here: give safetensors or a state dict that torch.save wrote"
        raise unreadable(path, problem, "unknown")
    return "pickle"


def _cut(path: Path) -> UsageError:
    return unreadable(path, "is cut short, as by a download that broke off: download or copy it again", "cut")


def _format_of_zip(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        raise _cut(path) from None
    if any("/code/" in name for name in names):
        return "torchscript"
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return "pickle"
    what = "a NumPy archive" if any(name.endswith(".npy") for name in names) else "a zip archive of something else"
    raise unreadable(path, f"is {what}: give safetensors or a state dict that torch.save wrote", "zip")


def _refuse_text(path: Path, head: bytes) -> None:
    """UsageError if the file is text, which weights never are."""
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # not a character that the end of the head cut in two
            return
        text = head[: error.start].decode("utf-8-sig")
    if any(not character.isprintable() and not character.isspace() for character in text):
        return
    start = text.lstrip()[:1]
    if start == "<":
        raise unreadable(path, "is a web page, perhaps of a login or an error: download the file itself", "html")
    if start in ("{", "["):
        raise unreadable(path, "is JSON text, perhaps an error of a server or a config: give the weights file", "json")
    raise unreadable(path, "is plain text, not weights: give the weights file", "text")


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata in the header of a safetensors file; none in another format.

    Raises:
        UsageError: as ``format_of``, or a damaged header.
    """
    if format_of(path) != "safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as handle:
            return dict(handle.metadata() or {})
    except SafetensorError as error:
        raise _damaged_safetensors(path, error) from None


def _damaged_safetensors(path: Path, error: SafetensorError) -> UsageError:
    if "incomplete" in str(error).lower():  # fewer bytes than the header declares
        return _cut(path)
    problem = f"is a damaged safetensors file ({printable(error)}): download or copy it again"
    return unreadable(path, problem, "safetensors")


def read_content(path: Path, sha256: str | None = None) -> Any:
    """What a weights file holds: a dict of tensors, or the nested dicts of a training script.

    Args:
        path: the file.
        sha256: of its content, where it is known already.

    Raises:
        UsageError: as ``format_of``, damaged, or holds code.
    """
    kind = format_of(path)
    if kind == "safetensors":
        try:
            with safe_open(path, framework="pt") as handle:
                return {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise _damaged_safetensors(path, error) from None
    if kind == "torchscript":
        return _published_archive(path, sha256)
    return _unpickled(path)


def _published_archive(path: Path, sha256: str | None) -> dict[str, Any]:
    if (sha256 or file_sha256(path)) not in OPENAI_ARCHIVES:
        problem = (
            "is a TorchScript archive, which can run code, and not one that OpenAI published (SHA-256): ask its author "
            "for the plain state dict"
        )
        raise unreadable(path, problem, "torchscript")
    state: dict[str, Any] = torch.jit.load(str(path), map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    return state


class _Inert:
    """Takes the place of an object of a training script: keeps nothing and does nothing."""

    def __new__(cls, *_arguments: Any, **_keywords: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_arguments: Any, **_keywords: Any) -> None:
        """Ignore what the original would be made of."""

    def __setstate__(self, _state: Any) -> None:
        """Ignore the original's content."""


def _inert(global_name: str) -> type[_Inert]:
    module, _, name = global_name.rpartition(".")
    return type(name, (_Inert,), {"__module__": module})


_STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [_inert(name) for name in HARMLESS]


def _unpickled(path: Path) -> Any:
    """The content of a pickle, read by torch's restricted unpickler, which looks up no name outside its list."""
    try:
        # A file object, because torch itself takes some suffixes for formats.
        with path.open("rb") as file, torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickle protocols and the time that checks take
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - a hostile or broken pickle can raise anything
        raise _refused_pickle(path, str(error)) from None


def _refused_pickle(path: Path, reason: str) -> UsageError:
    """The error for a pickle: names what was met, and repeats nothing of torch's advice."""
    met = re.search(r"(?:GLOBAL|global) ([A-Za-z_][\w.]{0,80})", reason)
    if met is None:
        problem = "cannot be read as a PyTorch checkpoint: it is damaged, or was not written by torch.save"
        return unreadable(path, problem, "damaged")
    problem = (
        f"holds {met[1]}, which only running code could restore, and nothing here runs code of a file: save the "
        "tensors alone, with the code that made it: torch.save(model.state_dict(), FILE), or safetensors"
    )
    return unreadable(path, problem, "code")


def read_json(path: Path, limit: int) -> Any:
    """The content of a JSON file of at most ``limit`` bytes.

    Raises:
        ValueError: no regular file, too long, or no JSON.
        OSError: cannot be read.
    """
    if not path.is_file():  # a pipe might never end
        raise ValueError("no regular file")
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError("too long")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
