"""Every registered method and baseline can run under ``--deterministic``, and then repeats."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tvrbench.harness.core import registry
from tvrbench.harness.core.numerics import set_numerics
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.training.loss import local_loss

pytestmark = pytest.mark.contract
NAMES = [n for n in registry.names("methods", "baselines") if method_class(n).card.encodes]
Make = Callable[..., RetrievalModel]
# Operators that raise on a GPU under deterministic algorithms although they may not on a CPU, as the documentation of
# torch.use_deterministic_algorithms lists them.
REFUSED = (
    "adaptive_avg_pool2d_backward",
    "adaptive_max_pool2d_backward",
    "avg_pool3d_backward",
    "bincount",
    "ctc_loss_backward",
    "grid_sampler_2d_backward",
    "histc",
    "kthvalue",
    "max_unpool2d",
    "median.dim",
    "nll_loss2d",
    "put",
    "reflection_pad2d_backward",
    "replication_pad2d_backward",
    "upsample_bicubic2d_backward",
    "upsample_bilinear2d_backward",
)


class Operators(TorchDispatchMode):
    """Notes the operators that a GPU would refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.refused: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        name = str(func).removeprefix("aten.")
        result = func(*args, **(kwargs or {}))
        if name.startswith("cumsum") and result.is_floating_point():
            self.refused.add(name)
        if name.startswith("scatter_reduce") and "prod" in args:
            self.refused.add(name)
        if name.replace("_.", ".").startswith(tuple(f"{each}." if "." not in each else each for each in REFUSED)):
            self.refused.add(name)
        return result


@pytest.fixture(autouse=True)
def _deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    set_numerics(deterministic=True)
    yield
    set_numerics()


def _step(model: RetrievalModel, batch: dict[str, Any]) -> list[Tensor]:
    """The features of an evaluation, and the gradients of a training step."""
    torch.manual_seed(3)
    with torch.no_grad():
        found = model.eval().video_tensors(batch["frames"], batch["mask"])
    if not model.trainable():
        return list(found)
    model.train().zero_grad()
    features = model(batch["frames"], batch["mask"], batch["ids"], batch["text_mask"])
    local_loss(model, *features).backward()  # type: ignore[no-untyped-call]
    return [*found, *(p.grad for p in model.trainable().values() if p.grad is not None)]


@pytest.mark.parametrize("name", NAMES)
def test_a_method_repeats_under_deterministic_algorithms(
    name: str, tiny_model: Make, tiny_batch: dict[str, Any]
) -> None:
    model, operators = tiny_model(name), Operators()
    with operators:
        first = _step(model, tiny_batch)
    assert not operators.refused
    again = _step(model, tiny_batch)
    assert len(first) == len(again)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_what_a_gpu_would_refuse_is_noticed() -> None:
    numbers, places, operators = torch.ones(4), torch.tensor([0, 0, 1, 1]), Operators()
    with operators:
        numbers.cumsum(0)
        places.cumsum(0)  # of whole numbers: allowed
        numbers.new_zeros(2).scatter_reduce(0, places, numbers, "sum")  # likewise
        numbers.new_zeros(2).scatter_reduce(0, places, numbers, "prod")
        torch.bincount(places)
        numbers.kthvalue(2)
        numbers.median(0)
    assert {name.partition(".")[0] for name in operators.refused} == {
        "cumsum",
        "scatter_reduce",
        "bincount",
        "kthvalue",
        "median",
    }
