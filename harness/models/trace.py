"""The source patches in each token that leaves the vision tower, for figures and tests."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.tokens import TokenStream


@dataclass(frozen=True, kw_only=True)
class TokenTrace:
    """The path of every source patch of a batch of videos.

    Attributes:
        token_BTP: [B, T, P] the token that holds each patch in the end, -1 where the patch was dropped. Tokens of a
            video are numbered through its sequences: sequence x ``tokens`` + position.
        sequences, tokens: sequences per video and tokens per sequence that leave the last block.
    """

    token_BTP: Tensor
    sequences: int
    tokens: int

    def patches(self, video: int, token: int) -> list[tuple[int, int]]:
        """(frame, patch) of every source patch in a token of a video of the batch, in order."""
        places: list[list[int]] = (self.token_BTP[video] == token).nonzero().tolist()
        return [(frame, patch) for frame, patch in places]


def token_trace(stream: TokenStream, frames: int) -> TokenTrace:
    """The trace of a stream that left the tower; UsageError where none was asked for."""
    if stream.origin is None:
        raise UsageError("this stream was not traced: ask for it with trace=True", code="trace.missing")
    videos = stream.origin.shape[0]
    return TokenTrace(
        token_BTP=stream.origin.view(videos, frames, -1), sequences=stream.per_video, tokens=stream.x.shape[1]
    )
