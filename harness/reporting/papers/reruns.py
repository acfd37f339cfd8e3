"""Independent re-runs: what others report for the recipe of a published number, each with its source.

``recipes.csv`` says which configurations of which papers are one recipe, and who ran it again; ``reruns.csv`` holds
the numbers of re-runs that no paper's file has, for example from issue threads.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from importlib.resources.abc import Traversable
from typing import Annotated, NamedTuple

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from tvrbench.harness.reporting.papers.csv_rows import (
    Backbone,
    Digits,
    Stated,
    Text,
    checked,
    decimals,
    duplicate,
    folder,
    lines,
    load,
    metric_of,
)
from tvrbench.harness.reporting.papers.published import Method, PublishedNumber, load_published

_SOURCES = {
    r"(\w[\w.-]*/\w[\w.-]*)#(\d+)": r"https://github.com/\1/issues/\2",
    r"(\w[\w.-]*/\w[\w.-]*)": r"https://github.com/\1",
    r"\S+ \(arXiv (\d{4}\.\d{4,5})\)": r"https://arxiv.org/abs/\1",
    r"\S+ \(OpenReview (\w+)\)": r"https://openreview.net/forum?id=\1",
}
"""Forms of a source, and their web addresses."""


def address(source: str) -> str:
    """Return the web address of a source: a thread (``owner/repository#1``), a repository or a paper.

    Raises:
        ValueError: the source has none of these forms.
    """
    for form, web in _SOURCES.items():
        if (match := re.fullmatch(form, source, re.ASCII)) is not None:
            return match.expand(web)
    raise ValueError("give owner/repository#number, owner/repository, or a paper with its arXiv or OpenReview number")


def _addressed(source: str | None) -> str | None:
    if source is not None:
        address(source)
    return source


Source = Annotated[str, AfterValidator(_addressed)]


@dataclass(frozen=True, kw_only=True)
class PublishedRecipe:
    """A paper's name for a recipe.

    Attributes:
        recipe: the name here, shared by all papers that ran it.
        paper, method, config: of the published numbers.
        source: who ran the recipe again; None where the numbers are those of its authors.
        differs: what the re-run is known to do otherwise; None for nothing.
    """

    recipe: Text
    paper: Text
    method: Method
    config: str
    source: Annotated[Stated, AfterValidator(_addressed)]
    differs: Stated


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """One number of a re-run.

    Attributes:
        recipe: that was run again.
        dataset, train_split, backbone, metric, value, unit, decimals: as of a PublishedNumber.
        source: a thread, a repository or a paper.
        differs: what is known to differ from the recipe; None for nothing.
        read_from: how the number was read.
    """

    recipe: Text
    dataset: Text
    train_split: Stated
    backbone: Backbone
    metric: Text
    value: Digits
    unit: Text
    decimals: int
    source: Source
    differs: Stated
    read_from: Text

    @property
    def printed(self) -> str:
        """The value as its source prints it."""
        return f"{self.value:.{self.decimals}f}"


class Reruns(NamedTuple):
    """The recipes that several ran, and the numbers of all re-runs, those in papers among them."""

    recipes: Sequence[PublishedRecipe]
    reruns: Sequence[Rerun]

    def of(self, number: PublishedNumber) -> list[Rerun]:
        """Return the re-runs of a number's recipe on its data and backbone, without the number's own."""
        recipe = named(number, self.recipes)
        return [
            one
            for one in (self.reruns if recipe is not None else ())
            if recipe is not None
            and (one.recipe, one.dataset, one.metric) == (recipe.recipe, number.dataset, number.metric)
            and number.backbone in (None, one.backbone)
            and (None in (number.train_split, one.train_split) or number.train_split == one.train_split)
            and one.source != recipe.source
        ]

    def repeats(self, number: PublishedNumber, numbers: Iterable[PublishedNumber]) -> bool:
        """Return True if a number is a re-run of one of the others, which is the recipe's authors' own."""
        recipe, place = named(number, self.recipes), (number.dataset, number.backbone, number.metric)
        if recipe is None or recipe.source is None:
            return False
        same = (named(n, self.recipes) for n in numbers if (n.dataset, n.backbone, n.metric) == place)
        return any(r is not None and r.recipe == recipe.recipe and r.source is None for r in same)


def named(number: PublishedNumber, recipes: Iterable[PublishedRecipe]) -> PublishedRecipe | None:
    """Return the recipe that a number is of; None where nobody else ran it."""
    place = (number.paper, number.method, number.config)
    return next((r for r in recipes if (r.paper, r.method, r.config) == place), None)


@functools.cache
def load_reruns() -> Reruns:
    """Read the recipes, their re-runs, and the papers' numbers that are re-runs.

    Raises:
        UsageError: a line is incomplete, unknown, no number, or repeated; the message names it.
    """
    recipes = tuple(load("recipes.csv", PublishedRecipe))
    in_papers = [again for n in load_published() if (again := _again(n, recipes)) is not None]
    return Reruns(recipes, (*in_papers, *read_reruns(folder() / "reruns.csv")))


def read_reruns(file: Traversable) -> tuple[Rerun, ...]:
    """Read the re-runs of one file; errors as ``load_reruns``."""
    reruns: dict[Rerun, None] = {}
    for line, row in lines(file):
        fields = {"metric": metric_of(file, line, row), "decimals": decimals(row["value"])}
        one = checked(file, line, Rerun, {name: row[name] for name in Rerun.__annotations__} | fields)
        if one in reruns:
            raise duplicate(file, line, f"{one.metric} of {one.source}")
        reruns[one] = None
    return tuple(reruns)


def _again(number: PublishedNumber, recipes: Iterable[PublishedRecipe]) -> Rerun | None:
    """Return a paper's number as a re-run, if it is one."""
    recipe = named(number, recipes)
    if recipe is None or recipe.source is None:
        return None
    same = ("dataset", "train_split", "backbone", "metric", "value", "unit", "decimals")
    values = {name: getattr(number, name) for name in same}
    read_from = f"{number.table}; {number.read_from}"
    return Rerun(recipe=recipe.recipe, source=recipe.source, differs=recipe.differs, read_from=read_from, **values)
