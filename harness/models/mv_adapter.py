"""MV-Adapter's adapters (arXiv 2301.07868): behind every MLP, aware of a whole video or of all words before.

Written from their definition alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.backbone.blocks import Block, BlockAdapter, QuickGELU
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.spec import option_error, require_blocks, require_range
from tvrbench.harness.models.tokens import TokenStream
from tvrbench.harness.models.work import NORM_MACS, BlockTokens

METHOD = "mv_adapter"
WORDS = 32  # of a caption, where nothing else is said
TIED = 2  # last blocks of each encoder that share a factor, where nothing else is said
POSITION_STD = 0.01


@dataclass(frozen=True, kw_only=True)
class MvAdapterSettings:
    """The shape of the adapters; the defaults are those of the paper on an encoder of 12 blocks.

    Attributes:
        width: of the bottleneck.
        heads: of the transformer block in it.
        factor: numbers in each factor that scales the down-projections of both encoders.
        tied_vision, tied_text: the blocks (from 0) that such a factor scales: the first of each share one, and so on.
        calibration: inner width of the calibration of frames.
        words: ids of a caption, each of which has a learned position.
        biases: train all biases of CLIP too, as the released code does at a rate of their own (recipe ``mv_adapter``).
    """

    width: int = 64
    heads: int = 2
    factor: int = 32
    tied_vision: tuple[int, ...] = (10, 11)
    tied_text: tuple[int, ...] = (10, 11)
    calibration: int = 16
    words: int = WORDS
    biases: bool = False

    def check(self, arch: Architecture) -> None:
        """UsageError for a setting that does not fit the encoders."""
        for name in ("width", "heads", "factor", "calibration"):
            require_range(METHOD, name, getattr(self, name), 1)
        if self.width % self.heads:
            raise option_error(METHOD, "heads", f"is {self.heads}, which does not divide the width of {self.width}")
        require_blocks(METHOD, "tied_vision", self.tied_vision, arch.vision_layers)
        require_blocks(METHOD, "tied_text", self.tied_text, arch.text_layers)
        if len(self.tied_vision) != len(self.tied_text):
            problem = f"names blocks {self.tied_text}: give as many as tied_vision, {len(self.tied_vision)}"
            raise option_error(METHOD, "tied_text", problem)
        require_range(METHOD, "words", self.words, 1, arch.context_length)


def fitting(arch: Architecture) -> dict[str, Any]:
    """The settings that depend on the encoders: their last two blocks are tied, and no caption exceeds the context."""
    tied = min(TIED, arch.vision_layers, arch.text_layers)
    vision, text = range(arch.vision_layers)[-tied:], range(arch.text_layers)[-tied:]
    return {"tied_vision": tuple(vision), "tied_text": tuple(text), "words": min(WORDS, arch.context_length)}


class RowFactors(nn.Linear):
    """The factors [width] of a down-projection's rows: M f + b, with a vector f that both encoders share.

    The list of vectors belongs to the CLIP; it is kept in a tuple, so that the state dict names it once.
    """

    def __init__(self, factors: nn.ParameterList, index: int, width: int) -> None:
        super().__init__(factors[index].shape[0], width)
        self._shared = (factors, index)

    def forward(self) -> Tensor:  # type: ignore[override]
        factors, index = self._shared
        return super().forward(factors[index])

    def macs(self) -> int:
        """One product, whatever the number of tokens."""
        return self.in_features * self.out_features


class Calibration(nn.Module):
    """The factors of the frames' class tokens: 1 + V2 ReLU(V1 [c_t + p_t ; G g]); 1 at the start."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.of_token = nn.Linear(width, width)
        self.hidden = nn.Linear(2 * width, hidden)
        self.out = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, token: Tensor, frames: Tensor, mask: Tensor | None) -> Tensor:
        """The video's token g [B, w], c_t + p_t of its frames [B, T, w] and their mask [B, T] -> [B, T, w]."""
        context = torch.cat([frames, self.of_token(token).unsqueeze(1).expand_as(frames)], dim=-1)
        if mask is not None:
            context = context.masked_fill(~mask.unsqueeze(-1), 0.0)
        out: Tensor = 1 + self.out(F.relu(self.hidden(context)))
        return out

    def macs(self, frames: int) -> int:
        """G once per video, the others once per frame."""
        width, hidden = self.of_token.in_features, self.hidden.out_features
        return width**2 + frames * 3 * width * hidden


class _Bottleneck(BlockAdapter):
    """What both kinds share: from D channels to few, a transformer block there, and back; 0.1 of it is added.

    The way up starts at zero, so that the encoder starts as it is. The block's matrices start by the encoder's width.

    Args:
        width: D of the encoder.
        settings: the shape.
        positions: tokens that enter the transformer block.
        rows: what scales the rows of the down-projection, where anything does.
    """

    SCALE = 0.1

    def __init__(self, width: int, settings: MvAdapterSettings, positions: int, rows: RowFactors | None) -> None:
        super().__init__()
        inner = settings.width
        self.down = nn.Linear(width, inner)
        self.up = nn.Linear(inner, width)
        self.rows = rows
        self.positions = nn.Parameter(torch.empty(positions, inner))
        self.norm = nn.LayerNorm(inner)
        self.block = Block(inner, "quick_gelu", settings.heads)
        self.activation = QuickGELU()
        nn.init.normal_(self.positions, std=POSITION_STD)
        nn.init.normal_(self.block.attn.in_proj_weight, std=width**-0.5)
        for linear in (self.block.attn.out_proj, self.block.mlp.c_fc, self.block.mlp.c_proj):
            nn.init.normal_(linear.weight, std=(2 * width) ** -0.5)
        for zero in (self.down.bias, self.up.weight, self.up.bias, self.block.attn.out_proj.bias):
            nn.init.zeros_(zero)

    def go_down(self, x: Tensor) -> Tensor:
        """x [S, N, D] -> [S, N, width]."""
        weight = self.down.weight
        if self.rows is not None:  # in the precision of x, so that weights held in half precision give the same bits
            weight = weight.to(x.dtype) * self.rows().to(x.dtype).unsqueeze(1)
        return F.linear(x, weight, self.down.bias)

    def go_up(self, x: Tensor) -> Tensor:
        """x [S, N, width] -> what is added [S, N, D]."""
        added: Tensor = self.up(x)
        return self.SCALE * added

    def _shared_macs(self, tokens: int, inside: int) -> int:
        """Both projections of ``tokens``; three norms, attention and MLP of ``inside`` of them; the factors."""
        width = self.down.out_features
        block = inside * (3 * NORM_MACS * width + 12 * width**2) + 2 * inside**2 * width
        rows = 0 if self.rows is None else self.rows.macs()
        return 2 * tokens * self.down.in_features * width + block + rows


class VisionAdapter(_Bottleneck):
    """Class tokens are scaled by what the frames of the video say; patches take the bottleneck alone.

    Args:
        width, settings, rows: as for both kinds.
        frames: T, sequences per video at this block, of one class token and any number of patches.
    """

    def __init__(self, width: int, settings: MvAdapterSettings, frames: int, rows: RowFactors | None) -> None:
        super().__init__(width, settings, 1 + 2 * frames, rows)
        self.token = nn.Parameter(torch.empty(settings.width))
        self.calibration = Calibration(settings.width, settings.calibration)
        nn.init.normal_(self.token, std=settings.width**-0.5)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)

    def forward(self, normed: Tensor, out: Tensor, stream: TokenStream | None) -> Tensor:
        """What is added to the MLP's output [S, N, D]; padded frames are seen by no other one."""
        assert stream is not None
        z_SNw = self.activation(self.go_down(out))
        T, mask = stream.per_video, stream.mask_BS
        classes_BTw = z_SNw[:, 0].reshape(-1, T, z_SNw.shape[-1])
        means_BTw = z_SNw[:, stream.num_prefix_tokens :].mean(dim=1).view_as(classes_BTw)
        token_B1w = self.token.expand(len(classes_BTw), 1, -1)
        seen = self._relate(torch.cat([token_B1w.to(z_SNw.dtype), classes_BTw, means_BTw], dim=1), mask)
        token, classes, means = torch.split(seen, [1, T, T], dim=1)
        calibrated_BTw = classes * self.calibration(token[:, 0], classes + means, mask)
        calibrated_S1w = calibrated_BTw.reshape(-1, 1, z_SNw.shape[-1]).to(z_SNw.dtype)
        return self.go_up(torch.cat([calibrated_S1w, z_SNw[:, 1:]], dim=1))

    def _relate(self, x: Tensor, mask_BT: Tensor | None) -> Tensor:
        """The video's token, class tokens and means [B, 1 + 2T, w] through the block, where padding is no key."""
        x = self.norm(x + self.positions)
        q, k, v = self.block.qkv(self.block.ln_1(x))
        keys = None if mask_BT is None else F.pad(torch.cat([mask_BT, mask_BT], dim=1), (1, 0), value=True)
        x = x + self.block.mix(q, k, v, None if keys is None else keys[:, None, None])
        out: Tensor = self.activation(x + self.block.feed_forward(x))
        return out

    def macs(self, sequences: int, tokens: int) -> int:
        """The bottleneck of every token, the block of the video's 1 + 2T, the calibration."""
        return self._shared_macs(sequences * tokens, 1 + 2 * sequences) + self.calibration.macs(sequences)


class TextAdapter(_Bottleneck):
    """A causal transformer block in the bottleneck; padding follows the end token and is not masked."""

    def __init__(self, width: int, settings: MvAdapterSettings, tokens: int, rows: RowFactors | None) -> None:
        super().__init__(width, settings, tokens, rows)
        nn.init.normal_(self.down.weight, std=(2 * width) ** -0.5)

    def forward(self, normed: Tensor, out: Tensor, stream: TokenStream | None) -> Tensor:
        """What is added to the MLP's output [B, N, D], N at most the number of positions."""
        x = self.norm(self.go_down(out) + self.positions[: out.shape[1]])
        x = x + self.block.attend(x, causal=True).delta
        return self.go_up(self.activation(x + self.block.feed_forward(x)))

    def macs(self, sequences: int, tokens: int) -> int:
        """The bottleneck and the block of every token."""
        return sequences * self._shared_macs(tokens, tokens)


def add_mv_adapters(
    clip: CLIP, settings: MvAdapterSettings, video: Sequence[BlockTokens], text: Sequence[BlockTokens]
) -> None:
    """Put an adapter behind every MLP of both encoders.

    Args:
        clip: whose blocks get them.
        settings: their shape.
        video, text: the work of every block for one video, and for the longest caption.

    Raises:
        UsageError: a setting that does not fit, or sequences that do not hold one class token and patches.
    """
    settings.check(clip.arch)
    for index, work in enumerate(video):
        if work.packed:
            raise _refused("this method holds the tokens of all frames as rows of one sequence")
        if work.classes != 1 or work.leaving[1] <= work.classes:
            raise _refused(f"block {index} has {work.classes} class tokens in sequences of {work.leaving[1]} tokens")
    if not video:
        raise _refused("this method encodes no frames")
    clip.word_positions = settings.words
    clip.factors = nn.ParameterList(nn.Parameter(torch.zeros(settings.factor)) for _ in settings.tied_vision)
    for index, (block, work) in enumerate(zip(clip.visual.blocks, video, strict=True)):
        rows = _rows(clip.factors, settings.tied_vision, index, settings.width)
        block.adapter = VisionAdapter(clip.arch.vision_width, settings, work.leaving[0], rows)
    for index, (block, work) in enumerate(zip(clip.transformer.blocks, text, strict=True)):
        rows = _rows(clip.factors, settings.tied_text, index, settings.width)
        block.adapter = TextAdapter(clip.arch.text_width, settings, work.leaving[1], rows)


def _rows(factors: nn.ParameterList, tied: tuple[int, ...], index: int, width: int) -> RowFactors | None:
    return RowFactors(factors, tied.index(index), width) if index in tied else None


def _refused(what: str) -> UsageError:
    message = f"tuning 'mv-adapter' relates frames by one class token and the patches of each, and {what}"
    return UsageError(f"{message}: choose another tuning", code="tuning.mv-adapter")
