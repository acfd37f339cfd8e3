"""TempMe on the tiny seeded CLIP gives what it gave when it matched the released code to 1e-7 (test_tempme.py).

The released tensors are too large to ship; this keeps a clone without them from drifting unseen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tvrbench.harness import load_model

pytestmark = pytest.mark.golden
FIXTURE = Path(__file__).parents[1] / "fixtures" / "tempme_tiny.pt"
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {"r": 1, "clip_ratio": 0.30, "intra_ratio": 0.10},
    "inside_frames": {"r": 1, "merge_blocks": (), "merge_frames": ()},
    "early": {"r": 0, "clip_ratio": 0.40, "intra_ratio": 0.20, "merge_blocks": (0, 5), "merge_frames": (3, 4)},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_have_not_moved(variant: str, tiny_weights: Path, tiny_batch: dict[str, Any]) -> None:
    want = torch.load(FIXTURE, weights_only=True)
    model = load_model("tempme", weights=tiny_weights, **VARIANTS[variant])
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora.B" in name or name.startswith("reducer."):
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
        video = model.encode_video(tiny_batch["frames"], tiny_batch["mask"])
        text = model.encode_text(tiny_batch["ids"], tiny_batch["text_mask"])
    torch.testing.assert_close(video, want[variant]["video"], rtol=0, atol=1e-5)
    torch.testing.assert_close(text, want[variant]["text"], rtol=0, atol=1e-4)
