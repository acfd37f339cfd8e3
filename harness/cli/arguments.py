"""What options of the command line say, turned into values."""

from __future__ import annotations

from typing import Literal

from tvrbench.harness.core.errors import UsageError

Device = Literal["auto", "cuda", "cpu"]
Extent = Literal["auto", "counted", "timed", "none"]


def split_names(text: str | None, what: str) -> tuple[str, ...]:
    """Names separated by commas, none where the option was left out; UsageError where one stands twice."""
    names = tuple(part.strip() for part in text.split(",") if part.strip()) if text is not None else ()
    if text is not None and not names:
        raise UsageError(f"--{what} is empty: give names separated by commas, for example --{what} lora,tempme")
    if len(set(names)) < len(names):
        raise UsageError(f"--{what} {text}: a name stands twice")
    return names


def split_numbers(text: str | None, what: str) -> tuple[int, ...]:
    """Whole numbers separated by commas; UsageError where one is none."""
    names = split_names(text, what)
    if any(not (name.isascii() and name.isdigit() and len(name) < 10) for name in names):
        raise UsageError(f"--{what} {text!r}: give whole numbers separated by commas, for example --{what} 0,1,2")
    return tuple(int(name) for name in names)


def pick_device(wanted: Device) -> str:
    """The device; UsageError where a GPU is asked of a machine without."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this machine has no CUDA device; use --device cpu")
    return wanted if wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def pick_extent(wanted: Extent, device: str) -> Literal["count", "time"] | None:
    """How far costs at paper scale are measured; ``auto`` times on a GPU and counts on a CPU."""
    if wanted == "auto":
        return "time" if device == "cuda" else "count"
    details: dict[Extent, Literal["count", "time"]] = {"counted": "count", "timed": "time"}
    return details.get(wanted)
