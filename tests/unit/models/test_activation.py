"""QuickGELU: the plain formula's values and gradients, for less memory and fewer kernels."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tvrbench.harness.models.backbone import blocks
from tvrbench.harness.models.backbone.blocks import MLP, QuickGELU

pytestmark = pytest.mark.unit
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
EXTREMES = (0.0, -0.0, 1e-30, -1e-30, 30.0, -30.0, 1e4, -1e4)


def plain(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def values(dtype: torch.dtype) -> Tensor:
    noise = 4 * torch.randn(40, 33, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.cat([noise.flatten(), torch.tensor(EXTREMES, dtype=torch.float64)]).to(dtype)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute on the CPU what a GPU would be asked for."""
    monkeypatch.setattr(blocks, "_keeps_bits", lambda _: False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_on_a_cpu_every_bit_is_that_of_the_formula(dtype: torch.dtype) -> None:
    x, y = (values(dtype).requires_grad_() for _ in range(2))
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours, formula = QuickGELU()(x), plain(y)
    ours.backward(gradient)
    formula.backward(gradient)
    assert torch.equal(ours, formula)
    assert x.grad is not None
    assert y.grad is not None
    assert torch.equal(x.grad, y.grad)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_kernel_is_as_close_to_the_formula_as_three(dtype: torch.dtype) -> None:
    x = values(dtype)
    one, exact = QuickGELU()(x), plain(x.double())
    info = torch.finfo(dtype)
    allowed = 4 * info.eps * (1 + 1.702 * x.double().abs()) * exact.abs() + info.tiny
    assert one.dtype == dtype
    assert ((one.double() - exact).abs() <= allowed).all()
    worst, of_three = ((found.double() - exact).abs().mean() for found in (one, plain(x)))
    assert worst <= 1.5 * of_three + 4 * info.eps * exact.abs().mean()


def test_gradients_in_double_precision() -> None:
    x = torch.linspace(-6, 6, 25, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(QuickGELU(), x)
    assert torch.autograd.gradgradcheck(QuickGELU(), x)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_gradients_as_on_a_gpu() -> None:
    x = torch.linspace(-60, 60, 241, dtype=torch.float64, requires_grad=True)
    found, expected = (torch.autograd.grad(f(x).sum(), x)[0] for f in (QuickGELU(), plain))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    y = torch.linspace(-6, 6, 25, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(QuickGELU(), y)
    assert torch.autograd.gradgradcheck(QuickGELU(), y)  # a method may penalize gradients


class _Kernels(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_elsewhere_it_is_one_kernel(device: str) -> None:
    with FakeTensorMode(), _Kernels() as kernels, torch.no_grad():
        x = torch.empty(2, 3, device=device)
        kernels.seen.clear()
        out = QuickGELU()(x)
    assert dict(kernels.seen) == {"aten::softplus_backward": 1}
    assert (out.shape, out.device) == (x.shape, x.device)


@pytest.mark.parametrize(("trainable", "most"), [(False, 1), (True, 2)])
def test_training_keeps_the_input_alone(trainable: bool, most: int) -> None:
    """Where the second layer learns, its own input is kept too."""
    mlp, x = MLP(64, "quick_gelu").requires_grad_(trainable), torch.randn(10, 64, requires_grad=True)
    sizes: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.shape == (10, 256):
            sizes[t.data_ptr()] = t.nbytes
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        mlp(x).sum().backward()
    assert len(sizes) <= most


def test_inference_mode_autocast_and_a_graph() -> None:
    mlp: nn.Module = MLP(64, "quick_gelu")
    x = torch.randn(5, 64)
    with torch.inference_mode():
        expected = mlp(x)
    torch.testing.assert_close(torch.compile(mlp, backend="eager", fullgraph=True)(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = mlp(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=2e-2)
