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
from tvrbench.harness.profiling.counts.flops import checked_macs
from tvrbench.harness.profiling.counts.formula import analytic_macs
from tvrbench.methods.tempme import JOINS, TempMe

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


JOINED = [  # frames, joins, tokens that leave and GMACs on ViT-B/32 and on ViT-B/16
    (12, (2, 2, 3), 97, 34.763, 127, 121.424),
    (16, (2, 2, 4), 128, 46.358, 168, 161.937),
    (18, (2, 3, 3), 144, 52.183, 190, 182.317),
    (24, (2, 3, 4), 192, 69.619, 253, 243.203),
    (32, (2, 4, 4), 255, 92.917, 336, 324.597),
    (48, (3, 4, 4), 373, 139.371, 500, 488.237),
    (64, (4, 4, 4), 500, 186.425, 664, 652.922),
]
COUNTED = [("ViT-B-32", *row[:4]) for row in JOINED] + [("ViT-B-16", *row[:2], *row[4:]) for row in JOINED]


@pytest.mark.parametrize(("backbone", "frames", "joins", "tokens", "gmacs"), COUNTED)
def test_all_frames_end_in_one_clip(
    backbone: str, frames: int, joins: tuple[int, ...], tokens: int, gmacs: float
) -> None:
    model = load_model("tempme", backbone=backbone, weights="random:0", frames=frames, device="meta")
    assert model.spec.options.merge_frames == joins  # type: ignore[attr-defined]
    first, second, _ = (frames // joins[0], frames // joins[0] // joins[1], 1)
    assert [block[0] for block in model.tokens] == [frames] * 8 + [first, second, 1, 1]
    assert model.tokens[-1][1] == tokens
    count = checked_macs if frames == 32 else analytic_macs  # a trace takes seconds
    assert count(model)["video"] / 1e9 == pytest.approx(gmacs, abs=1e-3)
    assert len(model.trainable()) == 24 * 2 + 3
    assert sum(p.numel() for p in model.trainable().values()) == 491_520 + (frames + first + second) * 768


@pytest.mark.parametrize("frames", [16, 18, 24, 32, 48, 64])
def test_longer_videos_encode_alike_alone_and_together(frames: int, tiny_weights: Path) -> None:
    model = load_model("tempme", weights=tiny_weights, frames=frames, **SMALL)
    pixels, mask = torch.randn(2, frames, 3, 64, 64), torch.ones(2, frames, dtype=torch.bool)
    mask[1, frames // 2 :] = False
    seen: list[tuple[int, int]] = []
    for block in model.clip.visual.blocks:
        block.mlp.register_forward_hook(lambda _m, inputs, _o: seen.append(tuple(inputs[0].shape[:2])))
    with torch.no_grad():
        together = model.encode_video(pixels, mask)
        assert seen == [(2 * sequences, tokens) for sequences, tokens in model.tokens]
        alone = torch.cat([model.encode_video(pixels[i : i + 1], mask[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 8, 10, 30, 128])
def test_frames_without_default_joins_need_their_own(frames: int, tiny_weights: Path) -> None:
    with raises("option.value", option="merge_frames") as caught:
        load_model("tempme", weights=tiny_weights, frames=frames, **SMALL)
    assert all(str(known) in str(caught.value) for known in JOINS)
    given = {1: (1, 1, 1), 8: (2, 2, 2), 10: (1, 2, 5), 30: (2, 3, 5), 128: (4, 4, 8)}[frames]
    model = load_model("tempme", weights=tiny_weights, frames=frames, merge_frames=given, **SMALL)
    assert model.tokens[-1][0] == 1


@pytest.mark.parametrize("frames", [36, 60])
def test_other_multiples_of_twelve_end_in_several_sequences(frames: int, tiny_weights: Path) -> None:
    model = load_model("tempme", weights=tiny_weights, frames=frames, **SMALL)
    assert model.tokens[-1][0] == frames // 12


@pytest.mark.parametrize("frames", [1, 7, 12])
def test_without_merge_blocks_any_number_of_frames_goes(frames: int, tiny_weights: Path) -> None:
    model = load_model("tempme", weights=tiny_weights, frames=frames, r=0, merge_blocks=())
    assert model.tokens[-1][0] == frames


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
