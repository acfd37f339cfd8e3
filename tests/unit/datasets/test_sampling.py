from __future__ import annotations

import itertools
import math

import pytest
from errors import raises
from hypothesis import given, settings
from hypothesis import strategies as st

from tvrbench.datasets.sampling import SAMPLERS, frame_indices

pytestmark = pytest.mark.unit


@settings(max_examples=150, deadline=None)
@given(
    sampler=st.sampled_from(SAMPLERS),
    n_frames=st.integers(1, 3000),
    fps=st.floats(1, 120),
    frames=st.integers(1, 64),
    seed=st.integers(0, 2**63),
)
def test_picks_are_real_frames_in_order(sampler: str, n_frames: int, fps: float, frames: int, seed: int) -> None:
    picks = frame_indices(sampler, n_frames, fps, frames, seed=seed)
    assert 1 <= len(picks) <= frames
    assert picks == sorted(picks)
    assert picks[0] >= 0
    assert picks[-1] < n_frames
    if sampler == "tempme" or sampler.startswith("vop"):
        assert len(picks) == frames  # never padded
    else:
        assert len(set(picks)) == len(picks)  # never stretched
    if sampler.startswith("centerclip"):
        assert len(picks) == min(n_frames, frames)


def test_tempme_repeats_frames_of_a_clip_shorter_than_the_sample() -> None:
    assert frame_indices("tempme", 3, 30.0) == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2]
    assert frame_indices("tempme", 1, 30.0) == [0] * 12


def test_tempme_takes_the_seconds_as_they_are_when_there_are_exactly_enough() -> None:
    assert frame_indices("tempme", 12 * 25, 25.0) == list(range(0, 300, 25))


@pytest.mark.parametrize(("fps", "stride"), [(1.5, 2), (2.5, 2), (0.51, 1), (29.97, 30)])
def test_tempme_rounds_the_rate_half_to_even(fps: float, stride: int) -> None:
    assert frame_indices("tempme", 12 * stride, fps) == list(range(0, 12 * stride, stride))


def test_clip4clip_keeps_all_seconds_of_a_short_clip() -> None:
    assert frame_indices("clip4clip", 71, 30.9) == [0, 30, 60]


def test_centerclip_is_its_float_expression() -> None:
    # Whole-number arithmetic would give (2 x + 1) n // 24, which differs from the released loader at some lengths.
    for n in range(13, 400):
        tick = n / 12.0
        assert frame_indices("centerclip", n, 3.0) == [int(tick / 2.0 + tick * x) for x in range(12)]
    differing = [
        n for n in range(13, 400) if frame_indices("centerclip", n, 3.0) != [(2 * x + 1) * n // 24 for x in range(12)]
    ]
    assert differing


def test_centerclip_train_draws_one_frame_of_each_segment() -> None:
    n = 125
    drawn = [frame_indices("centerclip-train", n, 3.0, seed=s) for s in range(200)]
    for x in range(12):
        segment = set(range(x * n // 12, (x + 1) * n // 12))
        assert {picks[x] for picks in drawn} == segment
    assert frame_indices("centerclip-train", n, 3.0, seed=7) == drawn[7]


def test_vop_takes_the_middle_of_segments_and_repeats_the_last_frame() -> None:
    assert frame_indices("vop", 23, 25.0) == [0, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21]
    assert frame_indices("vop", 5, 25.0, 8) == [0, 1, 2, 3, 4, 4, 4, 4]


@pytest.mark.parametrize("n", [1, 5, 12, 13, 23, 125])
def test_vop_train_draws_any_frame_of_a_segment_but_its_last(n: int) -> None:
    edges = [int(n / min(n, 12) * x) for x in range(min(n, 12) + 1)]
    drawn = [frame_indices("vop-train", n, 25.0, seed=s) for s in range(200)]
    for x, (first, end) in enumerate(itertools.pairwise(edges)):
        # The released code fails on a segment of one frame.
        assert {picks[x] for picks in drawn} == set(range(first, max(end - 1, first + 1)))
    assert all(picks[len(edges) - 1 :] == picks[len(edges) - 2 : len(edges) - 1] * (12 - min(n, 12)) for picks in drawn)


@pytest.mark.parametrize(
    ("n_frames", "fps", "frames", "picks"),
    [
        (250, 25.0, 5, [0, 50, 100, 150, 200]),  # 10 seconds, every second one
        (700, 25.0, 12, [25 * (28 * i // 12) for i in range(12)]),  # 28 seconds, every 2 1/3-th
        (71, 30.9, 12, [0, 30, 61]),  # a short clip stays short
        (20, 0.5, 4, [0, 5, 10, 15]),  # a second may show the frame of the one before
    ],
)
def test_mv_adapter_takes_every_nth_second(n_frames: int, fps: float, frames: int, picks: list[int]) -> None:
    assert frame_indices("mv-adapter", n_frames, fps, frames) == picks


@pytest.mark.parametrize(
    ("sampler", "n_frames", "fps", "frames", "code"),
    [
        ("uniform", 10, 10.0, 12, "sampler.unknown"),
        ("tempme", 0, 10.0, 12, "sampling.frames"),
        ("tempme", 10, 10.0, 0, "sampling.frames"),
        ("tempme", 10, 0.5, 12, "sampling.frame-rate"),
        ("clip4clip", 10, 0.99, 12, "sampling.frame-rate"),
        ("centerclip", 10, math.nan, 12, "sampling.frame-rate"),
        ("tempme", 10, math.inf, 12, "sampling.frame-rate"),
        ("tempme", 10, -3.0, 12, "sampling.frame-rate"),
        ("centerclip-train", 10, 3.0, 12, "sampling.seed"),
        ("vop-train", 10, 3.0, 12, "sampling.seed"),
    ],
)
def test_bad_input_is_named(sampler: str, n_frames: int, fps: float, frames: int, code: str) -> None:
    with raises(code):
        frame_indices(sampler, n_frames, fps, frames)
