"""Captions into ids: CLIP's byte pairs as open_clip makes them, and the word list of the stand-in."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch
from errors import raises

from tvrbench.harness.models.backbone.tokenizer import BytePairTokenizer, WordTokenizer, tokenizer_for
from tvrbench.harness.models.backbone.weights import load_weights

pytestmark = pytest.mark.unit
CAPTIONS = ["a person is connecting something to system", "Zwölf Boxkämpfer, <jagen> Viktor!", ""]


def test_byte_pairs_are_open_clips() -> None:
    ids, mask = BytePairTokenizer()(CAPTIONS, 77)
    theirs = open_clip.get_tokenizer("ViT-B-32")(CAPTIONS)
    assert torch.equal(ids, theirs[:, : ids.shape[1]])
    assert (theirs[:, ids.shape[1] :] == 0).all()
    assert torch.equal(mask.sum(1), (theirs != 0).sum(1))


def test_long_captions_are_cut_and_keep_the_end_token() -> None:
    ids, mask = BytePairTokenizer()(["dog " * 100, "cat"], 32)
    assert ids.shape == (2, 32)
    assert ids[0, -1] == 49407
    assert mask.sum(1).tolist() == [32, 3]
    assert ids[1].argmax() == 2


def test_words_are_numbered_from_one_and_the_end_is_the_largest() -> None:
    tokenizer = WordTokenizer(["a", "red", "star", ","])
    ids, mask = tokenizer(["A red star, a star", "red"], 32)
    assert ids.tolist() == [[5, 1, 2, 3, 4, 1, 3, 6], [5, 2, 6, 0, 0, 0, 0, 0]]
    assert mask.sum(1).tolist() == [8, 3]
    with raises("vocabulary.word", word="blue"):
        tokenizer(["a blue star"], 32)
    with raises("vocabulary.duplicate"):
        WordTokenizer(["a", "a"])


def test_weights_bring_their_tokenizer(tiny_weights: Path, tmp_path: Path) -> None:
    with raises("vocabulary.missing", weights=512):
        tokenizer_for(load_weights(tiny_weights))
    copy = tmp_path / "model.safetensors"
    copy.write_bytes(tiny_weights.read_bytes())
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with raises("vocabulary.size", words=5):
        tokenizer_for(load_weights(copy))
    (tmp_path / "vocab.txt").write_text("\n".join(f"w{i}" for i in range(509)))
    assert isinstance(tokenizer_for(load_weights(copy)), WordTokenizer)
