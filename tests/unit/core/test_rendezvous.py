"""Where the processes of a group meet: what is said while one waits, and each fault as one sentence with its code."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from errors import raises

from tvrbench.harness.core import rendezvous
from tvrbench.harness.core.distributed import DistInfo, process_group
from tvrbench.harness.core.errors import RunFailed, UsageError
from tvrbench.harness.core.rendezvous import Launch, join, read_launch

pytestmark = pytest.mark.unit
GROUP = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "head", "MASTER_PORT": "29500", "LOCAL_RANK": "1"}
SOON = timedelta(seconds=1.5)


def launch(rank: int, size: int, port: int, **changes: Any) -> Launch:
    return Launch(rank=rank, size=size, local=rank, address="127.0.0.1", port=port, **changes)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A service that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
        return number


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("SAY_AFTER_S", 0.1), ("SAY_EVERY_S", 0.5), ("ANSWER_S", 2.0), ("RESOLVE_S", 0.2)):
        monkeypatch.setattr(rendezvous, name, seconds)
    monkeypatch.setattr(rendezvous, "CONNECT", timedelta(seconds=1))


class TestVariables:
    def test_a_group(self) -> None:
        assert read_launch(GROUP) == Launch(rank=1, size=2, local=1, address="head", port=29500)
        served = GROUP | {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"}
        group = read_launch(served)
        assert group is not None
        assert (group.served, group.attempt) == (True, "2")

    @pytest.mark.parametrize(
        "variables",
        [
            {},
            {"RANK": ""},
            {"WORLD_SIZE": "4", "MASTER_ADDR": "head"},
            {"LOCAL_RANK": "3", "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "PMI_RANK": "1", "OMPI_COMM_WORLD_RANK": "1"},
            {"RANK": "0", "WORLD_SIZE": "1"},
            GROUP | {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "7"},
        ],
    )
    def test_a_process_alone(self, variables: dict[str, str]) -> None:
        assert read_launch(variables) is None

    @pytest.mark.parametrize(
        ("changes", "variable"),
        [
            ({"WORLD_SIZE": ""}, "WORLD_SIZE"),
            ({"WORLD_SIZE": "two"}, "WORLD_SIZE"),
            ({"WORLD_SIZE": "1.0"}, "WORLD_SIZE"),
            ({"RANK": "2"}, "RANK"),
            ({"RANK": "-1"}, "RANK"),
            ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK"),
            ({"LOCAL_RANK": "x"}, "LOCAL_RANK"),
            ({"MASTER_ADDR": ""}, "MASTER_ADDR"),
            ({"MASTER_PORT": ""}, "MASTER_PORT"),
            ({"MASTER_PORT": "http"}, "MASTER_PORT"),
            ({"MASTER_PORT": "0"}, "MASTER_PORT"),
            ({"MASTER_PORT": "65536"}, "MASTER_PORT"),
        ],
    )
    def test_one_that_does_not_fit_is_named(self, changes: dict[str, str], variable: str) -> None:
        with raises("torchrun.environment", variable=variable) as caught:
            read_launch(GROUP | changes)
        assert "--single-process" in str(caught.value)

    def test_they_can_be_ignored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        with process_group("cpu", single=True) as alone:
            assert alone == DistInfo()

    def test_a_size_without_a_rank_is_said(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.delenv("RANK", raising=False)
        monkeypatch.setenv("WORLD_SIZE", "4")
        with process_group("cpu") as alone:
            assert alone == DistInfo()
        assert "WORLD_SIZE=4" in capsys.readouterr().err


class TestJoin:
    def test_late_processes_meet(self, port: int) -> None:
        with ThreadPoolExecutor() as pool:
            late = [pool.submit(join, launch(rank, 3, port), timedelta(seconds=60)) for rank in (2, 1)]
            first = join(launch(0, 3, port), timedelta(seconds=60))
            stores = [first, *(each.result() for each in late)]
            stores[2].set("key", "value")
            assert {store.get("key") for store in stores} == {b"value"}

    def test_the_first_says_whom_it_waits_for_and_ends_in_a_sentence(
        self, port: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with raises("torchrun.timeout", RunFailed, rank=0, size=3):
            join(launch(0, 3, port), SOON)
        said = capsys.readouterr().err.splitlines()
        assert len(said) >= 2  # it repeats
        for fact in ("process 1, 2", f"127.0.0.1:{port}", "WORLD_SIZE=3", "MASTER_ADDR", "--single-process"):
            assert fact in said[0]

    def test_another_says_that_the_first_does_not_answer(self, port: int, capsys: pytest.CaptureFixture[str]) -> None:
        with raises("torchrun.timeout", RunFailed, rank=1):
            join(launch(1, 2, port), SOON)
        assert "process 0" in capsys.readouterr().err

    def test_a_taken_port(self, listener: socket.socket) -> None:
        taken = listener.getsockname()[1]
        with raises("torchrun.port", port=taken):
            join(launch(0, 2, taken), SOON)

    def test_a_foreign_service(self, listener: socket.socket) -> None:
        port = listener.getsockname()[1]
        with raises("torchrun.port", port=port):
            join(launch(1, 2, port), SOON)

    @pytest.mark.parametrize("rank", [0, 1])
    def test_an_address_that_is_no_machine(self, rank: int, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        def unknown(*_: object, **__: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        with raises("torchrun.address", address="127.0.0.1"):
            join(launch(rank, 2, port), timedelta(seconds=20))

    def test_a_rank_that_is_there_twice(self, port: int) -> None:
        wait = timedelta(seconds=10)
        with ThreadPoolExecutor() as pool:
            pool.submit(join, launch(0, 3, port), wait)
            twice = [pool.submit(join, launch(1, 3, port), wait) for _ in range(2)]
            errors = [each.exception() for each in twice]
        assert [e.code for e in errors if isinstance(e, UsageError)] == ["torchrun.rank"]
