"""Watching, replaying and comparing the choices of a reducer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from errors import raises

from tvrbench.harness.core.errors import CheckFailed
from tvrbench.harness.models.decisions import Margins, Recorder, Replay, agreement, watched
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.methods.centerclip import Clusters
from tvrbench.methods.ops import bipartite_match

pytestmark = pytest.mark.unit
Make = Callable[..., RetrievalModel]


def _metric(*angles: float) -> torch.Tensor:
    """One protected token, then patches at these angles (degrees) on the unit circle: [1, 1 + n, 2]."""
    radians = torch.deg2rad(torch.tensor([0.0, *angles]))
    return torch.stack([radians.cos(), radians.sin()], dim=-1).unsqueeze(0)


def test_the_margin_is_the_gap_between_the_last_merged_and_the_first_left() -> None:
    # destinations at 0, 90 and 200 degrees; sources 1 and 10 degrees from the nearest, and 40
    metric = _metric(0.0, 1.0, 90.0, 100.0, 200.0, 240.0)
    merge = bipartite_match(metric, 2)
    expected = torch.cos(torch.deg2rad(torch.tensor([10.0]))) - torch.cos(torch.deg2rad(torch.tensor([40.0])))
    torch.testing.assert_close(merge.margin_S, expected, rtol=0, atol=1e-6)
    assert merge.representative.tolist() == [[0, 1, 1, 3, 3, 5, 6]]

    margins = Margins()
    assert margins(merge) is merge
    margins(bipartite_match(metric, 3))  # nothing is left over, so there is no margin
    found = margins.summary()
    assert found is not None
    assert found["decisions"] == 1
    assert found["median"] == pytest.approx(float(expected), abs=1e-6)
    assert found["smallest"] == found["quantile_05"] == found["median"]
    assert found["share_below_1e-3"] == 0


def test_nothing_is_summarized_where_no_decision_has_a_margin() -> None:
    margins = Margins()
    margins(Clusters(assign=torch.tensor([[0, 0]]), medoids=torch.tensor([[0]])))
    assert margins.summary() is None


def test_agreement_counts_tokens_that_move_in_either() -> None:
    one = bipartite_match(_metric(0.0, 1.0, 90.0, 100.0, 200.0, 240.0), 2)  # 2 into 1, 4 into 3
    other = bipartite_match(_metric(0.0, 1.0, 90.0, 140.0, 200.0, 210.0), 2)  # 2 into 1, 6 into 5
    assert agreement([one], [one]) == 1.0
    assert agreement([one], [other]) == pytest.approx(1 / 3)
    assert agreement([], []) is None
    with raises("decisions.count", CheckFailed):
        agreement([one], [])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tempme", {}),
        ("tome", {}),
        ("centerclip", {}),
        ("vidtome", {"global_ratio": 0.8, "merge": "mean"}),
        ("vidtome", {"mode": "persistent"}),
        ("evit", {}),
        ("evit", {"fuse": False}),
    ],
)
def test_replayed_decisions_are_the_ones_carried_out(
    name: str, options: dict[str, Any], tiny_model: Make, tiny_batch: dict[str, Any]
) -> None:
    model = tiny_model(name, **options)
    frames, mask = tiny_batch["frames"], tiny_batch["mask"]
    turned = frames.flip(0)
    own, others = Recorder(), Recorder()
    with torch.no_grad():
        with watched(model.reducer, own):
            plain = model.encode_video(frames, mask)
        with watched(model.reducer, others):
            model.encode_video(turned, mask)
        with watched(model.reducer, Replay(own.made)):
            assert torch.equal(model.encode_video(frames, mask), plain)
        with watched(model.reducer, Replay(others.made)):
            assert not torch.allclose(model.encode_video(frames, mask), plain, atol=1e-4)
        share = agreement(own.made, others.made)
        assert share is not None
        assert 0 <= share < 1
        with raises("decisions.count", CheckFailed), watched(model.reducer, Replay(own.made[:-1])):
            model.encode_video(frames, mask)
    assert model.reducer.observer is None
