"""Content of the stand-in's clips in words: objects, events, scenes and their captions.

Draws use only ``random.Random.random``, the one stream that Python guarantees never to change, so that a seed gives
the same captions and split fingerprints everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

COLORS = ("red", "green", "blue", "yellow", "purple", "cyan", "pink", "white")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "moon")
SIZES = ("small", "large")
DIRECTIONS = ("left", "right", "up", "down")
SLIDES = tuple(f"slides {direction}" for direction in DIRECTIONS)
RESIZES = ("grows", "shrinks")
VERBS = (*SLIDES, *RESIZES, "stays")
RELATIONS = ("left of", "right of", "above", "below")

_OTHER_WORDS = (",", "a", "and", "then", "of", "above", "below")
VOCABULARY = (*_OTHER_WORDS, *SIZES, *COLORS, *SHAPES, "slides", *DIRECTIONS, *RESIZES, "stays")

T = TypeVar("T")


def draw(rng: Random, choices: Sequence[T]) -> T:
    """Draw one of ``choices`` uniformly."""
    return choices[int(rng.random() * len(choices))]


@dataclass(frozen=True, kw_only=True)
class Event:
    """One object doing one thing; ``size`` is empty where the verb changes it."""

    size: str
    color: str
    shape: str
    verb: str

    @property
    def phrase(self) -> str:
        """The event in words, e.g. ``a small red star slides left``."""
        return " ".join(word for word in ("a", self.size, self.color, self.shape, self.verb) if word)

    @property
    def without_direction(self) -> tuple[str, str, str, str]:
        """The event without the direction of a slide, which a model may not be able to learn."""
        return self.size, self.color, self.shape, self.verb.split()[0]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Two events, one after the other, before one background.

    Attributes:
        events: the two, in the order of the scene's first clip.
        seed: of everything that the caption omits (background, positions).
    """

    events: tuple[Event, Event]
    seed: int

    def caption(self, swapped: bool = False) -> str:
        """The caption of the clip that shows the events in order, or swapped."""
        first, second = reversed(self.events) if swapped else self.events
        return f"{first.phrase}, then {second.phrase}"


def draw_event(rng: Random) -> Event:
    """Draw every attribute of an event uniformly."""
    verb = draw(rng, VERBS)
    size = "" if verb in RESIZES else draw(rng, SIZES)
    return Event(size=size, color=draw(rng, COLORS), shape=draw(rng, SHAPES), verb=verb)


def draw_scenes(count: int, seed: int) -> list[Scene]:
    """Draw ``count`` scenes with distinct events, regardless of order and of the direction of slides.

    The two objects of a scene differ in color and in shape.
    """
    rng = Random(seed)
    scenes: list[Scene] = []
    seen: set[frozenset[tuple[str, str, str, str]]] = set()
    while len(scenes) < count:
        first, second = draw_event(rng), draw_event(rng)
        if first.color == second.color or first.shape == second.shape:
            continue
        pair = frozenset((first.without_direction, second.without_direction))
        if pair in seen:
            continue
        seen.add(pair)
        scenes.append(Scene(events=(first, second), seed=int(rng.random() * 2**31)))
    return scenes
