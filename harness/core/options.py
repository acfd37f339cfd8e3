"""Types of command-line options that tyro has no words for. Imports nothing heavy, for the sake of --help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from tyro.conf import UseAppendAction, arg
from tyro.constructors import PrimitiveConstructorSpec

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.validation import parse_bytes


def _one(parse: Callable[[str], Any], show: Callable[[Any], str], metavar: str) -> PrimitiveConstructorSpec[Any]:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: parse(words[0]),
        is_instance=lambda _: True,
        str_from_instance=lambda value: [show(value)],
    )


def split_names(text: str) -> tuple[str, ...]:
    """``a,b`` -> ("a", "b").

    Raises:
        UsageError: none, or one of them twice.
    """
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise UsageError(f"{text!r} names nothing: give names separated by commas", code="option.list-empty")
    if len(set(names)) < len(names):
        raise UsageError(f"{text!r} holds a name twice: give each once", code="option.list-twice", given=text)
    return names


def split_numbers(text: str) -> tuple[int, ...]:
    """``0,1`` -> (0, 1).

    Raises:
        UsageError: none, one of them twice, or one that is no whole number.
    """
    names = split_names(text)
    if any(not (name.isascii() and name.isdigit() and len(name) < 10) for name in names):
        raise UsageError(
            f"{text!r}: give whole numbers separated by commas, for example 0,1,2",
            code="option.list-number",
            given=text,
        )
    return tuple(int(name) for name in names)


Names = Annotated[tuple[str, ...], _one(split_names, ",".join, "A,B")]
Numbers = Annotated[tuple[int, ...], _one(split_numbers, lambda values: ",".join(map(str, values)), "N,N")]
Bytes = Annotated[int | None, _one(parse_bytes, str, "SIZE")]
Assignments = Annotated[UseAppendAction[tuple[str, ...]], arg(name="set", metavar="KEY=VALUE")]
Json = Annotated[bool, arg(name="json", help="Print one JSON document on stdout.")]
Device = Literal["auto", "cuda", "cpu"]


def pick_device(wanted: str) -> str:
    """The device that ``auto`` stands for here; any other as it is.

    Raises:
        UsageError: a GPU is asked of a machine without one.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this machine has no CUDA device; use --device cpu", code="device.absent")
    return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
