"""What operators on fake CUDA tensors would launch, and where the host would wait; fakes have no values."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LAUNCH_NOTHING = set(
    """_unsafe_view alias as_strided detach empty empty_like expand new_empty permute select slice split
    split_with_sizes squeeze t transpose unbind unsqueeze view""".split()  # noqa: SIM905
)


class Launches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts kernels by operator, and copies between the CPU and a GPU that the host waits for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: Counter[str] = Counter()
        self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name.split("::")[1]
        out = func(*args, **kwargs)
        if func.namespace == "prim":  # a question to the tensor
            return out
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        if name == "_local_scalar_dense" or (len(devices) > 1 and not kwargs.get("non_blocking", False)):
            self.waits += 1
        if name not in LAUNCH_NOTHING and "cuda" in devices:
            self.kernels[name] += 1
        return out


def on_gpu(*shape: int) -> Tensor:
    """A fake CUDA tensor, inside ``FakeTensorMode``."""
    return torch.empty(shape, device="cuda:0")
