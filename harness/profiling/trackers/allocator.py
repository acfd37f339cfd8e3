"""What the C library does with memory that a call frees, which a CPU measurement must not be at the mercy of.

glibc hands large blocks back to the system and fetches them again at the next call, page by page, or does not,
depending on what happened to lie on top of its heap. On two cores the same ViT-B/16 encoder took 1.38 or 1.64 s a video
for that reason alone (1.4 million page faults), which made a method measured against it 1.60x or 1.88x faster.
Measuring processes therefore keep what they free, as PyTorch's allocator on a GPU does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

# Read by glibc when a process starts; other C libraries ignore them.
KEEPING: Mapping[str, str] = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


def measuring_environment() -> dict[str, str]:
    """The environment of a measuring process; what the user has set stays."""
    # Threads that wait by spinning take the cores of whatever else runs; it is read before torch is loaded.
    return {"OMP_WAIT_POLICY": "PASSIVE", **KEEPING, **os.environ}


def keeps_freed_memory() -> bool:
    """Whether this process was started so."""
    return all(os.environ.get(name) == value for name, value in KEEPING.items())


def restart_measuring() -> None:
    """Begin this program anew in the environment of a measuring process, unless it is in one already."""
    if any(name not in os.environ for name in KEEPING):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], measuring_environment())
