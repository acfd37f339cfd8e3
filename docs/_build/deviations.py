"""Where released code and this harness differ: what it does, what ours does by default, and what restores it.

``docs/deviations.md`` is made from this list; a test holds each switch against the options that exist.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TEMPME = "TempMe"
CLIP4CLIP = "CLIP4Clip"
CENTERCLIP = "CenterCLIP"
VIDTOME = "VidToMe"
ALL = f"{TEMPME}, {CLIP4CLIP}, {CENTERCLIP}"


@dataclass(frozen=True, kw_only=True)
class MethodOption:
    """``--set key=value`` on the command line, a keyword of ``load_model``."""

    method: str
    key: str
    value: Any

    def __str__(self) -> str:
        return f"`--methods {self.method} --set {self.key}={self.value}`"


@dataclass(frozen=True, kw_only=True)
class RecipeField:
    """A field of ``Recipe``, given to ``load_recipe`` or as a protocol's ``recipe_overrides``; ``value`` in words."""

    field: str
    value: str

    def __str__(self) -> str:
        return f'`load_recipe(name, {{"{self.field}": {self.value}}})`'


@dataclass(frozen=True, kw_only=True)
class RunProtocol:
    """Another protocol."""

    name: str

    def __str__(self) -> str:
        return f"`tvrbench run {self.name}`"


@dataclass(frozen=True, kw_only=True)
class RunOption:
    """An option of ``tvrbench run`` that goes with any protocol."""

    option: str
    value: str

    def __str__(self) -> str:
        return f"`tvrbench run PROTOCOL --{self.option} {self.value}`"


@dataclass(frozen=True, kw_only=True)
class TieRule:
    """The tie rule of ``retrieval_metrics``."""

    ties: str

    def __str__(self) -> str:
        return f'`retrieval_metrics(sim, ties="{self.ties}")`'


Switch = MethodOption | RecipeField | RunProtocol | RunOption | TieRule


@dataclass(frozen=True, kw_only=True)
class Deviation:
    """One difference.

    Attributes:
        area: heading it stands under.
        whose: the released code.
        theirs: what it does.
        ours: what happens here by default.
        switch: what restores theirs; None: nothing does.
        because: why nothing does, or what the switch leaves out.
        effect: the measured effect and where it was measured; None: not measured.
        source: where the definition comes from.
    """

    area: str
    whose: str
    theirs: str
    ours: str
    switch: Switch | None = None
    because: str | None = None
    effect: str | None = None
    source: str

    def __post_init__(self) -> None:
        if self.switch is None and not self.because:
            raise ValueError(f"deviation {self.theirs!r}: no switch, so it must say why")


TRAINING, COUNTING, REDUCTION, DATA, RANKING = "Training", "Counting", "Reducing tokens", "Videos", "Ranking"

DEVIATIONS: tuple[Deviation, ...] = (
    Deviation(
        area=TRAINING,
        whose=f"{CLIP4CLIP}, {CENTERCLIP}",
        theirs="holds convolution, linear and attention weights in float16 without a master copy",
        ours="float32 weights",
        switch=RunProtocol(name="msrvtt-1ka-9k/published-float16"),
        source="released configurations; arXiv 2104.08860, arXiv 2205.00823",
    ),
    Deviation(
        area=TRAINING,
        whose=ALL,
        theirs="on W devices keeps the local slice of the gathered gradient alone: the exact gradient divided by W, "
        "so that clipping at 1 acts like clipping at W",
        ours="the exact gradient, clipped at 1",
        switch=RecipeField(field="clip_norm_scale", value="W"),
        because="restores the bound; Adam's steps do not depend on the gradient's scale otherwise, but for its epsilon",
        source="released training loops",
    ),
    Deviation(
        area=TRAINING,
        whose=f"{TEMPME}, {CLIP4CLIP}",
        theirs="reports the checkpoint that scores best on the test set (TempMe looks every 150 steps)",
        ours="the last checkpoint, and no run sees the test set before it is finished",
        switch=RunOption(option="selection", value="best-on-test"),
        because="looks after every epoch, or five times where a recipe counts steps; a number chosen on the test set "
        "is no test, so records hold the last checkpoint's beside it, and tables flag it and compare it with nothing",
        source="released training loops",
    ),
    Deviation(
        area=TRAINING,
        whose=TEMPME,
        theirs="trains under torch's detect_anomaly, which slows every step",
        ours="without it",
        because="it changes no number but time, and would distort ours; the published training times include it",
        source="released training loop",
    ),
    Deviation(
        area=TRAINING,
        whose=ALL,
        theirs="trains with a sampler, augmentation, optimizer and rate of its own",
        ours="in `uniform` protocols one recipe for all and the same factors of each tuning's rate, chosen on held-out "
        "training videos; in `published` protocols each paper's own",
        switch=RunProtocol(name="msrvtt-1ka-9k/published"),
        source="released configurations",
    ),
    Deviation(
        area=TRAINING,
        whose=CENTERCLIP,
        theirs="trains under float16 autocast",
        ours="the same on a GPU under its published recipe; float32 on a CPU, whatever the recipe says",
        because="float16 autocast is for GPUs",
        source="released configuration; arXiv 2205.00823",
    ),
    Deviation(
        area=TRAINING,
        whose=TEMPME,
        theirs="comes without code for full fine-tuning, which the paper reports",
        ours="trains it at a rate of our choice (see docs/protocols.md)",
        because="there is nothing to restore",
        source="arXiv 2409.01156, Table 5",
    ),
    Deviation(
        area=REDUCTION,
        whose=CENTERCLIP,
        theirs="takes distances from torch.cdist's matrix product, which are not zero on the diagonal and flip ties in "
        "clusters of two",
        ours="symmetric, accurate distances, zero on the diagonal",
        switch=MethodOption(method="centerclip", key="exact_distance", value=False),
        effect="up to 5e-3 on the diagonal (torch 2, float32, more than 25 tokens)",
        source="arXiv 2205.00823, section 3.2; released clustering",
    ),
    Deviation(
        area=REDUCTION,
        whose=CENTERCLIP,
        theirs="counts a segment as valid if its last frame is",
        ours="a segment is valid if any of its frames is",
        switch=MethodOption(method="centerclip", key="segment_mask", value="last"),
        source="released code; arXiv 2205.00823 does not say",
    ),
    Deviation(
        area=REDUCTION,
        whose=CENTERCLIP,
        theirs="stops k-medoids when the medoids of a chunk of 16 (B/32) or 4 (B/16) sequences stand still together",
        ours="each sequence stops for itself",
        because="a video's clusters would depend on which videos share its batch",
        source="released clustering",
    ),
    Deviation(
        area=REDUCTION,
        whose=CENTERCLIP,
        theirs="lets rounding decide between rows of unit length where k-medoids starts in spectral clustering",
        ours="the row that was longest before scaling; lengths within 1e-6 are ties, and ties go to the first token",
        because="the start is arbitrary there, so nothing defined would be restored",
        source="released clustering",
    ),
    Deviation(
        area=REDUCTION,
        whose=TEMPME,
        theirs="adds frame positions in a merge block only if the cross-clip merge removes any token",
        ours="wherever `frame_positions` is on",
        switch=MethodOption(method="tempme", key="frame_positions", value=False),
        because="the two agree in every released configuration; they differ where clip_ratio is 0",
        source="released code; arXiv 2409.01156, section 3",
    ),
    Deviation(
        area=REDUCTION,
        whose=TEMPME,
        theirs="is written for 50 or 197 tokens a frame, and crashes where r exceeds the tokens that can merge",
        ours="any patch grid; options that do not fit are refused by name",
        because="no released configuration differs",
        source="released code",
    ),
    Deviation(
        area=REDUCTION,
        whose=TEMPME,
        theirs="masks padded words in the text encoder besides the future",
        ours="the future alone",
        because="no feature differs: the end token, whose feature is taken, comes before all padding",
        effect="none (`tests/golden/test_tempme.py`)",
        source="released code",
    ),
    Deviation(
        area=REDUCTION,
        whose=VIDTOME,
        theirs="draws the target frame of each chunk, and the side of the global merge, at random, when it is used as "
        "well",
        ours="at random in training alone; at evaluation the third of every four frames, and the bank always receives",
        because="an evaluation that draws gives another number each time; this is an adaptation to CLIP in any case",
        source="arXiv 2312.10656, section 4; released code",
    ),
    Deviation(
        area=COUNTING,
        whose=CLIP4CLIP,
        theirs="projects every token that leaves the tower",
        ours="class tokens alone",
        because="the features are the same",
        effect="52.96 instead of 53.20 GMACs a video on ViT-B/32, 210.99 instead of 211.92 on ViT-B/16 (12 frames; "
        "fvcore)",
        source="released code, counted",
    ),
    Deviation(
        area=COUNTING,
        whose=ALL,
        theirs="projects all 32 words that leave the text tower",
        ours="the end token alone",
        because="the features are the same",
        effect="1.223 instead of 1.231 GMACs a caption (fvcore)",
        source="released code, counted",
    ),
    Deviation(
        area=COUNTING,
        whose=TEMPME,
        theirs="runs LoRA beside the weights it changes",
        ours="folds it into them for inference, exactly, and unfolds it for training",
        because="the features are the same up to rounding",
        effect="34.76 instead of 34.88 GMACs a video on ViT-B/32, 121.42 instead of 121.85 on ViT-B/16 (12 frames; "
        "fvcore)",
        source="released code, counted",
    ),
    Deviation(
        area=RANKING,
        whose=ALL,
        theirs="lists one rank for every candidate tied with the right one and divides by the longer list",
        ours="rank = 1 + better candidates + half of the ties, one rank a query; R@1 with ties shared stands beside it",
        because="the released rule divides by a number of queries that nobody asked; `optimistic` and `pessimistic` "
        "ranks can be had from `retrieval_metrics`",
        effect="none where no scores tie (`tests/golden/test_clip4clip_metrics.py`)",
        source="metric code that CLIP4Clip published and the others took over",
    ),
    Deviation(
        area=RANKING,
        whose=ALL,
        theirs="lets a query whose scores are NaN vanish from the average",
        ours="an error",
        because="no rank can be trusted then",
        source="the same metric code",
    ),
    Deviation(
        area=DATA,
        whose=CENTERCLIP,
        theirs="reads videos re-encoded at 3 frames a second with a short side of 224",
        ours="reads the original videos; the formula that picks frames is the same",
        because="nothing here re-encodes; a folder of videos that you re-encoded can be given with `--data`",
        source="released instructions",
    ),
)
