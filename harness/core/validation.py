"""Plain data (TOML, JSON, keywords) into frozen dataclasses, with errors that name the place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.text import brief_repr

T = TypeVar("T")


def validated(cls: type[T], values: Mapping[str, Any], what: str) -> T:
    """Build the dataclass ``cls`` from ``values``, coercing lists to tuples and the like.

    Raises:
        UsageError: an unknown or missing key, or a value of the wrong type; names the first one.
    """
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            message = f"{what} {brief_repr(key)} is not known: known are {', '.join(known)}"
            raise UsageError(message, code="option.unknown", what=what, option=key)
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, UsageError):  # raised by the dataclass itself, with its own code
            raise cause from None
        place = ".".join(str(part) for part in first["loc"]) or cls.__name__
        got = "" if first["type"] == "missing" else f", not {brief_repr(first['input'])}"
        message = f"{what} {brief_repr(place)}: {first['msg']}{got}"
        raise UsageError(message, code="option.invalid", what=what, option=place) from None


def json_path(location: Iterable[str | int]) -> str:
    """``("cost", 0, "value")`` -> ``$.cost[0].value``; keys that are no plain words are quoted and cut."""
    path = "$"
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if part.isidentifier() and len(part) <= 60 else f"[{part[:60]!r}]"
    return path


def first_error(error: ValidationError) -> tuple[str, str]:
    """Path and message of pydantic's first error, without the input, which may be long."""
    first = error.errors(include_url=False)[0]
    return json_path(first["loc"]), first["msg"]
