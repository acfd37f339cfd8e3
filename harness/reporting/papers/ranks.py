"""Published results with the rank of every query, read from ``tvrbench.published/ranks`` and checked."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.validation import first_error
from tvrbench.harness.reporting.data.rows import Values

PREFIX = "published:"
"""Begins the name of a published result where a command also takes records."""

_Text = Annotated[str, Field(pattern=r"\S")]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Ranks = Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", strict=True))
class PublishedRanks:
    """One published result.

    Attributes:
        name: of its file.
        title: what it is, for people.
        paper: name and source.
        method: the registry's name of a registered method.
        backbone, frames, dataset, train_split, test_split: named as here.
        split_fingerprint, order_fingerprint: of the test split, see ``Split``.
        selection: the checkpoint that the ranks are of, as in records.
        source, source_sha256: what the ranks were counted from, and its content.
        license: of the source, and of the ranks.
        counted: how the ranks were counted.
        ties: where ties make the ranks give other figures than the source; None where they do not.
        metrics: by direction, the figures that the source gives, with ties shared.
        ranks: by direction, 1 is best; texts and videos in the order of the split.
    """

    name: _Text
    title: _Text
    paper: _Text
    method: _Text
    backbone: _Text
    frames: int
    dataset: _Text
    train_split: _Text
    test_split: _Text
    split_fingerprint: _Sha256
    order_fingerprint: _Sha256
    selection: Literal["last", "best-on-test", "unknown"]
    source: _Text
    source_sha256: _Sha256
    license: _Text
    counted: _Text
    ties: _Text | None = None
    metrics: dict[Literal["t2v", "v2t"], dict[str, float]]
    ranks: dict[Literal["t2v", "v2t"], _Ranks]

    def of_direction(self, direction: Literal["t2v", "v2t"]) -> Values:
        """The ranks of one direction [Q]."""
        return np.asarray(self.ranks[direction], dtype=np.float64)

    def about(self) -> dict[str, Any]:
        """Everything but the ranks, as plain data."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "ranks"}


def published_ranks() -> list[str]:
    """The names of the published results."""
    return sorted(file.name.removesuffix(".json") for file in _folder().iterdir() if file.name.endswith(".json"))


def load_published_ranks(name: str) -> PublishedRanks:
    """The published result of a name, or of the beginning of one.

    Raises:
        UsageError: none or several have it, or the file is broken.
    """
    known = published_ranks()
    found = [name] if name in known else [one for one in known if name and one.startswith(name)]
    if len(found) != 1:
        problem = f"may be {' or '.join(found)}" if found else "is not known"
        message = f"published ranks {name!r}: the name {problem}; there are {', '.join(PREFIX + one for one in known)}"
        raise UsageError(message, code="published.ranks-unknown", name=name)
    return read_published_ranks(_folder() / f"{found[0]}.json")


def read_published_ranks(file: Traversable) -> PublishedRanks:
    """One file of published ranks; UsageError if it is broken, names the field."""
    try:
        fields = TypeAdapter(dict[str, Any]).validate_json(file.read_bytes())
        return PublishedRanks(**fields | {"name": file.name.removesuffix(".json")})
    except ValidationError as error:
        at, problem = first_error(error)
        message = f"{file.name}: no file of published ranks: at {at}: {problem}"
        raise UsageError(message, code="published.ranks-file", file=file.name, at=at) from None


def _folder() -> Traversable:
    return resources.files("tvrbench.published") / "ranks"
