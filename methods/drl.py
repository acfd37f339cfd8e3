"""DRL's weighted token-wise interaction: each word takes its best frame, each frame its best word, and both are weighed
(Wang et al., 2022, "Disentangled Representation Learning for Text-Video Retrieval", arXiv 2203.07111).

Its channel decorrelation, a further term of the loss, is not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvrbench.harness.models.heads import UNUSED_POSITIONS, SequenceTransformer
from tvrbench.harness.models.scored import RelatedScorerOptions, ScoredMethod
from tvrbench.harness.models.scorer import COARSE, Scorer, Side, TextFeatures, VideoFeatures, in_blocks, masked_softmax
from tvrbench.harness.models.spec import MethodCard

WORD, FRAME = "word", "frame"
INIT_STD = 0.02  # of the MLPs
_RELEASED = {"text_weight_fc.": "scorer.of_words.", "video_weight_fc.": "scorer.of_frames."}
_NO_BIAS = ("scorer.of_words.2.bias", "scorer.of_frames.2.bias")


def _weigher(width: int) -> nn.Sequential:
    """The logit of every token's weight, [..., E] -> [..., 1]; starts as the released one does."""
    # A bias of the last layer, which the released code has, would add the same to all logits of a softmax.
    hidden, out = nn.Linear(width, width), nn.Linear(width, 1, bias=False)
    nn.init.normal_(hidden.weight, std=INIT_STD)
    nn.init.zeros_(hidden.bias)
    nn.init.normal_(out.weight, std=INIT_STD)
    return nn.Sequential(hidden, nn.ReLU(), out)


class TokenInteraction(Scorer):
    """(sum_l a_l max_f s_lf + sum_f b_f max_l s_lf) / 2, where s_lf is the cosine of word l with frame f.

    The weights a of words and b of frames are softmaxes of MLPs that see one side alone. Padding is neither weighed nor
    a maximum.

    Args:
        width: E, of the features.
    """

    wants = frozenset({"words"})
    text_names = ("word_mask", "word_weights", "words")
    video_names = ("frame_weights", "frames", "mask")
    levels = (COARSE, WORD, FRAME)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.of_words, self.of_frames = _weigher(width), _weigher(width)

    def text_side(self, text: TextFeatures) -> Side:
        """The end token's feature; unit words [B, L, E], their weights and mask [B, L]."""
        assert text.words is not None
        weights_BL = masked_softmax(self.of_words(text.words).squeeze(-1), text.mask)
        words_BLE = F.normalize(text.words, dim=-1)
        fine = {"words": words_BLE, "word_weights": weights_BL, "word_mask": text.mask.to(words_BLE.dtype)}
        return Side(coarse=text.end, fine=fine)

    def video_side(self, video: VideoFeatures) -> Side:
        """The pooled feature; unit frames [B, F, E], their weights and mask [B, F]."""
        mask_BF, frames_BFE = video.mask > 0, F.normalize(video.related, dim=-1)
        weights_BF = masked_softmax(self.of_frames(video.related).squeeze(-1), mask_BF)
        fine = {"frames": frames_BFE, "frame_weights": weights_BF, "mask": mask_BF.to(frames_BFE.dtype)}
        return Side(coarse=video.pooled, fine=fine)

    def fine(self, text: Side, video: Side, level: str | None) -> Tensor:
        """Scores [T, V]; a video without any valid frame scores 0."""
        cosines = text.fine["words"].shape[1] * video.fine["frames"].shape[1]
        return in_blocks(lambda t, v: self._interact(t, v, level), text, video, 2 * cosines)

    @staticmethod
    def _interact(text: Side, video: Side, level: str | None) -> Tensor:
        words_TLE, frames_VFE = text.fine["words"], video.fine["frames"]
        (T, L), (V, F_) = words_TLE.shape[:2], frames_VFE.shape[:2]
        cosine_TLVF = (words_TLE.flatten(0, 1) @ frames_VFE.flatten(0, 1).T).view(T, L, V, F_)
        lowest, parts = torch.finfo(cosine_TLVF.dtype).min, []
        if level in (None, WORD):
            best_TLV = cosine_TLVF.masked_fill(video.fine["mask"] == 0, lowest).amax(dim=3)
            best_TLV = best_TLV * video.fine["mask"].amax(dim=1)  # without any frame there is no best one
            parts.append(torch.einsum("tl,tlv->tv", text.fine["word_weights"], best_TLV))
        if level in (None, FRAME):
            best_TVF = cosine_TLVF.masked_fill(text.fine["word_mask"][:, :, None, None] == 0, lowest).amax(dim=1)
            parts.append((best_TVF * video.fine["frame_weights"]).sum(dim=-1))
        return torch.stack(parts).mean(dim=0)

    def text_side_macs(self, width: int, words: int) -> int:
        """The MLP of every word."""
        return words * (width**2 + width)

    def video_macs(self, width: int, frames: int, patches: int) -> int:
        """The MLP of every frame."""
        return frames * (width**2 + width)

    def fine_macs(self, text: Side, video: Side) -> int:
        """L F E of the cosines."""
        return text.fine["words"].shape[1] * video.fine["frames"][0].numel()


class DRL(ScoredMethod[RelatedScorerOptions]):
    """DRL's interaction over any encoder."""

    card = MethodCard(
        summary="DRL's interaction: each word takes its best frame, each frame its best word, and both are weighed",
        paper="DRL (arXiv 2203.07111), its weighted token-wise interaction, without channel decorrelation",
        group="retrieval stage",
        recipe="uniform",
        tuning="lora",
        identity={"head": "meanP"},
        by_default=False,
        dead=UNUSED_POSITIONS,
    )
    Options = RelatedScorerOptions

    def new_scorer(self) -> Scorer:
        """The interaction, with an MLP for each side."""
        return TokenInteraction(self.arch.embed_dim)

    @classmethod
    def from_released(cls, key: str, tensor: Tensor) -> tuple[str, Tensor]:
        """The released names of both MLPs, and of CLIP4Clip's head."""
        for theirs, ours in _RELEASED.items():
            if key.startswith(theirs):
                return ours + key.removeprefix(theirs), tensor
        return SequenceTransformer.from_released(key), tensor

    @classmethod
    def released_options(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The head; all of CLIP was trained, but where the file holds LoRA."""
        head = {"head": "seqTransf" if any(key.startswith("head.") for key in state) else "meanP"}
        return head if any(".lora." in key for key in state) else head | {"tuning": "full"}

    def fit_released(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors without the bias of each MLP's last layer, which changes no weight."""
        return {key: tensor for key, tensor in state.items() if key not in _NO_BIAS}
