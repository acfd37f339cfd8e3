"""Every method at the frame counts of long videos, and what a method says of one that it cannot have."""

from __future__ import annotations

from typing import Any

import pytest
from errors import raises

from tvrbench.harness import load_model
from tvrbench.harness.core import registry
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.backbone.architecture import PRESETS, Architecture
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.tokens import TokenReducer
from tvrbench.harness.profiling.counts.flops import checked_macs

pytestmark = pytest.mark.unit
NAMES = registry.names("methods", "baselines")


def _reducer(name: str, arch: Architecture, frames: int, **options: Any) -> TokenReducer:
    cls = method_class(name)
    small = {} if arch in PRESETS.values() else cls.card.tiny
    return cls.configure(name, arch, frames, small | options).build_reducer()


@pytest.mark.parametrize("frames", [16, 32, 64])
@pytest.mark.parametrize("name", NAMES)
def test_long_videos_are_taken(name: str, frames: int, tiny_arch: Architecture) -> None:
    reducer = _reducer(name, tiny_arch, frames)
    assert reducer.frames == frames
    assert reducer.frames_encoded <= frames
    assert len(reducer.plan()) in (0, tiny_arch.vision_layers)


@pytest.mark.parametrize("frames", [7, 18, 60])
@pytest.mark.parametrize("name", NAMES)
def test_a_frame_count_is_taken_or_refused_with_a_remedy(name: str, frames: int, tiny_arch: Architecture) -> None:
    refusal = None
    try:
        _reducer(name, tiny_arch, frames)
    except UsageError as error:
        refusal = error
    if refusal is not None:
        assert refusal.code == "option.value"
        assert refusal.fields["option"] in method_class(name).Options.__dataclass_fields__
        assert "give" in str(refusal)


@pytest.mark.parametrize(
    ("name", "frames", "option", "remedy"),
    [
        ("tempme", 20, "merge_frames", {"merge_frames": (2, 2, 5)}),
        ("vidtome", 18, "chunk", {"chunk": 3}),
        ("centerclip", 18, "schedule", {"schedule": ((6, 6, 16),)}),
        ("token_sampling", 18, "schedule", {"schedule": ((6, 6, 16),)}),
    ],
)
def test_the_remedy_works(name: str, frames: int, option: str, remedy: dict[str, Any], tiny_arch: Architecture) -> None:
    with raises("option.value", option=option):
        _reducer(name, tiny_arch, frames)
    assert _reducer(name, tiny_arch, frames, **remedy).plan()


@pytest.mark.parametrize(("backbone", "clusters"), [("ViT-B-32", 49), ("ViT-B-16", 160)])
@pytest.mark.parametrize("name", ["centerclip", "token_sampling"])
def test_sixty_frames_have_the_published_segments(name: str, backbone: str, clusters: int) -> None:
    """B6-15 of CenterCLIP's Table 2, the default of that frame count alone; other options come before it."""
    for frames, segments in ((60, 15), (12, 4), (32, 4), (64, 4)):
        plan = _reducer(name, PRESETS[backbone], frames).plan()
        assert plan[-1].leaving == (segments, 1 + clusters)
    given = _reducer(name, PRESETS[backbone], 60, schedule=((6, 12, 49),))
    assert given.plan()[-1].leaving == (12, 50)


def test_multiply_adds_of_centerclip_at_sixty_frames() -> None:
    model = load_model("centerclip", backbone="ViT-B-32", weights="random:0", frames=60, device="meta")
    assert checked_macs(model)["video"] / 1e9 == pytest.approx(168.55, abs=0.01)
