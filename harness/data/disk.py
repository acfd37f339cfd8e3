"""Free disk space, checked before a large file is written."""

from __future__ import annotations

import shutil
from pathlib import Path

from tvrbench.harness.core.errors import UsageError

RESERVE = 256 * 2**20  # bytes of the disk that stay free


def check_space(folder: Path, needed: int, purpose: str, remedy: str = "free some space") -> None:
    """Raise UsageError if the disk of ``folder``, which may not exist yet, lacks ``needed`` bytes and a reserve."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if needed + RESERVE > free:
        sizes = f"{needed / 2**30:.2f} GiB in {folder}, where {free / 2**30:.2f} GiB are free"
        message = f"{purpose} needs {sizes}; {remedy}"
        raise UsageError(message, code="disk.full", folder=str(folder), needed=needed, free=free)
