"""DGL: dynamic global-local prompts (Yang et al., AAAI 2024, arXiv 2401.10588), as its authors' code defines it.

Every block of both towers sees prompts of its own, which one generator makes from parameters alone. Global prompts
travel through the vision tower beside the frames and attend to all of them; the first of them is the video feature.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.attending import Attends, AttentionOut
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.backbone.blocks import Block, QuickGELU
from tvrbench.harness.models.heads import Head
from tvrbench.harness.models.kept import Kept
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.spec import MethodCard, MethodOptions, option_error, require_range
from tvrbench.harness.models.text import TextPath
from tvrbench.harness.models.tokens import TokenReducer, TokenStream
from tvrbench.harness.models.work import BlockTokens, Work

Feature = Literal[
    "global_prompt0",
    "average_global_prompt",
    "average_frame_cls_token",
    "average_global_prompt_and_frame_cls_token",
]


@dataclass(frozen=True, kw_only=True)
class DGLOptions(MethodOptions):
    """DGL's settings.

    Attributes:
        space: the prompts of both towers come out of one transformer block and an MLP (``transformer``), or the text
            prompts are linear maps of the frame prompts, which then are the same for all frames (``linear``).
        text_prompts: half of them come before a caption's words. The other half come after its end, which never sees
            them: they are made like the others, and no caption carries them.
        frame_prompts: of every frame, in every block.
        global_prompts: tokens that enter the first block and travel through all blocks.
        feature: what becomes the video feature, not normalized: the first global prompt, the mean of all, the mean of
            the frames' class tokens, or the mean of both together.
        mask: ``exact`` hides padded frames from the global prompts and from means; ``released`` ignores the mask.
    """

    space: Literal["transformer", "linear"] = "transformer"
    text_prompts: int = 8
    frame_prompts: int = 4
    global_prompts: int = 4
    feature: Feature = "global_prompt0"
    mask: Literal["exact", "released"] = "exact"


def _check(options: DGLOptions) -> None:
    for name, least in (("text_prompts", 2), ("frame_prompts", 1), ("global_prompts", 1)):
        require_range("dgl", name, getattr(options, name), least)
    text, frame = options.text_prompts, options.frame_prompts
    if text % 2:
        raise option_error("dgl", "text_prompts", f"is {text}: give an even number, half for each end of a caption")
    if options.space == "linear" and text != 2 * frame:
        problem = f"is {text}, but space 'linear' makes two text prompts of each of {frame} frame prompts: give"
        raise option_error("dgl", "text_prompts", f"{problem} {2 * frame}")


class Prompts(NamedTuple):
    """Generated prompts of L blocks.

    Attributes:
        text: [L, prompts, Dt].
        frames: [L, R, Q, D]; R rows, one for each frame or one for all.
    """

    text: Tensor
    frames: Tensor


class Generator(nn.Module, ABC):
    """Makes the prompts of every block from parameters alone.

    They do not depend on any input, so an evaluation makes them once: in eval mode without gradients they are kept
    until a parameter changes, like a folded LoRA. Writes past autograd (``.data``, fused optimizers) in eval mode need
    ``train()`` first, which frees them.

    Attributes:
        table: [rows, L x D] what the prompts are made from: in every row, the L blocks side by side.
    """

    def __init__(self, rows: int, arch: Architecture) -> None:
        super().__init__()
        self.width = arch.vision_width
        # The released code needs towers of one depth; the shorter one takes the prompts of the first blocks.
        self.table = nn.Parameter(torch.empty(rows, max(arch.vision_layers, arch.text_layers) * self.width))
        self._kept: Kept[Prompts] = Kept()

    def latent(self, rows_LRD: Tensor) -> Tensor:
        """The table's rows of L blocks [L, rows, D] -> what ``text_of`` and ``frames_of`` take."""
        return rows_LRD

    @abstractmethod
    def text_of(self, latent_LRD: Tensor) -> Tensor:
        """Text prompts [L, prompts, Dt]."""

    @abstractmethod
    def frames_of(self, latent_LRD: Tensor) -> Tensor:
        """Frame prompts [L, R, Q, D]."""

    def text(self, index: int) -> Tensor:
        """The text prompts of block ``index`` [prompts, Dt]."""
        return self.kept().text[index] if self._constant() else self.text_of(self._of_block(index))[0]

    def frames(self, index: int) -> Tensor:
        """The frame prompts of block ``index`` [R, Q, D]."""
        return self.kept().frames[index] if self._constant() else self.frames_of(self._of_block(index))[0]

    def make(self) -> Prompts:
        """The prompts of all blocks."""
        latent = self.latent(self.table.view(len(self.table), -1, self.width).transpose(0, 1))
        return Prompts(self.text_of(latent), self.frames_of(latent))

    def kept(self) -> Prompts:
        """The prompts of all blocks as constants, made again where a parameter or the precision changed."""
        device = self.table.device.type
        half = device != "meta" and torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        return self._kept.get(
            self.parameters(), lambda: Prompts(*(prompts.detach() for prompts in self.make())), also=half
        )

    def train(self, mode: bool = True) -> Generator:
        """Switch mode; going to training frees the prompts that were kept."""
        if mode:
            self._kept.clear()
        return super().train(mode)

    def _of_block(self, index: int) -> Tensor:
        return self.latent(self.table[:, index * self.width : (index + 1) * self.width].unsqueeze(0))

    def _constant(self) -> bool:
        # Neither a compiled graph nor a tensor of inference mode can be watched for changes: each call makes its own.
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        return not any(parameter.is_inference() for parameter in self.parameters())


class TransformerGenerator(Generator):
    """Space ``transformer``: one pre-norm block mixes the rows of a CLIP block, and an MLP maps text rows to Dt.

    New parameters start as torch starts an embedding, multi-head attention and linear layers.
    """

    def __init__(self, options: DGLOptions, arch: Architecture, frames: int) -> None:
        super().__init__(options.text_prompts + frames * options.frame_prompts, arch)
        self.text_prompts, self.frame_prompts = options.text_prompts, options.frame_prompts
        self.block = Block(self.width, "quick_gelu")
        c_fc, c_proj = nn.Linear(self.width, 2 * self.width), nn.Linear(2 * self.width, arch.text_width)
        self.mlp = nn.Sequential(OrderedDict(c_fc=c_fc, gelu=QuickGELU(), c_proj=c_proj))
        nn.init.normal_(self.table)
        nn.init.xavier_uniform_(self.block.attn.in_proj_weight)
        nn.init.zeros_(self.block.attn.out_proj.bias)

    def latent(self, rows_LRD: Tensor) -> Tensor:
        """All rows of a block after they have attended to each other."""
        x = rows_LRD + self.block.attend(rows_LRD).delta
        return x + self.block.feed_forward(x)

    def text_of(self, latent_LRD: Tensor) -> Tensor:
        """Text prompts [L, prompts, Dt] of the first rows."""
        out: Tensor = self.mlp(latent_LRD[:, : self.text_prompts])
        return out

    def frames_of(self, latent_LRD: Tensor) -> Tensor:
        """Frame prompts [L, T, Q, D] of the other rows, neighbors for a frame."""
        return latent_LRD[:, self.text_prompts :].reshape(len(latent_LRD), -1, self.frame_prompts, self.width)


class LinearGenerator(Generator):
    """Space ``linear``: the rows are the prompts of every frame, and two linear layers of them the text prompts."""

    def __init__(self, options: DGLOptions, arch: Architecture) -> None:
        super().__init__(options.frame_prompts, arch)
        self.prefix = nn.Linear(self.width, arch.text_width)
        self.postfix = nn.Linear(self.width, arch.text_width)  # dead: no end token sees what it makes
        _start_like_patches(self.table, arch)

    def text_of(self, latent_LRD: Tensor) -> Tensor:
        """Text prompts [L, prompts, Dt], those before the words first."""
        return torch.cat([self.prefix(latent_LRD), self.postfix(latent_LRD)], dim=1)

    def frames_of(self, latent_LRD: Tensor) -> Tensor:
        """Frame prompts [L, 1, Q, D]."""
        return latent_LRD.unsqueeze(1)


def _start_like_patches(tokens: nn.Parameter, arch: Architecture) -> None:
    """Draw tokens in the range that Xavier's rule gives for the stem (VPT, arXiv 2203.12119)."""
    bound = math.sqrt(6 / (3 * arch.patch_size**2 + arch.vision_width))
    nn.init.uniform_(tokens, -bound, bound)


class DGLReducer(TokenReducer):
    """Adds global prompts that attend to all frames, while every frame attends to them, its prompts and itself.

    All frames travel in one sequence: global prompts, class tokens and patches of the frames. Prompts of frames are
    keys and values alone, because what they would become is replaced before the next block.
    """

    def __init__(self, options: DGLOptions, arch: Architecture, frames: int) -> None:
        super().__init__(arch, frames)
        _check(options)
        self.options = options
        linear = options.space == "linear"
        self.generator: Generator = (
            LinearGenerator(options, arch) if linear else TransformerGenerator(options, arch, frames)
        )
        self.global_prompts = nn.Parameter(torch.empty(options.global_prompts, arch.vision_width))
        _start_like_patches(self.global_prompts, arch)

    def fold_constants(self) -> None:
        """Make the prompts, which an evaluation keeps."""
        self.generator.kept()

    def before_block(self, stream: TokenStream, index: int) -> TokenStream:
        """Join the frames and put the global prompts first, once."""
        if index:
            return stream
        joined, G = stream.join(self.frames), len(self.global_prompts)
        own = self.global_prompts.to(joined.x.dtype).expand(len(joined.x), -1, -1)
        origin = joined.origin
        if origin is not None:
            origin = torch.where(origin >= 0, origin + G, -1)
        return replace(joined, x=torch.cat([own, joined.x], dim=1), classes=G + joined.classes, origin=origin)

    def attend(self, stream: TokenStream, index: int, block: Attends) -> AttentionOut:
        """Attention of every frame to [global prompts, frame prompts, itself], and of global prompts to everything."""
        B, T, G = len(stream.x), self.frames, len(self.global_prompts)
        q, k, v = block.qkv(block.ln_1(stream.x))
        _, prompt_k, prompt_v = block.qkv(block.ln_1(self.generator.frames(index)))
        frames = block.mix(
            torch.cat(self._by_frame(q), dim=3).flatten(0, 1),
            self._seen_by_frames(k, prompt_k),
            self._seen_by_frames(v, prompt_v),
        )
        whole = block.mix(
            q[:, :, :G],
            self._seen_by_global(k, prompt_k),
            self._seen_by_global(v, prompt_v),
            self._visible(stream, prompt_k.shape[2]),
        )
        frames_BTND = frames.view(B, T, *frames.shape[1:])
        delta = torch.cat([whole, frames_BTND[:, :, 0], frames_BTND[:, :, 1:].flatten(1, 2)], dim=1)
        return AttentionOut(delta, q, k)

    def _by_frame(self, heads_BHNC: Tensor) -> list[Tensor]:
        """Class tokens [B, T, heads, 1, 64] and patches [B, T, heads, P, 64] of the frames."""
        (B, H, _, C), G, T = heads_BHNC.shape, len(self.global_prompts), self.frames
        classes = heads_BHNC[:, :, G : G + T].unsqueeze(3)
        patches = heads_BHNC[:, :, G + T :].view(B, H, T, -1, C)
        return [classes.transpose(1, 2), patches.transpose(1, 2)]

    def _seen_by_frames(self, heads_BHNC: Tensor, prompts_RHQC: Tensor) -> Tensor:
        """Keys or values [B x T, heads, G + Q + 1 + P, 64]."""
        B, T = len(heads_BHNC), self.frames
        shared = heads_BHNC[:, None, :, : len(self.global_prompts)].expand(-1, T, -1, -1, -1)
        prompts = prompts_RHQC.to(shared.dtype).expand(B, T, -1, -1, -1)
        return torch.cat([shared, prompts, *self._by_frame(heads_BHNC)], dim=3).flatten(0, 1)

    def _seen_by_global(self, heads_BHNC: Tensor, prompts_RHQC: Tensor) -> Tensor:
        """Keys or values [B, heads, N + T x Q, 64]: all tokens, and each frame's prompts."""
        prompts = prompts_RHQC.to(heads_BHNC.dtype).expand(self.frames, -1, -1, -1).transpose(0, 1).flatten(1, 2)
        return torch.cat([heads_BHNC, prompts.expand(len(heads_BHNC), -1, -1, -1)], dim=2)

    def _visible(self, stream: TokenStream, prompts: int) -> Tensor | None:
        """[B, 1, 1, N + T x Q] True for what a global prompt may see; None for everything."""
        if stream.mask is None or self.options.mask == "released":
            return None
        mask_BT, G, T = stream.mask, len(self.global_prompts), self.frames
        patches = (stream.x.shape[1] - G - T) // T

        def of_frames(tokens: int) -> Tensor:
            return mask_BT.unsqueeze(2).expand(-1, -1, tokens).flatten(1)

        own = mask_BT.new_ones(len(mask_BT), G)
        return torch.cat([own, mask_BT, of_frames(patches), of_frames(prompts)], dim=1)[:, None, None]

    def output_mask(self, mask_BT: Tensor) -> Tensor:
        """[B, G + T]: the global prompts, and the frames that count."""
        frames_BT = torch.ones_like(mask_BT) if self.options.mask == "released" else mask_BT
        return torch.cat([mask_BT.new_ones(len(mask_BT), len(self.global_prompts)), frames_BT], dim=1)

    def work_as_released(self) -> Work:
        """Frame prompts as tokens, keys and values projected once for each attention, and all tokens at the end."""
        G, T, D = len(self.global_prompts), self.frames, self.arch.vision_width
        n = 1 + self.options.frame_prompts + self.arch.patches
        tokens = G + T * n
        block = BlockTokens(
            attention=(0, 0),
            leaving=(1, tokens),
            projecting=tokens,
            mixing=((T, n, G + n), (1, G, tokens)),
            overhead_macs=2 * D**2 * (T * G + T * n),  # global tokens for every frame, and frames' for global ones
        )
        return Work(blocks=[block] * self.arch.vision_layers, projected=tokens)


class DGLTextPath(TextPath):
    """Shows every block its text prompts after the start token, as keys and values: prompts have no positions.

    Those after a caption's end are left out: the attention is causal, and the end token is read.
    """

    def __init__(self, arch: Architecture, generator: Generator, prompts: int) -> None:
        super().__init__(arch)
        self._generator = (generator,)  # in a tuple, because it stays the reducer's module
        self.prompts = prompts

    def attend(self, x: Tensor, index: int, block: Block) -> AttentionOut:
        """The attention branch of x [B, N, D], causal, with the prompts before all words."""
        (generator,) = self._generator
        return block.attend(x, causal=True, prompts=generator.text(index)[: self.prompts // 2].unsqueeze(0))

    def plan(self, length: int) -> Sequence[BlockTokens]:
        """The work of every block for one caption of ``length`` ids."""
        seen = length + self.prompts // 2
        block = BlockTokens(attention=(0, 0), leaving=(1, length), projecting=seen, mixing=((1, length, seen),))
        return [block] * self.arch.text_layers

    def work_as_released(self, length: int) -> Work:
        """All prompts as tokens, and all tokens projected at the end."""
        tokens = length + self.prompts
        block = BlockTokens(attention=(1, tokens), leaving=(1, tokens))
        return Work(blocks=[block] * self.arch.text_layers, projected=tokens)


class PromptFeature(Head):
    """The masked mean of some of the tokens that leave, not normalized before."""

    def __init__(self, feature: Feature, global_prompts: int) -> None:
        super().__init__()
        self.places = {
            "global_prompt0": slice(0, 1),
            "average_global_prompt": slice(0, global_prompts),
            "average_frame_cls_token": slice(global_prompts, None),
            "average_global_prompt_and_frame_cls_token": slice(0, None),
        }[feature]

    def pooled(self, related_BFE: Tensor, mask_BF: Tensor) -> Tensor:
        """Features [B, G + T, E] and mask [B, G + T] -> [B, E]."""
        weight = mask_BF[:, self.places].to(related_BFE.dtype).unsqueeze(-1)
        # No valid frame gives zeros rather than 0 / 0.
        return (related_BFE[:, self.places] * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


# What a released name starts with, and what we call it.
_RELEASED = {
    "clip.visual.prompt_embeddings": "reducer.global_prompts",
    "clip.unified_prompt_embedding.weight": "reducer.generator.table",
    "clip.visual_prompt_embedding": "reducer.generator.table",
    "clip.unified_prompt_mlp.": "reducer.generator.mlp.",
    "clip.PromptTransformer.resblocks.0.": "reducer.generator.block.",
    "clip.prefix_text_prompt_proj_layer.": "reducer.generator.prefix.",
    "clip.postfix_text_prompt_proj_layer.": "reducer.generator.postfix.",
}


class DGL(Method[DGLOptions]):
    """DGL on a frozen CLIP, or beside any tuning but ``prompts-shallow``."""

    card = MethodCard(
        summary="prompts of both towers from one generator; global prompts attend to all frames",
        paper="DGL (arXiv 2401.10588), as its released code defines it",
        group="parameter-efficient",
        recipe="dgl",
        tuning="own",
        identity="global prompts attend in every block, and frames attend to them",
        dead=(r"reducer\.generator\.postfix\.(weight|bias)",),
    )
    Options = DGLOptions

    def build_reducer(self) -> TokenReducer:
        """The global prompts, and the generator for this backbone and frame count."""
        return DGLReducer(self.options, self.arch, self.frames)

    def build_head(self) -> Head:
        """The feature that the options name."""
        return PromptFeature(self.options.feature, self.options.global_prompts)

    def build_text_path(self, reducer: TokenReducer) -> TextPath:
        """The text prompts of the reducer's generator."""
        assert isinstance(reducer, DGLReducer)
        return DGLTextPath(self.arch, reducer.generator, self.options.text_prompts)

    @classmethod
    def from_released(cls, key: str, tensor: Tensor) -> tuple[str, Tensor]:
        """Our name for a released one; prompts are released as [1, prompts, width]."""
        for theirs, ours in _RELEASED.items():
            if key == theirs or (theirs.endswith(".") and key.startswith(theirs)):
                return ours + key.removeprefix(theirs), tensor[0] if tensor.ndim == 3 and len(tensor) == 1 else tensor
        return key, tensor

    @classmethod
    def released_options(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The space by the names, the number of global prompts and, in space ``linear``, of the others.

        Space ``transformer`` has the prompts of the text and of all frames in one table, which does not part them.
        """
        found: dict[str, Any] = {}
        if (own := state.get("reducer.global_prompts")) is not None and own.ndim:
            found["global_prompts"] = len(own)
        if any(key.startswith("reducer.generator.block.") for key in state):
            found["space"] = "transformer"
        elif any(key.startswith("reducer.generator.prefix.") for key in state):
            found["space"] = "linear"
            if (table := state.get("reducer.generator.table")) is not None and table.ndim:
                found |= {"frame_prompts": len(table), "text_prompts": 2 * len(table)}
        return found

    def fit_released(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as they are; UsageError where the table has rows for other frames or prompts."""
        table, o = state.get("reducer.generator.table"), self.options
        if o.space == "transformer" and table is not None and table.ndim:
            rows, needed = len(table), o.text_prompts + self.frames * o.frame_prompts
            if rows != needed:
                problem = (
                    f"the checkpoint's table has {rows} rows, but text_prompts + frames x frame_prompts is {needed}"
                )
                raise UsageError(
                    f"dgl: {problem}: give the frames, text_prompts and frame_prompts that it was trained with",
                    code="weights.shape",
                    key="reducer.generator.table",
                    rows=rows,
                    needed=needed,
                )
        return state
