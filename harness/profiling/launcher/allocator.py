"""The environment of a measuring process: it keeps the memory that it frees.

glibc returns large blocks to the system and fetches them again at the next call, page by page, or keeps them, depending
on what happens to be on top of its heap. On two cores the same ViT-B/16 encoder took 1.38 or 1.64 s per video for that
reason alone (1.4 million page faults), which made a method measured against it 1.60x or 1.88x faster. Measuring
processes therefore keep what they free, as PyTorch's allocator on a GPU does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

# glibc reads these when a process starts; other C libraries ignore them.
KEEPING: Mapping[str, str] = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


def measuring_environment() -> dict[str, str]:
    """The environment of a measuring process; variables that the user has set are kept."""
    # Threads that wait by spinning take the cores of other processes; OpenMP reads this before torch is loaded.
    return {"OMP_WAIT_POLICY": "PASSIVE", **KEEPING, **os.environ}


def in_measuring_environment() -> bool:
    """True where this process was started with ``measuring_environment``, whatever values the user chose."""
    return KEEPING.keys() <= os.environ.keys()


def keeps_freed_memory() -> bool:
    """True where this process keeps the memory that it frees."""
    return all(os.environ.get(name) == value for name, value in KEEPING.items())


def restart_measuring() -> None:
    """Restart this program in a measuring environment, unless it already runs in one."""
    if not in_measuring_environment():
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], measuring_environment())
