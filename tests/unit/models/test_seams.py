"""What methods act through: attention of other shapes, prompts per sequence, the frame mask, the text path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tvrbench.harness.models.attending import Attends, AttentionOut
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.backbone.blocks import Block, LowRank, Prompts
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.text import TextPath
from tvrbench.harness.models.tokens import TokenReducer, TokenStream
from tvrbench.harness.profiling.counts.flops import traced_macs
from tvrbench.harness.profiling.counts.formula import analytic_macs

S, N, D = 6, 7, 128


def _block(*, lora: bool = False, prompts: int = 0) -> Block:
    torch.manual_seed(0)
    block = Block(D, "quick_gelu")
    if lora:
        block.attn.lora = LowRank(D, 4)
        torch.nn.init.normal_(block.attn.lora.B)
    if prompts:
        block.prompts = Prompts(prompts, D)
    return block.eval()


def _after_first(x: Tensor, prompts_SQD: Tensor) -> Tensor:
    return torch.cat([x[:, :1], prompts_SQD, x[:, 1:]], dim=1)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("own", [0, 3])
def test_mixing_a_sequence_with_itself_is_to_attend(lora: bool, own: int) -> None:
    block, x = _block(lora=lora, prompts=own), torch.randn(S, N, D)
    with torch.no_grad():
        torch.testing.assert_close(block.mix(*block.qkv(block.ln_1(x))), block.attend(x).delta, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 3, S])
@pytest.mark.parametrize("own", [0, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_prompts_of_a_sequence_are_tokens_after_its_first(rows: int, own: int, causal: bool) -> None:
    block, x, given = _block(prompts=own), torch.randn(S, N, D), torch.randn(rows, 5, D)
    tokens = given.repeat(S // rows, 1, 1)
    if block.prompts is not None:
        tokens = torch.cat([block.prompts.tokens.expand(S, -1, -1), tokens], dim=1)
    plain, Q = _block(), tokens.shape[1]
    with torch.no_grad():
        want = plain.attend(_after_first(x, tokens), causal=causal).delta
        got = block.attend(x, causal=causal, prompts=given).delta
    torch.testing.assert_close(got, torch.cat([want[:, :1], want[:, 1 + Q :]], dim=1), rtol=0, atol=1e-5)


def test_a_mask_hides_keys_and_no_prompt() -> None:
    block, x = _block(prompts=2), torch.randn(S, N, D)
    with torch.no_grad():
        q, k, v = block.qkv(block.ln_1(x))
        hidden = torch.arange(N) < 4
        masked = block.mix(q, k, v, hidden.view(1, 1, 1, N))
        torch.testing.assert_close(masked, block.mix(q, k[:, :, :4], v[:, :, :4]), rtol=0, atol=1e-6)


def test_a_joined_sequence_is_valid_where_any_frame_is() -> None:
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    stream = TokenStream(x=torch.randn(12, 5, D), classes=1, per_video=4, mask=mask)
    assert torch.equal(stream.mask_BS, mask)  # type: ignore[arg-type]
    joined = stream.join(2).mask_BS
    assert joined is not None
    assert joined.tolist() == [[True, True], [True, False], [False, False]]
    assert TokenStream(x=stream.x, classes=1, per_video=4).mask_BS is None


class Across(TokenReducer):
    """Every token of a frame also attends to all class tokens of its video, and to a prompt of its frame."""

    def attend(self, stream: TokenStream, index: int, block: Attends) -> AttentionOut:
        x, videos = stream.x, stream.x.shape[0] // stream.per_video
        if index % 2:
            return block.attend(x, prompts=x[: stream.per_video, :1])
        q, k, v = block.qkv(block.ln_1(x))

        def with_classes(t: Tensor) -> Tensor:
            per_video = t[:, :, 0].unflatten(0, (videos, -1)).transpose(1, 2)
            return torch.cat([per_video.repeat_interleave(stream.per_video, dim=0), t], dim=2)

        return AttentionOut(block.mix(q, with_classes(k), with_classes(v)), q, k)


class Scaled(TextPath):
    """Scales what leaves every block."""

    def after_block(self, x: Tensor, index: int) -> Tensor:
        return 0.5 * x


@pytest.mark.parametrize("tuning", ["frozen", "prompts", "lora"])
def test_attention_of_any_shape_is_planned_as_it_is_traced(tuning: str, tiny_model: Callable[..., Any]) -> None:
    model: RetrievalModel = tiny_model("zero_shot", tuning=tuning)
    model.reducer = Across(model.clip.arch, model.frames)
    planned, traced = analytic_macs(model)["video"], traced_macs(model)["video"]
    assert planned == pytest.approx(traced, rel=0.005)
    assert planned > analytic_macs(tiny_model("zero_shot", tuning=tuning))["video"]


def test_a_text_path_acts_after_every_block(tiny_arch: Architecture, tiny_batch: dict[str, Any]) -> None:
    clip, ids, mask = CLIP(tiny_arch).eval(), tiny_batch["ids"], tiny_batch["text_mask"]
    with torch.no_grad():
        x = clip.token_embedding(ids) + clip.positional_embedding[: ids.shape[1]]
        for block in clip.transformer.blocks:
            x = x + block.attend(x, causal=True).delta
            x = (x + block.feed_forward(x)) / 2
        end = torch.tensor([4, 8, 31])
        want = clip.ln_final(x[torch.arange(3), end]) @ clip.text_projection
        torch.testing.assert_close(clip.encode_text(ids, mask, Scaled(tiny_arch)), want, rtol=0, atol=1e-6)
