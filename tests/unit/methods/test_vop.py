"""VoP without released code beside it: naive forms from the definition, the paper's variants, counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from errors import raises
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from tvrbench.harness import load_model
from tvrbench.harness.config.recipe import load_recipe
from tvrbench.harness.models.backbone.blocks import Block
from tvrbench.harness.models.checkpoint import save_checkpoint
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.flops import checked_macs
from tvrbench.harness.profiling.counts.formula import analytic_macs, released_macs
from tvrbench.harness.regression.signature import TINY, same_randomness, save_tiny_weights
from tvrbench.harness.training.trainer import Trainer
from tvrbench.methods.vop import FrameContext, VoP, VoPReducer, VoPText

pytestmark = pytest.mark.unit
VARIANTS = ["", "P", "C", "F", "F+P", "F+C"]
FRAMES = 5
CONTEXT = 20
Make = Callable[..., RetrievalModel]


@pytest.fixture(scope="module")
def odd_model(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A model with no size like CLIP's: 128 wide, 7 and 4 blocks, 9 patches; nothing at its initial value."""
    path = tmp_path_factory.mktemp("odd") / "odd.safetensors"
    arch = replace(TINY, vision_width=128, vision_layers=7, text_layers=4, image_size=48, context_length=CONTEXT)
    with same_randomness():
        save_tiny_weights(path, arch)

    def make(**options: Any) -> RetrievalModel:
        model = load_model("vop", weights=path, frames=FRAMES, **options)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(4)
            for parameter in model.trainable().values():
                parameter.normal_(std=0.1)
            model.clip.visual.ln_pre.weight.normal_()  # else block 0's prompts could do without it
            model.clip.visual.ln_pre.bias.normal_()
        return model

    return make


def videos(count: int = 2) -> tuple[Tensor, Tensor]:
    frames = torch.randn(count, FRAMES, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    return frames, torch.ones(count, FRAMES, dtype=torch.bool)


def captions(length: int, *ends: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(1, 500, (len(ends), length), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(length) <= torch.tensor(ends).unsqueeze(1)
    ids[torch.arange(len(ends)), list(ends)] = 511
    return ids, mask  # what stands in the padding must not matter


def through(block: Block, x: Tensor, causal: bool = False) -> Tensor:
    """A plain block on tokens."""
    x = x + block.attend(x, causal=causal).delta
    return x + block.feed_forward(x)


def blocks_of(tower: Any) -> Iterator[tuple[int, Block]]:
    return enumerate(tower.transformer.blocks)


def naive_context(model: RetrievalModel, classes_BTD: Tensor, mask: Tensor) -> Tensor:
    """The prompts of every frame by torch's own BiLSTM on packed sequences of the valid frames."""
    context = cast(VoPReducer, model.reducer).context
    assert context is not None
    lstm = nn.LSTM(context.width, context.width, bidirectional=True, batch_first=True)
    given = [p for weights in context.directions for p in weights.parameters()]
    weights = dict(zip((key for key, _ in lstm.named_parameters()), given, strict=True))
    out = classes_BTD.new_zeros(*mask.shape, 2 * context.width)
    for row, valid in enumerate(mask):
        out[row, valid] = functional_call(lstm, weights, classes_BTD[row : row + 1, valid])[0][0]
    return context.project(out).view(mask.numel(), -1, context.width)


def naive_video(model: RetrievalModel, frames: Tensor, mask: Tensor) -> Tensor:
    """The definition: prompts are tokens behind the class tokens, and every block puts its own in their place."""
    reducer, visual, variant = cast(VoPReducer, model.reducer), model.clip.visual, model.spec.describe()["variant"]
    B, T = mask.shape
    x, classes = visual.embed(frames.flatten(0, 1)), 1
    for index, block in blocks_of(visual):
        if "F" in variant and index == 2 * len(visual.blocks) // 3:
            assert reducer.frame_positions is not None
            parts = x.view(B, T, *x.shape[1:]) + reducer.frame_positions.view(1, T, 1, -1)
            x, classes = torch.cat([parts[:, :, 0], parts[:, :, 1:].flatten(1, 2)], dim=1), T
        if classes == T and "F" in variant:
            assert reducer.video_prompts is not None
            prompts = reducer.video_prompts[index - reducer.frame_blocks].expand(B, -1, -1)
        else:
            prompts = reducer.prompts[index].expand(B * T, -1, -1)
            if reducer.frame_prompts is not None:
                prompts = torch.cat([prompts, reducer.frame_prompts[index].repeat(B, 1, 1)], dim=1)
            if reducer.context is not None:
                prompts = torch.cat([prompts, naive_context(model, x[:, 0].view(B, T, -1), mask)], dim=1)
        prompts = visual.ln_pre(prompts) if index == 0 else prompts
        x = through(block, torch.cat([x[:, :classes], prompts, x[:, classes:]], dim=1))
        x = torch.cat([x[:, :classes], x[:, classes + prompts.shape[1] :]], dim=1)
    feature = F.normalize(visual.ln_post(x[:, :classes]) @ visual.proj, dim=-1).view(B, T, -1)
    return (feature * mask.unsqueeze(2)).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def naive_text(model: RetrievalModel, ids: Tensor, mask: Tensor, read: str) -> Tensor:
    """The definition: the whole context as tokens, one caption at a time."""
    clip, path, rows = model.clip, cast(VoPText, model.text_path), []
    P, S = path.counts
    room = clip.arch.context_length - P - S
    for caption, valid in zip(ids, mask, strict=True):
        words = caption[valid][:room].clone()
        words[-1] = 511
        end = len(words) - 1
        words = F.pad(words, (0, room - len(words)))
        x = clip.token_embedding(words)
        for index, block in blocks_of(clip):
            start, middle, last = (x[:1], x[1:-1], x[-1:]) if index == 0 else (x[:1], x[1 + P : -1 - S], x[-1:])
            x = torch.cat([start, path.prefix[index], middle, path.suffix[index], last])
            x = through(block, (x + clip.positional_embedding * (index == 0)).unsqueeze(0), causal=True)[0]
        place = end + P + S if read == "released" else end + P + S * (end == room - 1)
        rows.append(clip.ln_final(x[place]) @ clip.text_projection)
    return torch.stack(rows)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("prompts", [2, 6])
def test_keys_and_values_give_what_tokens_give(variant: str, prompts: int, odd_model: Make) -> None:
    model, (frames, mask) = odd_model(variant=variant, visual_prompts=prompts), videos()
    mask[1, 3:] = "F" in variant  # frames that attend to each other do so without a mask
    ours, naive = model.encode_video(frames, mask), naive_video(model, frames, mask)
    torch.testing.assert_close(ours, naive, rtol=0, atol=1e-5)
    learned = list(model.reducer.parameters())
    weight = torch.randn_like(ours)
    wanted = [torch.autograd.grad((out * weight).sum(), learned) for out in (naive, ours)]
    for theirs, grad in zip(*wanted, strict=True):
        torch.testing.assert_close(grad, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("read", ["end", "released"])
@pytest.mark.parametrize(("prefix", "suffix"), [(4, 4), (2, 5), (0, 3), (3, 0), (0, 0)])
def test_captions_of_every_length(read: str, prefix: int, suffix: int, odd_model: Make) -> None:
    model, room = odd_model(read=read, prefix=prefix, suffix=suffix), CONTEXT - prefix - suffix
    for length in (6, room - 1, room, CONTEXT):
        ids, mask = captions(length, 2, 5, length - 1)
        ours, naive = model.encode_text(ids, mask), naive_text(model, ids, mask, read)
        torch.testing.assert_close(ours, naive, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tuning", ["lora", "prompts", "adapter"])
def test_a_caption_is_the_same_however_far_it_is_padded(tuning: str, odd_model: Make) -> None:
    model = odd_model(tuning=tuning)
    ids, mask = captions(6, 2, 5)
    with torch.no_grad():
        short = model.encode_text(ids, mask)
        full = model.encode_text(F.pad(ids, (0, CONTEXT - 8 - 6)), F.pad(mask, (0, CONTEXT - 8 - 6)))
        cut = model.encode_text(F.pad(ids, (0, CONTEXT - 6), value=7), F.pad(mask, (0, CONTEXT - 6)))
    torch.testing.assert_close(short, full, rtol=0, atol=1e-5)
    torch.testing.assert_close(short, cut, rtol=0, atol=1e-5)


def test_the_suffix_learns_from_captions_alone_that_fill_the_context(odd_model: Make) -> None:
    room = CONTEXT - 8
    for read, end, learns in (
        ("end", room - 2, False),
        ("end", room - 1, True),
        ("released", room - 6, False),
        ("released", room - 5, True),  # here the token that is read is a suffix prompt
    ):
        model = odd_model(read=read)
        model.encode_text(*captions(room, 3, end)).sum().backward()
        grad = cast(VoPText, model.text_path).prompts.grad
        assert bool(grad is not None and grad[:, 4:].any()) is learns


def test_padding_frames_change_no_prompt_of_valid_ones(odd_model: Make) -> None:
    model, (frames, mask) = odd_model(variant="C"), videos()
    mask[:, [0, 3]] = False
    with torch.no_grad():
        clean = model.encode_video(frames, mask)
        frames[:, [0, 3]] = 5.0
        torch.testing.assert_close(model.encode_video(frames, mask), clean, rtol=0, atol=1e-6)
        mask[:, 0] = True
        assert not torch.allclose(model.encode_video(frames, mask), clean, atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_alone_in_a_batch_compiled_and_saved(variant: str, odd_model: Make, tmp_path: Path) -> None:
    model, (frames, mask) = odd_model(variant=variant), videos(3)
    mask[1, 3:] = False
    with torch.no_grad():
        whole = model.encode_video(frames, mask)
        alone = torch.cat([model.encode_video(frames[i : i + 1], mask[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(whole, alone, rtol=0, atol=1e-5)
        torch.compiler.reset()
        compiled = torch.compile(model.encode_video, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(frames, mask), whole, rtol=0, atol=1e-5)
        save_checkpoint(model, tmp_path / "model.safetensors")
        assert torch.equal(
            load_model("vop", checkpoint=tmp_path / "model.safetensors").encode_video(frames, mask), whole
        )
    assert model.load_state_dict(model.state_dict())


@pytest.mark.parametrize("read", ["end", "released"])
def test_the_text_tower_is_one_graph(read: str, odd_model: Make) -> None:
    model = odd_model(read=read)
    torch.compiler.reset()
    compiled = torch.compile(model.encode_text, backend="eager", fullgraph=True, dynamic=False)
    with torch.no_grad():
        for length in (8, CONTEXT - 8, CONTEXT):
            ids, mask = captions(length, 3, length - 1)
            torch.testing.assert_close(compiled(ids, mask), model.encode_text(ids, mask), rtol=0, atol=1e-5)
    torch.compiler.reset()


def test_joined_frames_are_those_of_a_tempme_that_merges_nothing(odd_model: Make, tmp_path: Path) -> None:
    """Order of tokens and positions included; there, block 0's prompts do not pass ``ln_pre``."""
    model, (frames, mask) = odd_model(variant="F"), videos()
    reducer, first = cast(VoPReducer, model.reducer), 2 * model.clip.arch.vision_layers // 3
    torch.save(model.clip.state_dict(), tmp_path / "clip.pt")
    options: dict[str, Any] = {
        "merge_blocks": (first,),
        "merge_frames": (FRAMES,),
        "clip_ratio": 0.0,
        "intra_ratio": 0.0,
    }
    tempme = load_model(
        "tempme",
        weights=tmp_path / "clip.pt",
        activation="quick_gelu",
        frames=FRAMES,
        r=0,
        proportional_attention=False,
        tuning="prompts",
        **options,
    )
    assert reducer.video_prompts is not None
    with torch.no_grad():
        tables = [*reducer.prompts[:, 0], *reducer.video_prompts[:, 0]]
        tables[0] = model.clip.visual.ln_pre(tables[0])
        for block, table in zip(tempme.clip.visual.blocks, tables, strict=True):
            block.prompts.tokens.copy_(table)  # type: ignore[union-attr]
        dict(tempme.reducer.named_parameters())[f"frame_positions.{first}"].copy_(reducer.frame_positions)
        torch.testing.assert_close(
            model.encode_video(frames, mask), tempme.encode_video(frames, mask), rtol=0, atol=1e-5
        )
        assert model.tokens == tempme.tokens


GENERATED = 0.906 + 0.453  # GMACs of C's BiLSTM and linear layer in 8 blocks
COSTS: list[tuple[dict[str, Any], float, float, float, float]] = [  # exact B/32, B/16; prompts as tokens B/32, B/16
    ({}, 53.222, 211.507, 61.317, 219.863),
    ({"variant": "F"}, 55.250, 242.982, 60.85, 248.84),
    ({"variant": "F+C"}, 57.86, 245.59, 60.85 + GENERATED, 248.84 + GENERATED),
    # TempMe's figure for VoP (246.2, 2368 tokens) fits four prompts alone.
    ({"variant": "F+C", "visual_prompts": 4}, 56.88, 244.48, 57.92 + 1.133, 245.65 + 1.133),
]


@pytest.mark.parametrize("backbone", ["ViT-B-32", "ViT-B-16"])
@pytest.mark.parametrize("costs", COSTS, ids=lambda costs: str(costs[0]))
def test_multiply_adds_of_a_video(costs: tuple[dict[str, Any], float, float, float, float], backbone: str) -> None:
    options, *numbers = costs
    exact, as_tokens = numbers[backbone == "ViT-B-16" :: 2]
    model = load_model("vop", backbone=backbone, weights="random:0", device="meta", **options)
    count = checked_macs if backbone == "ViT-B-32" else analytic_macs  # a trace of the larger one takes seconds
    assert count(model)["video"] / 1e9 == pytest.approx(exact, rel=1e-3)
    assert released_macs(model)["video"] / 1e9 == pytest.approx(as_tokens, rel=1e-3)
    patches = model.clip.arch.patches
    assert model.tokens[-1] == ((1, 12 * (1 + patches)) if "F" in options.get("variant", "") else (12, 1 + patches))


@pytest.mark.parametrize(
    ("options", "exact", "as_released"),
    [
        ({}, 1.262, 2.985),  # 32 ids see the prefix alone
        ({"prefix": 8, "suffix": 0}, 1.302, 2.985),
        ({"read": "released"}, 2.985, 2.985),
    ],
)
def test_multiply_adds_of_a_caption(options: dict[str, Any], exact: float, as_released: float) -> None:
    model = load_model("vop", backbone="ViT-B-32", weights="random:0", device="meta", **options)
    assert checked_macs(model)["text"] / 1e9 == pytest.approx(exact, rel=1e-3)
    assert released_macs(model)["text"] / 1e9 == pytest.approx(as_released, rel=1e-3)


@pytest.mark.parametrize("backbone", ["ViT-B-32", "ViT-B-16"])
@pytest.mark.parametrize(
    ("variant", "trainable"),
    [
        ("", 122_880),
        ("P", 528_384),
        ("C", 14_257_152),
        ("F", 122_880 + 9_216),  # the paper does not count frame positions
        ("F+P", 393_216 + 9_216),
        ("F+C", 14_269_440 + 9_216),
    ],
)
def test_trainable_parameters(variant: str, trainable: int, backbone: str) -> None:
    model = load_model("vop", backbone=backbone, weights="random:0", device="meta", variant=variant)
    assert sum(p.numel() for p in model.trainable().values()) == trainable
    assert not any(key.startswith("clip.") for key in model.trainable())


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"visual_prompts": -1}, "visual_prompts"),
        ({"visual_prompts": 7, "variant": "P"}, "visual_prompts"),
        ({"visual_prompts": 0, "variant": "F+C"}, "visual_prompts"),
        ({"prefix": -1}, "prefix"),
        ({"suffix": -2}, "suffix"),
        ({"prefix": 40, "suffix": 36}, "prefix"),
    ],
)
def test_options_that_do_not_fit_are_named(options: dict[str, Any], option: str) -> None:
    with raises("option.value", option=option):
        load_model("vop", backbone="ViT-B-32", weights="random:0", device="meta", **options)


def test_shallow_prompts_are_refused(odd_model: Make) -> None:
    with raises("tuning.prompts-not-carried"):
        odd_model(tuning="prompts-shallow")


def test_a_released_file_of_other_prompts_is_refused(odd_model: Make, tmp_path: Path) -> None:
    model = odd_model()
    state = {f"clip.{key}": tensor for key, tensor in model.clip.state_dict().items()}
    state["visual_prompt_learner.visual_prompts"] = torch.zeros(7, 1, 8, 128)
    state["text_prompt_learner.text_prompts"] = torch.zeros(4, 6, 64)
    torch.save(state, tmp_path / "released.bin")
    with raises("weights.shape", key="text_path.prompts"):
        load_model("vop", checkpoint=tmp_path / "released.bin", frames=FRAMES)


def test_every_released_tensor_is_one_parameter(odd_model: Make) -> None:
    shapes = {
        "visual_prompt_learner.visual_prompts": (7, 1, 8, 128),
        "text_prompt_learner.text_prompts": (4, 8, 64),
    }
    renamed = dict(VoP.from_released(key, torch.empty(shape)) for key, shape in shapes.items())
    learned = odd_model().trainable()
    assert {key: t.shape for key, t in renamed.items()} == {key: t.shape for key, t in learned.items()}


def test_with_float16_weights_the_lstm_trains_and_encodes(odd_model: Make) -> None:
    model = odd_model(variant="C")
    trainer = Trainer(model, replace(load_recipe("vop"), weights="float16", warmup=0.0), 5)
    before = [p.detach().clone() for p in cast(VoPReducer, model.reducer).context.parameters()]  # type: ignore[union-attr]
    assert math.isfinite(trainer.step(*videos(), *captions(8, 3, 7))["loss"])
    after = cast(VoPReducer, model.reducer).context.parameters()  # type: ignore[union-attr]
    assert not any(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    with torch.no_grad():
        assert FrameContext(128, 2).half().eval()(torch.randn(2, 3, 128).half(), None).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_leaves_the_lstm_in_float32(dtype: torch.dtype) -> None:
    context, (frames, seen) = FrameContext(128, 2), (torch.randn(2, 3, 128), [])
    context.project.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        context(frames, None)
        with torch.autocast("cpu", dtype):
            context(frames, None)
    assert torch.equal(*seen)


@pytest.mark.parametrize("gradients", [True, False])
def test_the_lstm_keeps_what_a_gradient_needs_in_eval_mode_too(
    gradients: bool, odd_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CUDA a backward pass needs the flag; a CPU has it by either value."""
    model, flags, lstm = odd_model(variant="C").eval(), [], torch.lstm

    def noting(*arguments: Any) -> Any:
        flags.append(arguments[6])
        return lstm(*arguments)

    monkeypatch.setattr(torch, "lstm", noting)
    with torch.set_grad_enabled(gradients):
        feature = model.encode_video(*videos())
    assert set(flags) == {gradients}
    if gradients:
        feature.sum().backward()
        assert all(p.grad is not None for p in model.reducer.parameters())
