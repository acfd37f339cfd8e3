"""EERCF: a coarse score of one vector each, then frames and patches that a text weighs (Tian et al., AAAI 2024).

Retrieval takes the ``depth`` best of the coarse score and ranks them by a mix of finer ones. Towers and temporal
transformer are CLIP4Clip's; new are two matrices that start as the identity. Source: the paper (arXiv 2401.00701) and
its released code (adxcreative/EERCF), whose defaults these are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.contrastive import contrastive_loss
from tvrbench.harness.models.heads import UNUSED_POSITIONS, SequenceTransformer
from tvrbench.harness.models.scored import Depth, RelatedScorerOptions, ScoredMethod
from tvrbench.harness.models.scorer import COARSE, Scorer, Side, VideoFeatures, in_blocks, masked_softmax
from tvrbench.harness.models.spec import MethodCard, option_error, require_range

WEAK_FRAME, STRONG_FRAME, WEAK_PATCH, STRONG_PATCH = "weak_frame", "strong_frame", "weak_patch", "strong_patch"
RANKING = {WEAK_FRAME: 0.8, STRONG_FRAME: 0.2, WEAK_PATCH: 0.2, COARSE: 0.5}  # of the last stage, not an option
WEAK_TEMPERATURE = 0.01  # of the softmax of both weak scores, and of the strong score of patches
STRONG_TEMPERATURE = 0.1  # of the gate over frames
CORRELATION = 0.14  # of the sum over features that is the Pearson constraint
EPS = 1e-12  # of a norm
_WEIGHTS = (
    *("video_weight", "weakframe_weight", "weakpatch_weight", "strongframe_weight", "strongpatch_weight"),
    *("cdcl_video_weight", "cdcl_frame_weight", "cdcl_patch_weight"),
    *("weak_loss_weight", "strong_loss_weight", "cdcl_loss_weight"),
)
_RELEASED = {"global_mat_weight": "scorer.text_matrix", "frame_logit_weight": "scorer.frame_matrix"}


@dataclass(frozen=True, kw_only=True)
class EERCFOptions(RelatedScorerOptions):
    """EERCF's settings; weights of the loss have the released code's names and values.

    The scores that rank in the last stage are mixed by fixed weights, so ranking always reads frames and patches.

    Attributes:
        gate_mask: ``exact`` leaves padded frames and their patches out of the finer scores; the released code does not
            (``released``).
        video_weight, weakframe_weight, weakpatch_weight: of the coarse score and of the weak ones in one mixed score.
        strongframe_weight, strongpatch_weight: of the strong scores in another.
        weak_loss_weight, strong_loss_weight: of the contrastive losses of both mixed scores.
        cdcl_video_weight, cdcl_frame_weight, cdcl_patch_weight: of the Pearson constraints of the video's vector, its
            gated frames and its gated patches.
        cdcl_loss_weight: of the three.
    """

    depth: Depth = 50
    gate_mask: Literal["exact", "released"] = "exact"
    video_weight: float = 0.5
    weakframe_weight: float = 0.5
    weakpatch_weight: float = 0.05
    strongframe_weight: float = 1.0
    strongpatch_weight: float = 0.0
    cdcl_video_weight: float = 1.0
    cdcl_frame_weight: float = 1.0
    cdcl_patch_weight: float = 0.0
    weak_loss_weight: float = 0.8
    strong_loss_weight: float = 0.2
    cdcl_loss_weight: float = 0.001

    @property
    def weak(self) -> dict[str, float]:
        """The weights of the weak scores that count, by level."""
        weights = {COARSE: self.video_weight, WEAK_FRAME: self.weakframe_weight, WEAK_PATCH: self.weakpatch_weight}
        return _counting(weights, self.weak_loss_weight)

    @property
    def strong(self) -> dict[str, float]:
        """The weights of the strong scores that count, by level."""
        weights = {STRONG_FRAME: self.strongframe_weight, STRONG_PATCH: self.strongpatch_weight}
        return _counting(weights, self.strong_loss_weight)

    @property
    def pearson(self) -> dict[str, float]:
        """The weights of the Pearson constraints that count, by the level whose vectors they are of."""
        frames, patches = self.cdcl_frame_weight, self.cdcl_patch_weight
        weights = {COARSE: self.cdcl_video_weight, STRONG_FRAME: frames, STRONG_PATCH: patches}
        return _counting(weights, self.cdcl_loss_weight)


def _counting(weights: Mapping[str, float], total: float) -> dict[str, float]:
    """The weights that are not 0; none where that of all is."""
    return {level: weight for level, weight in weights.items() if weight and total}


def gate(cosine_VNT: Tensor, mask_VN: Tensor, temperature: float) -> Tensor:
    """How texts weigh the frames or patches of videos.

    Args:
        cosine_VNT: of N frames or patches of V videos with T texts.
        mask_VN: 0 for what is left out, 1 for the rest.
        temperature: of the softmax over N.

    Returns:
        [V, N, T], summing to 1 over N, or all 0 where everything is left out.
    """
    return masked_softmax(cosine_VNT / temperature, mask_VN.unsqueeze(2), dim=1)


class CoarseToFine(Scorer):
    """The coarse score u(t) M v, and four finer ones.

    With u(t) the unit text, v the unit video, r, h and p unit frames before and after the head and unit patches:

    - weak frame: sum_f a_f (w L)_f, a_f = u(t) r_f, w = softmax_f(a / 0.01);
    - strong frame: the cosine of u(t) with sum_f w_f h_f, w = softmax_f(a / 0.1);
    - weak patch: sum_j q_j b_j, b_j = u(t) p_j, q = softmax_j(b / 0.01);
    - strong patch: the cosine of u(t) with sum_j q_j p_j.

    In training, every video is gated once for the strong scores: by its own caption, through constant weights.

    Args:
        options: of the method.
        width: E, of the vectors.
        frames: F, class tokens that leave the vision tower.
    """

    wants = frozenset({"patches"})
    video_names = ("frames", "mask", "patch_mask", "patches", "temporal")
    levels = (COARSE, WEAK_FRAME, STRONG_FRAME, WEAK_PATCH, STRONG_PATCH)
    cosine = False
    fine_takes_coarse = True

    def __init__(self, options: EERCFOptions, width: int, frames: int) -> None:
        super().__init__()
        self.options = options
        self.text_matrix = nn.Parameter(torch.eye(width))
        self.frame_matrix = nn.Parameter(torch.eye(frames))

    def video_side(self, video: VideoFeatures) -> Side:
        """The pooled feature; unit frames before and after the head [B, F, E], unit patches [B, P, E], and masks."""
        assert video.patches is not None
        assert video.patch_mask is not None
        mask_BF, mask_BP = video.mask > 0, video.patch_mask
        if self.options.gate_mask == "released":
            mask_BF, mask_BP = torch.ones_like(mask_BF), torch.ones_like(mask_BP)
        frames_BFE = F.normalize(video.frames, dim=-1)
        fine = {
            "frames": frames_BFE,
            "mask": mask_BF.to(frames_BFE.dtype),
            "patch_mask": mask_BP.to(frames_BFE.dtype),
            "patches": F.normalize(video.patches, dim=-1),
            "temporal": F.normalize(video.related, dim=-1),
        }
        return Side(coarse=video.pooled, fine=fine)

    def coarse_text(self, coarse_TE: Tensor) -> Tensor:
        """u(t) M."""
        return F.normalize(coarse_TE, dim=-1) @ self.text_matrix

    def coarse(self, text_TE: Tensor, video_VE: Tensor) -> Tensor:
        """u(t) M v; M meets the smaller side, because one video meets many texts where the last stage ranks."""
        if len(video_VE) >= len(text_TE):
            return super().coarse(text_TE, video_VE)
        return F.normalize(text_TE, dim=-1) @ (self.text_matrix @ self.coarse_video(video_VE).T)

    def fine(self, text: Side, video: Side, level: str | None) -> Tensor:
        """Scores [T, V] of a level, or the mix that ranks in the last stage."""
        return self._mixed(text, video, RANKING if level is None else {level: 1.0})

    def _mixed(self, text: Side, video: Side, weights: Mapping[str, float]) -> Tensor:
        """The sum [T, V] of scores in their test form, by their weights."""
        frames, patches = video.fine["frames"].shape[1], video.fine["patches"].shape[1]
        of_a_pair = text.coarse.shape[1] + frames + patches  # a gated vector, and the weights
        return in_blocks(lambda texts, videos: self._block(texts, videos, weights).T, text, video, of_a_pair)

    def _block(self, text: Side, video: Side, weights: Mapping[str, float]) -> Tensor:
        """That of one block, [V, T]."""
        text_TE, fine = F.normalize(text.coarse, dim=-1), video.fine
        scores_VT: dict[str, Tensor] = {}
        if COARSE in weights:
            scores_VT[COARSE] = self.coarse(text.coarse, video.coarse).T
        if WEAK_FRAME in weights or STRONG_FRAME in weights:
            cosine_VFT = fine["frames"] @ text_TE.T
            if WEAK_FRAME in weights:
                scores_VT[WEAK_FRAME] = self._weak_frame(cosine_VFT, fine["mask"])
            if STRONG_FRAME in weights:
                gate_VFT = gate(cosine_VFT, fine["mask"], STRONG_TEMPERATURE)
                scores_VT[STRONG_FRAME] = _strong(gate_VFT, fine["temporal"], text_TE)
        if WEAK_PATCH in weights or STRONG_PATCH in weights:
            cosine_VPT = fine["patches"] @ text_TE.T
            gate_VPT = gate(cosine_VPT, fine["patch_mask"], WEAK_TEMPERATURE)
            if WEAK_PATCH in weights:
                scores_VT[WEAK_PATCH] = (gate_VPT * cosine_VPT).sum(dim=1)
            if STRONG_PATCH in weights:
                scores_VT[STRONG_PATCH] = _strong(gate_VPT, fine["patches"], text_TE)
        total_VT = text_TE.new_zeros(len(video), len(text))
        for level, weight in weights.items():
            total_VT = total_VT + weight * scores_VT[level]
        return total_VT

    def _weak_frame(self, cosine_VFT: Tensor, mask_VF: Tensor) -> Tensor:
        """sum_f a_f (w L)_f, [V, T]."""
        gate_VFT = gate(cosine_VFT, mask_VF, WEAK_TEMPERATURE)
        return (self.frame_matrix.T @ gate_VFT * cosine_VFT * mask_VF.unsqueeze(2)).sum(dim=1)

    def columns(self, text: Side, video: Side, first: int) -> dict[str, Tensor]:
        """The training form, without what has no weight.

        Returns:
            ``weak`` and ``strong``, the mixed scores [b, B] with every text, and by their level the vectors [b, E] that
            the Pearson constraints compare with their own captions.
        """
        o, text_BE = self.options, F.normalize(text.coarse, dim=-1)
        own_bE = text_BE[first : first + len(video)]
        vectors = {
            level: _gated_by_own(own_bE, video, level)
            for level in (STRONG_FRAME, STRONG_PATCH)
            if level in o.strong | o.pearson
        }
        strong_bB = text_BE.new_zeros(len(video), len(text))
        for level, weight in o.strong.items():
            strong_bB = strong_bB + weight * vectors[level] @ text_BE.T
        if COARSE in o.pearson:
            vectors[COARSE] = F.normalize(video.coarse, dim=-1)
        constrained = {level: vectors[level] for level in o.pearson}
        return {"weak": self._mixed(text, video, o.weak).T, "strong": strong_bB, **constrained}

    def loss(self, text: Side, columns: Mapping[str, Tensor], scale: Tensor) -> Tensor:
        """Contrastive losses of both mixed scores, and Pearson constraints.

        Raises:
            UsageError: a constraint on a batch of one pair.
        """
        o, text_BE = self.options, F.normalize(text.coarse, dim=-1)
        total = o.weak_loss_weight * contrastive_loss(scale * columns["weak"].T)
        total = total + o.strong_loss_weight * contrastive_loss(scale * columns["strong"].T)
        for level, weight in o.pearson.items():
            total = total + o.cdcl_loss_weight * weight * pearson(text_BE, columns[level])
        return total

    def text_macs(self) -> int:
        """u(t) M."""
        return self.text_matrix.numel()

    def fine_macs(self, text: Side, video: Side) -> int:
        """Both frame scores and the weak patch score; the coarse score is known by then."""
        (frames, width), patches = video.fine["frames"].shape[1:], video.fine["patches"].shape[1]
        weak_frame = frames * width + frames**2 + frames
        strong_frame = frames * width + 2 * width
        return weak_frame + strong_frame + patches * (width + 1)


def _strong(gate_VNT: Tensor, values_VNE: Tensor, text_TE: Tensor) -> Tensor:
    """The cosine [V, T] of texts with the values that they weigh."""
    gated_VTE = gate_VNT.transpose(1, 2) @ values_VNE
    length_VT: Tensor = gated_VTE.norm(dim=-1).clamp(min=EPS)
    return (gated_VTE * text_TE).sum(dim=-1) / length_VT


def _gated_by_own(own_bE: Tensor, video: Side, level: str) -> Tensor:
    """The unit vector [b, E] of every video's frames or patches, which its own caption weighs by constant weights."""
    keys, values, mask, temperature = {
        STRONG_FRAME: ("frames", "temporal", "mask", STRONG_TEMPERATURE),
        STRONG_PATCH: ("patches", "patches", "patch_mask", WEAK_TEMPERATURE),
    }[level]
    with torch.no_grad():
        cosine_bN1 = video.fine[keys] @ own_bE.unsqueeze(2)
        gate_bN1 = gate(cosine_bN1, video.fine[mask], temperature)
    return F.normalize((gate_bN1.transpose(1, 2) @ video.fine[values]).squeeze(1), dim=-1)


def pearson(text_BE: Tensor, vector_BE: Tensor) -> Tensor:
    """0.14 sum_d (c_d - 1)^2, where c_d is the correlation of feature d over the batch.

    As released, deviations are of B - 1 and the mean is over B, so that the best c_d is (B - 1) / B.

    Raises:
        UsageError: a batch of one pair, which has no deviation.
    """
    if len(text_BE) < 2:
        problem = "the Pearson constraints need two pairs in a batch: give a larger one, or cdcl_loss_weight=0"
        raise UsageError(f"eercf: {problem}", code="scorer.batch", pairs=len(text_BE))
    text_BE, vector_BE = ((x - x.mean(dim=0)) / x.std(dim=0) for x in (text_BE, vector_BE))
    total: Tensor = CORRELATION * ((text_BE * vector_BE).mean(dim=0) - 1).square().sum()
    return total


class EERCF(ScoredMethod[EERCFOptions]):
    """EERCF over the plain encoder, or over that of a token reducer."""

    card = MethodCard(
        summary="EERCF: one vector each ranks, then frames and patches rank the best again",
        paper="EERCF (arXiv 2401.00701), and its released code",
        group="retrieval stage",
        recipe="eercf",
        tuning="full",
        identity={"depth": 0, "head": "meanP"},
        by_default=False,
        dead=UNUSED_POSITIONS,
    )
    Options = EERCFOptions

    def new_scorer(self) -> Scorer:
        """The scorer for as many frames as class tokens leave the tower."""
        o = self.options
        for name in _WEIGHTS:
            require_range("eercf", name, getattr(o, name), 0)
        if not (o.weak or o.strong or o.pearson):
            raise option_error(
                "eercf", "weak_loss_weight", "leaves nothing to learn from: give a term of the loss a weight"
            )
        return CoarseToFine(o, self.arch.embed_dim, self.class_tokens)

    @classmethod
    def from_released(cls, key: str, tensor: Tensor) -> tuple[str, Tensor]:
        """The released names of both matrices and of CLIP4Clip's head."""
        return _RELEASED.get(key) or SequenceTransformer.from_released(key), tensor

    @classmethod
    def released_options(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The head."""
        return {"head": "seqTransf" if any(key.startswith("head.") for key in state) else "meanP"}

    def fit_released(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as they are; UsageError where the matrix of frames is for another number of them."""
        matrix, frames = state.get("scorer.frame_matrix"), self.class_tokens
        if matrix is not None and matrix.ndim == 2 and matrix.shape != (frames, frames):
            problem = f"the checkpoint was trained with {len(matrix)} frames, and {frames} leave this encoder"
            raise UsageError(
                f"eercf: {problem}: give frames={len(matrix)}, or the reducer that it was trained with",
                code="weights.shape",
                key="scorer.frame_matrix",
                frames=len(matrix),
                needed=frames,
            )
        return state
