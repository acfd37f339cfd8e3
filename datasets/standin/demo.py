"""Some of the stand-in's clips as loose files, for a first search."""

from __future__ import annotations

from pathlib import Path

from tvrbench.datasets.standin.generate import DEFAULT, check_encoder, clips, encode
from tvrbench.datasets.standin.render import render
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_path


def write_demo(folder: Path, count: int = 60) -> int:
    """Write some clips of the test split, named by their captions, to look at and to search; returns their number.

    Raises:
        UsageError: the folder holds anything else, or cannot be written.
    """
    chosen = [clip for clip in clips(DEFAULT) if clip.split == "test" and not clip.order_only][:count]
    names = {f"{clip.caption}.mp4": clip for clip in chosen}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(path.name not in names and path.name[0] != "." for path in folder.iterdir()):
            message = f"{folder} holds other files; give an empty or new folder"
            raise UsageError(message, code="standin.foreign-folder", root=str(folder))
        check_encoder()
        for name, clip in names.items():
            if not (folder / name).exists():
                with atomic_path(folder / name) as draft:
                    encode(draft, render(clip.scene), DEFAULT.quantizer)
    except OSError as error:
        message = f"cannot write clips to {folder} ({error.strerror or error}); give another folder"
        raise UsageError(message, code="io.write", path=str(folder)) from error
    return len(names)
