"""Whether a video file is as long as its own structure states, read from its bytes without a demuxer.

This tells an interrupted download from a file that never was a video, and from one with a wrong duration in its header.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

_EBML_HEADER = bytes.fromhex("1a45dfa3")
_EBML_SEGMENT = bytes.fromhex("18538067")


def is_whole(path: Path) -> bool | None:
    """Return False for an MP4, AVI or Matroska file that ends before it should; None where its bytes do not tell.

    Raises:
        OSError: the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[4:8] == b"ftyp":
            return _mp4_is_whole(file, size)
        if head[:4] == b"RIFF":
            return _avi_is_whole(file, size)
        if head[:4] == _EBML_HEADER:
            return _matroska_is_whole(file, size)
    return None


def _mp4_is_whole(file: BinaryIO, size: int) -> bool | None:
    """Walk the top-level boxes (ISO/IEC 14496-12, 4.2): each must end inside the file, and one must be ``moov``.

    Fragments may be followed by more of them, so that only the closing index ``mfra`` tells the last one.
    """
    at, names = 0, set[bytes]()
    while at + 8 <= size:
        file.seek(at)
        header = file.read(16)
        length, header_length = int.from_bytes(header[:4], "big"), 8
        if length == 1:  # a 64-bit length follows the name
            length, header_length = int.from_bytes(header[8:16], "big"), 16
        elif length == 0:  # the box runs to the end of the file
            length = size - at
        if length < header_length:
            return None  # damaged, not truncated
        names.add(header[4:8])
        at += length
    if at > size or b"moov" not in names:
        return False
    return None if b"moof" in names and b"mfra" not in names else True


def _avi_is_whole(file: BinaryIO, size: int) -> bool | None:
    """Walk the RIFF chunks; a file over a GiB has several. A writer that did not finish leaves a length of 0."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        header = file.read(8)
        length = int.from_bytes(header[4:], "little")
        if header[:4] != b"RIFF" or length == 0:
            return None
        at += 8 + length + length % 2
    # Odd chunks are padded to even length, and some writers count that last byte but do not write it.
    return at <= size + 1


def _matroska_is_whole(file: BinaryIO, size: int) -> bool | None:
    """Compare with the length of the segment after the header (RFC 8794, section 4); a stream states none."""
    file.seek(len(_EBML_HEADER))
    header_length = _ebml_length(file)
    if header_length is None:
        return None
    file.seek(header_length, os.SEEK_CUR)
    if file.read(4) != _EBML_SEGMENT:
        return False if file.tell() >= size else None
    length = _ebml_length(file)
    return None if length is None else file.tell() + length <= size


def _ebml_length(file: BinaryIO) -> int | None:
    """Read a variable-length integer; leading zeros of the first byte count further bytes, all ones mean unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    extra = 8 - first[0].bit_length()
    value = int.from_bytes(first + file.read(extra), "big") & ((1 << 7 * (extra + 1)) - 1)
    return None if value == (1 << 7 * (extra + 1)) - 1 else value
