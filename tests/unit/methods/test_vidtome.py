"""VidToMe-style reducers: both modes restated frame by frame, randomness, plans and options."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from torch import Tensor
from torch.nn import functional as F

from tvrbench.harness import load_model
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.backbone.architecture import PRESETS
from tvrbench.harness.models.backbone.blocks import Block
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.flops import traced_macs
from tvrbench.harness.profiling.counts.formula import analytic_macs
from tvrbench.methods.vidtome import PersistentReducer, VidToMe

pytestmark = pytest.mark.unit
PATCHES, CHUNK = 16, 4
PERSISTENT = {"mode": "persistent", "blocks": (6,)}


def make(weights: Path, **options: Any) -> RetrievalModel:
    return load_model("vidtome", weights=weights, tuning="frozen", **options)


def encode(model: RetrievalModel, batch: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model.encode_video(batch["frames"], batch["mask"])


def match(sources: Tensor, targets: Tensor, ratio: float) -> tuple[list[int], list[int]]:
    """(unmerged sources, partner of every source or -1) of sources [A, D] and targets [B, D]."""
    score, partner = (F.normalize(sources, dim=-1) @ F.normalize(targets, dim=-1).T).max(dim=1)
    order = score.argsort(descending=True).tolist()
    merged = set(order[: int(ratio * len(sources))])
    return order[len(merged) :], [int(partner[i]) if i in merged else -1 for i in range(len(sources))]


def local(h: Tensor, ratio: float) -> tuple[Tensor, list[int]]:
    """h [chunk, P, D] -> the tokens that stay, and for every patch, frame by frame, which of them it became."""
    target = h[2]
    others = torch.cat([h[0], h[1], h[3]])
    unmerged, partner = match(others, target, ratio)
    place = [len(unmerged) + p if p >= 0 else unmerged.index(i) for i, p in enumerate(partner)]
    whole = place[: 2 * PATCHES] + [len(unmerged) + i for i in range(PATCHES)] + place[2 * PATCHES :]
    return torch.cat([others[unmerged], target]), whole


def attention_branch(x: Tensor, block: Block, ratio: float, global_ratio: float) -> Tensor:
    """Mode ``unmerge`` restated: x [T, 1 + P, D] of one video -> the attention branch."""
    out, bank = torch.zeros_like(x), None
    for start in range(0, len(x), CHUNK):
        h = block.ln_1(x[start : start + CHUNK])
        stay, place = local(h[:, 1:], ratio)
        tokens, where = stay, list(range(len(stay)))
        if global_ratio and bank is not None:
            unmerged, partner = match(stay, bank, global_ratio)
            tokens = torch.cat([stay[unmerged], bank])
            where = [len(unmerged) + p if p >= 0 else unmerged.index(i) for i, p in enumerate(partner)]
        bank = tokens[where]
        y = block.attn(torch.cat([h[:, 0], tokens]).unsqueeze(0))[0][0]
        out[start : start + CHUNK, 0] = y[:CHUNK]
        restored = y[CHUNK:][where][place]
        out[start : start + CHUNK, 1:] = restored.view(CHUNK, PATCHES, -1)
    return out


@pytest.mark.parametrize("global_ratio", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.9])
def test_unmerge_is_its_definition(ratio: float, global_ratio: float, tiny_weights: Path, tiny_batch: Any) -> None:
    model = make(tiny_weights, ratio=ratio, global_ratio=global_ratio, blocks=(0, 3))
    visual = model.clip.visual
    with torch.no_grad():
        features = visual.class_features(model.video_tokens(tiny_batch["frames"]))
        for video, got in zip(tiny_batch["frames"], features, strict=True):
            x = visual.embed(video)
            for i, block in enumerate(visual.transformer.blocks):
                x = x + (attention_branch(x, block, ratio, global_ratio) if i in (0, 3) else block.attend(x)[0])
                x = x + block.feed_forward(x)
            want = visual.ln_post(x[:, 0]) @ visual.proj
            torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("merge", ["replace", "mean"])
def test_persistent_is_its_definition(merge: str, tiny_weights: Path, tiny_batch: Any) -> None:
    model = make(tiny_weights, merge=merge, **PERSISTENT)
    visual, blocks = model.clip.visual, model.clip.visual.transformer.blocks
    with torch.no_grad():
        stream = model.video_tokens(tiny_batch["frames"][:1])
        x = visual.embed(tiny_batch["frames"][0])
        for block in blocks[:6]:
            x = x + block.attend(x)[0]
            x = x + block.feed_forward(x)
        for c, chunk in enumerate(x.split(CHUNK)):
            stay, place = local(blocks[6].ln_1(chunk[:, 1:]), 0.9)
            patches = chunk[:, 1:].flatten(0, 1)
            members = [[i for i, p in enumerate(place) if p == to] for to in range(len(stay))]
            # The token of the target frame (its patches are 32 ... 47), or the unmerged source itself.
            kept = [next((i for i in group if i // PATCHES == 2), group[0]) for group in members]
            merged = (
                torch.stack([patches[group].mean(dim=0) for group in members]) if merge == "mean" else patches[kept]
            )
            y = torch.cat([chunk[:, 0], merged]).unsqueeze(0)
            for block in blocks[6:]:
                y = y + block.attend(y)[0]
                y = y + block.feed_forward(y)
            torch.testing.assert_close(stream.x[c], y[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"chunk": 1}, {"blocks": ()}, {"chunk": 1, "global_ratio": 0.8, "blocks": ()}])
def test_nothing_to_merge_is_the_plain_encoder(options: Any, tiny_weights: Path, tiny_batch: Any) -> None:
    plain = load_model("zero_shot", weights=tiny_weights)
    ours = encode(make(tiny_weights, **options), tiny_batch)
    torch.testing.assert_close(ours, encode(plain, tiny_batch), rtol=0, atol=1e-6)


def test_a_chunk_of_one_frame_can_be_persistent(tiny_weights: Path, tiny_batch: Any) -> None:
    model = make(tiny_weights, chunk=1, **PERSISTENT)
    plain = load_model("zero_shot", weights=tiny_weights)
    torch.testing.assert_close(encode(model, tiny_batch), encode(plain, tiny_batch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"global_ratio": 0.8}, {"merge": "mean", "global_ratio": 0.8}, PERSISTENT])
def test_training_draws_from_the_callers_seed_and_evaluation_draws_nothing(
    options: Any, tiny_weights: Path, tiny_batch: Any
) -> None:
    model = make(tiny_weights, **options)
    state = torch.random.get_rng_state()
    fixed = encode(model, tiny_batch)
    assert torch.equal(state, torch.random.get_rng_state())
    model.train()
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(encode(model, tiny_batch))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2], atol=1e-4)
    assert torch.equal(encode(model.eval(), tiny_batch), fixed)


def test_every_chunk_of_every_video_draws_its_own_target(tiny_weights: Path, tiny_batch: Any) -> None:
    model = make(tiny_weights, ratio=1.0, **PERSISTENT).train()
    same = tiny_batch["frames"][:1].expand(6, -1, -1, -1, -1)
    origins = set()
    with torch.no_grad():
        torch.manual_seed(0)
        stream = model.video_tokens(same)
    for tokens in stream.x:
        origins.add(round(float(tokens.sum()), 3))
    assert len(origins) > 6  # 18 chunks, of 3 contents with 4 possible targets each


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"global_ratio": 0.8},
        {"chunk": 12, "ratio": 0.5},
        {"chunk": 12, "global_ratio": 0.8},
        PERSISTENT,
        {"mode": "persistent", "blocks": (0,), "chunk": 6, "target_stride": 3, "ratio": 0.5},
    ],
)
def test_what_attends_is_what_was_planned(options: Any, tiny_weights: Path, tiny_batch: Any) -> None:
    model = make(tiny_weights, **options)
    seen: list[list[tuple[int, int]]] = []
    for block in model.clip.visual.transformer.blocks:
        seen.append([])
        block.attn.register_forward_hook(
            lambda _m, inputs, _o, here=seen[-1]: here.append((inputs[0].shape[0] // 3, inputs[0].shape[1]))
        )
    encode(model, tiny_batch)
    assert seen == [[block.attention, *block.also_attending] for block in model.reducer.plan()]
    encode(model.train(), tiny_batch)
    assert all(twice[: len(twice) // 2] == twice[len(twice) // 2 :] for twice in seen)


def test_the_trace_follows_every_patch_to_what_it_became(tiny_weights: Path, tiny_batch: Any) -> None:
    model = make(tiny_weights, mode="persistent", blocks=(11,))
    visual, blocks = model.clip.visual, model.clip.visual.transformer.blocks
    with torch.no_grad():
        stream = model.video_tokens(tiny_batch["frames"][:1], trace=True)
        x = visual.embed(tiny_batch["frames"][0])
        for block in blocks[:11]:
            x = x + block.attend(x)[0]
            x = x + block.feed_forward(x)
    assert stream.origin is not None
    M = stream.x.shape[1]
    for c, chunk in enumerate(x.split(CHUNK)):
        _, place = local(blocks[11].ln_1(chunk[:, 1:]), 0.9)
        here = stream.origin[0].view(3, -1)[c] - c * M - CHUNK
        assert here.tolist() == place


def test_a_copy_of_the_model_takes_its_metric_from_its_own_block(tiny_weights: Path) -> None:
    model = make(tiny_weights, **PERSISTENT)
    twin = copy.deepcopy(model)
    assert isinstance(twin.reducer, PersistentReducer)
    assert twin.reducer._norms[0] is twin.clip.visual.transformer.blocks[6].ln_1
    assert not any(key.startswith("reducer.") for key in model.state_dict())


@pytest.mark.parametrize("options", [{}, {"global_ratio": 0.8}, {"chunk": 12, "ratio": 0.5}, PERSISTENT])
def test_the_planned_multiply_adds_are_the_traced_ones(options: Any, tiny_weights: Path) -> None:
    model = make(tiny_weights, **options)
    assert traced_macs(model)["video"] == analytic_macs(model)["video"]


@pytest.mark.parametrize(
    ("options", "gmacs"),
    [
        ({"blocks": ()}, 52.91),
        ({"ratio": 0.5}, 47.24),
        ({"ratio": 0.9}, 41.60),
        ({"mode": "persistent", "blocks": (0,)}, 18.99),
        ({"mode": "persistent", "blocks": (6,)}, 35.96),
        ({"mode": "persistent", "blocks": (8,)}, 41.61),
    ],
)
def test_multiply_adds_at_paper_scale(options: Any, gmacs: float) -> None:
    method = VidToMe.configure("vidtome", PRESETS["ViT-B-32"], 12, options)
    with torch.device("meta"):
        reducer = method.build_reducer()
        parts = (CLIP(method.arch), reducer, method.build_head(), method.build_text_path(reducer))
        model = RetrievalModel(method.spec("vidtome"), *parts)
    assert analytic_macs(model)["video"] / 1e9 == pytest.approx(gmacs, rel=0.005)
    leaving = (3, 68) if options.get("mode") == "persistent" else (12, 50)
    assert model.tokens[-1] == leaving


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"chunk": 5}, "chunk"),
        ({"chunk": 0}, "chunk"),
        ({"chunk": 6}, "target_stride"),
        ({"target_stride": 1}, "target_stride"),
        ({"ratio": 1.5}, "ratio"),
        ({"global_ratio": -0.1}, "global_ratio"),
        ({"blocks": (12,)}, "blocks"),
        ({"blocks": (3, 3)}, "blocks"),
        ({"mode": "persistent", "blocks": (3, 4)}, "blocks"),
        ({"mode": "persistent", "global_ratio": 0.8}, "global_ratio"),
    ],
)
def test_options_that_do_not_fit(options: Any, option: str, tiny_weights: Path) -> None:
    with raises("option.value", option=option):
        make(tiny_weights, **options)


@pytest.mark.parametrize(("option", "value"), [("mode", "forget"), ("merge", "median")])
def test_unknown_choices(option: str, value: str, tiny_weights: Path) -> None:
    with pytest.raises(UsageError, match=option):
        make(tiny_weights, **{option: value})
