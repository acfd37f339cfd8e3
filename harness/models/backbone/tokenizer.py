"""Captions into token ids: CLIP's byte-pair encoding, or a word list beside small weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.backbone.weights import Weights
from tvrbench.harness.models.backbone.weights_file import read_json
from tvrbench.harness.records.reading import USUAL_TOKENIZER

CLIP_VOCABULARY = 49408
BYTE_PAIRS = USUAL_TOKENIZER
WORDS, HUGGING_FACE_VOCABULARY = "vocab.txt", "vocab.json"
_LONGEST = 8 * 2**20
_SPECIAL = 2  # start and end, the last ids, under names of their own in every library


class Tokenizer(Protocol):
    """Captions -> (ids [B, L] int64, mask [B, L] bool, False = padding); L is the longest of the batch.

    Captions are cut to ``length`` ids with the end token kept.

    Attributes:
        name: for records: the same for the same ids.
    """

    name: str

    def __call__(self, captions: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Encode a batch."""


def _pack(rows: list[list[int]], start: int, end: int, length: int) -> tuple[Tensor, Tensor]:
    tokens = [torch.tensor([start, *row[: length - 2], end]) for row in rows]
    # Padded to the longest of the batch, not to `length`: columns of nothing but padding cost time and change nothing.
    ids = pad_sequence(tokens, batch_first=True)
    lengths = torch.tensor([len(row) for row in tokens])
    return ids, torch.arange(ids.shape[1]) < lengths.unsqueeze(1)


class BytePairTokenizer:
    """OpenAI CLIP's byte-pair encoding, as open_clip ships it."""

    name = BYTE_PAIRS

    def __init__(self) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self._bpe = SimpleTokenizer()

    def check_same(self, vocabulary: Path) -> None:
        """UsageError unless a vocabulary in Hugging Face's layout gives CLIP's tokens the ids that they have here."""
        try:
            ids = read_json(vocabulary, _LONGEST)
            same = all(ids.get(token) == number for token, number in list(self._bpe.encoder.items())[:-_SPECIAL])
        except (OSError, ValueError, AttributeError):
            same = False
        if not same:
            raise UsageError(
                f"{vocabulary.name} beside the weights is not the vocabulary of CLIP's byte pairs, and no other "
                "tokenizer of subwords is known here: give weights with CLIP's own",
                code="vocabulary.other",
                file=vocabulary.name,
            )

    def __call__(self, captions: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Encode a batch: [B, L] ids and mask, L at most ``length``."""
        rows = [self._bpe.encode(caption) for caption in captions]
        return _pack(rows, self._bpe.sot_token_id, self._bpe.eot_token_id, length)


class WordTokenizer:
    """One id per word: 0 is padding, the words of the list follow, then start and end (the largest id)."""

    def __init__(self, words: Sequence[str]) -> None:
        self._ids = {word: i + 1 for i, word in enumerate(words)}
        if len(self._ids) != len(words):
            raise UsageError("vocab.txt lists a word twice", code="vocabulary.duplicate")
        self.vocab_size = len(words) + 3
        self.name = f"{len(words)} words, SHA-256 {hashlib.sha256(chr(10).join(words).encode()).hexdigest()[:16]}"

    @classmethod
    def from_file(cls, path: Path) -> WordTokenizer:
        """Read one word per line."""
        return cls(path.read_text(encoding="utf-8").split())

    def __call__(self, captions: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Encode a batch: [B, L] ids and mask, L at most ``length``; UsageError names a word not in the list."""
        rows = [[self._id(word) for word in re.findall(r"[a-z]+|,", caption.lower())] for caption in captions]
        return _pack(rows, self.vocab_size - 2, self.vocab_size - 1, length)

    def _id(self, word: str) -> int:
        if word not in self._ids:
            raise UsageError(
                f"caption word {word!r} is not in the vocabulary of these weights", code="vocabulary.word", word=word
            )
        return self._ids[word]


_byte_pair = lru_cache(maxsize=1)(BytePairTokenizer)


def tokenizer_for(weights: Weights) -> Tokenizer:
    """The tokenizer of weights: ``vocab.txt`` beside them, else CLIP's byte pairs.

    Raises:
        UsageError: the vocabulary sizes do not agree, or the vocabulary beside the weights is not CLIP's.
    """
    words = weights.folder / WORDS if weights.folder else None
    if words is not None and words.is_file():
        tokenizer = WordTokenizer.from_file(words)
        if tokenizer.vocab_size != weights.arch.vocab_size:
            problem = f"vocab.txt gives {tokenizer.vocab_size} ids, the weights hold {weights.arch.vocab_size}"
            raise UsageError(problem, code="vocabulary.size", words=tokenizer.vocab_size)
        return tokenizer
    if weights.arch.vocab_size != CLIP_VOCABULARY:
        raise UsageError(
            f"the weights hold {weights.arch.vocab_size} token embeddings, CLIP's byte-pair encoding has "
            f"{CLIP_VOCABULARY}: put the word list vocab.txt beside the weights",
            code="vocabulary.missing",
            weights=weights.arch.vocab_size,
        )
    byte_pairs = _byte_pair()
    if weights.folder is not None and (weights.folder / HUGGING_FACE_VOCABULARY).is_file():
        byte_pairs.check_same(weights.folder / HUGGING_FACE_VOCABULARY)
    return byte_pairs
