"""Memory of a device: what counts as running out of it, and giving back what is no longer used."""

from __future__ import annotations

import errno
import gc
import re
from collections.abc import Iterator

import torch

# Errors for which torch has no class: the CPU's allocator, the driver, cuBLAS, cuDNN and NCCL ran out of memory.
_OUT_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator: can't allocate memory|not enough memory|std::bad_alloc"
    r"|CUDA out of memory|CUDA error: out of memory|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation"
    r"|CUDA driver error: out of memory|Cuda failure (?:\d+ )?'?out of memory"
    r"|CU(?:BLAS|BLASLT|DNN|SPARSE|SOLVER|FFT)_[A-Z_]*ALLOC(?:ATION)?_FAILED|cuDNN error:.*ALLOC_FAILED"
)
_CLASSES = re.compile(r"\b(?:OutOfMemoryError|MemoryError)\b")


def is_out_of_memory(error: BaseException) -> bool:
    """True if an error, or one that it was raised from, means that a device or the machine has no memory left."""
    return any(_is_out_of_memory(each) for each in _with_causes(error))


def names_out_of_memory(text: str) -> bool:
    """True if a text, for example the last lines of a process that died, names an error of this kind."""
    return _CLASSES.search(text) is not None or _OUT_OF_MEMORY.search(text) is not None


def release_memory() -> None:
    """Give memory that nothing uses any more back to the device, for other processes on it.

    PyTorch's allocator keeps what was freed for this process, and a cycle of references keeps tensors until the garbage
    collector finds it. On a CPU only the second is done.
    """
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | OSError) and _OUT_OF_MEMORY.search(str(error)) is not None


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    each: BaseException | None = error
    while each is not None:
        yield each
        each = each.__cause__
