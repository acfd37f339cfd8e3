"""Where the processes of a torchrun or of a cluster meet: says whom it waits for, and ends in one sentence."""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from tvrbench.harness.core.console import say
from tvrbench.harness.core.errors import RunFailed, UsageError

if TYPE_CHECKING:  # the variables are read before torch is there
    from torch._C._distributed_c10d import Store

SAY_AFTER_S, SAY_EVERY_S, POLL_S = 1.0, 30.0, 0.1
CONNECT = timedelta(seconds=1)  # of one attempt: Ctrl-C is heard between two
ANSWER_S = 10.0  # of a service that took the connection
RESOLVE_S = 20.0  # a cluster's name service may lag behind the start of its jobs
ALONE = "for a process alone unset them or give --single-process"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """This process in its group, and the address at which the group meets.

    Attributes:
        rank: of this process, 0 the first.
        size: processes in the group.
        local: number of this process on its machine.
        served: torchrun serves the address; else the first process does.
        attempt: which start of the group this is; torchrun restarts it after a fault.
    """

    rank: int
    size: int
    local: int
    address: str
    port: int
    served: bool = False
    attempt: str = "0"

    @property
    def place(self) -> str:
        """The address and the variables that gave it, for messages."""
        variables = f"RANK={self.rank} WORLD_SIZE={self.size} MASTER_ADDR={self.address} MASTER_PORT={self.port}"
        return f"{self.address}:{self.port} ({variables}; {ALONE})"


def read_launch(variables: Mapping[str, str]) -> Launch | None:
    """The group that torchrun's variables describe; None without RANK, and for a group of one.

    Raises:
        UsageError: a variable is missing, no whole number, or out of range.
    """
    if not variables.get("RANK"):
        return None
    rank, size = _number(variables, "RANK"), _number(variables, "WORLD_SIZE")
    if not 0 <= rank < size:
        message = f"RANK={rank} WORLD_SIZE={size}: ranks go from 0 to WORLD_SIZE - 1; correct them, or {ALONE}"
        raise UsageError(message, code="torchrun.environment", variable="RANK")
    if size == 1:
        return None
    port = _number(variables, "MASTER_PORT")
    if not 0 < port < 2**16:
        message = f"MASTER_PORT={port}: ports go from 1 to 65535; correct it, or {ALONE}"
        raise UsageError(message, code="torchrun.environment", variable="MASTER_PORT")
    return Launch(
        rank=rank,
        size=size,
        local=_number(variables, "LOCAL_RANK") if variables.get("LOCAL_RANK") else 0,
        address=_text(variables, "MASTER_ADDR"),
        port=port,
        served=variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        attempt=variables.get("TORCHELASTIC_RESTART_COUNT", "0"),
    )


def usable_cores() -> int:
    """Cores for the threads of this process: its share of those it may use, where torchrun started several here."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    neighbors = os.environ.get("LOCAL_WORLD_SIZE", "") if os.environ.get("RANK") else ""
    return max(1, cores // max(1, int(neighbors))) if neighbors.isascii() and neighbors.isdigit() else cores


def join(launch: Launch, timeout: timedelta) -> Store:
    """Wait until every process of the group is there, and return the store that they share.

    Raises:
        UsageError: the address cannot be resolved or its port be had, or another process has this rank.
        RunFailed: a process did not come within ``timeout``.
    """
    from torch import distributed as dist

    start, token = time.monotonic(), uuid.uuid4().hex
    everyone = [f"joined/{rank}" for rank in range(launch.size)]
    say_at, store = start + SAY_AFTER_S, None
    while True:
        try:
            store = store or _connect(launch)
            if store.compare_set(everyone[launch.rank], "", token).decode() != token:
                message = f"another process is process {launch.rank} already at {launch.place}"
                raise UsageError(message, code="torchrun.rank", rank=launch.rank)
            if store.check(everyone):
                store.set_timeout(timeout)
                return store
            absent = [name.removeprefix("joined/") for name in everyone if not store.check([name])]
            missing = f"process {', '.join(absent)}"
        except (OSError, dist.DistError) as error:
            cause = _first_line(error)
            if isinstance(error, socket.gaierror) and time.monotonic() - start > RESOLVE_S:
                message = f"MASTER_ADDR is the name of no machine ({cause}): {launch.place}"
                raise UsageError(message, code="torchrun.address", address=launch.address) from None
            store, absent = None, ["0"]
            missing = f"process 0, which does not answer ({cause}),"
        now = time.monotonic()
        if now - start > timeout.total_seconds():
            minutes = timeout.total_seconds() / 60
            message = f"{missing} of {launch.size} did not join within {minutes:.3g} minutes at {launch.place}"
            raise RunFailed(message, code="torchrun.timeout", rank=launch.rank, size=launch.size)
        if now >= say_at:
            say_at = now + SAY_EVERY_S
            if launch.rank == 0 or "0" in absent:  # the first process speaks for all that have reached it
                say(f"process {launch.rank} of {launch.size} waits for {missing} at {launch.place}")
        time.sleep(POLL_S)


def _connect(launch: Launch) -> Store:
    """The store of this attempt: the first process serves it, unless torchrun does."""
    from torch import distributed as dist

    serves = launch.rank == 0 and not launch.served
    if serves:
        socket.getaddrinfo(launch.address, launch.port)
        try:  # torch would say the same in a page
            socket.create_server(("", launch.port)).close()
        except OSError as error:
            cause = os.strerror(error.errno or 0)
            message = f"port {launch.port} cannot be had ({cause}): choose another MASTER_PORT at {launch.place}"
            raise UsageError(message, code="torchrun.port", port=launch.port) from None
    else:
        socket.create_connection((launch.address, launch.port), CONNECT.total_seconds()).close()
    store: Store = dist.PrefixStore(f"tvrbench/{launch.attempt}", _tcp_store(launch, serves))  # type: ignore[attr-defined]
    return store


def _tcp_store(launch: Launch, serves: bool) -> Store:
    """Make torch's store, in a thread: it waits without end for an answer where another service has the port."""
    from torch import distributed as dist

    made: list[Store | Exception] = []

    def make() -> None:
        meeting = (launch.address, launch.port, launch.size, serves, CONNECT, False, True)
        try:  # the last two: not waiting for the others, and shared with other groups of this process
            made.append(dist.TCPStore(*meeting))  # type: ignore[attr-defined]
        except (OSError, dist.DistError) as error:
            made.append(error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    if not made:
        message = f"something else than process 0 of this run answers at {launch.place}"
        raise UsageError(message, code="torchrun.port", port=launch.port)
    if isinstance(made[0], Exception):
        raise made[0]
    return made[0]


def _number(variables: Mapping[str, str], name: str) -> int:
    text = _text(variables, name)
    if not (text.isascii() and text.isdigit()):
        message = f"{name}={text}: not a whole number; correct it, or {ALONE}"
        raise UsageError(message, code="torchrun.environment", variable=name)
    return int(text)


def _text(variables: Mapping[str, str], name: str) -> str:
    if not variables.get(name):
        message = f"RANK={variables.get('RANK')} is set without {name}: start with torchrun, which sets all; {ALONE}"
        raise UsageError(message, code="torchrun.environment", variable=name)
    return variables[name]


def _first_line(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]
