"""X-Pool: a text attends to the frames of a video, and is compared with what it finds (Gorti et al., CVPR 2022).

Written from the definition alone; the released code has no license. What the definition leaves open is our choice:
linear layers start as the identity with zero biases, and nothing is dropped out in training.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tvrbench.harness.models.heads import UNUSED_POSITIONS
from tvrbench.harness.models.scored import ScoredMethod, ScorerOptions
from tvrbench.harness.models.scorer import COARSE, Scorer, Side, TextFeatures, VideoFeatures, in_blocks, masked_softmax
from tvrbench.harness.models.spec import MethodCard
from tvrbench.harness.models.work import NORM_MACS


class TextGuidedPooling(Scorer):
    """The cosine of text t with o = LN3(y + W y), where y = LN2(W_o sum_f w_f v_f), w = softmax_f(q k_f / sqrt E).

    One head, as wide as the features. Query q, keys k_f and values v_f are linear in LN1 of text and frames. The
    weights w sum to one, so that W_o goes into the values of a video, which have not seen the text.

    Args:
        width: E.
    """

    text_names = ("query",)
    video_names = ("keys", "mask", "values")
    levels = (COARSE, "frame")

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_inputs, self.norm_found, self.norm_pooled = (nn.LayerNorm(width) for _ in range(3))
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)  # one would add the same to all logits of a softmax
        self.value, self.out, self.linear = (nn.Linear(width, width) for _ in range(3))
        for layer in (self.query, self.key, self.value, self.out, self.linear):
            nn.init.eye_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def text_side(self, text: TextFeatures) -> Side:
        """The end token's feature, and its query [B, E]."""
        return Side(coarse=text.end, fine={"query": self.query(self.norm_inputs(text.end))})

    def video_side(self, video: VideoFeatures) -> Side:
        """The pooled feature; keys and W_o-values of the frames [B, F, E] and their mask [B, F]."""
        normed_BFE = self.norm_inputs(video.related)
        values_BFE = self.out(self.value(normed_BFE))
        fine = {"keys": self.key(normed_BFE), "mask": (video.mask > 0).to(values_BFE.dtype), "values": values_BFE}
        return Side(coarse=video.pooled, fine=fine)

    def fine(self, text: Side, video: Side, level: str | None) -> Tensor:
        """Scores [T, V]; a video without any valid frame gives what no value gives, a finite number."""
        return in_blocks(self._pooled, text, video, 4 * text.coarse.shape[1])  # y, W y, their sum and o

    def _pooled(self, text: Side, video: Side) -> Tensor:
        keys_VFE, query_TE = video.fine["keys"], text.fine["query"] * text.coarse.shape[1] ** -0.5
        weight_VTF = masked_softmax(query_TE @ keys_VFE.transpose(1, 2), video.fine["mask"].unsqueeze(1))
        found_VTE = self.norm_found(weight_VTF @ video.fine["values"])
        pooled_VTE = self.norm_pooled(found_VTE + self.linear(found_VTE))
        return (F.normalize(pooled_VTE, dim=-1) * F.normalize(text.coarse, dim=-1)).sum(dim=-1).T

    def text_side_macs(self, width: int, words: int) -> int:
        """Norm and query of the end token."""
        return NORM_MACS * width + width**2

    def video_macs(self, width: int, frames: int, patches: int) -> int:
        """Norm, key, value and W_o of every frame."""
        return frames * (NORM_MACS * width + 3 * width**2)

    def fine_macs(self, text: Side, video: Side) -> int:
        """2 F E of the attention, E^2 of W y, E of the cosine; norms are free."""
        frames, width = video.fine["keys"].shape[1:]
        return width**2 + 2 * frames * width + width


class XPool(ScoredMethod[ScorerOptions]):
    """X-Pool over any encoder."""

    card = MethodCard(
        summary="X-Pool: a text attends to the frames of a video, and is compared with what it finds",
        paper="X-Pool (arXiv 2203.15086), its pooling alone",
        group="retrieval stage",
        recipe="uniform",
        tuning="lora",
        by_default=False,
        dead=UNUSED_POSITIONS,
    )
    Options = ScorerOptions

    def new_scorer(self) -> Scorer:
        """The pooling, which starts as attention without projections."""
        return TextGuidedPooling(self.arch.embed_dim)
