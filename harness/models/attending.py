"""A transformer block and the vision tower, as far as a token reducer sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor, nn


class AttentionOut(NamedTuple):
    """One attention branch.

    Attributes:
        delta: [S, N, D], to be added to the tokens.
        queries, keys: [S, heads, N, 64] of the tokens that attended.
        prompt_keys: [S, heads, Q, 64] of the prompts that they saw as keys alone; None where there are none.
    """

    delta: Tensor
    queries: Tensor
    keys: Tensor
    prompt_keys: Tensor | None = None

    def with_delta(self, delta: Tensor) -> AttentionOut:
        """The same but for another delta; torch.compile does not trace ``_replace``."""
        return AttentionOut(delta, self.queries, self.keys, self.prompt_keys)


class QKV(NamedTuple):
    """Queries, keys and values of tokens, [S, heads, N, 64] each."""

    queries: Tensor
    keys: Tensor
    values: Tensor


class Attends(Protocol):
    """A transformer block, as far as a reducer sees it."""

    ln_1: nn.LayerNorm

    def attend(self, x: Tensor, size: Tensor | None = None, *, prompts: Tensor | None = None) -> AttentionOut:
        """The attention branch of tokens [S, N, D]; ``size`` [S, N, 1] makes it proportional.

        ``prompts`` [R, Q, D] are further keys and values, before ``ln_1``: sequence s sees those of row s % R.
        """

    def attend_normed(self, x: Tensor, size: Tensor | None = None, *, prompts: Tensor | None = None) -> AttentionOut:
        """``attend`` for tokens that went through ``ln_1`` already; prompts did not."""

    def qkv(self, x: Tensor) -> QKV:
        """Queries, keys and values of tokens [S, N, D] that went through ``ln_1``, for ``mix``."""

    def mean_keys(self, x: Tensor) -> Tensor:
        """The keys of tokens [S, N, D] that went through ``ln_1``, averaged over heads: [S, N, 64], for less work."""

    def mix(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None = None,
        *,
        places: Tensor | None = None,
    ) -> Tensor:
        """The attention branch [S, N, D] of queries [S, heads, N, 64] over keys and values [S, heads, K, 64].

        ``mask`` is True where a query may see a key, or a number that is added to their logit, and has the shape of
        [S, heads, N, K] or one that becomes it. With ``places`` [M], only the result of these queries (sequence x N +
        position) is projected: [1, M, D].
        """


class VisionEncoder(Protocol):
    """The vision tower, as far as a reducer sees it."""

    positional_embedding: nn.Parameter
    ln_pre: nn.LayerNorm

    @property
    def blocks(self) -> Sequence[Attends]:
        """The blocks, first to last."""
