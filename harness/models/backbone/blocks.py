"""Transformer blocks shared by both towers: pre-norm, fused q/k/v projection, with places for what a tuning adds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvrbench.harness.models.attending import QKV, AttentionOut
from tvrbench.harness.models.backbone.architecture import HEAD_WIDTH
from tvrbench.harness.models.backbone.proportional import attend_with_mask, attend_with_sizes_in_keys
from tvrbench.harness.models.kept import Kept

if TYPE_CHECKING:
    from tvrbench.harness.models.tokens import TokenStream

_STEEPNESS = 1.702
_SATURATED = 40.0  # where a sigmoid is 1 in float64, and its exponential is still finite in float32


def _keeps_bits(x: Tensor) -> bool:
    return x.device.type == "cpu"


class _QuickGELU(torch.autograd.Function):
    """x sigmoid(1.702 x), whose backward computes again what it needs: x alone is kept.

    On a CPU every step is that of the plain formula, so that all bits are, in one buffer that stays in the cache.
    Elsewhere it is one kernel: the derivative of softplus, sigmoid(1.702 x) times a gradient, with x as the gradient.
    """

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        if _keeps_bits(x):
            return (_STEEPNESS * x).sigmoid_().mul_(x)
        out: Tensor = torch.ops.aten.softplus_backward(x, x, _STEEPNESS, _SATURATED)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], _output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        steep: Tensor = _STEEPNESS * x
        # With gradients on, a gradient of this gradient is wanted, which silu_backward has not.
        if not _keeps_bits(x) and not torch.is_grad_enabled():
            out: Tensor = torch.ops.aten.silu_backward(grad, steep)
            return out
        gate = steep.sigmoid()
        of_gate: Tensor = torch.ops.aten.sigmoid_backward(grad * x, gate)
        return of_gate.mul(_STEEPNESS).add(grad * gate)


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x), the activation of OpenAI's CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _QuickGELU.apply(x)
        return out


ACTIVATIONS: dict[str, type[nn.Module]] = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


class BlockAdapter(nn.Module):
    """Adds to what a block's MLP gives; the base of all that tunings put there."""

    def forward(self, normed: Tensor, out: Tensor, stream: TokenStream | None) -> Tensor:
        """What is added [S, N, D] to the output of the MLP.

        Args:
            normed: [S, N, D], the input of the MLP.
            out: [S, N, D], its output.
            stream: that both belong to; None for captions.
        """
        raise TypeError(f"{type(self).__name__} defines no forward")

    def macs(self, sequences: int, tokens: int) -> int:
        """Multiply-adds for this many sequences of a video, or one caption, counted like those of the towers."""
        raise TypeError(f"{type(self).__name__} defines no macs")


class Adapter(BlockAdapter):
    """A bottleneck beside the MLP: 0.1 up(ReLU(down(x))), zero at the start (AdaptFormer, arXiv 2205.13535)."""

    SCALE = 0.1

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, inner)
        self.up = nn.Linear(inner, width)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, normed: Tensor, out: Tensor, stream: TokenStream | None) -> Tensor:
        added: Tensor = self.up(F.relu(self.down(normed)))
        return self.SCALE * added

    def macs(self, sequences: int, tokens: int) -> int:
        """Both projections."""
        return 2 * sequences * tokens * self.down.in_features * self.down.out_features


class Prompts(nn.Module):
    """Learned tokens [Q, D], at a block's input or at that of the first one (VPT, arXiv 2203.12119)."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(count, width))
        nn.init.normal_(self.tokens, std=0.02)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def after_first(self, x: Tensor) -> Tensor:
        """x [S, N, D] -> [S, N + Q, D], the prompts in the second place and those behind it."""
        own = self.tokens.to(x.dtype).expand(x.shape[0], -1, -1)
        return torch.cat([x[:, :1], own, x[:, 1:]], dim=1)


class LowRank(nn.Module):
    """The LoRA update B A of a fused q/k/v projection: no alpha factor, as TempMe uses LoRA (arXiv 2106.09685)."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, width))
        self.B = nn.Parameter(torch.zeros(3 * width, rank))
        nn.init.kaiming_uniform_(self.A, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.A), self.B)


class Attention(nn.Module):
    """Multi-head self-attention through ``scaled_dot_product_attention``; parameter names are OpenAI CLIP's.

    With ``lora`` set the projection is W x + B (A x) while gradients are wanted, and (W + B A) x when the module
    is in eval mode without gradients. The folded matrix is a cache beside W, so unfolding is exact: W never changes.
    Writes past autograd (``.data``, fused optimizers) in eval mode need ``train()`` first, which frees it.

    Attributes:
        sizes_in_keys: how proportional attention is computed (``backbone.proportional``); the result is the same.

    Args:
        width: D.
        heads: their number; as many of 64 channels as there are, unless it is given.
    """

    sizes_in_keys: bool = False

    def __init__(self, width: int, heads: int | None = None) -> None:
        super().__init__()
        self.heads = heads or width // HEAD_WIDTH
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.lora: LowRank | None = None
        self._folded: Kept[Tensor] = Kept()
        self._mean_keys: Kept[tuple[Tensor, Tensor]] = Kept()
        nn.init.normal_(self.in_proj_weight, std=width**-0.5)

    def _own_precision(self) -> AbstractContextManager[None]:
        """The weights' own precision, whatever the activations run in, for what outlives the call."""
        device = self.in_proj_weight.device.type
        return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)

    def _folded_weight(self, lora: LowRank) -> Tensor:
        with self._own_precision():
            if torch.compiler.is_compiling():  # a graph cannot watch for changes, so each call folds again
                return torch.addmm(self.in_proj_weight, lora.B, lora.A)
            sources = (self.in_proj_weight, lora.B, lora.A)
            return self._folded.get(sources, lambda: torch.addmm(*sources))

    def absorb_lora(self) -> None:
        """Put W + B A in the place of W, for good, and drop the update."""
        if self.lora is not None:
            self._folded.clear()  # it may belong to inference mode, where parameters cannot
            self.in_proj_weight = nn.Parameter(self._folded_weight(self.lora), self.in_proj_weight.requires_grad)
            self._folded.clear()
            self._mean_keys.clear()
            self.lora = None

    def train(self, mode: bool = True) -> Attention:
        """Switch mode; going to training frees the folded matrix."""
        if mode:
            self._folded.clear()
            self._mean_keys.clear()
        return super().train(mode)

    def project(self, x: Tensor) -> Tensor:
        """x [S, N, D] -> q, k and v side by side [S, N, 3D]."""
        if self.lora is None:
            return F.linear(x, self.in_proj_weight, self.in_proj_bias)
        if not self.training and not torch.is_grad_enabled():
            return F.linear(x, self._folded_weight(self.lora), self.in_proj_bias)
        return F.linear(x, self.in_proj_weight, self.in_proj_bias).add(self.lora(x))

    def qkv(self, x: Tensor) -> QKV:
        """Queries, keys and values of x [S, N, D]."""
        S, N, _ = x.shape
        return QKV(*self.project(x).view(S, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4))

    def mean_keys(self, x: Tensor) -> Tensor:
        """The keys of x [S, N, D], averaged over heads: [S, N, 64]; from the mean of the projections of all heads."""
        device = self.in_proj_weight.device.type
        dtype = torch.get_autocast_dtype(device) if device != "meta" and torch.is_autocast_enabled(device) else None
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return F.linear(x, *self._mean_key_projection(dtype))
        added = () if self.lora is None else (self.lora.A, self.lora.B)
        sources = (self.in_proj_weight, self.in_proj_bias, *added)
        return F.linear(x, *self._mean_keys.get(sources, lambda: self._mean_key_projection(dtype), also=dtype))

    def _mean_key_projection(self, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
        """Weight [64, D] and bias [64]; the mean, in float32, of weights in the ``dtype`` that attention uses."""
        own = self.in_proj_weight.dtype

        def mean(rows: Tensor) -> Tensor:
            rounded = rows.to(dtype or own).float()  # so that weights held in half precision give the same bits
            return rounded.view(self.heads, -1, *rows.shape[1:]).mean(dim=0).to(own)

        with self._own_precision():
            weight, bias = (rows.chunk(3)[1] for rows in (self.in_proj_weight, self.in_proj_bias))
            if self.lora is not None:  # which stays in float32 where a step holds frozen weights in less
                weight = torch.addmm(weight.float(), self.lora.B.chunk(3)[1].float(), self.lora.A.float())
            return mean(weight), mean(bias)

    def merge_heads(self, heads_SHNC: Tensor, places: Tensor | None = None) -> Tensor:
        """What every head found [S, heads, N, 64], projected to [S, N, D]; at these places alone, [1, M, D]."""
        S, _, N, _ = heads_SHNC.shape
        found = heads_SHNC.transpose(1, 2).reshape(S, N, -1)
        if places is not None:
            found = found.flatten(0, 1).index_select(0, places).unsqueeze(0)
        out: Tensor = self.out_proj(found)
        return out

    def forward(
        self, x: Tensor, size: Tensor | None = None, causal: bool = False, prompts: Sequence[Tensor] = ()
    ) -> AttentionOut:
        """Attend within each sequence.

        Args:
            x: [S, N, D], normalized.
            size: [S, N, 1] token sizes; their logarithm is added to the logits of the keys (proportional attention,
                ToMe section 3), or None; never together with ``causal``.
            causal: mask the future (text).
            prompts: of [R, Q, D] each, normalized; tokens after the first that a sequence sees and that are not
                updated: sequence s sees those of row s % R.
        """
        N = x.shape[1]
        q, k, v = self.qkv(x)
        keys, mask = k, None
        for rows in reversed(prompts):
            keys, v = self.before(rows, keys, v)
        if prompts and causal:  # the first token precedes all prompts
            Q = keys.shape[2] - N
            mask = torch.ones(N, Q + N, dtype=torch.bool, device=q.device).tril(diagonal=Q)
            mask[0, :Q] = False
        if size is not None:
            out = (attend_with_sizes_in_keys if self.sizes_in_keys else attend_with_mask)(q, keys, v, size)
        else:
            out = F.scaled_dot_product_attention(q, keys, v, attn_mask=mask, is_causal=causal and not prompts)
        return AttentionOut(self.merge_heads(out), q, k, keys[:, :, :-N] if prompts else None)

    def before(self, prompts_RQD: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [S, heads, Q + N, 64], the prompts' first: those of row s % R for sequence s."""
        _, own_k, own_v = self.qkv(prompts_RQD)
        videos = k.shape[0] // len(prompts_RQD)

        def joined(own: Tensor, theirs: Tensor) -> Tensor:
            rows = own.expand(videos, *own.shape) if len(own) == 1 else own.repeat(videos, 1, 1, 1)
            return torch.cat([rows.reshape(theirs.shape[0], *own.shape[1:]), theirs], dim=2)

        return joined(own_k, k), joined(own_v, v)


def put_sizes_in_keys(model: nn.Module) -> None:
    """Compute every proportional attention of a model without a mask, where measurement says that it pays."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.sizes_in_keys = True


class MLP(nn.Module):
    """Width -> 4 width -> width."""

    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.gelu = ACTIVATIONS[activation]()
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(self.gelu(self.c_fc(x)))
        return out


class Block(nn.Module):
    """One pre-norm transformer block, in two halves so that a token reducer can act between them.

    With ``prompts`` set, they come after the first token of every sequence, for this block's attention alone. Their own
    outputs would be dropped, so they are keys and values only: the same result as with tokens, for less work.
    """

    def __init__(self, width: int, activation: str, heads: int | None = None) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, activation)
        self.prompts: Prompts | None = None
        self.adapter: BlockAdapter | None = None

    def attend(
        self, x: Tensor, size: Tensor | None = None, causal: bool = False, *, prompts: Tensor | None = None
    ) -> AttentionOut:
        """The attention branch of x [S, N, D], without the residual.

        ``prompts`` [R, Q, D] come after the first token like the block's own: sequence s sees those of row s % R.
        """
        return self.attend_normed(self.ln_1(x), size, causal, prompts=prompts)

    def attend_normed(
        self, x: Tensor, size: Tensor | None = None, causal: bool = False, *, prompts: Tensor | None = None
    ) -> AttentionOut:
        """``attend`` for tokens that went through ``ln_1`` already; prompts did not."""
        own = None if self.prompts is None else self.prompts.tokens.unsqueeze(0)
        normed = [self.ln_1(rows) for rows in (own, prompts) if rows is not None]
        out: AttentionOut = self.attn(x, size, causal, normed)
        return out

    def qkv(self, x: Tensor) -> QKV:
        """Queries, keys and values of tokens [S, N, D] that went through ``ln_1``, for ``mix``."""
        return self.attn.qkv(x)

    def mean_keys(self, x: Tensor) -> Tensor:
        """The keys of tokens [S, N, D] that went through ``ln_1``, averaged over heads: [S, N, 64]."""
        return self.attn.mean_keys(x)

    def mix(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None = None,
        *,
        causal: bool = False,
        places: Tensor | None = None,
    ) -> Tensor:
        """The attention branch [S, N, D] of queries [S, heads, N, 64] over keys and values [S, heads, K, 64].

        The block's own prompts come before the keys. ``mask`` is True where a query may see a key, or a number that is
        added to their logit, and has the shape of [S, heads, N, K] or one that becomes it. Where a mask of True and
        False is ``causal`` (text), the first token precedes the prompts. With ``places`` [M], only the result of these
        queries (sequence x N + position) is projected: [1, M, D].
        """
        if self.prompts is not None:
            Q = len(self.prompts)
            keys, values = self.attn.before(self.ln_1(self.prompts.tokens.unsqueeze(0)), keys, values)
            if mask is not None:
                mask = F.pad(mask, (Q, 0), value=mask.dtype == torch.bool)
            if causal and mask is not None:
                mask[..., 0, :Q] = False
        return self.attn.merge_heads(F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask), places)

    def feed_forward(self, x: Tensor, stream: TokenStream | None = None) -> Tensor:
        """The MLP branch of x [S, N, D] (without the residual) and what an adapter adds to it.

        ``stream`` holds x in the vision tower; adapters there may ask it for frames and their mask.
        """
        normed = self.ln_2(x)
        out: Tensor = self.mlp(normed)
        return out if self.adapter is None else out + self.adapter(normed, out, stream)


class Transformer(nn.Module):
    """A stack of blocks; exists for OpenAI CLIP's key names (``transformer.resblocks.N``)."""

    def __init__(self, width: int, layers: int, activation: str) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, activation) for _ in range(layers))

    @property
    def blocks(self) -> list[Block]:
        """The blocks, typed."""
        return [block for block in self.resblocks if isinstance(block, Block)]
