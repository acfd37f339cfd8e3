"""The process group that several GPUs have, as far as one of them shows it: torchrun starts no group of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import distributed as dist

from tvrbench.harness.core import distributed
from tvrbench.harness.core.rendezvous import Launch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
BACKEND, DEVICE = "nccl", torch.device("cuda", 0)


def test_nccl_beside_gloo_is_set_up_used_and_shut_down() -> None:
    launch = Launch(rank=0, size=1, local=0, address="", port=1)
    rows = torch.randn(4, 3, device=DEVICE, requires_grad=True)
    with distributed._initialized(BACKEND, dist.HashStore(), launch):
        distributed._take_gpu(launch)
        hosts = distributed._hosts.get()
        assert (dist.get_backend(), dist.get_backend(hosts)) == (BACKEND, "gloo")
        gathered: Any = distributed._Gather.apply(rows)
        (2 * gathered).sum().backward()
        loss, objects = torch.tensor(3.0, dtype=torch.float64), [None]
        dist.all_reduce(loss, group=hosts)
        dist.all_gather_object(objects, "here", group=hosts)
    assert torch.equal(gathered, rows)
    assert torch.equal(rows.grad, torch.full_like(rows, 2.0))  # type: ignore[arg-type]
    assert (float(loss), objects) == (3.0, ["here"])
    assert not dist.is_initialized()
