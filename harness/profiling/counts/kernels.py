"""Kernels that a GPU would be asked to launch, and the times that the host would wait for it, counted without one.

Every tensor is a fake one on ``cuda:0``: it has a shape and no values. A product of a CPU and a CUDA tensor raises as
it would there. What is counted are operators of torch that launch at least one kernel; sorting, padding and attention
with a mask launch several and count as one. A wait is what keeps the host until the GPU is done: a value that is read,
a size that depends on values, a copy between CPU and GPU that is not asynchronous.
"""

from __future__ import annotations

import copy
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DispatchKey
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.precision import prepare_to_encode
from tvrbench.harness.profiling.counts.formula import text_length

CUDA = torch.device("cuda:0")
BATCH = 4  # items in a batch that is counted; kernels do not depend on it
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}

# Operators that launch nothing though they are no views.
_FREE = {"_local_scalar_dense", "_unsafe_view", "empty", "empty_like", "empty_strided", "is_same_size"}
_FREE |= {"new_empty", "new_empty_strided"}
# Decompositions whose success the host reads, inside of the operator.
_CHECKED = {"_linalg_eigh", "_linalg_svd", "linalg_eig"}


class KernelCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts kernels and waits of what runs inside, and answers where a value is asked of a tensor without values.

    The answers are those of a call that goes well: a flag is set, a number is 1, and nothing is left to look at.

    Args:
        keeps_all: nothing is left out: of a mask that says which tokens stay, every element is True.

    Attributes:
        kernels: by operator.
        waits: by the place in the code that waits and the reason.
    """

    def __init__(self, *, keeps_all: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._keeps_all = keeps_all
        self.kernels: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # a question to the tensor
            return func(*args, **kwargs)
        if (inner := _inner(func)) is not None:
            with self:
                return func._op_dk(inner, *args, **kwargs)
        name = func._schema.name.split("::")[1]
        if name == "_pin_memory":  # which fake tensors cannot be
            return args[0]
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_gpu = any(t.is_cuda for t in given)
        if name == "_local_scalar_dense":
            if on_gpu:
                self._wait("a value is read")
            return {torch.bool: True}.get(given[0].dtype, 1.0 if given[0].is_floating_point() else 1)
        if name == "nonzero":
            if on_gpu:
                self._wait("a size depends on values")
            found = given[0].numel() if self._keeps_all else 0
            return given[0].new_zeros((found, given[0].ndim), dtype=torch.long)
        if name in ("index", "index_put", "index_put_") and given[0].is_cuda:
            if any(t.device.type == "cpu" and t.ndim for t in given[1:]):
                self._wait("an index lies on the CPU")
            if any(t.is_cuda and t.dtype == torch.bool for t in given[1:]):
                self._wait("a mask as index")
        if on_gpu and name == "segment_reduce" and not kwargs.get("unsafe", False):
            self._wait("lengths of segments are checked")
        if on_gpu and name in _CHECKED:
            self._wait("a decomposition is checked")
        out = func(*args, **kwargs)
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if name in ("_to_copy", "copy_"):
            there, here = (made[0], given[0]) if name == "_to_copy" else (given[0], given[1])
            asynchronous = kwargs.get("non_blocking", False) or (name == "copy_" and len(args) > 2 and args[2])
            if there.device.type != here.device.type and not asynchronous:
                self._wait(f"a copy from {here.device.type} to {there.device.type}")
        if name not in _FREE and not func.is_view and (on_gpu or any(t.is_cuda for t in made)):
            self.kernels[name] += 1
        return out

    def _wait(self, why: str) -> None:
        frame = sys._getframe(2)
        while frame.f_back is not None and _passes_through(frame.f_globals.get("__name__", "")):
            frame = frame.f_back
        self.waits[f"{frame.f_globals.get('__name__')}:{frame.f_lineno}: {why}"] += 1


def _passes_through(module: str) -> bool:
    """True for code that is on the way from the place that waits: torch's and this module's."""
    return module == __name__ or module.split(".")[0] == "torch"


@cache
def _inner(func: Any) -> DispatchKey | None:
    """The kernel of an operator that is made of other operators, which are counted in its place."""
    composite, every_device = DispatchKey.CompositeImplicitAutograd, DispatchKey.CompositeExplicitAutograd
    if func.has_kernel_for_dispatch_key(composite):
        return composite
    own = func.namespace not in ("aten", "prims") and not func.has_kernel_for_dispatch_key(DispatchKey.CUDA)
    return every_device if own and func.has_kernel_for_dispatch_key(every_device) else None


class _FusedAttention(TorchFunctionMode):
    """Attention is one kernel, as on a GPU; without one torch takes a path of many."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return fused_attention(*args, **kwargs) if func is F.scaled_dot_product_attention else func(*args, **kwargs)


def fused_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *rest: Any, **options: Any
) -> Tensor:
    """Attention as one kernel, which keeps queries, keys, values and its output for a backward pass."""
    if attn_mask is not None and attn_mask.device != q.device:
        raise RuntimeError(f"attention: queries on {q.device}, their mask on {attn_mask.device}")
    fused = torch.ops.aten._scaled_dot_product_efficient_attention
    causal = bool(options.get("is_causal", rest[1] if len(rest) > 1 else False))
    out: Tensor = fused(q, k, v, attn_mask, torch.is_grad_enabled(), 0.0, causal)[0]
    return out


def missing() -> str | None:
    """Why this torch cannot hold fake CUDA tensors here; None where it can."""
    if torch.cuda.is_available() or hasattr(torch._C, "_ensureCUDADeviceGuardSet"):
        return None
    return f"torch {torch.__version__} asks a driver for the device of fake CUDA tensors, and there is none"


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Make tensors in the block fake ones; those on ``cuda:0`` need no GPU. RuntimeError where torch is too old.

    cuDNN asks the driver, so an LSTM is counted by torch's own kernels, three of a step, of which cuDNN has fewer.
    """
    if (reason := missing()) is not None:
        raise RuntimeError(reason)
    no_cudnn = torch.backends.cudnn.flags(enabled=False)
    with warnings.catch_warnings(), no_cudnn, FakeTensorMode(), _FusedAttention():
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor", UserWarning)  # LoRA's fold
        yield


@contextmanager
def autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """``torch.autocast("cuda", dtype)``, which switches itself off on a machine without a GPU; none for None."""
    if dtype is None:
        yield
        return
    with torch.autocast("cuda", dtype=dtype, enabled=False):  # puts back what the block sets
        torch.set_autocast_enabled("cuda", True)
        yield


def on_fake_cuda(model: RetrievalModel) -> RetrievalModel:
    """A copy whose parameters and buffers are fake ones on ``cuda:0``; for use inside ``fake_cuda``."""

    def empty(t: Tensor) -> Tensor:
        return torch.empty(t.shape, dtype=t.dtype, device=CUDA)

    moved: dict[int, Any] = {id(b): empty(b) for b in model.buffers()}
    moved |= {id(p): nn.Parameter(empty(p), requires_grad=p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, moved)


def kernels_or_reason(model: RetrievalModel) -> dict[str, Any]:
    """``count_kernels``, or {``reason``} where it cannot be counted."""
    try:
        return count_kernels(model)
    except (RuntimeError, TypeError) as error:
        return {"reason": str(error).partition("\n")[0] or type(error).__name__}


def count_kernels(model: RetrievalModel) -> dict[str, Any]:
    """Kernels and host waits of encoding one batch of videos and one of captions in eval mode, LoRA folded.

    Returns:
        ``video`` and ``text``: {``float32``, ``bfloat16`` (autocast, weights cast before)} -> kernels;
        ``waits``: {``video``, ``text``} -> times that the host waits, in the precision in which it waits more often.
        Zeros for a method that encodes nothing on a GPU.

    Raises:
        RuntimeError, TypeError: the method does what fake tensors cannot do, such as reading values through NumPy.
    """
    zeros = dict.fromkeys(PRECISIONS, 0)
    found: dict[str, dict[str, Any]] = {"video": zeros, "text": zeros.copy(), "waits": {"video": 0, "text": 0}}
    if not model.spec.card.encodes:
        return found
    with fake_cuda(), torch.no_grad():
        twin, keeps_all = on_fake_cuda(model).eval(), model.reducer.depends_on_content
        for precision, dtype in PRECISIONS.items():
            if dtype is not None:
                prepare_to_encode(twin, dtype)  # as encoders are timed
            for what, encode in encodings(twin).items():
                with autocast(dtype):
                    with KernelCounter(keeps_all=keeps_all):
                        encode()  # folds LoRA
                    with KernelCounter(keeps_all=keeps_all) as counter:
                        encode()
                found[what][precision] = counter.kernels.total()
                found["waits"][what] = max(found["waits"][what], counter.waits.total())
    return found


def encodings(model: RetrievalModel) -> dict[str, Callable[[], object]]:
    """Encoding a batch of videos, and one of captions, by a model on the fake GPU."""
    arch, length = model.clip.arch, text_length(model.clip)
    frames = torch.empty(BATCH, model.frames, 3, arch.image_size, arch.image_size, device=CUDA)
    ids = torch.zeros(BATCH, length, dtype=torch.long, device=CUDA)
    video_mask, text_mask = (torch.ones(t.shape[:2], dtype=torch.bool, device=CUDA) for t in (frames, ids))
    return {
        "video": lambda: model.video_tensors(frames, video_mask),
        "text": lambda: model.text_tensors(ids, text_mask),
    }
