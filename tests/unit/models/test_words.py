"""Words of a caption: exactly the tokens of its ids, whatever stands between them on their way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from errors import raises
from torch import Tensor

from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.scorer import Side, TextFeatures
from tvrbench.harness.models.text import TextPath, end_of
from tvrbench.harness.models.tuning import TUNINGS

pytestmark = pytest.mark.unit
Make = Callable[..., RetrievalModel]
LENGTHS = (3, 9, 12)
PATHS: list[dict[str, Any]] = [
    {},
    {"reducer": "vop"},
    {"reducer": "vop", "reducer_options": {"read": "released"}},
    {"reducer": "vop", "reducer_options": {"prefix": 0, "suffix": 3, "read": "released"}},
    {"reducer": "dgl"},
    {"reducer": "rap"},
]
CASES = [({}, tuning) for tuning in TUNINGS] + [
    (path, tuning) for path in PATHS[1:] for tuning in ("own", "lora", "prompts", "mv-adapter")
]


def _captions(columns: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 500, (3, columns), generator=generator)
    for row, length in enumerate(LENGTHS):
        ids[row, length - 1] = 511
        ids[row, length:] = 0
    return ids, ids > 0


def _features(model: RetrievalModel, ids: Tensor, mask: Tensor) -> TextFeatures:
    seen: list[TextFeatures] = []
    model.scorer.text_side = lambda text: (seen.append(text), Side(coarse=text.end))[1]  # type: ignore[method-assign]
    with torch.no_grad():
        model.text_side(ids, mask)
    return seen[0]


@pytest.mark.parametrize(("path", "tuning"), CASES)
def test_every_word_is_the_token_of_its_id(path: dict[str, Any], tuning: str, tiny_model: Make) -> None:
    """A word sees the ids up to its own alone, so a changed id changes its own word first of all."""
    if tuning == "mv-adapter" and path.get("reducer") == "dgl":  # frames share a sequence, which its adapters refuse
        with raises("tuning.mv-adapter"):
            tiny_model("drl", tuning=tuning, **path)
        return
    model = tiny_model("drl", tuning=tuning, **path)
    ids, mask = _captions()
    text = _features(model, ids, mask)
    assert text.words is not None
    assert text.words.shape == (3, 12, 64)
    assert text.mask.sum(dim=1).tolist() == list(LENGTHS)
    assert torch.equal(text.mask, mask)
    with torch.no_grad():
        torch.testing.assert_close(text.end, model.encode_text(ids, mask), rtol=0, atol=1e-5)
    for place in (1, 5, 10):
        other = ids.clone()
        other[2, place] = 7
        words = _features(model, other, mask).words
        assert words is not None
        changed = (words[2] - text.words[2]).abs().amax(dim=1) > 1e-6
        assert changed.nonzero()[0].item() == place
        assert torch.equal(words[:2], text.words[:2])


@pytest.mark.parametrize("tuning", ["lora", "prompts-shallow", "mv-adapter"])
def test_the_word_at_the_end_is_the_feature(tuning: str, tiny_model: Make) -> None:
    model, (ids, mask) = tiny_model("drl", tuning=tuning), _captions()
    text = _features(model, ids, mask)
    assert text.words is not None
    assert torch.equal(text.words[torch.arange(3), end_of(ids, mask)], text.end)


@pytest.mark.parametrize("path", PATHS)
def test_what_follows_the_end_is_no_word_whatever_the_mask_says(path: dict[str, Any], tiny_model: Make) -> None:
    model, (ids, mask) = tiny_model("drl", **path), _captions()
    ids[1, 10] = 17  # after the end token
    text = _features(model, ids, torch.ones_like(mask))
    assert text.mask.sum(dim=1).tolist() == list(LENGTHS)


@pytest.mark.parametrize("read", ["end", "released"])
@pytest.mark.parametrize("columns", [23, 24, 25, 32])
def test_words_of_captions_that_fill_or_pass_the_room(read: str, columns: int, tiny_model: Make) -> None:
    """VoP keeps 24 of 32 places for ids, and cuts longer captions before their end token."""
    model = tiny_model("drl", reducer="vop", reducer_options={"read": read})
    ids = torch.randint(1, 500, (2, columns), generator=torch.Generator().manual_seed(1))
    ids[0, -1] = ids[1, 4] = 511
    ids[1, 5:] = 0
    text, kept = _features(model, ids, ids > 0), min(columns, 24)
    assert text.words is not None
    assert text.words.shape[1] == kept
    assert text.mask.sum(dim=1).tolist() == [kept, 5]
    other = ids.clone()
    other[0, -1] = 510  # the largest id still, at the same place
    words = _features(model, other, ids > 0).words
    assert words is not None
    assert ((words[0] - text.words[0]).abs().amax(dim=1) > 1e-6).nonzero().flatten().tolist() == [kept - 1]


def test_a_path_that_adds_tokens_says_which_are_words(tiny_model: Make) -> None:
    class Doubled(TextPath):
        def enter(self, tower: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
            x, end = super().enter(tower, ids, mask)
            return x.repeat_interleave(2, dim=1), 2 * end + 1

    class Told(Doubled):
        def words(self, tokens: Tensor, length: int) -> Tensor:
            return tokens[:, 1::2]

    (ids, mask), model = _captions(), tiny_model("drl")
    model.text_path = Doubled(model.clip.arch)
    with raises("text.words"):
        model.text_side(ids, mask)
    model.text_path = Told(model.clip.arch)
    text = _features(model, ids, mask)
    assert text.words is not None
    assert torch.equal(text.words[torch.arange(3), end_of(ids, mask)], text.end)
    video_only = tiny_model("ts2net")
    video_only.text_path = Doubled(model.clip.arch)
    assert len(video_only.text_side(ids, mask)) == 3
