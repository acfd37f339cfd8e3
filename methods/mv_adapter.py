"""MV-Adapter: adapters that relate frames and words (CVPR 2024, arXiv 2301.07868), written from their definition."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.mv_adapter import MvAdapterSettings, fitting
from tvrbench.harness.models.spec import MethodCard, MethodOptions

_RELEASED = re.compile(r"clip\.((?:visual\.)?transformer\.resblocks\.\d+)\.mlp\.adapter\.(.+)")
_NAMES = {
    "positional_embedding": "positions",
    "cc": "token",
    "ln_pre": "norm",
    "md_proj": "rows",
    "conv_rf_c.g": "calibration.of_token",
    "conv_rf_c.a": "calibration.hidden",
    "conv_rf_c.b": "calibration.out",
}
_RELEASED_BIAS = re.compile(r"(clip\.(?:visual\.)?transformer\.resblocks\.\d+)\.((?:attn|mlp)\.\w+)\.bias")
_BIASES = {  # of CLIP, as trained: our name and which part of it
    "attn.ln": "ln_1.bias.0",
    "attn.q_proj": "attn.in_proj_bias.0",
    "attn.k_proj": "attn.in_proj_bias.1",
    "attn.v_proj": "attn.in_proj_bias.2",
    "mlp.ln": "ln_2.bias.0",
}
_TRAINED = "trained."  # before such a part until it is joined, so that a pre-trained one beside it stays apart


@dataclass(frozen=True, kw_only=True)
class MvAdapterOptions(MvAdapterSettings, MethodOptions):
    """MV-Adapter's settings.

    Attributes:
        width: of the bottleneck.
        heads: of the transformer block in it.
        factor: numbers in each factor that scales the down-projections of both encoders.
        tied_vision, tied_text: the blocks (from 0) that such a factor scales, by default the last two of each encoder:
            the first of each share one, and so on.
        calibration: inner width of the calibration of frames.
        words: ids of a caption, each of which has a learned position; those of the protocol.
        biases: train all biases of CLIP too, as the released code does at a rate of their own (recipe ``mv_adapter``).
    """


class MvAdapter(Method[MvAdapterOptions]):
    """MV-Adapter on the dense frame-by-frame encoder."""

    card = MethodCard(
        summary="adapter-only: bottlenecks of 64 behind every MLP of both encoders that relate frames and words, meanP",
        paper="MV-Adapter (arXiv 2301.07868), section 3, and its released code where both differ",
        group="parameter-efficient",
        recipe="mv_adapter",
        tuning="mv-adapter",
        presets={"tiny": {"width": 16, "factor": 8}},
        by_default=False,
    )
    Options = MvAdapterOptions

    @classmethod
    def configure(cls, name: str, arch: Architecture, frames: int, given: dict[str, Any]) -> Method[Any]:
        """Like ``Method.configure``; which blocks are tied follows from the number of blocks."""
        method = super().configure(name, arch, frames, fitting(arch) | given)
        method.options.check(arch)
        return method

    @classmethod
    def from_released(cls, key: str, tensor: Tensor) -> tuple[str, Tensor]:
        """The released names of adapters, of the factors (``clip.prompt.N``), and of CLIP's trained biases."""
        if (match := _RELEASED_BIAS.fullmatch(key)) and match.group(2) in _BIASES:
            return f"{_TRAINED}{match.group(1)}.{_BIASES[match.group(2)]}", tensor
        if match := re.fullmatch(r"clip\.prompt\.(\d+)", key):
            return f"clip.factors.{match.group(1)}", tensor
        match = _RELEASED.fullmatch(key)
        if not match:
            return key, tensor
        block, rest = match.groups()
        for theirs, ours in _NAMES.items():
            if rest == theirs or rest.startswith(f"{theirs}."):
                rest = ours + rest.removeprefix(theirs)
                break
        return f"clip.{block}.adapter.{rest}", tensor

    def fit_released(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """CLIP's trained biases in the place of pre-trained ones; those of q, k and v are one here.

        Raises:
            UsageError: a trained bias that is no vector.
        """
        parts: dict[str, list[Tensor]] = {}
        for key in sorted(key for key in state if key.startswith(_TRAINED)):
            parts.setdefault(key.removeprefix(_TRAINED).rpartition(".")[0], []).append(state[key])
        for key, found in parts.items():
            if shapes := [list(part.shape) for part in found if part.ndim != 1]:
                problem = f"mv_adapter: the trained {key} has shape {shapes[0]}, not one axis: give the file as written"
                raise UsageError(problem, code="weights.shape", key=key)
        rest = {key: tensor for key, tensor in state.items() if not key.startswith(_TRAINED)}
        return rest | {key: torch.cat(found) for key, found in parts.items()}

    @classmethod
    def released_options(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Everything that shapes tell, all but the number of heads, and whether CLIP's biases were trained."""
        places = {
            "width": (r".*\.adapter\.down\.weight", 0),
            "factor": (r"clip\.factors\.0", 0),
            "calibration": (r".*\.calibration\.out\.weight", 1),
            "words": (r"clip\.transformer\..*\.adapter\.positions", 0),
        }
        found: dict[str, Any] = {"biases": True} if any(key.startswith(_TRAINED) for key in state) else {}
        for option, (pattern, axis) in places.items():
            shape = next((tensor.shape for key, tensor in state.items() if re.fullmatch(pattern, key)), ())
            if len(shape) > axis:
                found[option] = shape[axis]
        for option, tower in (("tied_vision", "visual."), ("tied_text", "")):
            name = rf"clip\.{re.escape(tower)}transformer\.resblocks\.(\d+)\.adapter\.rows\.weight"
            found[option] = tuple(sorted(int(match.group(1)) for key in state if (match := re.fullmatch(name, key))))
        return found
