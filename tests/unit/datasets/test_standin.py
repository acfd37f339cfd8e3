"""The stand-in: its grammar, the files it writes, its adapter, and the small CLIP that ships with it."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch
from errors import raises
from hypothesis import given, settings
from hypothesis import strategies as st

from tvrbench.datasets.msrvtt import MSRVTT
from tvrbench.datasets.standin import generate as generator
from tvrbench.datasets.standin import pretrain
from tvrbench.datasets.standin.dataset import StandIn, cache_folder
from tvrbench.datasets.standin.generate import DEFAULT, Clip, Settings, clips, generate
from tvrbench.datasets.standin.pretrain import ARCHITECTURE, LONGEST, captioned_image, multi_positive_loss
from tvrbench.datasets.standin.render import EVENT_FRAMES, RGB, render, swap
from tvrbench.datasets.standin.scenes import COLORS, SHAPES, SIZES, VERBS, VOCABULARY, Event, Scene, draw_scenes
from tvrbench.harness import load_model
from tvrbench.harness.data.types import FrameSpec
from tvrbench.harness.evaluation.metrics import cosine_scores, pair_accuracy, retrieval_metrics
from tvrbench.harness.models.backbone.tokenizer import WordTokenizer, tokenizer_for
from tvrbench.harness.models.backbone.weights import load_weights
from tvrbench.harness.training.optimizers import warmup_cosine

pytestmark = pytest.mark.unit

SMALL = Settings(train_scenes=5, test_pairs=3, test_singles=4, seed=11)
FRAMES = FrameSpec(size=64)
few = settings(max_examples=20, deadline=None)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    """A stand-in of 5 training scenes, 3 swapped test pairs and 4 singles."""
    return StandIn(tmp_path_factory.mktemp("standin") / "data", settings=SMALL)


def pixels(dataset: StandIn, video_id: str) -> npt.NDArray[np.uint8]:
    """Decoded frames [12, 3, 64, 64], through the adapter."""
    frames, mask = dataset.frames(video_id, FRAMES)
    assert mask.all()
    return frames


def swapped_pairs(wanted: list[Clip]) -> list[tuple[str, str]]:
    """Ids of the two clips of every scene that is shown in both orders."""
    return [(first.video_id, second.video_id) for first, second in pairwise(wanted) if second.swapped]


class TestWords:
    def test_the_example_caption(self) -> None:
        star = Event(size="small", color="red", shape="star", verb="slides left")
        ring = Event(size="", color="blue", shape="ring", verb="grows")
        scene = Scene(events=(star, ring), seed=0)
        assert scene.caption() == "a small red star slides left, then a blue ring grows"
        assert scene.caption(swapped=True) == "a blue ring grows, then a small red star slides left"

    def test_the_default_set_is_300_test_and_2000_training_clips(self) -> None:
        wanted = clips(DEFAULT)
        test = [clip for clip in wanted if clip.split == "test"]
        assert Counter(clip.split for clip in wanted) == {"train": 2000, "test": 300}
        assert sum(clip.order_only for clip in test) == 200
        assert [clip.key for clip in test] == [f"ret{i}" for i in range(300)]
        assert len({clip.caption for clip in test}) == 300

    def test_every_word_of_the_grammar_is_drawn(self) -> None:
        events = [event for clip in clips(DEFAULT) for event in clip.scene.events]
        assert {event.verb for event in events} == set(VERBS)
        assert {event.color for event in events} == set(COLORS) == set(RGB)
        assert {event.shape for event in events} == set(SHAPES)
        assert {event.size for event in events} == {"", *SIZES}

    @few
    @given(seed=st.integers(0, 2**31))
    def test_no_two_scenes_share_their_events_in_any_order_or_direction(self, seed: int) -> None:
        scenes = draw_scenes(300, seed)
        pairs = {frozenset(event.without_direction for event in scene.events) for scene in scenes}
        assert len(pairs) == 300
        for first, second in (scene.events for scene in scenes):
            assert first.color != second.color
            assert first.shape != second.shape

    def test_training_and_test_share_no_event_pair(self) -> None:
        pairs: dict[str, set[frozenset[str]]] = {"train": set(), "test": set()}
        for clip in clips(DEFAULT):
            pairs[clip.split].add(frozenset(event.phrase for event in clip.scene.events))
        assert not pairs["train"] & pairs["test"]


class TestPixels:
    def test_swapping_moves_the_second_event_first(self) -> None:
        frames = render(draw_scenes(1, 3)[0])
        assert frames.shape == (2 * EVENT_FRAMES, 64, 64, 3)
        np.testing.assert_array_equal(swap(frames)[:EVENT_FRAMES], frames[EVENT_FRAMES:])
        np.testing.assert_array_equal(swap(frames)[EVENT_FRAMES:], frames[:EVENT_FRAMES])

    @pytest.mark.parametrize("verb", VERBS)
    def test_each_verb_shows(self, verb: str) -> None:
        """The bright object's area and center move as the verb says."""
        resizes = verb in ("grows", "shrinks")
        event = Event(size="" if resizes else "large", color="white", shape="square", verb=verb)
        bright = render(Scene(events=(event, event), seed=5))[:EVENT_FRAMES].min(axis=-1) > 180
        area = bright.sum(axis=(1, 2))
        y, x = (np.array([np.nonzero(frame)[axis].mean() for frame in bright]) for axis in (0, 1))
        growth = np.sign(round(np.log(area[-1] / area[0])))
        move_x, move_y = (np.sign(np.round((c[-1] - c[0]) / 10)) for c in (x, y))
        moves = {"slides left": (-1, 0), "slides right": (1, 0), "slides up": (0, -1), "slides down": (0, 1)}
        assert growth == {"grows": 1, "shrinks": -1}.get(verb, 0)
        assert (move_x, move_y) == moves.get(verb, (0, 0))


class TestFiles:
    def test_h264_at_one_frame_a_second_with_every_frame_a_key_frame(self, small: StandIn) -> None:
        with av.open(str(small.video_path("video0"))) as container:
            stream = container.streams.video[0]
            assert (stream.codec_context.name, stream.average_rate) == ("h264", 1)
            frames = list(container.decode(stream))
        assert len(frames) == 12
        assert all(frame.key_frame for frame in frames)

    def test_swapped_clips_decode_to_the_very_same_frames(self, small: StandIn) -> None:
        pairs = swapped_pairs(clips(SMALL))
        assert len(pairs) == SMALL.train_scenes + SMALL.test_pairs
        for first, second in pairs:
            ours, theirs = pixels(small, first), pixels(small, second)
            assert not np.array_equal(ours, theirs)
            np.testing.assert_array_equal(np.roll(ours, EVENT_FRAMES, axis=0), theirs)

    def test_decoded_frames_look_like_the_rendered_ones(self, small: StandIn) -> None:
        rendered = render(clips(SMALL)[0].scene).transpose(0, 3, 1, 2).astype(int)
        assert np.abs(pixels(small, "video0") - rendered).mean() < 5

    def test_a_second_making_writes_the_same_bytes(self, small: StandIn, tmp_path: Path) -> None:
        again = tmp_path / "again"
        generate(again, SMALL)
        files = sorted(path.relative_to(small.root) for path in small.root.rglob("*") if path.is_file())
        assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
        for file in files:
            assert (small.root / file).read_bytes() == (again / file).read_bytes(), file

    def test_another_seed_gives_other_captions(self) -> None:
        ours = {clip.caption for clip in clips(SMALL)}
        theirs = {clip.caption for clip in clips(Settings(train_scenes=5, test_pairs=3, test_singles=4, seed=12))}
        assert not ours & theirs

    def test_what_is_there_is_left_alone(self, small: StandIn) -> None:
        before = {path: path.stat().st_mtime_ns for path in small.root.rglob("*")}
        StandIn(small.root, settings=SMALL)
        assert {path: path.stat().st_mtime_ns for path in small.root.rglob("*")} == before

    def test_an_empty_folder_is_filled(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        tiny = Settings(train_scenes=1, test_pairs=0, test_singles=1)
        assert StandIn(tmp_path / "empty", settings=tiny).split("train-9k").video_ids == ("video0", "video1")

    def test_several_at_once_make_one_whole_set(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        made = []
        write_all = generator._write_all

        def counted(folder: Path, settings: Settings) -> None:
            made.append(folder)
            write_all(folder, settings)

        monkeypatch.setattr(generator, "_write_all", counted)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: StandIn(tmp_path / "data", settings=SMALL), range(4)))
        assert len(made) == 1
        assert all(not dataset.check_videos([clip.video_id for clip in clips(SMALL)]) for dataset in found)

    def test_a_broken_off_run_leaves_nothing_and_the_next_one_succeeds(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(generator.csv, "writer", interrupted)
            with pytest.raises(KeyboardInterrupt):
                generate(tmp_path / "data", SMALL)
        assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
        killed = tmp_path / ".data.partial"
        killed.mkdir()
        (killed / "left.mp4").touch()
        generate(tmp_path / "data", SMALL)
        assert not killed.exists()
        assert not (tmp_path / "data" / "left.mp4").exists()

    def test_a_folder_with_something_else_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("mine")
        with raises("standin.foreign-folder", root=str(tmp_path)):
            StandIn(tmp_path, settings=SMALL)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    def test_a_stand_in_of_other_settings_is_refused(self, small: StandIn) -> None:
        with raises("standin.other-version"):
            StandIn(small.root)

    @pytest.mark.parametrize(("root", "code"), [("file", "standin.foreign-folder"), ("file/below", "io.write")])
    def test_a_file_in_the_way_is_refused(self, tmp_path: Path, root: str, code: str) -> None:
        (tmp_path / "file").touch()
        with raises(code):
            StandIn(tmp_path / root, settings=SMALL)


class TestAdapter:
    def test_the_plain_msrvtt_adapter_reads_the_files(self, small: StandIn) -> None:
        plain = MSRVTT(small.root, expected={})
        for name in StandIn.split_names:
            assert plain.split(name).fingerprint == small.split(name).fingerprint
        assert plain.check_videos([clip.video_id for clip in clips(SMALL)]) == []

    def test_each_test_caption_has_its_own_video(self, small: StandIn) -> None:
        split = small.split("test-1ka")
        assert len(split.captions) == len(set(split.captions)) == len(split.video_ids) == 10
        assert split.caption_video == tuple(range(10))

    def test_subsets_and_scenes_of_the_test_split(self, small: StandIn) -> None:
        split = small.split("test-1ka")
        assert split.subsets == {"order-free": (6, 7, 8, 9), "order-only": (0, 1, 2, 3, 4, 5)}
        assert split.scenes is not None
        assert [count for _, count in sorted(Counter(split.scenes).items())] == [2, 2, 2, 1, 1, 1, 1]
        for i in split.subsets["order-only"][::2]:
            first, second = split.captions[i].split(", then ")
            assert split.captions[i + 1] == f"{second}, then {first}"
            assert split.scenes[i] == split.scenes[i + 1]

    def test_training_clips_come_in_both_orders(self, small: StandIn) -> None:
        split = small.split("train-9k")
        assert split.subsets == {}
        assert split.scenes == (0, 0, 1, 1, 2, 2, 3, 3, 4, 4)

    def test_the_default_fingerprints_are_those_of_the_default_captions(self, tmp_path: Path) -> None:
        """No video is made: the annotation files alone decide."""
        generator._write_annotations(tmp_path, clips(DEFAULT))
        plain = MSRVTT(tmp_path, expected={})
        assert {name: plain.split(name).fingerprint for name in StandIn.split_names} == StandIn.expected_fingerprints

    def test_a_changed_annotation_file_is_noticed(self, small: StandIn, tmp_path: Path) -> None:
        shutil.copytree(small.root, tmp_path / "copy")
        file = tmp_path / "copy" / "MSRVTT_data.json"
        file.write_text(file.read_text().replace('"video0"', '"video9000"'))
        (tmp_path / "copy" / "MSRVTT_train.9k.csv").write_text("video_id\nvideo9000\n")
        with raises("standin.foreign-folder"):
            StandIn(tmp_path / "copy", settings=SMALL).split("train-9k")

    def test_splits_that_msrvtt_alone_has_are_refused(self, small: StandIn) -> None:
        with raises("split.unknown", split="train-7k"):
            small.split("train-7k")

    def test_the_cache_folder_follows_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("XDG_CACHE_HOME", "")
        monkeypatch.delenv("TVRBENCH_CACHE", raising=False)
        assert cache_folder() == tmp_path / "home" / ".cache" / "tvrbench"
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert cache_folder() == tmp_path / "xdg" / "tvrbench"
        monkeypatch.setenv("TVRBENCH_CACHE", str(tmp_path / "own"))
        assert StandIn(settings=SMALL).root.parent == tmp_path / "own"


class TestPretraining:
    @few
    @given(seed=st.integers(0, 2**40))
    def test_captions_hold_known_words_no_verb_and_fit(self, seed: int) -> None:
        image, caption = captioned_image(seed)
        words = caption.split()
        assert image.shape == (64, 64, 3)
        assert set(words) <= set(VOCABULARY)
        assert not {"slides", "grows", "shrinks", "stays", "then", "up", "down"} & set(words)
        assert len(words) + 2 <= LONGEST

    def test_the_same_seed_gives_the_same_image(self) -> None:
        (ours, caption), (again, same) = captioned_image(7), captioned_image(7)
        assert caption == same
        np.testing.assert_array_equal(ours, again)

    def test_equal_captions_share_the_target(self) -> None:
        """Two equal captions: the best that can be reached is the entropy of an even coin, for them alone."""
        feature = torch.eye(3)[[0, 0, 1]]
        loss = multi_positive_loss(feature, feature, torch.tensor(50.0).log(), ["a star", "a star", "a ring"])
        assert loss.item() == pytest.approx(2 / 3 * np.log(2), abs=1e-4)

    def test_the_command_writes_weights_that_load(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        out = tmp_path / "w.safetensors"
        small = ["--images", "8", "--steps", "1", "--batch", "4", "--threads", "1"]
        monkeypatch.setattr(sys, "argv", ["pretrain", "--out", str(out), *small])
        with torch.random.fork_rng(devices=[]):
            pretrain.main()
        assert load_weights(out).arch == ARCHITECTURE
        assert (tmp_path / "vocab.txt").read_bytes() == StandIn.weights_path.with_name("vocab.txt").read_bytes()

    def test_the_learning_rate_is_the_warmup_cosine_of_the_recipes(self) -> None:
        wanted = [warmup_cosine(step, 1800, 0.05, 1.0) for step in range(1801)]
        assert [pretrain.learning_rate_factor(step, 1800) for step in range(1801)] == wanted

    def test_the_command_refuses_a_missing_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = str(tmp_path / "no" / "w")
        with raises("io.write", path=out):
            pretrain.write_weights(pretrain.Pretraining(out=Path(out)))
        monkeypatch.setattr(sys, "argv", ["pretrain", "--out", out])
        with pytest.raises(SystemExit) as caught:
            pretrain.main()
        assert caught.value.code == 2
        assert "--out" in capsys.readouterr().err


class TestWeights:
    def test_the_shipped_weights_have_the_stated_shape_and_size(self) -> None:
        weights = load_weights(StandIn.weights_path)
        assert weights.arch == ARCHITECTURE
        assert 1.4e6 < sum(tensor.numel() for tensor in weights.state.values()) < 1.55e6
        assert StandIn.weights_path.stat().st_size < 4e6

    def test_the_file_says_how_it_was_made(self) -> None:
        data = StandIn.weights_path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        assert {"seed", "steps", "images", "command"} <= set(header["__metadata__"])

    def test_the_tokenizer_knows_every_caption(self) -> None:
        tokenizer = tokenizer_for(load_weights(StandIn.weights_path))
        assert isinstance(tokenizer, WordTokenizer)
        ids, mask = tokenizer([clip.caption for clip in clips(DEFAULT)], ARCHITECTURE.context_length)
        assert ids.max().item() == ARCHITECTURE.vocab_size - 1
        assert mask.sum(dim=1).max().item() < ARCHITECTURE.context_length  # nothing was cut

    def test_zero_shot_knows_objects_and_nothing_of_order(self, tmp_path: Path) -> None:
        """Frame averaging: far above chance on all captions, exactly at chance between the orders of one scene."""
        dataset = StandIn(tmp_path / "data", settings=Settings(train_scenes=0, test_pairs=20, test_singles=20, seed=3))
        split = dataset.split("test-1ka")
        model = load_model("zero_shot", weights=StandIn.weights_path)
        tokenizer = tokenizer_for(load_weights(StandIn.weights_path))
        frames = torch.from_numpy(np.stack([pixels(dataset, video_id) for video_id in split.video_ids]))
        mask = torch.ones(frames.shape[:2], dtype=torch.bool)
        with torch.no_grad():
            video = model.encode_video(model.normalize(frames, mask), mask)
            text = model.encode_text(*tokenizer(split.captions, ARCHITECTURE.context_length))
        scores = cosine_scores(text, video)
        chance = 100 * 5 / len(split.video_ids)
        assert retrieval_metrics(scores)["t2v"]["R5"] > 5 * chance
        assert pair_accuracy(text, video, None, split.scenes) == 50.0
        assert all(scores[i, i] == scores[i, i + 1] for i in split.subsets["order-only"][::2])
