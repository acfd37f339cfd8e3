"""The learning rate that was chosen for a method, as states, records and the kept file hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tvrbench.harness.core.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class LrChoice:
    """The learning rate that was chosen.

    Attributes:
        factors: that were tried, as multiples of the tuning's rate.
        chosen: the one of the best held-out R-Sum.
        held_out_rsum: R-Sum on the held-out videos by factor; without those that diverged.
        held_out_videos: their number.
        diverged: factors whose training diverged.
        seed: that all factors were tried with.
        steps: that each was tried for.
        protocol_hash: of the protocol that the choice belongs to.
        reused: another run searched it, perhaps at another time; False where this one did.
    """

    factors: tuple[float, ...]
    chosen: float
    held_out_rsum: Mapping[str, float]
    held_out_videos: int
    diverged: tuple[float, ...] = field(default=())
    seed: int
    steps: int
    protocol_hash: str
    reused: bool = False

    def __post_init__(self) -> None:
        if self.chosen not in self.factors:
            raise UsageError(f"{self.chosen} is none of the factors tried", code="lr-choice.not-tried")

    def to_json(self) -> dict[str, Any]:
        """The choice as plain data; ``diverged`` only where a factor did."""
        document = asdict(self) | {"factors": list(self.factors), "diverged": list(self.diverged)}
        return {key: value for key, value in document.items() if key != "diverged" or value}
