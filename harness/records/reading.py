"""How the weights of a run were read (activation, normalization, tokenizer), and the captions of frames it took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvrbench.harness.core import registry

USUAL_ACTIVATION = "quick_gelu"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of red, green and blue, of pixels from 0 to 1
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
USUAL_TOKENIZER = "CLIP's byte pairs"
USUAL_READING: Mapping[str, Any] = {
    "activation": USUAL_ACTIVATION,
    "mean": list(CLIP_MEAN),
    "std": list(CLIP_STD),
    "tokenizer": USUAL_TOKENIZER,
}
"""Of OpenAI's weights, and of runs before records named it."""


def frame_captions_of(record: Mapping[str, Any]) -> str | None:
    """The captions of frames that a run trained on, by the SHA-256 of their file; None without."""
    found = record["data"].get("frame_captions")
    return None if found is None else str(found["sha256"])


def unusual_reading(record: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``USUAL_READING`` a run on these weights has otherwise, by name.

    The word list of a data set that ships its own weights is left out: with any other one but a checkpoint's, the
    protocol has another hash.
    """
    section = record.get("weights") or {}
    found = {key: section[key] for key, usual in USUAL_READING.items() if section.get(key) not in (None, usual)}
    ships_weights = registry.declared(record["data"]["dataset"], "weights_path") is not None
    if "tokenizer" in found and record.get("checkpoint") is None and ships_weights:
        del found["tokenizer"]
    return found
