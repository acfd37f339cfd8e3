"""The picks of the released loaders on 34 real clips (`tests/fixtures/samplers.json`: lengths, rates, indices)."""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path

import pytest

from tvrbench.datasets.sampling import frame_indices
from tvrbench.datasets.video import load_clip, probe
from tvrbench.harness.data.types import FrameSpec

pytestmark = pytest.mark.golden

REPO = Path(__file__).parents[2]
CLIPS = json.loads((REPO / "tests/fixtures/samplers.json").read_text())
DATA = REPO.parent / "shared/data"
KEYS = {"tempme": "tempme", "clip4clip": "clip4clip", "centerclip": "centerclip_test"}


def test_fixture_is_whole() -> None:
    assert len(CLIPS) == 34
    assert any(len(c["clip4clip"]) < 12 for c in CLIPS.values())
    assert any(len(c["clip4clip"]) == 12 for c in CLIPS.values())


@pytest.mark.parametrize("sampler", KEYS)
@pytest.mark.parametrize("clip", CLIPS)
def test_picks_what_the_released_loader_picks(clip: str, sampler: str) -> None:
    known = CLIPS[clip]
    assert frame_indices(sampler, known["n_frames"], known["avg_fps"]) == known[KEYS[sampler]]


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real clips in ../shared/data")
@pytest.mark.parametrize(
    ("clip", "sampler"), zip(CLIPS, cycle(KEYS), strict=False)
)  # the picks of all are tested above
def test_real_clips_have_the_known_length_rate_and_picks(clip: str, sampler: str) -> None:
    """Every clip by one sampler; what each picks of every clip is tested above."""
    (path,) = DATA.glob(f"*/videos/{clip}.mp4")
    known, info = CLIPS[clip], probe(path)
    assert info.n_frames == known["n_frames"]
    assert info.fps == pytest.approx(known["avg_fps"], abs=1e-9)
    _, mask, indices = load_clip(path, FrameSpec(sampler=sampler, size=32))
    assert indices == known[KEYS[sampler]]
    assert mask.sum() == len(known[KEYS[sampler]])
