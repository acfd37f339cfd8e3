"""Queries of an index: ranks as in an evaluation; words, pictures and videos; and the model of the index."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy_scorer
from errors import raises
from PIL import Image
from safetensors.torch import save_file
from search_folder import SETTINGS, copy_clips, embed, make_encoder, opened, row_of

from tvrbench.datasets.standin.dataset import StandIn
from tvrbench.harness.data.frame_loader import FrameLoader
from tvrbench.harness.data.types import Split
from tvrbench.harness.evaluation.evaluate import evaluate
from tvrbench.harness.models.checkpoint import save_checkpoint
from tvrbench.harness.search.encoder import Encoder, ModelSource
from tvrbench.harness.search.files import open_folder
from tvrbench.harness.search.query import (
    image_query,
    load_index_encoder,
    read_picture,
    search,
    text_query,
    video_query,
)

pytestmark = pytest.mark.unit


def split_of(folder: Path) -> Split:
    """The clips, each with the caption that is its name."""
    names = tuple(sorted(path.name for path in folder.glob("*.mp4")))
    captions = tuple(name.removesuffix(".mp4") for name in names)
    return Split(name="demo", video_ids=names, captions=captions, caption_video=tuple(range(len(names))))


def test_ranks_are_those_of_an_evaluation(demo: Path, encoder: Encoder, tmp_path: Path) -> None:
    copy_clips(demo, tmp_path, 24)
    embed(tmp_path, encoder)
    index, split = opened(tmp_path), split_of(tmp_path)
    words = encoder.model.clip.arch.context_length
    loader = FrameLoader(open_folder(tmp_path), encoder.spec, 24)
    evaluated = evaluate(encoder.model, split, loader, encoder.tokenizer, words).ranks["t2v"]
    found = []
    for caption in split.captions:
        hits = search(index, text_query(encoder, caption).feature, top=24)
        assert [hit.rank for hit in hits] == list(range(1, 25))
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        found.append(next(hit.rank for hit in hits if hit.entry.file == f"{caption}.mp4"))
    np.testing.assert_array_equal(found, evaluated)
    assert np.mean(evaluated <= 3) > 0.5  # the model knows these clips, so equality says something


def test_a_scorer_ranks_by_its_own_coarse_score(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an evaluation at depth 0 does; words are compared by u(t)^T M v, videos with videos by their cosine."""
    toy_scorer.register(monkeypatch)
    copy_clips(demo, tmp_path, 12)
    encoder = make_encoder(settings=replace(SETTINGS, method=toy_scorer.NAME, options={"tuning": "frozen"}))
    embed(tmp_path, encoder)
    index, split, scorer = opened(tmp_path), split_of(tmp_path), encoder.model.scorer
    assert encoder.model.scorer.two_stage
    assert any(toy_scorer.NAME in note for note in encoder.notes)
    loader, words = FrameLoader(open_folder(tmp_path), encoder.spec, 12), encoder.model.clip.arch.context_length
    scorer.depth = 0
    evaluated = evaluate(encoder.model, split, loader, encoder.tokenizer, words).ranks["t2v"]
    assert not encoder.model.scorer.two_stage
    found, by_cosine = [], []
    for caption in split.captions:
        query = text_query(encoder, caption).feature
        for ranks, taken in ((found, scorer), (by_cosine, None)):
            hits = search(index, query, 12, taken)
            assert {hit.cosine for hit in hits} == {taken is None}
            ranks.append(next(hit.rank for hit in hits if hit.entry.file == f"{caption}.mp4"))
    np.testing.assert_array_equal(found, evaluated)
    assert found != by_cosine


@pytest.mark.parametrize("block", [1, 5, 100])
def test_blocks_change_nothing_and_equal_scores_are_in_order_of_names(
    demo: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    (name, *_) = copy_clips(demo, tmp_path, 6)
    for copy in ("b.mp4", "c.mp4", "a.mp4"):
        shutil.copy(tmp_path / name, tmp_path / copy)
    embed(tmp_path, encoder)
    query = text_query(encoder, name.removesuffix(".mp4")).feature
    plain = search(opened(tmp_path), query, top=99)
    monkeypatch.setattr("tvrbench.harness.search.query.BLOCK", block)
    assert search(opened(tmp_path), query, top=99) == plain
    assert len(plain) == 9
    same = [hit.entry.file for hit in plain if hit.entry.file in (name, "a.mp4", "b.mp4", "c.mp4")]
    assert same == sorted([name, "a.mp4", "b.mp4", "c.mp4"])
    assert search(opened(tmp_path), query, top=2) == plain[:2]


def test_an_index_without_a_video_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    embed(tmp_path, encoder)
    with raises("index.empty"):
        search(opened(tmp_path), text_query(encoder, "a red star").feature, top=5)


def test_a_query_beyond_the_context_is_cut_and_said_to_be(encoder: Encoder) -> None:
    words = encoder.model.clip.arch.context_length - 2  # between start and end
    whole, longer = text_query(encoder, "red " * words), text_query(encoder, "red " * words + "star")
    assert (whole.cut, longer.cut) == (False, True)
    np.testing.assert_allclose(whole.feature, longer.feature, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "code"),
    [("", "query.empty"), (" \n", "query.empty"), ("!?", "query.empty"), ("guitar", "vocabulary.word")],
)
def test_a_query_without_a_known_word_is_refused(encoder: Encoder, text: str, code: str) -> None:
    with raises(code):
        text_query(encoder, text)


def test_a_picture_is_a_video_that_shows_nothing_else(demo: Path, encoder: Encoder, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    query = image_query(encoder, open_folder(demo), tmp_path / "a.png")
    pixels = torch.from_numpy(picture.transpose(2, 0, 1)[None, None])
    with torch.inference_mode():
        feature = encoder.model.clip.encode_image(encoder.model.normalize(pixels, torch.ones(1, 1))[0]).numpy()
    unit = [each / np.linalg.norm(each) for each in (query.feature, feature)]
    np.testing.assert_allclose(*unit, atol=1e-6)
    assert query.frames is not None
    assert query.frames.shape == (1, 3, 64, 64)


@pytest.mark.parametrize("method", ["tome", "vidtome", "frame_subsample", "tempme"])
def test_every_kind_of_method_takes_words_pictures_and_videos(demo: Path, tmp_path: Path, method: str) -> None:
    encoder = make_encoder(settings=replace(SETTINGS, method=method))
    (name, *_) = copy_clips(demo, tmp_path, 3)
    embed(tmp_path, encoder)
    Image.new("RGB", (90, 60), "red").save(tmp_path / "a.jpg")
    index = opened(tmp_path)
    assert len(search(index, image_query(encoder, open_folder(tmp_path), tmp_path / "a.jpg").feature, 5)) == 3
    assert len(search(index, text_query(encoder, "a red star").feature, 5)) == 3
    query = video_query(encoder, open_folder(tmp_path), tmp_path / name)
    hit = search(index, query.feature, 1)[0]
    assert hit.entry.file == name
    assert hit.score == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(index.features[row_of(index, name)], query.feature[0], atol=1e-5)


def test_pictures_are_upright_and_rgb(tmp_path: Path) -> None:
    picture = Image.new("RGB", (40, 20), "blue")
    picture.paste((255, 0, 0), (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    turned = read_picture(tmp_path / "turned.jpg")
    assert turned.shape == (3, 40, 20)
    assert turned[0, 5, 10] > 200 > 50 > turned[0, 35, 10]
    for mode, name in (("RGBA", "a.png"), ("L", "b.png"), ("P", "c.gif"), ("CMYK", "d.jpg"), ("I;16", "e.png")):
        Image.new(mode, (8, 6)).save(tmp_path / name)
        assert read_picture(tmp_path / name).shape == (3, 6, 8)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (100, 1)).save(tmp_path / "line.png")
    Image.effect_noise((64, 64), 90).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    (tmp_path / "drawing.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    for name, code in (
        ("line.png", "query.image-size"),
        ("cut.png", "query.image"),
        ("page.jpg", "query.image"),
        ("drawing.eps", "query.image"),
        ("absent.png", "query.image-missing"),
        (".", "query.image-missing"),
    ):
        with raises(code):
            read_picture(tmp_path / name)


@pytest.mark.parametrize("name", ["absent.mp4", "text.mp4"])
def test_what_is_no_video_is_refused(encoder: Encoder, tmp_path: Path, name: str) -> None:
    (tmp_path / "text.mp4").write_bytes(b"text")
    with raises("video.missing" if name == "absent.mp4" else "video.unreadable"):
        video_query(encoder, open_folder(tmp_path), tmp_path / name)


def test_a_checkpoint_is_searched_with_its_own_options(demo: Path, tmp_path: Path) -> None:
    trained = make_encoder(settings=replace(SETTINGS, method="tempme"))
    file = tmp_path / "trained.safetensors"
    save_checkpoint(trained.model, file)
    source = ModelSource(weights="standin", checkpoint=str(file))  # the word list is that of the stand-in's weights
    encoder = make_encoder(source)
    assert (encoder.identity.method, encoder.notes) == ("tempme", ())
    copy_clips(demo, tmp_path / "root", 2)
    embed(tmp_path / "root", encoder, source)
    again = load_index_encoder(opened(tmp_path / "root"), "cpu")
    assert again.identity == encoder.identity
    with raises("checkpoint.frames"):
        make_encoder(source, replace(SETTINGS, frames=6))
    with raises("checkpoint.weights"):
        make_encoder(replace(source, weights="openai"))
    with raises("vocabulary.missing"):
        make_encoder(replace(source, weights=None))


def test_the_model_must_be_that_of_the_index(
    demo: Path, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model" / "clip.safetensors"
    file.parent.mkdir()
    shutil.copy(StandIn.weights_path, file)
    shutil.copy(StandIn.weights_path.with_name("vocab.txt"), file.with_name("vocab.txt"))
    monkeypatch.chdir(tmp_path)
    source = ModelSource(weights="model/clip.safetensors", activation="quick_gelu")
    copy_clips(demo, tmp_path / "root", 2)
    embed(tmp_path / "root", make_encoder(source), source)
    monkeypatch.chdir(tmp_path / "root")  # the index holds an absolute path
    index = opened(tmp_path / "root")
    assert load_index_encoder(index, "cpu").identity == index.header.model

    file.parent.rename(tmp_path / "moved")
    with raises("index.model", cause="weights.missing"):
        load_index_encoder(index, "cpu")
    moved = tmp_path / "moved" / "clip.safetensors"
    assert load_index_encoder(index, "cpu", ModelSource(weights=str(moved))).identity == index.header.model

    monkeypatch.setenv("HOME", str(moved.parent))
    home = replace(source, weights="~/clip.safetensors")
    assert load_index_encoder(index, "cpu", home).identity == index.header.model
    assert home.absolute().weights == str(moved)

    changed: dict[str, Any] = {key: tensor + 1e-3 for key, tensor in make_encoder().model.clip.state_dict().items()}
    save_file(changed, moved)
    with raises("index.other-model", differing=["weights_sha256"]):
        load_index_encoder(index, "cpu", ModelSource(weights=str(moved)))
