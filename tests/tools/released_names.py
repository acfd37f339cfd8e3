"""Names that released code gives to what is trained."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tvrbench.harness.models.tuning import is_added


def released_biases(trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MV-Adapter's trained tensors with CLIP's biases under released names.

    There q, k and v are apart, and each norm is in the part that it comes before. Adapters keep our names.
    """
    out: dict[str, Tensor] = {}
    for name, tensor in trained.items():
        key = name if is_added(name) else name.replace(".ln_1.", ".attn.ln.").replace(".ln_2.", ".mlp.ln.")
        if key.endswith("attn.in_proj_bias") and not is_added(name):
            stem = key.removesuffix("in_proj_bias")
            out |= {f"{stem}{part}_proj.bias": third for part, third in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            out[key] = tensor
    return {key: tensor.detach() for key, tensor in out.items()}
