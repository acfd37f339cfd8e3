"""RAP: efficient text-video retrieval with a sparse-and-correlated adapter (Cao et al., arXiv 2405.19465).

From the paper's description: no code was released, and what the description leaves open is our choice, marked below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvrbench.harness.models.attending import Attends, AttentionOut
from tvrbench.harness.models.backbone.architecture import HEAD_WIDTH, Architecture
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.spec import MethodCard, MethodOptions, option_error, require_range
from tvrbench.harness.models.text import TextPath
from tvrbench.harness.models.tokens import TokenReducer, TokenStream, take

RANKS = {"patch": 1, "frame": 8}  # by ``axis``: our choice
A_STD = 0.5  # our choice
_OVER_TIME = re.compile(r"reducer\.(scales|shifts)\.\d+\.A")
LORA_RANK = 8  # beside tuning ``lora``: ``rank`` is that of the scales and shifts


@dataclass(frozen=True, kw_only=True)
class RapOptions(MethodOptions):
    """RAP's settings.

    Attributes:
        axis: a scale and a shift for every frame, patch and channel (``patch``), or for every frame and channel.
        rank: inner width of the factorization of scales and shifts over time; by default 1 for ``patch``, 8 for
            ``frame``.
        asa: let patches of other frames come to attention (asynchronous self-attention).
        selection: what chooses the patches whose keys and values come from elsewhere: ``class``, the attention of the
            frame's class token. ``text``, the paper's, cannot be built from its description and is refused.
        patches: how many of them a frame has; by default a quarter of all.
    """

    axis: Literal["patch", "frame"] = "patch"
    rank: int = RANKS["patch"]
    asa: bool = True
    selection: Literal["class", "text"] = "class"
    patches: int | None = None

    @property
    def lora_rank(self) -> int:
        """Inner width of the LoRA update that tuning ``lora`` adds."""
        return LORA_RANK


def _check(options: RapOptions, arch: Architecture) -> None:
    require_range("rap", "rank", options.rank, 1)
    if options.patches is not None:
        require_range("rap", "patches", options.patches, 1, arch.patches)
    if options.selection == "text":
        problem = (
            "is 'text': how the paper chooses patches by a text, and by which text when videos are encoded for search, "
            "is not known; give 'class'"
        )
        raise option_error("rap", "selection", problem)


class OverTime(nn.Module):
    """A table [T, N, D] that is the product of [T, r] and [r, N, D], zero at the start."""

    def __init__(self, frames: int, rank: int, tokens: int, width: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(frames, rank))
        self.B = nn.Parameter(torch.zeros(rank, tokens, width))
        nn.init.normal_(self.A, std=A_STD)

    def forward(self) -> Tensor:
        return (self.A @ self.B.flatten(1)).view(-1, *self.B.shape[1:])


@dataclass(kw_only=True)  # not frozen: torch.compile traces those since PyTorch 2.11 or 2.12
class Chosen:
    """The patches of every frame whose keys and values come from elsewhere.

    Attributes:
        tokens_SK: their positions among the tokens of the frame.
        tokens: N.
    """

    tokens_SK: Tensor
    tokens: int

    @property
    def representative(self) -> Tensor:
        """[S, N] the class token for the patches that it chose, each other token for itself."""
        own = torch.arange(self.tokens, device=self.tokens_SK.device).repeat(len(self.tokens_SK), 1)
        return own.scatter_(1, self.tokens_SK, 0)


class RapReducer(TokenReducer):
    """Scales and shifts after every block, and attention to patches of other frames inside it; all tokens stay.

    The frame mask is the border of a video: a frame never receives a patch of a padded one.
    """

    carries_prompts = True

    def __init__(self, options: RapOptions, arch: Architecture, frames: int) -> None:
        super().__init__(arch, frames)
        _check(options, arch)
        self.chosen = (options.patches or max(1, arch.patches // 4)) if options.asa else 0
        self.side = arch.image_size // arch.patch_size
        tokens = arch.patches + 1 if options.axis == "patch" else 1

        def tables() -> nn.ModuleList:
            shape = (frames, options.rank, tokens, arch.vision_width)
            return nn.ModuleList(OverTime(*shape) for _ in range(arch.vision_layers))

        self.scales, self.shifts = tables(), tables()
        layers = range(arch.vision_layers if self.chosen else 0)
        self.offsets = nn.ModuleList(nn.Linear(arch.vision_width, 3) for _ in layers)
        for parameter in self.offsets.parameters():
            nn.init.zeros_(parameter)

    def after_block(self, stream: TokenStream, index: int) -> TokenStream:
        """x (1 + scale) + shift, by the frame's place in the video; prompts stay as they are."""
        x = stream.x.view(-1, self.frames, *stream.x.shape[1:])
        scale, shift = (_beside_prompts(each[index](), stream) for each in (self.scales, self.shifts))
        return stream.with_x((x + (x * scale + shift)).flatten(0, 1))

    def attend(self, stream: TokenStream, index: int, block: Attends) -> AttentionOut:
        """Attention whose keys and values of the chosen patches are taken from where their offsets point.

        These are keys and values of the interpolated tokens. The projection is linear and the weights of interpolation
        sum to one, so interpolated keys and values are the same.
        """
        if not self.chosen:
            return super().attend(stream, index, block)
        normed = block.ln_1(stream.x)
        q, k, v = block.qkv(normed)
        tokens_SK = self.decide(self._choose(q, k, stream)).tokens_SK
        offset_SK3 = self.offsets[index](take(normed, tokens_SK))
        rows, weights = self._taps(stream, tokens_SK, offset_SK3)
        own = _row_of(tokens_SK, stream).flatten()
        k, v = (_replaced(heads, own, rows, weights) for heads in (k, v))
        return AttentionOut(block.mix(q, k, v), q, k)

    @torch.no_grad()
    def _choose(self, q: Tensor, k: Tensor, stream: TokenStream) -> Chosen:
        """The patches that the class token attends to most, by the mean over heads; of equal ones the first."""
        attention_SN = (q[:, :, :1] @ k.transpose(2, 3) * HEAD_WIDTH**-0.5).softmax(dim=-1).mean(dim=1)[:, 0]
        order_SP = attention_SN[:, stream.num_prefix_tokens :].argsort(dim=1, descending=True, stable=True)
        return Chosen(tokens_SK=order_SP[:, : self.chosen] + stream.num_prefix_tokens, tokens=k.shape[2])

    def _taps(self, stream: TokenStream, tokens_SK: Tensor, offset_SK3: Tensor) -> tuple[Tensor, Tensor]:
        """The 8 tokens around every place that an offset points to, and their weights in trilinear interpolation.

        Time counts valid frames, so that no step ends on padding; a padded frame reaches all frames before it. At the
        start every offset is zero: the token itself has weight 1, its neighbor one further on (at the border, one back)
        has weight 0 and a slope.

        Args:
            tokens_SK: positions of the chosen patches in their frames.
            offset_SK3: frames, rows and columns from there.

        Returns:
            Rows of all tokens of the batch, and weights, [S, K, 8].
        """
        S, N, _ = stream.x.shape
        T, side, patch_SK = self.frames, self.side, tokens_SK - stream.num_prefix_tokens
        mask_BT = patch_SK.new_ones(S // T, T, dtype=torch.bool) if stream.mask is None else stream.mask
        frame_BT = (~mask_BT).int().argsort(dim=1, stable=True)  # valid ones first, in order
        time_BT = frame_BT.argsort(dim=1)
        last_BT = torch.where(mask_BT, mask_BT.sum(dim=1, keepdim=True) - 1, time_BT)
        time_SK, last_SK = (each.reshape(S, 1).expand_as(patch_SK) for each in (time_BT, last_BT))
        place_SK3 = torch.stack([time_SK, patch_SK // side, patch_SK % side], dim=-1)
        last_SK3 = torch.stack([last_SK, *[torch.full_like(patch_SK, side - 1)] * 2], dim=-1)
        there_SK3 = (place_SK3 + offset_SK3.float()).clamp(min=0).clamp(max=last_SK3)
        low_SK3 = there_SK3.detach().floor().long().clamp(min=0).clamp(max=(last_SK3 - 1).clamp(min=0))
        part_SK3 = there_SK3 - low_SK3
        first_BT = frame_BT * N + torch.arange(0, S * N, T * N, device=frame_BT.device).unsqueeze(1)  # rows of frames
        time, row, column = torch.stack([low_SK3, (low_SK3 + 1).clamp(max=last_SK3)], dim=-1).unbind(2)  # [S, K, 2]
        frame = first_BT.gather(1, time.reshape(len(first_BT), -1)).view(time.shape)
        rows = _outer(torch.add, frame, row * side, column) + stream.num_prefix_tokens
        return rows, _outer(torch.mul, *torch.stack([1 - part_SK3, part_SK3], dim=-1).unbind(2))


def _outer(combine: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Every combination of the last axes of three tensors [S, K, 2]: [S, K, 8]."""
    return combine(combine(a.unsqueeze(3), b.unsqueeze(2)).unsqueeze(4), c[:, :, None, None]).flatten(2)


def _beside_prompts(table_TND: Tensor, stream: TokenStream) -> Tensor:
    """A table for class token and patches as one for all tokens, zero for prompts."""
    if not stream.prompts:
        return table_TND
    T, _, D = table_TND.shape
    table_TND = table_TND.expand(T, stream.classes + stream.patches, D)
    unchanged = table_TND.new_zeros(T, stream.prompts, D)
    return torch.cat([table_TND[:, : stream.classes], unchanged, table_TND[:, stream.classes :]], dim=1)


def _row_of(tokens_SK: Tensor, stream: TokenStream) -> Tensor:
    """Positions in their sequences as rows of all tokens."""
    S, N, _ = stream.x.shape
    return tokens_SK + torch.arange(S, device=tokens_SK.device).unsqueeze(1) * N


def _replaced(heads_SHNC: Tensor, own: Tensor, rows_SK8: Tensor, weights_SK8: Tensor) -> Tensor:
    """Keys or values in which the rows ``own`` [S K] are weighted sums of others."""
    S, H, N, C = heads_SHNC.shape
    flat = heads_SHNC.transpose(1, 2).reshape(S * N, H * C)
    taps = flat.index_select(0, rows_SK8.flatten()).view(-1, 8, H * C)
    moved = (taps * weights_SK8.reshape(-1, 8, 1).to(taps.dtype)).sum(dim=1)
    return flat.index_copy(0, own, moved).view(S, N, H, C).transpose(1, 2)


class RapText(TextPath):
    """A scale and a shift for every channel after every block of the text tower, zero at the start."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch)
        self.scales = nn.Parameter(torch.zeros(arch.text_layers, arch.text_width))
        self.shifts = nn.Parameter(torch.zeros(arch.text_layers, arch.text_width))

    def after_block(self, x: Tensor, index: int) -> Tensor:
        """x (1 + scale) + shift."""
        return x + (x * self.scales[index] + self.shifts[index])


class Rap(Method[RapOptions]):
    """RAP from the paper's description, on a frozen CLIP (tuning ``own``) or beside another tuning."""

    card = MethodCard(
        summary="scales and shifts of low rank over time, and attention to patches of other frames (from the paper's "
        "description)",
        paper="RAP (arXiv 2405.19465), from its description: no code was released",
        group="parameter-efficient",
        recipe="uniform",  # the paper's own is not known
        tuning="own",
        by_default=False,
        identity="scales and shifts learn in every setting; at the start, all zero, it is the dense encoder",
        # Of the last block only class tokens are used.
        dead=(r"reducer\.(scales|shifts)\.\d+\.B in part",),
    )
    Options = RapOptions

    @classmethod
    def configure(cls, name: str, arch: Architecture, frames: int, given: dict[str, Any]) -> Method[Any]:
        """Like ``Method.configure``; the axis decides the default rank."""
        rank = {"rank": RANKS["frame"]} if given.get("axis") == "frame" else {}
        return super().configure(name, arch, frames, rank | given)

    def build_reducer(self) -> TokenReducer:
        """Scales, shifts and offsets for this backbone and frame count."""
        return RapReducer(self.options, self.arch, self.frames)

    def build_text_path(self, reducer: TokenReducer) -> TextPath:
        """The text tower's scales and shifts."""
        return RapText(self.arch)

    def fit_released(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tables A [T, r] of scales and shifts for this number of frames.

        They are interpolated linearly over time with their ends aligned: the first and the last frame keep their rows,
        and the others lie evenly between them. A single frame takes the first row.
        """
        return {key: self._over_time(tensor) if _OVER_TIME.fullmatch(key) else tensor for key, tensor in state.items()}

    def _over_time(self, A: Tensor) -> Tensor:
        if A.ndim != 2 or not A.numel() or len(A) == self.frames:
            return A
        return F.interpolate(A.T.unsqueeze(0), self.frames, mode="linear", align_corners=True)[0].T

    @classmethod
    def released_options(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The axis and the rank of scales and shifts, and whether there are offsets."""
        table = state.get("reducer.scales.0.B")
        if table is None or table.ndim != 3:
            return {}
        rank, tokens, _ = table.shape
        asa = any(key.startswith("reducer.offsets.") for key in state)
        return {"axis": "frame" if tokens == 1 else "patch", "rank": rank, "asa": asa}
