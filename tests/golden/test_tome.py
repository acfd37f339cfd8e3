"""Bipartite matching, TempMe's variant of it, and proportional attention against the released codes.

The fixture holds their answers on random tensors: merged tokens with and without sizes, un-merged tokens, which former
tokens each new one holds (``source``), and three transformer blocks of width 32 with heads of 8.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tvrbench.baselines.tome import ToMeOptions, ToMeReducer
from tvrbench.harness import load_model
from tvrbench.harness.models.attending import AttentionOut
from tvrbench.harness.models.backbone import blocks
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.tokens import TokenStream
from tvrbench.methods.ops import bipartite_match

pytestmark = pytest.mark.golden
TOLERANCE = 1e-6
FIXTURE = torch.load(Path(__file__).parents[1] / "fixtures" / "tome.pt", weights_only=True)
BLOCKS = {f"blocks3_r4-3-2_propattn{int(on)}": on for on in (True, False)}


def close(ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def reducer(arch: Architecture, r: int, proportional: bool = True) -> ToMeReducer:
    return ToMeReducer(ToMeOptions(tuning="frozen", r=r, proportional_attention=proportional), arch, 1)


@pytest.mark.parametrize("name", FIXTURE["bipartite"])
def test_plain_matching(name: str, tiny_arch: Architecture) -> None:
    case = FIXTURE["bipartite"][name]
    for size, key in ((None, "wavg_none"), (case["size"], "wavg_size")):
        stream = TokenStream(x=case["x"], classes=1, per_video=1, size=size)
        keys = case["metric"].unsqueeze(1)
        attention = AttentionOut(delta=keys, queries=keys, keys=keys)
        out = reducer(tiny_arch, case["r"]).after_attention(stream, attention, 0)
        assert out.size is not None
        close(out.x, case[key])
        close(out.size, case[f"{key}_size"])


@pytest.mark.parametrize("name", FIXTURE["bipartite"])
def test_where_every_token_goes(name: str) -> None:
    case = FIXTURE["bipartite"][name]
    N = case["metric"].shape[1]
    place = bipartite_match(case["metric"], min(case["r"], (N - 1) // 2)).place_SN
    source = torch.zeros_like(case["source"]).scatter_(
        1, place.unsqueeze(1), torch.ones_like(place).bool().unsqueeze(1)
    )
    assert torch.equal(source, case["source"])


@pytest.mark.parametrize("name", FIXTURE["tempme_bipartite"])
def test_several_class_tokens(name: str) -> None:
    case = FIXTURE["tempme_bipartite"][name]
    merge = bipartite_match(case["metric"], case["r"], case["cls_num"])
    for size, key in ((None, "wavg_none"), (case["size"], "wavg_size")):
        x, total = merge(case["x"], size)
        close(x, case[key])
        close(total, case[f"{key}_size"])


@pytest.fixture
def released_blocks(monkeypatch: pytest.MonkeyPatch) -> list[blocks.Block]:
    """Our blocks with the weights of the fixture's, whose heads are 8 wide and whose activation is the exact GELU."""
    monkeypatch.setattr(blocks, "HEAD_WIDTH", 8)
    names = {"norm1": "ln_1", "norm2": "ln_2", "attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj"}
    names |= {"mlp.0": "mlp.c_fc", "mlp.2": "mlp.c_proj"}
    out = []
    for state in FIXTURE["attention"]["state_dicts"]:
        block = blocks.Block(32, "gelu")
        renamed = {
            next(ours + key.removeprefix(old) for old, ours in names.items() if key.startswith(old)): tensor
            for key, tensor in state.items()
        }
        block.load_state_dict(renamed)
        out.append(block.eval())
    return out


@pytest.mark.parametrize("key", ["nosize", "size"])
def test_attention_and_its_metric(key: str, released_blocks: list[blocks.Block]) -> None:
    case = FIXTURE["attention"]
    with torch.no_grad():
        out, _, keys, _ = released_blocks[0].attn(case["x"], case["size"] if key == "size" else None)
    close(out, case[f"attn_{key}"])
    close(keys.mean(dim=1), case[f"metric_{key}"])


@pytest.mark.parametrize(("name", "proportional"), BLOCKS.items())
def test_three_blocks(
    name: str, proportional: bool, released_blocks: list[blocks.Block], tiny_arch: Architecture
) -> None:
    case = FIXTURE["attention"][name]
    stream = TokenStream(x=FIXTURE["attention"]["x"], classes=1, per_video=1)
    for i, (block, r) in enumerate(zip(released_blocks, (4, 3, 2), strict=True)):
        tome = reducer(tiny_arch, r, proportional)
        with torch.no_grad():
            attention = tome.attend(stream, i, block)
            stream = tome.after_attention(stream.with_x(stream.x + attention.delta), attention, i)
            stream = stream.with_x(stream.x + block.feed_forward(stream.x))
        assert stream.size is not None
        close(stream.x, case["block_out"][i], 1e-5)
        close(stream.size, case["size"][i])


def test_whole_encoder_is_the_released_ablation(shared: Path, tmp_path: Path) -> None:
    golden = torch.load(shared / "golden" / "tempme.pt", weights_only=True)
    want = golden["tome_only_r1"]
    state = {f"clip.{key}": tensor for key, tensor in golden["state_dict"].items()}
    torch.save(state | want["tvpt"], tmp_path / "released.bin")
    model = load_model("tome", checkpoint=tmp_path / "released.bin", r=1)
    with torch.no_grad():
        video = model.encode_video(golden["video"], golden["video_mask"].bool())
        text = model.encode_text(golden["text_ids"], golden["text_mask"].bool())
    close(video, want["video_feat"], 1e-5)
    close(model.similarity(text, video), want["sim_logits"], 1e-4)
