"""Scores to metrics, frames to the model, and frame averaging that ties exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tvrbench.harness import load_model
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.frame_loader import FrameLoader, normalize
from tvrbench.harness.data.types import FrameSpec, Split, VideoFault
from tvrbench.harness.evaluation.evaluate import evaluate, score
from tvrbench.harness.evaluation.metrics import cosine_scores
from tvrbench.harness.records.reading import CLIP_MEAN, CLIP_STD
from tvrbench.harness.runs.context import bad_videos_message

pytestmark = pytest.mark.unit


class _Counting:
    """A data set of one-colored clips that counts its decodes and fails for one video."""

    name = "counting"

    def __init__(self) -> None:
        self.decoded: list[str] = []

    def frames(self, video_id: str, spec: FrameSpec, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        self.decoded.append(video_id)
        if video_id == "bad":
            raise UsageError("bad.mp4: truncated", code="video.broken")
        shade = int(video_id) if seed == 0 else seed % 256
        return np.full((spec.frames, 3, spec.size, spec.size), shade, np.uint8), np.ones(spec.frames, bool)


SPEC = FrameSpec(frames=2, size=4)


def test_frames_are_decoded_once_where_they_fit() -> None:
    dataset = _Counting()
    loader = FrameLoader(dataset, SPEC, videos=3)  # type: ignore[arg-type]
    for _ in range(2):
        got = list(loader.batches([[("1", 0), ("2", 0)], [("3", 0)]]))
        assert [pixels[:, 0, 0, 0, 0].tolist() for pixels, _ in got] == [[1, 2], [3]]
    assert sorted(dataset.decoded) == ["1", "2", "3"]


def test_frames_are_decoded_anew_where_they_do_not_fit_or_are_augmented() -> None:
    for loader_options, spec in (({"memory_limit": 10}, SPEC), ({}, FrameSpec(frames=2, size=4, augment="some"))):
        dataset = _Counting()
        loader = FrameLoader(dataset, spec, videos=2, **loader_options)  # type: ignore[arg-type]
        for _ in range(2):
            list(loader.batches([[("1", 0)]]))
        assert dataset.decoded == ["1", "1"]


def test_a_bad_clip_stops_the_loader_with_its_own_words() -> None:
    loader = FrameLoader(_Counting(), SPEC, videos=2)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"bad\.mp4"):
        list(loader.batches([[("1", 0)], [("bad", 0)]]))


def test_pixels_are_normalized_and_padding_is_zero() -> None:
    pixels = torch.full((1, 2, 3, 2, 2), 255, dtype=torch.uint8)
    out = normalize(pixels, torch.tensor([[True, False]]), "cpu", CLIP_MEAN, CLIP_STD)
    want = [(1 - mean) / std for mean, std in zip(CLIP_MEAN, CLIP_STD, strict=True)]
    assert out[0, 0, :, 0, 0].tolist() == pytest.approx(want, abs=1e-6)
    assert (out[0, 1] == 0).all()


def test_subsets_and_pairs_are_scored() -> None:
    split = Split(
        name="t",
        video_ids=("a", "b", "c"),
        captions=("a", "b", "c"),
        caption_video=(0, 1, 2),
        subsets={"order-only": (0, 1), "order-free": (2,)},
        scenes=(0, 0, 1),
    )
    text = torch.tensor([[0.9, 0.1, 0.1], [0.8, 0.1, 0.2], [0.1, 0.1, 0.9]])
    video = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # the first two tie exactly
    result = score(text, video, split)
    assert result.ranks["t2v"].tolist() == [1.5, 1.5, 1.0]
    assert result.metrics["pair_accuracy"] == 50.0
    assert result.metrics["subsets"]["order-free"]["t2v"]["R1"] == 100.0
    assert result.metrics["subsets"]["order-only"]["t2v"]["R1"] == 0.0
    assert result.metrics["selection"] == "last"
    low, high = result.metrics["intervals"]["t2v"]["R1"]
    assert low <= result.metrics["t2v"]["R1"] <= high


@pytest.mark.parametrize("method", ["zero_shot", "clip4clip", "lora"])
def test_frame_averaging_ties_exactly_on_reordered_frames(
    method: str, tiny_weights: Path, tiny_batch: dict[str, Any]
) -> None:
    model = load_model(method, weights=tiny_weights)
    frames = tiny_batch["frames"]
    swapped = torch.cat([frames[:, 6:], frames[:, :6]], dim=1)
    with torch.no_grad():
        both = model.encode_video(torch.cat([frames, swapped]), torch.ones(6, 12, dtype=torch.bool))
        text = model.encode_text(tiny_batch["ids"], tiny_batch["text_mask"])
    scores = cosine_scores(text, both)
    assert np.array_equal(scores[:, :3], scores[:, 3:])


def test_bad_videos_are_named_one_by_one() -> None:
    faults = [
        VideoFault(video_id=f"video{i}", path=Path(f"/x/video{i}.mp4"), kind="truncated", detail="cut")
        for i in range(3)
    ]
    text = bad_videos_message(faults)
    assert all(f"video{i}.mp4: truncated (cut)" in text for i in range(3))
    assert "--skip-bad-videos" in text


def test_thousands_of_absent_videos_hide_no_broken_one() -> None:
    kinds = ["missing"] * 5_000 + ["empty"]
    faults = [
        VideoFault(video_id=f"video{i}", path=Path(f"/x/video{i}.mp4"), kind=kind, detail="so")
        for i, kind in enumerate(kinds)
    ]
    lines = bad_videos_message(faults).splitlines()
    assert lines[0].startswith("5001 videos cannot be used")
    assert lines[1] == "  video5000.mp4: empty (so)"
    assert lines[-1] == "  and 4980 more are missing; tvrbench data verify lists them all"
    assert len(lines) == 1 + 1 + 20 + 1


@pytest.mark.parametrize(("name", "merges"), [("tempme", True), ("lora", False)])
def test_an_evaluation_notes_how_near_the_choices_were(name: str, merges: bool, tiny_model: Any) -> None:
    def tokenizer(captions: tuple[str, ...], words: int) -> tuple[torch.Tensor, torch.Tensor]:
        ids = torch.tensor([[500, len(caption), 511] for caption in captions])
        return ids, torch.ones_like(ids, dtype=torch.bool)

    split = Split(name="two", video_ids=("1", "2"), captions=("a", "bb"), caption_video=(0, 1))
    loader = FrameLoader(_Counting(), FrameSpec(frames=12, size=64), videos=2)  # type: ignore[arg-type]
    found = evaluate(tiny_model(name), split, loader, tokenizer, 3).metrics  # type: ignore[arg-type]
    assert ("merge_margin" in found) is merges
    if merges:  # two videos, one decision a sequence: 12 in blocks 0-7, 6 twice, 3 twice, 1 three times
        assert found["merge_margin"]["decisions"] == 2 * (8 * 12 + 2 * 6 + 2 * 3 + 3 * 1)
