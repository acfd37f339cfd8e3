"""What every registered method and baseline promises, plug-ins included."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from errors import raises
from torch import nn
from torch.func import functional_call

from tvrbench.harness import load_model
from tvrbench.harness.config.recipe import recipe_names
from tvrbench.harness.core import registry
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import file_sha256
from tvrbench.harness.models.backbone.weights import load_weights
from tvrbench.harness.models.checkpoint import save_checkpoint
from tvrbench.harness.models.decisions import Recorder, watched
from tvrbench.harness.models.description import BaseWeights
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.spec import Group
from tvrbench.harness.models.tokens import TokenReducer, TokenStream
from tvrbench.harness.models.tuning import TUNINGS
from tvrbench.harness.profiling.counts.dead import IN_PART, dead_parameters
from tvrbench.harness.profiling.counts.flops import traced_macs
from tvrbench.harness.profiling.counts.formula import video_macs
from tvrbench.harness.training.loss import whole_loss
from tvrbench.harness.training.trainer import Trainer

pytestmark = pytest.mark.contract
NAMES = registry.names("methods", "baselines")
Make = Callable[..., RetrievalModel]
KEEPING = [  # a method that keeps constants in eval mode, and a parameter that they are made from
    ("lora", "clip.visual.transformer.resblocks.0.attn.lora.B"),
    ("dgl", "reducer.generator.table"),
]


class _Video(nn.Module):
    """The video encoder as a module's forward."""

    def __init__(self, model: RetrievalModel) -> None:
        super().__init__()
        self.module = model

    def forward(self, frames: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.module.encode_video(frames, mask)


@pytest.mark.parametrize("name", NAMES)
def test_states_where_it_comes_from(name: str) -> None:
    card = method_class(name).card
    assert card.summary
    assert card.paper
    assert card.recipe in recipe_names()
    assert card.tuning in TUNINGS
    assert card.group in get_args(Group)


@pytest.mark.parametrize("name", NAMES)
def test_a_video_alone_gives_what_it_gives_in_a_batch(name: str, tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    model = tiny_model(name)
    frames, mask = tiny_batch["frames"], tiny_batch["mask"].clone()
    mask[1, 9:] = False
    with torch.no_grad():
        together = model.encode_video(frames, mask)
        alone = torch.cat([model.encode_video(frames[i : i + 1], mask[i : i + 1]) for i in range(3)])
        again = model.encode_video(frames, mask)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert torch.equal(together, again)


@pytest.mark.parametrize("name", NAMES)
def test_choices_do_not_depend_on_the_batch(name: str, tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    model = tiny_model(name)
    frames, mask = tiny_batch["frames"], tiny_batch["mask"]

    def decisions(which: slice) -> list[torch.Tensor]:
        recorder = Recorder()
        with torch.no_grad(), watched(model.reducer, recorder):
            model.encode_video(frames[which], mask[which])
        return [made.representative for made in recorder.made]

    together = decisions(slice(0, 3))
    for video in range(3):
        for batch, alone in zip(together, decisions(slice(video, video + 1)), strict=True):
            assert torch.equal(batch.view(3, -1)[video], alone.view(-1))


@pytest.mark.parametrize("name", NAMES)
def test_class_tokens_leave_as_declared(name: str, tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    model = tiny_model(name)
    if not model.tokens:
        pytest.skip(f"{name} runs no vision tower")
    with torch.no_grad():
        stream = model.video_tokens(tiny_batch["frames"])
    assert stream.per_video * stream.classes == model.reducer.class_weights(stream, tiny_batch["mask"]).shape[1]
    assert (stream.per_video, stream.x.shape[1]) == model.tokens[-1] or stream.per_video == model.reducer.plan()[
        -1
    ].packed


@pytest.mark.parametrize("name", NAMES)
def test_without_its_reduction_a_method_is_the_plain_encoder(
    name: str, tiny_model: Make, tiny_batch: dict[str, Any]
) -> None:
    identity = method_class(name).card.identity
    if isinstance(identity, str):
        assert identity
        pytest.skip(f"{name} has no such setting: {identity}")
    frames, mask = tiny_batch["frames"], tiny_batch["mask"].clone()
    mask[1, 9:] = False
    with torch.no_grad():
        plain = tiny_model("zero_shot", tuning="frozen").encode_video(frames, mask)
        same = tiny_model(name, **identity, tuning="frozen").encode_video(frames, mask)
    torch.testing.assert_close(same, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_observed_tokens_are_the_expected_ones(name: str, tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    model = tiny_model(name)
    seen = _entering_mlps(model, tiny_batch["frames"], tiny_batch["mask"])
    videos, plan = len(tiny_batch["frames"]), model.reducer.plan()
    numbers = [(videos, *block.leaving, block.packed) for block in plan]
    assert seen == [(1, n * s * t) if packed else (n * s, t) for n, s, t, packed in numbers]


def _entering_mlps(model: RetrievalModel, frames: torch.Tensor, mask: torch.Tensor) -> list[tuple[int, int]]:
    """(sequences, tokens) that the MLP of each block sees."""
    seen: list[tuple[int, int]] = []
    for block in model.clip.visual.transformer.blocks:
        block.mlp.register_forward_hook(lambda _m, inputs, _o: seen.append(tuple(inputs[0].shape[:2])))
    with torch.no_grad():
        model.encode_video(frames, mask)
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_a_known_video_has_a_plan_of_its_own(name: str, tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    model = tiny_model(name)
    if not model.reducer.depends_on_content:
        pytest.skip(f"the tokens of {name} do not depend on content")
    still = tiny_batch["frames"].clone()
    for video, last in enumerate((1, 4, 9)):
        still[video, last:] = still[video, last - 1 : last]
    recorder = Recorder()
    with watched(model.reducer, recorder):
        seen = _entering_mlps(model, still, tiny_batch["mask"])
    (made,) = recorder.made
    own = [model.reducer.plan(kept) for kept in made.kept_S.tolist()]  # type: ignore[attr-defined,call-arg]
    assert [prod(shape) for shape in seen] == [
        sum(prod(b.leaving) for b in blocks) for blocks in zip(*own, strict=True)
    ]
    shares = made.share_S.tolist()  # type: ignore[attr-defined]
    assert 0 < shares[0] < shares[1] < shares[2] < 1
    assert all(
        prod(block.leaving) < prod(most.leaving) for block, most in zip(own[2], model.reducer.plan(), strict=True)
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_source_patch_is_accounted_for(name: str, tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    model = tiny_model(name)
    if not model.tokens:
        pytest.skip(f"{name} runs no vision tower")
    with torch.no_grad():
        plain = model.video_tokens(tiny_batch["frames"])
        stream: TokenStream = model.video_tokens(tiny_batch["frames"], trace=True)
    assert torch.equal(plain.x, stream.x)
    assert stream.origin is not None
    _, trace = model.encode_video(tiny_batch["frames"], tiny_batch["mask"], trace=True)
    held_by_last = [trace.patches(0, token) for token in range(trace.sequences * trace.tokens)]
    assert sum(map(len, held_by_last)) == (stream.origin[0] >= 0).sum()
    places = stream.per_video * stream.x.shape[1]
    assert stream.origin.max() < places
    if stream.size is None:
        return
    sizes = stream.size.view(len(tiny_batch["frames"]), places)
    classes = torch.arange(places) % stream.x.shape[1] < stream.classes
    held = torch.zeros_like(sizes).scatter_add_(1, stream.origin.clamp(min=0), (stream.origin >= 0).float())
    torch.testing.assert_close(sizes[:, ~classes], held[:, ~classes])
    assert held[:, classes].sum() == 0


def _tuned(make: Make, name: str, tuning: str) -> RetrievalModel:
    """The model; skips with the reason where a method's maths has no place for the tuning, as it must for its own."""
    try:
        return make(name, tuning=tuning)
    except UsageError as error:
        refusal = error
    assert refusal.code.startswith("tuning.")
    assert tuning not in ("frozen", "own", "full", method_class(name).card.tuning)
    pytest.skip(str(refusal))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tuning", TUNINGS)
def test_gradients_reach_exactly_what_is_declared_trainable(
    name: str, tuning: str, tiny_model: Make, tiny_batch: dict[str, Any]
) -> None:
    model = _tuned(tiny_model, name, tuning).train()
    if not model.trainable() or not method_class(name).card.trains:
        assert tuning in ("frozen", "own") or not method_class(name).card.trains
        return
    features = model(tiny_batch["frames"], tiny_batch["mask"], tiny_batch["ids"], tiny_batch["text_mask"])
    whole_loss(model, *features).backward()  # type: ignore[no-untyped-call]
    reached = {key for key, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    learns = set(model.trainable())
    dead = {key for key in learns if any(re.fullmatch(pattern, key) for pattern in model.spec.card.dead)}
    assert learns - dead <= reached <= learns


@pytest.mark.parametrize("name", NAMES)
def test_dead_parameters_are_exactly_the_declared_ones(name: str) -> None:
    """Those of default options; a declaration for other options names no tensor here."""
    model = load_model(name, backbone="ViT-B-32", weights="random:0", device="meta")
    found, tensors = set(dead_parameters(model)), {key + part for key in model.trainable() for part in ("", IN_PART)}
    declared = {pattern: {key for key in tensors if re.fullmatch(pattern, key)} for pattern in model.spec.card.dead}
    assert found <= set().union(*declared.values())
    assert all(found & keys for keys in declared.values() if keys)


@pytest.mark.parametrize(
    ("name", "tuning"),
    [(name, method_class(name).card.tuning) for name in NAMES]
    + [(name, tuning) for name in ("clip4clip", "vop") for tuning in TUNINGS],
)
def test_checkpoints_round_trip(
    name: str, tuning: str, tiny_model: Make, tiny_weights: Path, tiny_batch: dict[str, Any], tmp_path: Path
) -> None:
    """The whole model, and what training changes alone, on the weights that it was tuned on."""
    model, base = _tuned(tiny_model, name, tuning), BaseWeights(source="tiny", sha256=file_sha256(tiny_weights))
    save_checkpoint(model, tmp_path / "model.safetensors")
    save_checkpoint(model, tmp_path / "tuned.safetensors", base=base)
    whole = load_model(name, checkpoint=tmp_path / "model.safetensors")
    tuned = load_model(checkpoint=tmp_path / "tuned.safetensors", weights=tiny_weights)
    for again in (whole, tuned):
        assert again.spec == model.spec
        with torch.no_grad():
            frames, mask = tiny_batch["frames"], tiny_batch["mask"]
            assert torch.equal(model.encode_video(frames, mask), again.encode_video(frames, mask))
            ids, text_mask = tiny_batch["ids"], tiny_batch["text_mask"]
            assert torch.equal(model.encode_text(ids, text_mask), again.encode_text(ids, text_mask))


@pytest.mark.parametrize("name", NAMES)
def test_lora_folds_and_unfolds_exactly(name: str, tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    model = tiny_model(name, tuning="lora")
    if not model.tokens:
        pytest.skip(f"{name} runs no vision tower")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    frames, mask = tiny_batch["frames"], tiny_batch["mask"]
    with torch.no_grad():
        folded = model.encode_video(frames, mask)
    unfolded = model.encode_video(frames, mask)
    torch.testing.assert_close(folded, unfolded.detach(), rtol=0, atol=1e-5)
    model.train()
    model.eval()
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_folding_notices_every_change(tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    model = tiny_model("lora")
    frames, mask = tiny_batch["frames"], tiny_batch["mask"]
    with torch.no_grad():
        first = model.encode_video(frames, mask)
        model.clip.visual.transformer.blocks[0].attn.lora.B.add_(0.1)  # type: ignore[union-attr]
        second = model.encode_video(frames, mask)
    unfolded = model.encode_video(frames, mask).detach()
    assert not torch.allclose(first, second, atol=1e-4)
    torch.testing.assert_close(second, unfolded, rtol=0, atol=1e-5)


def test_a_model_loaded_in_inference_mode_is_like_any_other(tiny_weights: Path, tiny_batch: dict[str, Any]) -> None:
    with torch.inference_mode():
        model = load_model("lora", weights=load_weights(tiny_weights))
        before = model.encode_video(tiny_batch["frames"], tiny_batch["mask"])
    assert not any(parameter.is_inference() for parameter in model.parameters())
    with torch.no_grad():
        nn.init.normal_(model.clip.visual.blocks[0].attn.lora.B)  # type: ignore[union-attr]
        assert not torch.equal(model.encode_video(tiny_batch["frames"], tiny_batch["mask"]), before)
    model.train()
    model.encode_video(tiny_batch["frames"], tiny_batch["mask"]).sum().backward()


@pytest.mark.parametrize(("name", "changed"), KEEPING)
def test_a_copy_made_in_inference_mode_keeps_nothing(
    name: str, changed: str, tiny_model: Make, tiny_batch: dict[str, Any]
) -> None:
    model, video = tiny_model(name), (tiny_batch["frames"], tiny_batch["mask"])
    with torch.no_grad():
        model.get_parameter(changed).normal_(std=0.1)
    with torch.inference_mode():
        expected = model.encode_video(*video)
        copied = copy.deepcopy(model)
        torch.testing.assert_close(copied.encode_video(*video), expected, rtol=0, atol=1e-5)
        copied.get_parameter(changed).neg_()
        assert not torch.allclose(copied.encode_video(*video), expected, atol=1e-4)


@pytest.mark.parametrize(("name", "changed"), KEEPING)
def test_parameters_put_in_for_one_call_are_never_taken_for_those_of_another(
    name: str, changed: str, tiny_model: Make, tiny_batch: dict[str, Any]
) -> None:
    """Fresh tensors at one address, as an allocator gives them out again."""
    model, video = tiny_model(name), (tiny_batch["frames"][:1], tiny_batch["mask"][:1])
    memory, found = model.get_parameter(changed).detach().numpy().copy(), []
    with torch.no_grad():
        for seed in range(2):
            memory[:] = torch.randn(memory.shape, generator=torch.Generator().manual_seed(seed)).numpy()
            given = {f"module.{changed}": torch.from_numpy(memory)}
            found.append(functional_call(_Video(model), given, video))
        model.get_parameter(changed).copy_(torch.from_numpy(memory))
        assert torch.equal(model.train().eval().encode_video(*video), found[1])
    assert not torch.allclose(*found, atol=1e-4)


def test_folding_under_autocast_leaves_full_precision_behind(tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    frames, mask = tiny_batch["frames"], tiny_batch["mask"]
    model, fresh = tiny_model("lora"), tiny_model("lora")
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model.encode_video(frames, mask)
        assert torch.equal(model.encode_video(frames, mask), fresh.encode_video(frames, mask))


@pytest.mark.parametrize("name", [n for n in NAMES if method_class(n).card.trains])
def test_a_step_changes_only_what_is_trainable(name: str, tiny_model: Make, tiny_batch: dict[str, Any]) -> None:
    model = tiny_model(name)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    trainer = Trainer(model, "uniform", 4)
    for _ in range(2):  # the first step of the warm-up has rate zero
        out = trainer.step(tiny_batch["frames"], tiny_batch["mask"], tiny_batch["ids"], tiny_batch["text_mask"])
    assert out["loss"] > 0
    changed = {key for key, tensor in model.state_dict().items() if not torch.equal(before[key], tensor)}
    assert changed
    assert changed <= set(model.trainable())


@pytest.mark.parametrize("name", NAMES)
def test_wrong_shapes_are_named(name: str, tiny_model: Make) -> None:
    model = tiny_model(name)
    for frames, mask, part in (
        (torch.zeros(1, 11, 3, 64, 64), torch.ones(1, 11), "frames"),
        (torch.zeros(1, 12, 3, 32, 64), torch.ones(1, 12), "frames"),
        (torch.zeros(1, 12, 3, 64, 64, dtype=torch.uint8), torch.ones(1, 12), "frames"),
        (torch.zeros(1, 12, 3, 64, 64), torch.ones(1, 11), "mask"),
    ):
        with raises("video.input", part=part):
            model.encode_video(frames, mask.bool())


@pytest.mark.parametrize("name", NAMES)
def test_unknown_options_are_named(name: str, tiny_model: Make) -> None:
    with pytest.raises(UsageError, match="nonsense"):
        tiny_model(name, nonsense=1)


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_is_what_the_reducer_does(name: str, tiny_model: Make) -> None:
    """A plan by formula has the tokens and the multiply-adds of one pass of the reducer; of the whole encoder where it
    acts on entering frames, which such a pass leaves out."""
    model = tiny_model(name)
    reducer = model.reducer
    if type(reducer).enter is TokenReducer.enter:
        assert reducer.plan() == TokenReducer.plan(reducer)
    else:
        assert traced_macs(model)["video"] == video_macs(model)
