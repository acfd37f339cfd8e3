"""What counts as running out of memory, and what gives memory back."""

from __future__ import annotations

import errno
import gc
import weakref

import pytest
import torch
from torch import distributed as dist

from tvrbench.harness.core.memory import is_out_of_memory, names_out_of_memory, release_memory

pytestmark = pytest.mark.unit

# As torch, the CUDA libraries and NCCL word them.
MESSAGES = [
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.5 GiB",
    "CUDA driver error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "cuDNN Frontend error: [cudnn_frontend] Error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDA error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
    "std::bad_alloc",
]
NCCL = (
    "NCCL error in: ProcessGroupNCCL.cpp:3356, unhandled cuda error, NCCL version 2.27.3\n"
    "ncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure 2 'out of memory'"
)
OTHERS = [
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    "mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)",
]


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        *map(RuntimeError, MESSAGES),
        dist.DistBackendError(NCCL),
        torch.OutOfMemoryError("no more"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        chained(RuntimeError("the step failed"), chained(ValueError("x"), MemoryError())),
    ],
    ids=lambda error: f"{type(error).__name__}-{str(error)[:40]}",
)
def test_running_out_of_memory_is_known_by_class_and_by_message(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="this torch has no class for errors of a device")
def test_a_device_s_own_error_counts() -> None:
    assert is_out_of_memory(torch.AcceleratorError(MESSAGES[0]))
    assert not is_out_of_memory(torch.AcceleratorError(OTHERS[0]))


@pytest.mark.parametrize(
    "error",
    [
        *map(RuntimeError, OTHERS),
        ValueError(MESSAGES[0]),  # a message of ours that quotes one
        KeyError("out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
)
def test_other_errors_do_not_count(error: Exception) -> None:
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("text", [*MESSAGES, NCCL, "torch.OutOfMemoryError: x", "MemoryError"])
def test_the_last_lines_of_a_process_tell_too(text: str) -> None:
    assert names_out_of_memory(f"the measurement ended with code 1:\n{text}\nwarning: 3 objects leaked")
    assert not any(map(names_out_of_memory, OTHERS))


class Cycle:
    def __init__(self) -> None:
        self.own = self


@pytest.mark.parametrize("initialized", [True, False])
def test_cycles_are_collected_before_the_cache_is_given_back(
    initialized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, dead = Cycle(), list[bool]()
    gone = weakref.ref(held)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialized)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: dead.append(gone() is None))
    gc.disable()
    try:
        del held
        release_memory()
    finally:
        gc.enable()
    assert gone() is None
    assert dead == [True] * initialized  # a process that never used CUDA is given no context
