"""How the weights of a run were read: activation, normalization of frames, tokenizer of captions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvrbench.harness.core import registry

USUAL_ACTIVATION = "quick_gelu"
USUAL_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of red, green and blue, of pixels from 0 to 1
USUAL_STD = (0.26862954, 0.26130258, 0.27577711)
USUAL_TOKENIZER = "CLIP's byte pairs"
USUAL_READING: Mapping[str, Any] = {
    "activation": USUAL_ACTIVATION,
    "mean": list(USUAL_MEAN),
    "std": list(USUAL_STD),
    "tokenizer": USUAL_TOKENIZER,
}
"""Of OpenAI's weights, and of runs before records named it."""


def unusual_reading(record: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``USUAL_READING`` a run on these weights has otherwise, by name.

    The word list of a data set that ships its own weights is left out: with any other one but a checkpoint's, the
    protocol has another hash.
    """
    section = record.get("weights") or {}
    found = {key: section[key] for key, usual in USUAL_READING.items() if section.get(key) not in (None, usual)}
    if "tokenizer" in found and record.get("checkpoint") is None and _ships_weights(record["data"]["dataset"]):
        del found["tokenizer"]
    return found


def _ships_weights(dataset: str) -> bool:
    known = dataset in registry.table("datasets")
    return known and getattr(registry.lookup(dataset, "datasets"), "weights_path", None) is not None
