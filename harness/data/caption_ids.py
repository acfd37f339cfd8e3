"""Token ids of the captions of a split: each caption is tokenized once, when a batch first asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Tokenize = Callable[[Sequence[str], int], tuple[Tensor, Tensor]]


class CaptionIds:
    """Gives the ids that the tokenizer gives for any captions of a split; holds 4 bytes per caption and word.

    Args:
        captions: of the split.
        tokenize: from captions and a number of tokens L to ids and mask, [b, L] each, padded with 0 at the end to the
            longest caption (``models.backbone.tokenizer.Tokenizer``).
        words: the most tokens per caption.
    """

    def __init__(self, captions: Sequence[str], tokenize: Tokenize, words: int) -> None:
        self._captions, self._tokenize, self._words = captions, tokenize, words
        self._ids = np.zeros((len(captions), words), dtype=np.int32)
        self._lengths = np.full(len(captions), -1, dtype=np.int32)  # -1: not tokenized yet

    def of(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Ids int64 [b, L] and mask bool [b, L] of some captions; L is the longest of them.

        Raises:
            UsageError: of the tokenizer.
        """
        if new := [index for index in indices if self._lengths[index] < 0]:
            ids, mask = self._tokenize([self._captions[index] for index in new], self._words)
            self._ids[new, : ids.shape[1]] = ids.numpy()
            self._lengths[new] = mask.sum(dim=1).numpy()
        lengths = torch.from_numpy(self._lengths[indices])
        longest = int(lengths.max())
        ids = torch.from_numpy(self._ids[indices, :longest].astype(np.int64))
        return ids, torch.arange(longest) < lengths.unsqueeze(1)
