"""The protocol that a checkpoint is scored under."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from errors import raises

from tvrbench.harness.config.protocol import load_protocol
from tvrbench.harness.models.backbone.architecture import PRESETS, Architecture
from tvrbench.harness.runs.eval_checkpoint import EvalCheckpoint, protocol_for

pytestmark = pytest.mark.unit

SMALL = replace(PRESETS["ViT-B-32"], vision_layers=3)


def scored(arch: Architecture, base: Any = None) -> EvalCheckpoint:
    unread: dict[str, Any] = {"tuned_on": None, "options": {}, "frames": 12, "selection": "last"}
    return EvalCheckpoint(
        path=Path("x.safetensors"), method="lora", format="tvrbench", sha256="a" * 64, base=base, arch=arch, **unread
    )


@pytest.mark.parametrize(
    ("base", "weights", "backbone"), [(None, "standin", None), (object(), None, None)], ids=["tuned alone", "whole"]
)
def test_a_small_model_of_ones_own_videos_is_scored_as_it_was_trained(
    base: Any, weights: str | None, backbone: str | None
) -> None:
    """A folder's protocol names a backbone for OpenAI's weights alone."""
    found = protocol_for(scored(SMALL, base), load_protocol("folder/uniform"), None, weights)
    assert (found.name, found.backbone) == ("folder/uniform", backbone)


def test_tuned_parameters_of_a_small_model_need_its_weights() -> None:
    with raises("checkpoint.base-weights"):
        protocol_for(scored(SMALL), load_protocol("folder/uniform"), None, None)


def test_a_known_backbone_names_the_protocol() -> None:
    found = protocol_for(scored(PRESETS["ViT-B-16"]), load_protocol("folder/uniform"), None, None)
    assert (found.name, found.backbone) == ("folder/uniform@ViT-B-16", "ViT-B-16")
