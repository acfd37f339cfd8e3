"""TempMe's published numbers, its schedule, and every way of getting the options wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises

from tvrbench.harness import load_model
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.backbone.architecture import preset
from tvrbench.methods.tempme import TempMe

pytestmark = pytest.mark.unit
SMALL = {"r": 1, "clip_ratio": 0.3, "intra_ratio": 0.1}


def _plan(backbone: str, frames: int = 12, **options: Any) -> list[Any]:
    method = TempMe.configure("tempme", preset(backbone), frames, options)
    return list(method.build_reducer().plan())


def test_tokens_of_the_published_presets() -> None:
    b32 = [block.attention for block in _plan("ViT-B-32")]
    assert b32 == [(12, n) for n in range(50, 34, -2)] + [(6, 48), (3, 62), (1, 118), (1, 107)]
    assert _plan("ViT-B-32")[-1].leaving == (1, 97)
    b16 = [block.attention for block in _plan("ViT-B-16")]
    assert b16 == [(12, n) for n in range(197, 117, -10)] + [(6, 141), (3, 136), (1, 197), (1, 158)]
    assert _plan("ViT-B-16")[-1].leaving == (1, 127)


def test_long_videos_join_in_fours() -> None:
    sequences = [block.leaving[0] for block in _plan("ViT-B-32", frames=64)]
    assert sequences == [64] * 8 + [16, 4, 1, 1]


def test_no_merging_keeps_every_token() -> None:
    plan = _plan("ViT-B-32", r=0, clip_ratio=0.0, intra_ratio=0.0)
    assert plan[-1].leaving == (1, 600)
    assert all(block.overhead_macs == 0 for block in plan)


@pytest.mark.parametrize(("frames", "options"), [(12, {}), (12, {"merge_blocks": (0, 11), "merge_frames": (3, 4)})])
def test_a_trace_follows_patches_through_joins(
    frames: int, options: dict[str, Any], tiny_weights: Path, tiny_batch: dict[str, Any]
) -> None:
    model = load_model("tempme", weights=tiny_weights, frames=frames, **(SMALL | options))
    with torch.no_grad():
        stream = model.video_tokens(tiny_batch["frames"], trace=True)
    assert stream.origin is not None
    assert stream.origin.shape == (3, 12 * 16)
    assert (stream.origin >= stream.classes).all()  # every patch lives on, in no class token
    assert len(stream.origin[0].unique()) == stream.patches


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"r": 9}, "r"),
        ({"r": -1}, "r"),
        ({"r": 5}, "r"),
        ({"merge_frames": (2, 2)}, "merge_frames"),
        ({"merge_frames": (5, 2, 3)}, "merge_frames"),
        ({"merge_frames": (0, 2, 3)}, "merge_frames"),
        ({"merge_blocks": (8, 9, 12)}, "merge_blocks"),
        ({"merge_blocks": (9, 8, 10)}, "merge_blocks"),
        ({"clip_ratio": 1.0}, "clip_ratio"),
        ({"intra_ratio": -0.1}, "intra_ratio"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], option: str, tiny_weights: Path) -> None:
    with raises("option.value", option=option):
        load_model("tempme", weights=tiny_weights, **(SMALL | options))


def test_options_of_another_type(tiny_weights: Path) -> None:
    with pytest.raises(UsageError, match="'r'"):
        load_model("tempme", weights=tiny_weights, **(SMALL | {"r": "two"}))


def test_frames_that_the_schedule_does_not_divide(tiny_weights: Path) -> None:
    with raises("option.value", option="merge_frames"):
        load_model("tempme", weights=tiny_weights, frames=10, **SMALL)


def test_a_shape_without_a_preset_needs_its_options(tiny_weights: Path) -> None:
    with raises("method.no-preset", missing=["r", "clip_ratio", "intra_ratio"]):
        load_model("tempme", weights=tiny_weights)


def test_sizes_weigh_merges_without_proportional_attention_too(tiny_model: Any, tiny_batch: dict[str, Any]) -> None:
    model = tiny_model("tempme", proportional_attention=False)
    with torch.no_grad():
        stream = model.video_tokens(tiny_batch["frames"])
        biased = tiny_model("tempme").video_tokens(tiny_batch["frames"])
    assert stream.size is not None
    patches = stream.size.view(3, -1)[:, stream.classes :]
    assert patches.sum(dim=1).tolist() == [12 * 16] * 3
    assert not torch.allclose(stream.x, biased.x, atol=1e-4)
