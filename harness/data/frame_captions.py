"""Captions of single frames, which some methods train on beside the caption of the video: read from an untrusted file.

The layout is that of DiscoVLA's released code: one JSON object. A key is a video's id, an underscore and one of the
video's captions; its value lists one caption per frame, in order.
"""

from __future__ import annotations

import hashlib
import json
import stat
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.text import printable
from tvrbench.harness.data.types import Split
from tvrbench.harness.records.record import FrameCaptionsRef

# 180,000 pairs of MSR-VTT with 12 captions each take about 150 MB. What a file holds may take 26 times its size.
MAX_BYTES = 2**28
_MAX_CAPTION = 10_000
_SHOWN = 120  # characters of a key in a message


@dataclass(frozen=True, kw_only=True)
class FrameCaptions:
    """One caption of every frame, for (video, caption) pairs.

    Attributes:
        file: its name, without its folder, printable.
        sha256: of its content.
        texts: every different caption.
        by_pair: for the key of a pair, the places in ``texts`` of its frames' captions.
    """

    file: str
    sha256: str
    texts: Sequence[str]
    by_pair: Mapping[str, Sequence[int]]

    def rows(self, split: Split, frames: int) -> list[Sequence[int]]:
        """For every caption of a split the places in ``texts`` of its ``frames`` frame captions.

        Raises:
            UsageError: a pair has none, or another number of them; names the first one.
        """
        rows = []
        for caption, video in zip(split.captions, split.caption_video, strict=True):
            key = f"{split.video_ids[video]}_{caption}"
            row = self.by_pair.get(key)
            if row is None:
                raise UsageError(
                    f"frame captions {self.file}: no entry {key[:_SHOWN]!r}, a training pair of {split.name}: give a "
                    "file with an entry for every training pair",
                    code="frame-captions.missing",
                    pair=key,
                )
            if len(row) != frames:
                raise UsageError(
                    f"frame captions {self.file}: the entry {key[:_SHOWN]!r} has {len(row)} captions, and the protocol "
                    f"has {frames} frames: give one caption per frame",
                    code="frame-captions.count",
                    pair=key,
                    captions=len(row),
                    frames=frames,
                )
            rows.append(row)
        return rows

    def to_json(self) -> FrameCaptionsRef:
        """Its entry in a record; no folder of this machine."""
        return FrameCaptionsRef(file=self.file, sha256=self.sha256)


def read_frame_captions(path: Path) -> FrameCaptions:
    """Read a file of frame captions.

    Raises:
        UsageError: it cannot be read, is too large, is no such JSON, or holds something that is no caption.
    """
    content = _content(path)
    try:
        document = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"is not valid JSON ({error or 'nested too deeply'})")
    if not isinstance(document, dict):
        _refuse(path, "holds no JSON object")
    places: dict[str, int] = {}
    by_pair = {}
    for key, captions in document.items():
        where = f"entry {key[:_SHOWN]!r}"
        if not isinstance(captions, list) or not captions:
            _refuse(path, f"{where} is not a list of captions")
        for text in captions:
            if not _is_caption(text):
                _refuse(path, f"{where} holds {text!r:.60}, which is no caption of 1 to {_MAX_CAPTION:,} characters")
        by_pair[key] = array("l", [places.setdefault(text, len(places)) for text in captions])
    return FrameCaptions(
        file=printable(path.name), sha256=hashlib.sha256(content).hexdigest(), texts=tuple(places), by_pair=by_pair
    )


def _is_caption(text: object) -> bool:
    """True for text with something in it, not too long, and without halves of characters, which JSON can hold."""
    if not isinstance(text, str) or not text.strip() or len(text) > _MAX_CAPTION:
        return False
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _content(path: Path) -> bytes:
    content = None
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # a pipe would wait for a writer, without a word
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # the second for a name with a null byte
        cause = getattr(error, "strerror", None) or error
        name = printable(path.name)
        message = f"frame captions {name}: cannot be read ({cause}): give a file that can be"
        raise UsageError(message, code="frame-captions.read", file=name) from None
    if content is None:
        _refuse(path, "is no regular file")
    if len(content) > MAX_BYTES:
        _refuse(path, f"is larger than {MAX_BYTES // 2**20:,} MiB")
    return content


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """An object whose keys are all different: of two values Python's reader would lose the first."""
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r:.60} is repeated")
        found[key] = value
    return found


def _refuse(path: Path, problem: str) -> NoReturn:
    remedy = 'give one JSON object like {"video0_a cat runs": ["a cat", ...]}, with one caption per frame'
    name = printable(path.name)
    raise UsageError(f"frame captions {name}: {problem}: {remedy}", code="frame-captions.malformed", file=name)
