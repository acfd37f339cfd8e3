"""Known files of CLIP weights: OpenAI's by SHA-256, which the papers start from, and those that data sets ship."""

from __future__ import annotations

import os
from pathlib import Path

from tvrbench.harness.core import registry

OPENAI_ARCHIVES = {
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "ViT-B-32",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "ViT-B-16",
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": "ViT-L-14",
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02": "ViT-L-14-336",
}
"""OpenAI's own TorchScript archives, and their backbones."""

OPENAI_WEIGHTS = OPENAI_ARCHIVES | {
    # open_clip_model.safetensors of timm/vit_base_patch32_clip_224.openai and patch16: what the tag openai fetches
    "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31": "ViT-B-32",
    "4b8699299b1e8997753c64b052ba32031449d5d853f55a039148560ee02b820f": "ViT-B-16",
    # pytorch_model.bin of openai/clip-vit-base-patch32
    "a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f": "ViT-B-32",
}
"""Every file known to hold them, and its backbone."""


def shipped_weights(name: str) -> Path | None:
    """The weights that the data set of this name ships; None where it ships none, or there is no such data set."""
    path: Path | None = registry.declared(name, "weights_path")
    return path


def weights_on_disk(text: str) -> Path | None:
    """The file or folder that a text names, by its path or as a data set that ships weights; None if there is none."""
    path = shipped_weights(text) or Path(os.path.expanduser(text))  # noqa: PTH111 - pathlib's raises for unknown users
    return path if os.path.exists(path) else None  # noqa: PTH110 - pathlib's raises for a long name
