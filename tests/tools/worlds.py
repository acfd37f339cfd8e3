"""Worlds of a few processes on one machine, for tests of what several processes compute together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

TOOLS = Path(__file__).parent


def run_worlds(script: str, sizes: Sequence[int], *arguments: object) -> None:
    """Run a script in a process of its own; its arguments are these and then SIZE:PORT of every world."""
    command = [sys.executable, "-P", "-c", script, *map(str, arguments), *(f"{size}:{_free_port()}" for size in sizes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TOOLS)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


def fork_worlds(worlds: Sequence[str], work: Callable[[int], None]) -> None:
    """Call ``work(size)`` in every process of every world, one world after the other.

    Processes are forked from one that has imported torch, because an import takes longer than the work.
    """
    import torch
    import torch._dynamo

    torch.set_num_threads(1)
    for world in worlds:
        size, port = map(int, world.split(":"))
        children = []
        for rank in range(size):
            child = os.fork()
            if child == 0:
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                try:
                    work(size)
                    os._exit(0)
                finally:
                    sys.excepthook(*sys.exc_info())
                    os._exit(1)
            children.append(child)
        if any(os.waitpid(child, 0)[1] for child in children):
            sys.exit(f"a world of {size} processes failed")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
