"""Command-line options: text into values, and the types that tyro lacks. Imports no torch, for the sake of --help."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import UseAppendAction, arg
from tyro.constructors import PrimitiveConstructorSpec

from tvrbench.harness.core.errors import UsageError

# Where commands write and look in the working folder by default; the repository ignores it.
RESULTS, REPORTS = Path("runs"), Path("runs/reports")
RESERVED = {"method", "backbone", "weights", "activation", "checkpoint", "frames", "device", "seed"}


def parse_names(text: str) -> tuple[str, ...]:
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


def parse_numbers(text: str) -> tuple[int, ...]:
    """``0,1`` -> (0, 1).

    Raises:
        UsageError: none, one of them twice, or one that is no whole number.
    """
    names = parse_names(text)
    if any(not (name.isascii() and name.isdigit() and len(name) < 10) for name in names):
        message = f"{text!r}: give whole numbers separated by commas, for example 0,1,2"
        raise UsageError(message, code="option.list-number", given=text)
    return tuple(int(name) for name in names)


def parse_bytes(text: str) -> int:
    """``8GB`` or ``512MiB`` -> bytes; GB counts in thousands, GiB in 1024s.

    Raises:
        UsageError: not written that way.
    """
    size = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*([KMGT])(i?)B\s*", text, re.IGNORECASE | re.ASCII)
    if size is None or float(size[1]) == 0:
        raise UsageError(f"{text!r} is not a size: write it as 8GB or 7.5GiB", code="option.size", given=text)
    return int(float(size[1]) * (1024 if size[3] else 1000) ** ("KMGT".index(size[2].upper()) + 1))


def format_bytes(size: int) -> str:
    """A size as ``parse_bytes`` reads it, in the largest unit that divides it."""
    for power in (4, 3, 2, 1):
        for base, i in ((1000, ""), (1024, "i")):
            if size % base**power == 0:
                return f"{size // base**power}{'KMGT'[power - 1]}{i}B"
    return f"{size / 1000:.3f}KB"


def split_assignment(text: str, option: str, example: str, form: str = "key=value") -> tuple[str, str]:
    """``key=value`` -> (key, value) as text, stripped.

    Raises:
        UsageError: not written that way; names the command's ``option``, the ``form`` and gives the ``example``.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key:
        message = f"{option} {text!r}: write it as {form}, for example {option} {example}"
        raise UsageError(message, code="option.assignment", value=text)
    return key, value


def parse_assignments(assignments: Iterable[str], option: str = "--set") -> dict[str, Any]:
    """``["r=2", "merge_frames=(2,2,3)", "mode=unmerge"]`` -> a dict; values are Python literals or plain words.

    Raises:
        UsageError: not ``key=value``, or a key that has an option of its own; names the command's ``option``.
    """
    values: dict[str, Any] = {}
    for text in assignments:
        key, value = split_assignment(text, option, "r=2")
        try:
            values[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            values[key] = value
    for key in sorted(RESERVED & values.keys()):
        message = f"{option} {key}=...: not a method option; use the command's own option for it"
        raise UsageError(message, code="option.reserved", option=key)
    return values


def pick_device(wanted: str) -> str:
    """The device that ``auto`` stands for here; any other as it is.

    Raises:
        UsageError: a GPU is asked of a machine without one, or the machine's GPU is one that torch cannot use.
    """
    if wanted not in ("auto", "cuda"):
        return wanted
    import torch

    from tvrbench.harness.core.gpu_driver import unusable_gpu

    if torch.cuda.is_available():
        return "cuda"
    if (unusable := unusable_gpu()) is not None:
        raise UsageError(
            f"torch cannot use this machine's GPU: {unusable.cause}; {unusable.remedy}, or give --device cpu",
            code="device.driver",
            driver=unusable.driver.version,
            driver_cuda=unusable.driver.cuda,
            torch_cuda=unusable.torch_cuda,
        )
    if wanted == "cuda":
        raise UsageError("--device cuda: this machine has no CUDA device; use --device cpu", code="device.absent")
    return "cpu"


def _one_word(parse: Callable[[str], Any], show: Callable[[Any], str], metavar: str) -> PrimitiveConstructorSpec[Any]:
    def show_words(value: Any) -> list[str]:
        return [show(value)]

    return PrimitiveConstructorSpec(1, metavar, lambda words: parse(words[0]), lambda _: True, show_words)


Names = Annotated[tuple[str, ...], _one_word(parse_names, ",".join, "A,B")]
Numbers = Annotated[tuple[int, ...], _one_word(parse_numbers, lambda values: ",".join(map(str, values)), "N,N")]
Bytes = Annotated[int | None, _one_word(parse_bytes, str, "SIZE")]
Assignments = Annotated[UseAppendAction[tuple[str, ...]], arg(name="set", metavar="KEY=VALUE")]
GridTexts = Annotated[UseAppendAction[tuple[str, ...]], arg(name="grid", metavar="KEY=VALUE,VALUE")]
Json = Annotated[bool, arg(name="json", help="Print one JSON document on stdout.")]
Device = Literal["auto", "cuda", "cpu"]
