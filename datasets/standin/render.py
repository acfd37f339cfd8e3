"""Renders the stand-in's clips: shapes on dim textured backgrounds."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from tvrbench.datasets.standin.scenes import Event, Scene

SIDE = 64
EVENT_FRAMES = 6
RADIUS = {"small": 6.5, "large": 13.0}
RGB = {
    "red": (225, 40, 40),
    "green": (45, 185, 60),
    "blue": (50, 85, 240),
    "yellow": (240, 220, 50),
    "purple": (150, 60, 205),
    "cyan": (60, 215, 225),
    "pink": (250, 135, 195),
    "white": (245, 245, 245),
}

Pixels = npt.NDArray[np.float64]
Point = tuple[float, float]


def _star(x: Pixels, y: Pixels) -> Pixels:
    """Distance to the edge line of one of ten mirrored wedges, each from a tip (radius 1) to a notch (0.42)."""
    wedge = np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + wedge) % (2 * wedge) - wedge)
    radius = np.hypot(x, y)
    along, across = radius * np.cos(angle), radius * np.sin(angle)
    notch_x, notch_y = 0.42 * np.cos(wedge), 0.42 * np.sin(wedge)
    length = np.hypot(1 - notch_x, notch_y)
    return np.asarray(((along - 1) * notch_y + across * (1 - notch_x)) / length)


def _outside(shape: str, x: Pixels, y: Pixels) -> Pixels:
    """Distance of each point to a shape of radius 1 (negative inside); y points down."""
    radius = np.hypot(x, y)
    match shape:
        case "circle":
            return np.asarray(radius - 0.95)
        case "square":
            return np.asarray(np.maximum(np.abs(x), np.abs(y)) - 0.82)
        case "triangle":
            return np.asarray(np.maximum(0.87 * np.abs(x) - 0.5 * y - 0.48, y - 0.72))
        case "star":
            return _star(x, y)
        case "ring":
            return np.asarray(np.abs(radius - 0.74) - 0.22)
        case "cross":
            longer, shorter = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
            return np.asarray(np.maximum(longer - 0.95, shorter - 0.28))
        case "diamond":
            return np.asarray((np.abs(x) * 1.35 + np.abs(y) - 1.0) / 1.68)
        case "moon":
            return np.asarray(np.maximum(radius - 0.97, 0.75 - np.hypot(x - 0.48, y)))
        case _:
            raise ValueError(f"no shape named {shape}")


def paint(canvas: Pixels, shape: str, color: str, center: Point, radius: float) -> Pixels:
    """Paint an object on the canvas [SIDE, SIDE, 3], with edges smoothed over one pixel."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] + 0.5
    cover = np.clip(0.5 - radius * _outside(shape, (x - center[0]) / radius, (y - center[1]) / radius), 0, 1)[..., None]
    return np.asarray(canvas * (1 - cover) + cover * np.asarray(RGB[color], dtype=np.float64))


def background(rng: np.random.Generator) -> Pixels:
    """A dim, tinted texture [SIDE, SIDE, 3]: coarse clouds with finer ones over them."""
    tint = rng.uniform(0.6, 1.0, 3)
    texture = np.zeros((SIDE, SIDE))
    for cells, strength in ((4, 45.0), (16, 20.0)):
        grid = Image.fromarray(rng.uniform(0, strength, (cells, cells)).astype(np.float32))
        texture += np.asarray(grid.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return np.asarray((15 + texture)[..., None] * tint)


def _path(event: Event, rng: np.random.Generator) -> tuple[list[Point], list[float]]:
    """Center and radius of the event's object in each of its frames."""
    steps = np.linspace(0, 1, EVENT_FRAMES)
    center = rng.uniform(18, 46, 2)
    verb, *direction = event.verb.split()
    if verb in ("grows", "shrinks"):
        low, high = RADIUS["small"], RADIUS["large"] + 1
        radii = low + (high - low) * (steps if verb == "grows" else 1 - steps)
        return [(center[0], center[1])] * EVENT_FRAMES, radii.tolist()
    radii = np.full(EVENT_FRAMES, RADIUS[event.size])
    if verb == "stays":
        return [(center[0], center[1])] * EVENT_FRAMES, radii.tolist()
    travel = 16 + rng.uniform(-2, 2) + 32 * (steps if direction[0] in ("right", "down") else 1 - steps)
    if direction[0] in ("left", "right"):
        return [(x, center[1]) for x in travel.tolist()], radii.tolist()
    return [(center[0], y) for y in travel.tolist()], radii.tolist()


def render(scene: Scene) -> npt.NDArray[np.uint8]:
    """Render a scene's frames [2 * EVENT_FRAMES, SIDE, SIDE, 3], RGB, its events in order."""
    rng = np.random.default_rng(scene.seed)
    behind = background(rng)
    frames = []
    for event in scene.events:
        for center, radius in zip(*_path(event, rng), strict=True):
            frames.append(paint(behind, event.shape, event.color, center, radius))
    return np.asarray(np.stack(frames).round(), dtype=np.uint8)


def swap(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the same frames with the second event first."""
    return np.roll(frames, EVENT_FRAMES, axis=0)
