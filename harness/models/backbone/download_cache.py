"""What open_clip has downloaded before, found without asking a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import try_to_load_from_cache

_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # of a hub entry that names no file


def in_cache(config: Mapping[str, Any]) -> bool:
    """True if the file of a pretrained tag is in the cache that open_clip's download looks in.

    Args:
        config: of the tag, from ``open_clip.get_pretrained_cfg``. Its hub entry is ``OWNER/REPOSITORY/FILE`` and comes
            before its URL.
    """
    if hub := config.get("hf_hub"):
        repository, _, file = hub.rpartition("/")
        names = (PurePosixPath(file).with_suffix(".safetensors").name, file) if file else _WEIGHTS
        return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)
    return Path("~/.cache/clip", str(config["url"]).rpartition("/")[2]).expanduser().is_file()
