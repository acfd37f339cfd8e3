"""Several processes as one: features gathered with exact gradients, gradients summed, results collected.

Nothing here wraps the model. Every process holds a share of the batch and of the loss; the gradient of the whole loss
is the sum over the processes, so the number of processes does not change it. (It becomes 1 / W of the gradient if
each process keeps the gradient of its own slice only.)

Features and gradients travel between devices (NCCL on GPUs, gloo on CPUs). Objects, flags and results travel
between hosts, through gloo: no GPU waits for them, a process that was lost is noticed at once (NCCL would wait for it),
and the others may wait for hours while the first one measures.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from tvrbench.harness.core.console import say
from tvrbench.harness.core.errors import RunFailed, UsageError
from tvrbench.harness.core.rendezvous import Launch, join, read_launch

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

T = TypeVar("T")

JOIN_TIMEOUT = timedelta(minutes=10)  # for every process to come
DEVICE_TIMEOUT = timedelta(minutes=10)  # of features and gradients: every process is in the same step
HOST_TIMEOUT = timedelta(hours=2)  # of all else: the first process may measure, or search, while the others wait
END_TIMEOUT = timedelta(days=2)  # for every process to end: the first may measure all methods at full size
END_POLL_S = 1.0
_FAILED = "failed"  # in the store, once a process has ended with a fault

# The group of the hosts, for the block of `process_group`; torch keeps only the group of the devices by itself.
_hosts: ContextVar[dist.ProcessGroup | None] = ContextVar("hosts", default=None)


@dataclass(frozen=True, kw_only=True)
class DistInfo:
    """Rank of this process and number of processes."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """True for the one process that prints and writes."""
        return self.rank == 0

    def seed(self, base: int) -> int:
        """The seed of this process: ``base`` in the first, another number in every other one.

        A method with random draws then draws independently for every share of a batch. torch keeps 32 bits of a seed.
        """
        return base if self.first else int(np.random.SeedSequence([base, self.rank]).generate_state(1)[0])

    def share(self, count: int) -> slice:
        """This process's part of ``count`` items in order; the sizes of parts differ by one at most."""
        quotient, rest = divmod(count, self.size)
        start = self.rank * quotient + min(self.rank, rest)
        return slice(start, start + quotient + (self.rank < rest))


def dist_info() -> DistInfo:
    """This process in its group; rank 0 of 1 without a group."""
    if not (dist.is_available() and dist.is_initialized()):
        return DistInfo()
    return DistInfo(rank=dist.get_rank(), size=dist.get_world_size())


@contextmanager
def process_group(device: str, *, single: bool = False) -> Iterator[DistInfo]:
    """Join the processes of ``torchrun`` for the duration of the block; without torchrun, or if ``single``, run alone.

    Raises:
        UsageError: torchrun's variables do not fit, or it started more processes than there are GPUs.
        RunFailed: a process of the group did not come.
    """
    launch = None if single else read_launch(os.environ)
    if launch is None:
        if not single and os.environ.get("WORLD_SIZE", "1") not in ("", "1") and not os.environ.get("RANK"):
            say(f"WORLD_SIZE={os.environ['WORLD_SIZE']} is set without RANK: this process runs alone")
        yield DistInfo()
        return
    try:
        store = join(launch, JOIN_TIMEOUT)
        with _initialized("nccl" if device.startswith("cuda") else "gloo", store, launch):
            if device.startswith("cuda"):
                _take_gpu(launch)
            yield dist_info()
    except BaseException as error:
        if launch.rank > 0:
            error.add_note(f"process {launch.rank} of {launch.size}")
        raise


@contextmanager
def _initialized(backend: str, store: Store, launch: Launch) -> Iterator[None]:
    try:
        dist.init_process_group(backend, timeout=DEVICE_TIMEOUT, store=store, rank=launch.rank, world_size=launch.size)
        hosts = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=HOST_TIMEOUT))
    except RuntimeError as error:
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        message = f"the processes found each other but cannot exchange data ({cause}), at {launch.place}"
        raise RunFailed(message, code="torchrun.connect", rank=launch.rank) from error
    token, ended = _hosts.set(hosts), False
    try:
        yield
        if backend == "nccl":
            _wait_for_end(store, hosts, launch)
        ended = True
    except BaseException:
        if backend == "nccl":  # the others may wait for the end
            with suppress(RuntimeError):  # where the store is gone, so is the process that served it, and all know
                store.set(_FAILED, "")
        raise
    finally:
        _hosts.reset(token)
        # NCCL ends when all processes have, so after a fault it would wait for one that may be lost; this process ends.
        if ended or backend == "gloo":
            dist.destroy_process_group()


def _wait_for_end(store: Store, hosts: dist.ProcessGroup, launch: Launch) -> None:
    """Wait until every process has done its work: NCCL is shut down together, and gives up on one that comes late.

    Through the store, because a group has one limit for all that it does.

    Raises:
        RunFailed: another process ended with a fault, was lost, or took longer than ``END_TIMEOUT``.
    """
    everyone, start = [f"ended/{rank}" for rank in range(launch.size)], time.monotonic()
    try:
        store.set(everyone[launch.rank], "")
        while not store.check(everyone):
            if store.check([_FAILED]) or time.monotonic() - start > END_TIMEOUT.total_seconds():
                raise _lost_at_the_end(launch)
            time.sleep(END_POLL_S)
        dist.barrier(hosts)  # from here on nobody asks the store, which may end with the first process
    except RuntimeError as error:
        raise _lost_at_the_end(launch) from error


def _lost_at_the_end(launch: Launch) -> RunFailed:
    message = f"process {launch.rank} of {launch.size} has done its work, but another has not: see its output"
    return RunFailed(message, code="torchrun.end", rank=launch.rank)


def _take_gpu(launch: Launch) -> None:
    """Make the GPU of this process the current one.

    Raises:
        UsageError: two processes would share one.
    """
    # A cluster may show every process its own GPU alone, as number 0.
    device = torch.device("cuda", launch.local % torch.cuda.device_count())
    torch.cuda.set_device(device)
    gpus = all_gather_object(str(torch.cuda.get_device_properties(device).uuid))
    if len(set(gpus)) < len(gpus):
        message = f"{len(gpus)} processes were started on {len(set(gpus))} GPUs: start one process per GPU"
        raise UsageError(message, code="torchrun.gpus", processes=len(gpus), gpus=len(set(gpus)))


class _Gather(torch.autograd.Function):
    """Rows of all processes in order of rank; backwards, all processes' gradients of this one's rows, summed."""

    @staticmethod
    def forward(ctx: Any, rows_bE: Tensor) -> Tensor:
        parts = [torch.empty_like(rows_bE) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows_bE.contiguous())
        ctx.rows = len(rows_bE)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone(memory_format=torch.contiguous_format)  # autograd may give other nodes the same tensor
        dist.all_reduce(total)
        start = dist.get_rank() * ctx.rows
        return total[start : start + ctx.rows]


def gather_rows(rows_bE: Tensor) -> Tensor:
    """Rows [b, ...] of every process, the same number each -> [W b, ...], in order of rank, with exact gradients."""
    if dist_info().size == 1:
        return rows_bE
    out: Tensor = _Gather.apply(rows_bE)
    return out


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its sum over all processes, of which there may be one.

    A missing gradient becomes zeros, whatever the number of processes: an optimizer decays such a parameter, and would
    skip one without gradient.
    """
    by_dtype: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        by_dtype.setdefault(parameter.dtype, []).append(parameter)
    if dist_info().size == 1:
        return
    for group in by_dtype.values():
        flat = torch.cat([p.grad.flatten() for p in group if p.grad is not None])
        dist.all_reduce(flat)
        for parameter, part in zip(group, torch.split(flat, [p.numel() for p in group]), strict=True):
            parameter.grad = part.view_as(parameter)


def sum_over_processes(value: float) -> float:
    """The sum of a number over all processes."""
    if dist_info().size == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(total, group=_hosts.get())
    return float(total)


def gather_shares(own: Tensor) -> Tensor:
    """Shares [n_r, ...] of any length -> all of them in order of rank, on every process; no gradients."""
    return own if dist_info().size == 1 else torch.cat(all_gather_object(own.cpu()))


def any_rank(flag: bool) -> bool:
    """True in every process if it is true in any."""
    return flag if dist_info().size == 1 else sum_over_processes(float(flag)) > 0


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in every process; what it raises there, every process raises."""
    if dist_info().size == 1:
        return make()
    made: Any = None
    fault: Exception | None = None
    if dist_info().first:
        try:
            made = make()
        except Exception as error:  # noqa: BLE001 - the others wait for this process, whatever happened to it
            fault = error
    out: tuple[T, Exception | None] = all_gather_object((made, fault))[0]
    if out[1] is not None:
        raise out[1]
    return out[0]


def all_gather_object(value: Any) -> list[Any]:
    """The values of all processes (any type that pickles), in order of rank."""
    if dist_info().size == 1:
        return [value]
    values: list[Any] = [None] * dist_info().size
    dist.all_gather_object(values, value, group=_hosts.get())
    return values
