"""The decoders by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import cast

import PIL

from tvrbench.datasets.decoders import pyav
from tvrbench.datasets.decoders.base import Decoder, Pick, T, naming
from tvrbench.datasets.decoding import scan
from tvrbench.datasets.pictures import RGB
from tvrbench.harness.core.errors import UsageError

DECODERS: Mapping[str, str] = MappingProxyType(
    {"pyav": "tvrbench.datasets.decoders.pyav", "torchcodec": "tvrbench.datasets.decoders.torchcodec"}
)


def read_picked(decoder: str, path: Path, pick: Pick, use: Callable[[RGB], T]) -> tuple[list[int], list[T]]:
    """Pick frames of a video; return their numbers, and the result of ``use`` for each, in the order picked.

    Raises:
        VideoError: the file cannot be decoded up to the last frame picked.
        UsageError: an unknown or unavailable decoder, or a pick that does not fit the video.
    """
    return _decoder(decoder).read(path, scan(path), naming(path, pick), use)


def versions(decoder: str) -> dict[str, str]:
    """Return the versions of the libraries that decide the pixels: PyAV, which checks every file, the decoder, Pillow.

    Raises:
        UsageError: an unknown or unavailable decoder.
    """
    return {"pillow": PIL.__version__} | pyav.versions() | _decoder(decoder).versions()


def _decoder(name: str) -> Decoder:
    if name not in DECODERS:
        raise UsageError(
            f"there is no decoder {name!r}; choose one of {', '.join(DECODERS)}", code="decoder.unknown", decoder=name
        )
    return cast(Decoder, import_module(DECODERS[name]))
