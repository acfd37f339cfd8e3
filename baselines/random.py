"""Random embeddings: what retrieval scores when the features know nothing (chance level).

With N videos, one caption each and untied scores, every rank from 1 to N is equally likely: R@k = 100 k / N percent
and a mean rank of (N + 1) / 2.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.spec import MethodCard, MethodOptions
from tvrbench.harness.models.tokens import TokenReducer


class RandomModel(RetrievalModel):
    """Gaussian features seeded by the model's seed and the item's content alone.

    The same video or caption has the same feature in any batch, on any device and in any process; equal items tie.
    The towers are held, because weights, temperature and shape checks are theirs, but neither ever runs.
    """

    draw: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # From the generator that load_model's seed has just set. Below 2^24, which float32 holds exactly: checkpoints
        # are read in float32.
        self.register_buffer("draw", torch.randint(2**24, ()))

    def _feature(self, kind: str, content: Tensor) -> Tensor:
        data = content.contiguous().cpu().numpy().tobytes()
        digest = hashlib.blake2b(f"{kind} {int(self.draw)} ".encode() + data, digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        return torch.randn(self.clip.arch.embed_dim, generator=generator)

    def encode_video(self, frames: Tensor, mask: Tensor, trace: bool = False) -> Any:
        """frames [B, T, 3, H, W], mask [B, T] -> [B, E] gaussian; only valid frames count as content.

        Raises:
            UsageError: wrong shapes, or a trace is asked for: there are no tokens to follow.
        """
        if trace:
            raise UsageError("random: no vision tower runs, so there are no tokens to trace", code="trace.no-tokens")
        self._check_video(frames, mask)
        items = [self._feature("video", video[valid].float()) for video, valid in zip(frames, mask.bool(), strict=True)]
        return torch.stack(items).to(frames.device)

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids [B, L], mask [B, L] -> [B, E] gaussian; padding is no content."""
        self.clip.check_text(ids, mask)
        items = [self._feature("text", words[valid].long()) for words, valid in zip(ids, mask.bool(), strict=True)]
        return torch.stack(items).to(ids.device)


class NoFrames(TokenReducer):
    """No frame enters the tower, so no block has tokens."""

    carries_prompts = True

    def select_frames(self) -> tuple[int, ...]:
        """None of them."""
        return ()

    def output_mask(self, mask_BT: Tensor) -> Tensor:
        """Nothing leaves the tower: [B, 0]."""
        return mask_BT[:, :0]


class Random(Method[MethodOptions]):
    """Chance level. Nothing trains, no tower runs: no tokens and no multiply-adds."""

    card = MethodCard(
        summary="random embeddings: chance level",
        paper="closed form: R@k = 100 k / N, mean rank (N + 1) / 2",
        group="reference",
        recipe="uniform",
        tuning="frozen",
        identity="its features are noise, whatever the settings",
        trains=False,
        encodes=False,
    )
    Model = RandomModel

    def build_reducer(self) -> TokenReducer:
        """Nothing to reduce."""
        return NoFrames(self.arch, self.frames)
