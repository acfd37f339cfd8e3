"""The seam of comparison: what each side of a pair is before it has seen the other, and how two sides are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.contrastive import contrastive_loss

COARSE = "coarse"
BLOCK = 2**22  # numbers that the pairs of a block hold in memory at a time
Wanted = Literal["words", "patches"]
Storage = Literal["float32", "float16", "int8"]
V2T = Literal["own", "transposed"]
Rows = slice | Tensor


@dataclass(frozen=True, kw_only=True)
class Side:
    """N texts or videos as they are stored: nothing in it has seen the other side.

    Attributes:
        coarse: [N, E] one vector each, of any length (norm).
        fine: named tensors [N, L, ...] float, weights of 0 and 1 for masks; empty where one vector is all. L may
            differ from batch to batch, see ``lengthened``.
    """

    coarse: Tensor
    fine: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.coarse)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The coarse vector, then the fine tensors in the order of their names."""
        return self.coarse, *(self.fine[name] for name in sorted(self.fine))

    @classmethod
    def of(cls, tensors: Sequence[Tensor], names: Sequence[str]) -> Side:
        """The side whose ``tensors`` these are, with fine ones of these names."""
        return cls(coarse=tensors[0], fine=dict(zip(sorted(names), tensors[1:], strict=True)))

    @classmethod
    def cat(cls, sides: Sequence[Side]) -> Side:
        """All items of several sides (one at least), in order, all ``lengthened`` to the longest."""
        length = {name: max(side.fine[name].shape[1] for side in sides) for name in sides[0].fine}
        joined = zip(*(side.lengthened(length).tensors for side in sides), strict=True)
        return cls.of([torch.cat(parts) for parts in joined], list(sides[0].fine))

    def lengthened(self, length: Mapping[str, int]) -> Side:
        """The fine tensors [N, L, ...] with zeros at their end up to so many places, which a mask must leave out.

        Captions are padded to the longest of their batch, so the words of several batches differ in L.
        """
        return Side(coarse=self.coarse, fine={name: _lengthened(t, length[name]) for name, t in self.fine.items()})

    def part(self, rows: Rows) -> Side:
        """The items of these rows."""
        return Side(coarse=self.coarse[rows], fine={name: tensor[rows] for name, tensor in self.fine.items()})

    def to(self, target: torch.device | torch.dtype) -> Side:
        """On this device, or of this type."""
        return Side(coarse=self.coarse.to(target), fine={name: tensor.to(target) for name, tensor in self.fine.items()})

    @property
    def floats(self) -> int:
        """Numbers stored per item, masks included."""
        return sum(tensor[:1].numel() for tensor in self.tensors)


def _lengthened(tensor_NL: Tensor, length: int) -> Tensor:
    """[N, L, ...] with zeros up to ``length`` in place of L; itself where that is L."""
    if (more := length - tensor_NL.shape[1]) == 0:
        return tensor_NL
    return torch.cat([tensor_NL, tensor_NL.new_zeros(len(tensor_NL), more, *tensor_NL.shape[2:])], dim=1)


@dataclass(frozen=True, kw_only=True)
class TextFeatures:
    """What the text tower gives, projected and of any length (norm).

    Attributes:
        end: [B, E] of the end token.
        words: [B, L, E] of all tokens of a caption, start and end included; None unless a scorer wants them.
        mask: [B, L] True up to the end token, whatever padding was declared; of the ids where there are no words.
    """

    end: Tensor
    words: Tensor | None
    mask: Tensor


@dataclass(frozen=True, kw_only=True)
class VideoFeatures:
    """What the vision tower gives, projected and of any length (norm).

    Attributes:
        frames: [B, F, E] the class tokens that leave the tower.
        related: [B, F, E] the same after the head has related them to one another; ``frames`` where it does not.
        pooled: [B, E] the head's feature of the video.
        mask: [B, F] the weight of each class token, 0 where it is left out.
        patches: [B, P, E] all patch tokens that leave the tower, in order of frames; None unless a scorer wants them.
        patch_mask: [B, P] False for a patch that holds nothing but padded frames, and for a place that repeats another.
    """

    frames: Tensor
    related: Tensor
    pooled: Tensor
    mask: Tensor
    patches: Tensor | None
    patch_mask: Tensor | None


class Scorer(nn.Module):
    """Compares texts with videos; this base class compares one vector of each by their cosine, and is what a model has
    whose head says all.

    A scorer owns its parameters. What it keeps of a side has not seen the other side, so that it can be stored; a
    pair's score depends on the pair alone, never on the block that it is scored in.

    Attributes:
        wants: what the towers must project beside class and end tokens.
        text_names, video_names: of the fine tensors of its sides.
        levels: names of the scores that ``score`` gives one by one.
        cosine: the coarse score is a cosine. Where not, it is the inner product of ``coarse_text`` and ``coarse_video``
            as they are.
        depth: how many of the coarse stage's best are scored again: None for all pairs, 0 for none.
        v2t: ``own``, the second stage starts from the best captions of each video, or ``transposed``, the released
            rule: the scores of the other direction are read from the video's side.
        storage: type of the numbers that are stored of fine tensors.
        fine_takes_coarse: the last stage's score contains the coarse one, so that it is needed of every pair.

    A fine tensor whose name ends with ``mask`` holds weights of 0 and 1.
    """

    wants: ClassVar[frozenset[Wanted]] = frozenset()
    text_names: ClassVar[tuple[str, ...]] = ()
    video_names: ClassVar[tuple[str, ...]] = ()
    levels: ClassVar[tuple[str, ...]] = (COARSE,)
    cosine: ClassVar[bool] = True
    fine_takes_coarse: ClassVar[bool] = False
    depth: int | None = 0
    v2t: V2T = "own"
    storage: Storage = "float32"

    @property
    def two_stage(self) -> bool:
        """Whether a last stage ranks: sides hold more than a vector, and some pairs are scored again."""
        return bool(self.video_names) and self.depth != 0

    def attach(self, clip: CLIP) -> None:
        """Start own parameters from the pre-trained ones; called once, by the factory. Nothing by default."""

    def text_side(self, text: TextFeatures) -> Side:
        """The side of B texts; one vector by default."""
        return Side(coarse=text.end)

    def video_side(self, video: VideoFeatures) -> Side:
        """The side of B videos; one vector by default."""
        return Side(coarse=video.pooled)

    def coarse_text(self, coarse_TE: Tensor) -> Tensor:
        """The text's factor [T, E] of the coarse score; its unit vector by default."""
        return F.normalize(coarse_TE, dim=-1)

    def coarse_video(self, coarse_VE: Tensor) -> Tensor:
        """The video's factor [V, E] of the coarse score; its unit vector by default."""
        return F.normalize(coarse_VE, dim=-1)

    def coarse(self, text_TE: Tensor, video_VE: Tensor) -> Tensor:
        """Coarse scores [T, V] of coarse vectors, without the temperature."""
        return self.coarse_text(text_TE) @ self.coarse_video(video_VE).T

    def score(self, text: Side, video: Side, level: str | None = None) -> Tensor:
        """Scores [T, V] of all pairs, without the temperature.

        Args:
            level: one of ``levels``; None for the score that ranks in the last stage.

        Raises:
            UsageError: no such level.
        """
        if level not in (None, *self.levels):
            known = ", ".join(self.levels)
            raise UsageError(f"there is no level {level!r}: known are {known}", code="scorer.level", level=level)
        if level == COARSE or not self.video_names:
            return self.coarse(text.coarse, video.coarse)
        return self.fine(text, video, level)

    def fine(self, text: Side, video: Side, level: str | None) -> Tensor:
        """Scores [T, V] of a level other than the coarse one, or of the last stage (None), which subclasses define."""
        raise NotImplementedError

    def columns(self, text: Side, video: Side, first: int) -> dict[str, Tensor]:
        """What the loss needs of some videos of a batch, [b, ...] each, given all its B texts.

        This is what processes send each other, so it holds scores and vectors, no frames and no patches. By default the
        score with every text, [b, B].

        Args:
            text: of the whole batch.
            video: b videos of it; number ``first`` + i belongs to text ``first`` + i.
        """
        return {"score": self.score(text, video).T}

    def loss(self, text: Side, columns: Mapping[str, Tensor], scale: Tensor) -> Tensor:
        """The loss of a whole batch, from its texts and the ``columns`` of all its videos; by default contrastive.

        Args:
            scale: exp(logit scale), which multiplies every score.
        """
        return contrastive_loss(scale * columns["score"].T)

    def text_macs(self) -> int:
        """Multiply-adds per query beside its side that do not depend on the gallery: those of ``coarse_text``."""
        return 0

    def text_side_macs(self, width: int, words: int) -> int:
        """Multiply-adds per text beside the tower, from words of this width: those of ``text_side``."""
        return 0

    def coarse_macs(self, width: int) -> int:
        """Multiply-adds of the coarse score of a pair, of vectors so wide."""
        return width

    def fine_macs(self, text: Side, video: Side) -> int:
        """Multiply-adds of the last stage's score of a pair, from the shapes of one text and one video; softmaxes and
        divisions are free."""
        return 0

    def video_macs(self, width: int, frames: int, patches: int) -> int:
        """Multiply-adds per video beside tower and head, from class tokens and patches of this width: those of
        ``video_side``."""
        return 0


def in_blocks(score: Callable[[Side, Side], Tensor], text: Side, video: Side, per_pair: int) -> Tensor:
    """Scores [T, V] of all pairs, in blocks that bound the memory whatever T and V are.

    Args:
        score: gives the scores [t, v] of a block of texts and a block of videos.
        per_pair: numbers of a pair that it holds in memory.
    """
    pairs = max(1, BLOCK // per_pair)
    t = max(1, min(len(text), pairs))
    v = max(1, pairs // t)
    videos = [video.part(slice(first, first + v)) for first in range(0, max(1, len(video)), v)]
    rows = []
    for first in range(0, max(1, len(text)), t):
        texts = text.part(slice(first, first + t))
        rows.append(torch.cat([score(texts, block) for block in videos], dim=1))
    return torch.cat(rows)


def masked_softmax(logits: Tensor, mask: Tensor, dim: int = -1) -> Tensor:
    """Softmax over an axis of what the mask (0 or 1, of a shape that becomes that of the logits) does not leave out: 0
    for the rest, and for all where everything is left out."""
    hidden = logits.masked_fill(mask == 0, torch.finfo(logits.dtype).min)
    return hidden.softmax(dim=dim) * mask
