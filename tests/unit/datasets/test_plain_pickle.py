"""Pickles: plain containers and strings come through as Python's own reader gives them, anything else is refused."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import pytest
from errors import raises
from hypothesis import given, settings
from hypothesis import strategies as st

from tvrbench.datasets import plain_pickle
from tvrbench.datasets.plain_pickle import parse_plain_pickle
from tvrbench.harness.core.errors import UsageError

pytestmark = pytest.mark.unit

PLAIN = st.recursive(
    st.text(max_size=20),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner) | st.lists(inner).map(tuple),
    max_leaves=30,
)


@settings(max_examples=60, deadline=None)
@given(PLAIN, st.integers(0, 5))
def test_plain_values_come_through(value: object, protocol: int) -> None:
    assert parse_plain_pickle(pickle.dumps(value, protocol), "file") == value


@settings(max_examples=200, deadline=None)
@given(PLAIN, st.integers(0, 5), st.integers(0, 200), st.integers(0, 255))
def test_damage_is_refused_or_harmless(value: object, protocol: int, at: int, byte: int) -> None:
    data = bytearray(pickle.dumps([value, "end"], protocol))
    data[at % len(data)] = byte
    with suppress(UsageError):
        parse_plain_pickle(bytes(data), "file")


def test_strings_of_python_2() -> None:
    assert parse_plain_pickle(b"\x80\x02]q\x00U\x05caf\xc3\xa9q\x01a.", "file") == ["café"]


class _Writes:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.path, "w")


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_in_it_runs(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps({"video": [_Writes(tmp_path / "owned")]}, protocol)
    with raises("annotation.unsafe-pickle", where="captions.pkl"):
        parse_plain_pickle(data, "captions.pkl")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("value", "instruction"),
    [(1, "BININT1"), (1.5, "BINFLOAT"), (None, "NONE"), (b"x", "SHORT_BINBYTES"), (OrderedDict(), "STACK_GLOBAL")],
)
def test_other_values_are_refused_by_name(value: object, instruction: str) -> None:
    with raises("annotation.unsafe-pickle", instruction=instruction):
        parse_plain_pickle(pickle.dumps({"a": value}, 4), "file")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04",
        b".",
        b"]",
        b"]]a",  # does not end
        b"}U\x01aU\x01bs}.",  # two results
        b"a.",
        b"]u.",
        b"(]t(u.",
        b"h\x05.",  # remembers nothing
        b"}(U\x01aU\x01bU\x01au.",  # a key without a value
        b"}]]s.",  # a key that is no string
        b"}U\x01aU\x01bsU\x01aU\x01cs.",  # a key twice
        b"r\xff\xff\xff\xff.",  # would make Python's own reader allocate 32 GiB
        b"X\xff\xff\xff\x7fabc.",  # a string of 2 GiB that is not there
        b"U\x01\xe9.",  # not UTF-8
    ],
)
def test_nonsense(data: bytes) -> None:
    with raises("annotation.malformed", problem="pickle"):
        parse_plain_pickle(data, "file")


def test_length_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_pickle, "_MAX_STEPS", 100)
    with raises("annotation.malformed", problem="pickle"):
        parse_plain_pickle(b"]" * 200 + b".", "file")
