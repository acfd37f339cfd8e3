from __future__ import annotations

import random

import numpy as np
import pytest
from errors import raises
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

from tvrbench.datasets.augment import draw

pytestmark = pytest.mark.unit

NAME = "tempme-randaugment"


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_is_timms_own_randaugment(picture: Image.Image) -> None:
    policy = rand_augment_transform("rand-m7-n4-mstd0.5-inc1", {"interpolation": Image.Resampling.BICUBIC})
    for seed in range(60):
        expected = picture
        random.seed(seed)
        for op in random.choices(policy.ops, k=4):
            expected = op(expected)
        assert np.array_equal(draw(NAME, seed)(picture), expected)


def test_one_draw_serves_every_frame(picture: Image.Image) -> None:
    for seed in range(20):
        augment = draw(NAME, seed)
        assert np.array_equal(augment(picture), augment(picture))


def test_seeds_decide() -> None:
    picture = Image.fromarray(np.arange(40 * 56 * 3, dtype=np.uint8).reshape(40, 56, 3))
    results = {draw(NAME, seed)(picture).tobytes() for seed in range(40)}
    assert len(results) > 20
    assert draw(NAME, 3)(picture).tobytes() == draw(NAME, 3)(picture).tobytes()


def test_the_size_stays(picture: Image.Image) -> None:
    assert {draw(NAME, seed)(picture).size for seed in range(40)} == {(56, 40)}


def test_random_states_are_left_alone(picture: Image.Image) -> None:
    python, numpy = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002 (it is the global state that is looked at)
    draw(NAME, 1)(picture)
    assert random.getstate() == python
    assert np.random.get_state()[1].tolist() == numpy  # noqa: NPY002


def test_unknown_name() -> None:
    with raises("augmentation.unknown", augmentation="flip"):
        draw("flip", 0)
