"""An evaluation that compares more than a vector of each side: ranks by definition, files that go, old ranks kept."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
import toy_scorer
from errors import raises
from tiny_run import Digits

from tvrbench.harness import load_model
from tvrbench.harness.core.signals import Interrupted
from tvrbench.harness.data.frame_loader import FrameLoader
from tvrbench.harness.data.types import FrameSpec, Split
from tvrbench.harness.evaluation.encode import encoded_bytes
from tvrbench.harness.evaluation.evaluate import Evaluation, evaluate
from tvrbench.harness.evaluation.metrics import retrieval_metrics, without_ranks
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.scorer import Side
from tvrbench.harness.runs.config import RunConfig

pytestmark = pytest.mark.unit
FRAMES, WORDS, TEXTS, VIDEOS = 12, 8, 14, 9
MEAN: dict[str, Any] = {"depth": 0, "head": "meanP"}


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_scorer.register(monkeypatch)


def split_of() -> Split:
    """Captions of most videos, some of several; scenes of three."""
    owners = np.random.default_rng(0).permutation([*range(7), *range(7)])
    return Split(
        name="t",
        video_ids=tuple(f"v{100 + i}" for i in range(VIDEOS)),
        captions=tuple(f"caption {i}" for i in range(TEXTS)),
        caption_video=tuple(owners.tolist()),
        subsets={"even": tuple(range(0, TEXTS, 2))},
        scenes=tuple(i // 3 for i in range(VIDEOS)),
    )


def model_of(weights: Path, name: str, **options: Any) -> RetrievalModel:
    return load_model(name, weights=weights, frames=FRAMES, **options)


def evaluated(model: RetrievalModel, batch: int = 4, scratch: Path | None = None) -> Evaluation:
    loader = FrameLoader(tiny_run.Clips(), FrameSpec(frames=FRAMES, size=64), videos=VIDEOS)  # type: ignore[arg-type]
    return evaluate(model, split_of(), loader, Digits(), WORDS, batch=batch, scratch=scratch)


@torch.no_grad()
def sides(model: RetrievalModel) -> tuple[Side, Side]:
    """Both sides at once, in memory; captions are as long as all words."""
    split, clips, spec = split_of(), tiny_run.Clips(), FrameSpec(frames=FRAMES, size=64)
    decoded = [clips.frames(video, spec) for video in split.video_ids]
    pixels, mask = (torch.from_numpy(np.stack(part)) for part in zip(*decoded, strict=True))
    ids, text_mask = (torch.nn.functional.pad(part, (0, WORDS - 5)) for part in Digits()(split.captions, WORDS))
    return model.text_side(ids, text_mask), model.video_side(model.normalize(pixels, mask), mask)


@pytest.mark.parametrize("name", ["ts2net", toy_scorer.NAME])
def test_all_pairs_are_ranked_as_the_whole_matrix_is(tiny_weights: Path, name: str) -> None:
    model, split = model_of(tiny_weights, name), split_of()
    found, (text, video) = evaluated(model), sides(model)
    whole = retrieval_metrics(model.score(text, video).double().detach().round(decimals=4), split.caption_video)
    assert {key: found.metrics[key] for key in ("t2v", "v2t", "RSum")} == without_ranks(whole)
    assert all(np.array_equal(found.ranks[key], whole[key]["ranks"]) for key in ("t2v", "v2t"))
    torch.testing.assert_close(found.text, text.coarse, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.video, video.coarse, rtol=0, atol=1e-5)
    stage = found.metrics["two_stage"]
    assert (stage["depth"], stage["v2t"], stage["storage"], stage["ceiling"]) == (None, "own", "float32", 100.0)
    coarse = retrieval_metrics(model.score(text, video, "coarse").double().detach(), split.caption_video)
    assert stage["coarse"]["t2v"]["R5"] == pytest.approx(coarse["t2v"]["R5"])
    assert found.metrics.keys() >= {"subsets", "pair_accuracy", "intervals", "ties_shared"}


@pytest.mark.parametrize("options", [{"depth": 3}, {"depth": 3, "v2t": "transposed"}, {"storage": "float16"}])
def test_batches_change_no_rank(tiny_weights: Path, options: dict[str, Any]) -> None:
    model = model_of(tiny_weights, toy_scorer.NAME, **options)
    one, other = evaluated(model, batch=9), evaluated(model, batch=9)
    assert one.metrics == other.metrics
    for batch in (2, 5):
        assert all(np.array_equal(evaluated(model, batch).ranks[key], one.ranks[key]) for key in ("t2v", "v2t"))


def test_depth_decides_what_the_last_stage_sees(tiny_weights: Path) -> None:
    """A ceiling under 100, R@depth of the coarse stage, and a curve that ends with the result."""
    found = evaluated(model_of(tiny_weights, toy_scorer.NAME, depth=2)).metrics
    stage = found["two_stage"]
    assert 0 < stage["ceiling"] < 100
    assert found["t2v"]["R1"] <= stage["ceiling"]
    assert found["t2v"]["R5"] == stage["coarse"]["t2v"]["R5"]
    assert [at["depth"] for at in stage["curve"]] == [1, 2]
    assert stage["curve"][-1]["t2v"] == found["t2v"]


def test_depth_0_is_the_coarse_score_bit_for_bit(tiny_weights: Path) -> None:
    """Of cosines through the same path as every single-vector method; of another score as it is."""
    plain, none = evaluated(model_of(tiny_weights, "lora")), evaluated(model_of(tiny_weights, "ts2net", **MEAN))
    assert torch.equal(none.video, plain.video)
    assert none.metrics == plain.metrics
    model = model_of(tiny_weights, toy_scorer.NAME, depth=0)
    found, (text, video) = evaluated(model), sides(model)
    expected = retrieval_metrics(model.score(text, video, "coarse").double().detach(), split_of().caption_video)
    assert np.array_equal(found.ranks["t2v"], expected["t2v"]["ranks"])
    assert "two_stage" not in found.metrics
    assert not np.array_equal(found.ranks["t2v"], plain.ranks["t2v"])


def test_files_stay_only_where_they_are_asked_for(tiny_weights: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = model_of(tiny_weights, toy_scorer.NAME, storage="int8")
    assert evaluated(model).sides is None
    assert not list(tmp_path.iterdir())
    kept = evaluated(model, scratch=tmp_path / "sides").sides
    assert kept is not None
    assert {file.name for file in (tmp_path / "sides").iterdir()} == {"text.safetensors", "video.safetensors"}
    assert (len(kept.text), len(kept.video)) == (TEXTS, VIDEOS)
    assert (kept.text.fine_names, kept.video.fine_names) == (("word_mask", "words"), ("frames", "weight"))


@pytest.mark.parametrize("storage", ["float32", "float16", "int8"])
def test_the_disk_is_known_from_shapes_alone(tiny_weights: Path, tmp_path: Path, storage: str) -> None:
    options: dict[str, Any] = {"storage": storage}
    evaluated(model_of(tiny_weights, toy_scorer.NAME, **options), scratch=tmp_path / "sides")
    sizes = sum(file.stat().st_size for file in (tmp_path / "sides").iterdir())
    told = encoded_bytes(model_of(tiny_weights, toy_scorer.NAME, **options).to("meta"), TEXTS, VIDEOS, WORDS)
    assert told is not None
    assert 0 < sizes - told < 4096  # the headers
    assert encoded_bytes(model_of(tiny_weights, "ts2net", **MEAN).to("meta"), TEXTS, VIDEOS, WORDS) == 0


def test_features_that_are_no_numbers_are_a_fault_with_its_cause(
    tiny_weights: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = model_of(tiny_weights, toy_scorer.NAME)
    model.clip.visual.proj.data[0] = torch.nan
    with pytest.raises(ValueError, match="frames holds NaN"):
        evaluated(model)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_refused_before_videos_are_encoded(tiny_weights: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("tvrbench.harness.data.disk.RESERVE", 2**60)
    with raises("disk.full"):
        evaluated(model_of(tiny_weights, toy_scorer.NAME))


def test_ctrl_c_leaves_nothing(tiny_weights: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("tvrbench.harness.evaluation.evaluate.two_stage", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluated(model_of(tiny_weights, toy_scorer.NAME))
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_stopped_while_it_is_scored_leaves_no_side(tiny_weights: Path, tmp_path: Path) -> None:
    context, seen = tiny_run.tiny_context(tiny_weights, steps=1, test_videos=70), list[Path]()

    def stop() -> None:
        seen.extend(tmp_path.rglob("*.sides/*.safetensors"))
        tiny_run.send(signal.SIGTERM)()

    progress = tiny_run.ActAt(4, stop, updates=True)  # the step, and batches of 32 videos
    with pytest.raises(Interrupted):
        tiny_run.run_in(tmp_path, context, RunConfig(method="ts2net", seed=0, timing=False), progress)
    assert {path.name for path in seen} == {"text.safetensors", "video.safetensors"}
    assert not list(tmp_path.rglob("*.sides"))
