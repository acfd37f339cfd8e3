"""Detects truncated video files by the sizes that MP4, AVI and Matroska (WebM) containers state.

This tells an interrupted download from a file that never was a video, without a guess from durations.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_EBML_HEADER = bytes.fromhex("1a45dfa3")
_EBML_SEGMENT = bytes.fromhex("18538067")


def ends_early(path: Path) -> bool:
    """True for an MP4, AVI or Matroska file shorter than it states, and for an MP4 without its index."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[4:8] == b"ftyp":
            return _mp4_ends_early(file, size)
        if head[:4] == b"RIFF":
            # Odd chunks are padded to even length, and some writers count that last byte but do not write it.
            return int.from_bytes(head[4:8], "little") + 8 > size + 1
        if head[:4] == _EBML_HEADER:
            return _matroska_ends_early(file, size)
    return False


def _mp4_ends_early(file: BinaryIO, size: int) -> bool:
    """Walk the top-level boxes (ISO/IEC 14496-12, 4.2): each must end inside the file, and one must be ``moov``."""
    at, indexed = 0, False
    while at + 8 <= size:
        file.seek(at)
        header = file.read(16)
        length, header_length = int.from_bytes(header[:4], "big"), 8
        if length == 1:  # a 64-bit length follows the name
            length, header_length = int.from_bytes(header[8:16], "big"), 16
        elif length == 0:  # the box runs to the end of the file
            length = size - at
        if length < header_length:
            return False  # damaged, not truncated
        indexed = indexed or header[4:8] == b"moov"
        at += length
    return at > size or not indexed


def _matroska_ends_early(file: BinaryIO, size: int) -> bool:
    """Compare with the length of the segment after the header (RFC 8794, section 4); a stream states none."""
    file.seek(len(_EBML_HEADER))
    header_length = _ebml_length(file)
    if header_length is None:
        return False
    file.seek(header_length, os.SEEK_CUR)
    if file.read(4) != _EBML_SEGMENT:
        return file.tell() >= size
    length = _ebml_length(file)
    return length is not None and file.tell() + length > size


def _ebml_length(file: BinaryIO) -> int | None:
    """Read a variable-length integer; leading zeros of the first byte count further bytes, all ones mean unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    extra = 8 - first[0].bit_length()
    value = int.from_bytes(first + file.read(extra), "big") & ((1 << 7 * (extra + 1)) - 1)
    return None if value == (1 << 7 * (extra + 1)) - 1 else value
