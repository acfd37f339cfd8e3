"""Plain data (TOML, ``--set``, keywords) into frozen dataclasses, with errors that name the place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from tvrbench.harness.core.errors import UsageError

T = TypeVar("T")
RESERVED = {"method", "backbone", "weights", "checkpoint", "frames", "device", "seed"}


def validated(cls: type[T], values: Mapping[str, Any], what: str) -> T:
    """Build the dataclass ``cls`` from ``values``, coercing lists to tuples and the like.

    Raises:
        UsageError: an unknown or missing key, or a value of the wrong type; names the first one.
    """
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    unknown = [key for key in values if key not in known]
    if unknown:
        raise UsageError(
            f"{what} {unknown[0]!r} is not known: known are {', '.join(known)}",
            code="option.unknown",
            what=what,
            option=unknown[0],
        )
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        cause = error.errors()[0].get("ctx", {}).get("error")
        if isinstance(cause, UsageError):  # raised by the dataclass itself, with its own code
            raise cause from None
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or cls.__name__
        got = "" if first["type"] == "missing" else f", not {first['input']!r}"
        raise UsageError(
            f"{what} {place!r}: {first['msg']}{got}", code="option.invalid", what=what, option=place
        ) from None


def json_path(location: Iterable[str | int]) -> str:
    """``("cost", 0, "value")`` -> ``$.cost[0].value``; keys that are no plain words are quoted and cut."""
    return "$" + "".join(
        f".{part}" if isinstance(part, str) and part.isidentifier() and len(part) <= 60 else f"[{_brief(part)}]"
        for part in location
    )


def first_error(error: ValidationError) -> tuple[str, str]:
    """Path and message of pydantic's first error, without the input, which may be long."""
    first = error.errors(include_url=False)[0]
    return json_path(first["loc"]), first["msg"]


def _brief(part: str | int) -> str:
    return repr(part[:60]) if isinstance(part, str) else str(part)


def parse_bytes(text: str) -> int:
    """``8GB`` or ``512MiB`` -> bytes; GB counts in thousands, GiB in 1024s.

    Raises:
        UsageError: not written that way.
    """
    size = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,6})?)\s*([KMGT])(i?)B\s*", text, re.IGNORECASE | re.ASCII)
    if size is None or float(size[1]) == 0:
        raise UsageError(f"{text!r} is not a size: write it as 8GB or 7.5GiB", code="option.size", given=text)
    return int(float(size[1]) * (1024 if size[3] else 1000) ** ("KMGT".index(size[2].upper()) + 1))


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """``["r=2", "merge_frames=(2,2,3)", "mode=unmerge"]`` -> a dict; values are Python literals or plain words."""
    values: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise UsageError(
                f"--set {text!r}: write it as key=value, for example --set r=2", code="option.assignment", value=text
            )
        try:
            values[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            values[key.strip()] = value.strip()
    reserved = sorted(set(values) & RESERVED)
    if reserved:
        raise UsageError(
            f"--set {reserved[0]}=...: not a method option; use the command's own option for it",
            code="option.reserved",
            option=reserved[0],
        )
    return values
