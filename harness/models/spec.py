"""A method as frozen data: the card it declares, and its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any, Literal

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.registry import Group


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Options every method has.

    Attributes:
        tuning: the parameters that learn, see ``tvrbench.harness.models.tuning``.
        rank: inner width of the LoRA update.
    """

    tuning: str
    rank: int = 8

    @property
    def lora_rank(self) -> int:
        """Inner width of the LoRA update, where a method uses ``rank`` for something else."""
        return self.rank


@dataclass(frozen=True, kw_only=True)
class MethodCard:
    """The declaration of a method, for lists, reports and defaults.

    Attributes:
        summary: one line for lists and reports.
        paper: its source.
        group: its group of rows in report tables, under any tuning.
        recipe: the training recipe of its paper.
        tuning: the tuning of its paper.
        presets: published option values by backbone name. ``tiny`` is the preset of a small model (64-pixel frames,
            16-pixel patches, 12 frames, 12 blocks), which the stand-in and the contract tests use. Options without a
            default must be in the preset or be given.
        identity: options under which the features of 12 frames are exactly those of the dense encoder with meanP; or,
            where there are none, the reason in words.
        role: what comparisons use it as: ``dense`` (the encoder without token reduction) or ``frame_budget`` (the
            encoder on fewer frames, option ``keep``); None for everything else.
        by_default: in the default set: ``run`` and ``sweep`` run it where nobody names methods; False leaves it to
            ``--methods all``. The whole default set takes at most ten minutes on the stand-in and two quiet cores.
        frame_captions: True for a method whose training also takes a caption of every frame, where a file of them is
            given.
        trains: False for a method that nothing is trained in.
        encodes: False for a method that runs no encoder, so that no encoder cost is measured.
        dead: trainable parameters that the loss never reaches, as regular expressions of their names; with `` in part``
            after that of a tensor of which only some elements are dead (``profiling.counts.dead``).
    """

    summary: str
    paper: str
    group: Group
    recipe: str
    tuning: str
    presets: dict[str, dict[str, Any]] = field(default_factory=dict)
    identity: dict[str, Any] | str = field(default_factory=dict)
    role: Literal["dense", "frame_budget"] | None = None
    by_default: bool = True
    frame_captions: bool = False
    trains: bool = True
    encodes: bool = True
    dead: tuple[str, ...] = ()

    @property
    def tiny(self) -> dict[str, Any]:
        """The preset of a small model."""
        return self.presets.get("tiny", {})


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """A configured method.

    Attributes:
        name: in the registry.
        card: of its class.
        options: all of them, presets filled in.
        frames: T, frames per video.
    """

    name: str
    card: MethodCard
    options: MethodOptions
    frames: int

    def describe(self) -> dict[str, Any]:
        """The options as plain data, for records."""
        return asdict(self.options)


def option_error(method: str, option: str, problem: str) -> UsageError:
    """The error for an option value that does not fit the model."""
    return UsageError(f"{method}: option {option!r} {problem}", code="option.value", method=method, option=option)


def require_range(method: str, option: str, value: float, low: float, high: float = inf) -> None:
    """UsageError unless ``low`` <= value <= ``high``."""
    if not low <= value <= high:
        raise option_error(method, option, f"is {value}: give {low} {'or more' if high == inf else f'to {high}'}")


def require_blocks(method: str, option: str, blocks: Sequence[int], layers: int) -> None:
    """UsageError unless these are different block numbers, ascending, of a tower with so many layers."""
    if list(blocks) != sorted(set(blocks)) or any(not 0 <= block < layers for block in blocks):
        raise option_error(
            method, option, f"names blocks {tuple(blocks)}: give ascending numbers from 0 to {layers - 1}"
        )
