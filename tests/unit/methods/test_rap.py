"""RAP: the start, counts, the definition written out plainly, borders of the video, refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from errors import raises
from torch import Tensor, nn
from torch.nn import functional as F

from tvrbench.harness import load_model
from tvrbench.harness.models.attending import QKV
from tvrbench.harness.models.checkpoint import save_checkpoint
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.tokens import TokenStream
from tvrbench.harness.profiling.counts.flops import profile_by_name
from tvrbench.harness.regression.signature import TINY, same_randomness, save_tiny_weights
from tvrbench.harness.reporting.papers.published import load_configurations
from tvrbench.harness.training.loss import local_loss
from tvrbench.methods.rap import RapOptions, RapReducer

pytestmark = pytest.mark.unit
T = 5
MASKS = {
    "all valid": [1, 1, 1, 1, 1],
    "padded at the end": [1, 1, 1, 0, 0],
    "padded inside": [1, 0, 1, 1, 0],
    "one valid": [0, 0, 1, 0, 0],
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tower of two heads and three blocks on 3 x 3 patches, and a text tower of one head."""
    path = tmp_path_factory.mktemp("weights") / "rap.safetensors"
    with same_randomness():
        save_tiny_weights(path, replace(TINY, vision_layers=3, vision_width=128, image_size=24, patch_size=8))
    return path


def make(weights: Path, std: float = 0.0, *, frames: int = T, **options: Any) -> RetrievalModel:
    """A model at its start, or with everything that it adds drawn anew."""
    model = load_model("rap", weights=weights, frames=frames, **options)
    with torch.no_grad():
        torch.manual_seed(3)
        for name, parameter in model.named_parameters():
            if std and name.startswith(("reducer.", "text_path.")):
                parameter.add_(torch.randn_like(parameter), alpha=10 * std if "offsets" in name else std)
    return model


def videos(count: int = 2, frames: int = T, side: int = 24) -> Tensor:
    return torch.randn(count, frames, 3, side, side, generator=torch.Generator().manual_seed(1))


class Reading(NamedTuple):
    """A reading of the definition; the defaults are the right one."""

    pad: str = "border"
    warps_queries: bool = False
    mean_of_logits: bool = False
    modulates_before_mlp: bool = False
    video_ends_at_padding: bool = True


RIGHT = Reading()


@torch.no_grad()
def plainly(model: RetrievalModel, pixels: Tensor, mask: Tensor, reading: Reading = RIGHT) -> Tensor:
    """The feature of one video [T, 3, H, W], frame by frame and patch by patch from the definition."""
    visual, reducer = model.clip.visual, model.reducer
    assert isinstance(reducer, RapReducer)
    x = visual.embed(pixels)
    for index, block in enumerate(visual.blocks):
        y = block.ln_1(x)
        warped = y.clone()
        frames = mask.nonzero().flatten().tolist() if reading.video_ends_at_padding else list(range(len(mask)))
        for place, frame in enumerate(frames):
            if reducer.chosen:
                for patch in _most_attended(block, y[frame], reducer.chosen, reading):
                    offset = reducer.offsets[index](y[frame, 1 + patch])
                    warped[frame, 1 + patch] = _sampled(y[frames, 1:], place, patch, offset, reading.pad)
        q = _heads(block, warped if reading.warps_queries else y)[0]
        _, k, v = _heads(block, warped)
        attended = (q @ k.transpose(2, 3) / 8).softmax(-1) @ v
        x = x + block.attn.out_proj(attended.transpose(1, 2).flatten(2))
        scale, shift = (table[index].A @ table[index].B.flatten(1) for table in (reducer.scales, reducer.shifts))
        scale, shift = (each.view(len(x), -1, x.shape[-1]) for each in (scale, shift))
        if reading.modulates_before_mlp:
            x = x * (1 + scale) + shift
        x = x + block.mlp(block.ln_2(x))
        if not reading.modulates_before_mlp:
            x = x * (1 + scale) + shift
    features = F.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1)
    return features[mask].mean(dim=0)


def _heads(block: Any, y: Tensor) -> Tensor:
    projected = F.linear(y, block.attn.in_proj_weight, block.attn.in_proj_bias)
    return projected.view(*y.shape[:2], 3, -1, 64).permute(2, 0, 3, 1, 4)


def _most_attended(block: Any, y: Tensor, count: int, reading: Reading) -> list[int]:
    q, k, _ = _heads(block, y.unsqueeze(0))
    logits = (q @ k.transpose(2, 3))[0, :, 0] / 8
    scores = logits.mean(0) if reading.mean_of_logits else logits.softmax(-1).mean(0)
    chosen: list[int] = scores[1:].topk(count).indices.tolist()
    return chosen


def _sampled(y: Tensor, place: int, patch: int, offset: Tensor, pad: str) -> Tensor:
    """y [frames, P, D] between frames, rows and columns, by PyTorch's own sampler."""
    frames, side = y.shape[0], round(y.shape[1] ** 0.5)
    there = torch.tensor([place, patch // side, patch % side]) + offset
    sizes = torch.tensor([frames, side, side])
    unit = torch.where(sizes > 1, 2 * there / (sizes - 1).clamp(min=1) - 1, 0.0)
    volume = y.view(1, frames, side, side, -1).permute(0, 4, 1, 2, 3)
    grid = unit.flip(0).view(1, 1, 1, 1, 3)
    return F.grid_sample(volume, grid, padding_mode=pad, align_corners=True).flatten()


CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"patches": 9},
    {"patches": 1, "rank": 3},
    {"axis": "frame"},
    {"axis": "frame", "rank": 2, "patches": 4},
    {"asa": False},
]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
def test_the_definition_written_plainly(weights: Path, options: dict[str, Any], mask: list[int]) -> None:
    model, pixels = make(weights, 0.05, **options), videos()
    mask_BT = torch.tensor([mask, [1] * T]).bool()
    with torch.no_grad():
        found = model.encode_video(pixels, mask_BT)
    expected = torch.stack([plainly(model, *each) for each in zip(pixels, mask_BT, strict=True)])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "reading",
    [
        Reading(pad="zeros"),
        Reading(pad="reflection"),
        Reading(warps_queries=True),
        Reading(mean_of_logits=True),
        Reading(modulates_before_mlp=True),
        Reading(video_ends_at_padding=False),
    ],
    ids=str,
)
def test_another_reading_gives_another_feature(weights: Path, reading: Reading) -> None:
    model, pixels, mask = make(weights, 0.05, patches=3), videos(1)[0], torch.tensor([1, 1, 1, 1, 0]).bool()
    assert (plainly(model, pixels, mask) - plainly(model, pixels, mask, reading)).abs().max() > 1e-4


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("options", [*CONFIGURATIONS, {"tuning": "prompts-shallow"}], ids=str)
def test_at_the_start_it_is_the_plain_encoder_to_the_last_bit(
    weights: Path, options: dict[str, Any], mask: list[int]
) -> None:
    plain = load_model("zero_shot", weights=weights, frames=T, tuning=options.get("tuning", "frozen"))
    model, pixels, mask_BT = make(weights, **options), videos(), torch.tensor([mask] * 2).bool()
    ids = torch.tensor([[1, 7, 511]])
    with torch.no_grad():
        assert torch.equal(model.encode_video(pixels, mask_BT), plain.encode_video(pixels, mask_BT))
        assert torch.equal(model.encode_text(ids, ids > 0), plain.encode_text(ids, ids > 0))


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_any_number_of_frames(weights: Path, frames: int) -> None:
    model, pixels = make(weights, 0.05, frames=frames), videos(2, frames)
    mask = torch.ones(2, frames, dtype=torch.bool)
    with torch.no_grad():
        together = model.encode_video(pixels, mask)
        alone = torch.cat([model.encode_video(pixels[i : i + 1], mask[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(together[0], plainly(model, pixels[0], mask[0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mask", list(MASKS.values())[1:], ids=list(MASKS)[1:])
def test_what_a_padded_frame_holds_changes_nothing(weights: Path, mask: list[int]) -> None:
    model, pixels, mask_BT = make(weights, 0.05, patches=9), videos(), torch.tensor([mask] * 2).bool()
    with torch.no_grad():
        noise = model.encode_video(pixels, mask_BT)
        zeros = model.encode_video(pixels * mask_BT.view(2, T, 1, 1, 1), mask_BT)
    assert torch.equal(noise, zeros)


class Values:
    """A block that gives every token its value: what an offset fetches is seen."""

    ln_1 = nn.Identity()

    def qkv(self, x: Tensor) -> QKV:
        heads = x.view(*x.shape[:2], -1, 64).transpose(1, 2)
        return QKV(heads, heads, heads)

    def mix(self, _queries: Tensor, _keys: Tensor, values: Tensor) -> Tensor:
        return values.transpose(1, 2).flatten(2)


def _fetched(offset: tuple[float, float, float], prompts: int = 0, patches: int = 4) -> Tensor:
    """One-hot patches of 4 frames with 2 x 2 patches, moved by one offset: [frames, patches, 16].

    The class token attends to all alike.
    """
    arch = replace(TINY, image_size=32, vision_layers=1)
    reducer = RapReducer(RapOptions(tuning="own", patches=patches), arch, 4)
    reducer.offsets[0].bias.data.copy_(torch.tensor(offset))
    x = torch.cat([torch.zeros(4, 1 + prompts, 64), F.one_hot(torch.arange(16), 64).float().view(4, 4, 64)], dim=1)
    stream, block = TokenStream(x=x, classes=1, prompts=prompts, per_video=4), Values()
    out = reducer.attend(stream, 0, block)  # type: ignore[arg-type]
    assert torch.equal(out.delta[:, : 1 + prompts], x[:, : 1 + prompts])
    return out.delta[:, 1 + prompts :, :16].detach()


@pytest.mark.parametrize("prompts", [0, 3])
@pytest.mark.parametrize(
    ("offset", "moved"),
    [
        ((1, 0, 0), lambda t, r, c: (min(t + 1, 3), r, c)),
        ((-2, 0, 0), lambda t, r, c: (max(t - 2, 0), r, c)),
        ((0, 1, 0), lambda t, _r, c: (t, 1, c)),
        ((0, 0, -1), lambda t, r, _c: (t, r, 0)),
        ((2, 1, -9), lambda t, _r, _c: (min(t + 2, 3), 1, 0)),
    ],
)
def test_an_offset_fetches_exactly_the_patch_it_points_to(
    offset: tuple[float, float, float], moved: Callable[[int, int, int], tuple[int, int, int]], prompts: int
) -> None:
    found = _fetched(offset, prompts).argmax(-1)
    places = [(t, r, c) for t in range(4) for r in range(2) for c in range(2)]
    expected = [t * 4 + r * 2 + c for t, r, c in (moved(*place) for place in places)]
    assert found.flatten().tolist() == expected


def test_between_two_frames_it_is_their_mean() -> None:
    found = _fetched((0.5, 0, 0))
    assert found[0, 0, [0, 4]].tolist() == [0.5, 0.5]
    assert found[3, 0, 12] == 1  # the border


def test_of_equal_patches_the_first_are_chosen() -> None:
    found = _fetched((1, 0, 0), patches=3).argmax(-1)
    assert found[0].tolist() == [4, 5, 6, 3]


def test_prompts_among_the_tokens_stay_as_they_are(weights: Path) -> None:
    reducer = make(weights, 0.05).reducer
    x = torch.randn(2 * T, 1 + 8 + 9, 128)
    with torch.no_grad():
        out = reducer.after_block(TokenStream(x=x, classes=1, prompts=8, per_video=T), 1).x
        without = TokenStream(x=torch.cat([x[:, :1], x[:, 9:]], dim=1), classes=1, per_video=T)
        expected = reducer.after_block(without, 1).x
    assert torch.equal(out[:, 1:9], x[:, 1:9])
    assert torch.equal(torch.cat([out[:, :1], out[:, 9:]], dim=1), expected)


def test_axis_frame_is_axis_patch_with_b_repeated(weights: Path) -> None:
    by_frame = make(weights, 0.05, axis="frame", rank=3)
    by_patch = make(weights, axis="patch", rank=3)
    state = by_frame.state_dict()
    wide = {k: t.expand(-1, 10, -1) if k.endswith(".B") and k.startswith("reducer.s") else t for k, t in state.items()}
    by_patch.load_state_dict(wide)
    pixels, mask = videos(), torch.ones(2, T).bool()
    with torch.no_grad():
        torch.testing.assert_close(by_frame.encode_video(pixels, mask), by_patch.encode_video(pixels, mask))


@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
def test_at_the_start_gradients_reach_all_but_a(weights: Path, options: dict[str, Any]) -> None:
    model = make(weights, **options).train()
    ids = torch.tensor([[1, 7, 511], [1, 9, 511]])
    text, video = model(videos(), torch.ones(2, T).bool(), ids, ids > 0)
    local_loss(model, text, video).backward()  # type: ignore[no-untyped-call]
    silent = {name for name, p in model.trainable().items() if p.grad is None or not p.grad.any()}
    assert silent == {name for name in model.trainable() if name.endswith(".A")}


@pytest.mark.parametrize(
    ("backbone", "options", "trainable", "gmacs"),
    [
        ("ViT-B-32", {}, 961_860, 52.99),
        ("ViT-B-32", {"axis": "frame"}, 189_732, 52.99),
        ("ViT-B-32", {"asa": False}, 961_860 - 27_684, 52.96),
        pytest.param("ViT-B-16", {}, 3_671_364, 210.9, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_counts(backbone: str, options: dict[str, Any], trainable: int, gmacs: float) -> None:
    found = profile_by_name("rap", backbone, **options)
    assert found["params"]["trainable"] == trainable
    assert found["gmacs"]["video"] == pytest.approx(gmacs, rel=0.005)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"selection": "text"}, "selection"),
        ({"patches": 0}, "patches"),
        ({"patches": 10}, "patches"),
        ({"rank": 0}, "rank"),
    ],
    ids=str,
)
def test_options_that_do_not_fit(weights: Path, options: dict[str, Any], option: str) -> None:
    with raises("option.value", option=option):
        make(weights, **options)


def test_a_quarter_of_the_patches_is_chosen() -> None:
    chosen = {
        backbone: load_model("rap", backbone=backbone, weights="random:0", device="meta").reducer.chosen
        for backbone in ("ViT-B-32", "ViT-B-16")
    }
    assert chosen == {"ViT-B-32": 12, "ViT-B-16": 49}


def test_lora_keeps_its_own_rank(weights: Path) -> None:
    model = make(weights, tuning="lora", rank=2)
    lora = model.clip.visual.blocks[0].attn.lora
    assert lora is not None
    assert (lora.A.shape[0], model.reducer.scales[0].A.shape[1]) == (8, 2)


@pytest.mark.parametrize("frames", [1, 2, 3, T, 9])
def test_tables_are_interpolated_to_other_frames(frames: int, weights: Path, tmp_path: Path) -> None:
    model = make(weights, 0.05)
    torch.save(model.state_dict(), tmp_path / "other.pt")
    other = load_model("rap", checkpoint=tmp_path / "other.pt", frames=frames)
    for kind in ("scales", "shifts"):
        for index in range(3):
            name = f"reducer.{kind}.{index}"
            before, after = (each.get_submodule(name) for each in (model, other))
            assert torch.equal(before.B, after.B)
            for row, there in zip(after.A, torch.linspace(0, T - 1, frames).tolist(), strict=True):
                low, high = before.A[int(there)], before.A[min(int(there) + 1, T - 1)]
                torch.testing.assert_close(row, low + (there - int(there)) * (high - low))
    if frames == T:
        assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


def test_a_checkpoint_of_a_run_brings_its_frames(weights: Path, tmp_path: Path) -> None:
    save_checkpoint(make(weights, 0.05), tmp_path / "own.safetensors")
    assert load_model("rap", checkpoint=tmp_path / "own.safetensors", frames=9).frames == T


@pytest.mark.parametrize("A", [torch.zeros(4), torch.zeros(0, 1), torch.zeros(4, 1, 1), torch.tensor(0.0)])
def test_what_is_no_table_over_time_is_refused(A: Tensor, weights: Path, tmp_path: Path) -> None:
    torch.save(make(weights).state_dict() | {"reducer.scales.0.A": A}, tmp_path / "wrong.pt")
    with raises("weights.shape"):
        load_model("rap", checkpoint=tmp_path / "wrong.pt", frames=T)


@pytest.mark.parametrize("options", [{"axis": "frame", "rank": 3}, {"rank": 2}, {"asa": False}, {"axis": "frame"}, {}])
def test_shapes_tell_options(options: dict[str, Any], weights: Path, tmp_path: Path) -> None:
    model = make(weights, 0.05, **options)
    torch.save(model.state_dict(), tmp_path / "saved.pt")
    assert load_model("rap", checkpoint=tmp_path / "saved.pt", frames=T).spec.options == model.spec.options
    with raises("weights.shape"):  # a given one comes first
        load_model("rap", checkpoint=tmp_path / "saved.pt", frames=T, rank=5)


def test_no_published_number_of_it_is_judged() -> None:
    published = [each for each in load_configurations() if each.method == "rap"]
    assert published
    assert all(each.not_checkable for each in published)
