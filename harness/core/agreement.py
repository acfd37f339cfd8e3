"""What several processes of one run must agree on before each goes on: nothing to do where there is one."""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed as dist

from tvrbench.harness.core.distributed import sum_over_processes, world


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether any process says so."""
    return flag if world().size == 1 else sum_over_processes(float(flag), device) > 0


def from_all(value: Any) -> list[Any]:
    """The values (anything that can be pickled) of all processes, in order of rank."""
    if world().size == 1:
        return [value]
    found: list[Any] = [None] * world().size
    dist.all_gather_object(found, value)
    return found
