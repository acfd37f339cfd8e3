"""Which patches of a clip are kept, and for how long each stands, against loops written from the definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tvrbench.methods.ops import Runs, changed, most_changed, patch_differences

pytestmark = pytest.mark.unit


def _clip(*shape: int) -> Tensor:
    return torch.randint(-64, 65, shape, generator=torch.Generator().manual_seed(0)) / 64


@pytest.mark.parametrize(("tubelet", "patch", "shape"), [(1, 4, (2, 6, 3, 12, 8)), (2, 3, (1, 8, 3, 6, 9))])
def test_differences_are_means_over_the_pixels_of_a_patch(tubelet: int, patch: int, shape: tuple[int, ...]) -> None:
    clip = _clip(*shape)
    B, T, _, h, w = shape
    found = patch_differences(clip, patch, tubelet).view(B, T // tubelet - 1, h // patch, w // patch)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in found.shape)):
        video, k, row, column = index.tolist()
        area = (slice(None), slice(row * patch, (row + 1) * patch), slice(column * patch, (column + 1) * patch))
        last = clip[video, tubelet * (k + 2) - 1][area]
        expected = (last - clip[video, tubelet * k][area]).abs().mean()
        torch.testing.assert_close(found[video, k, row, column], expected, rtol=0, atol=1e-6)


def test_a_margin_belongs_to_no_patch() -> None:
    clip = _clip(1, 3, 3, 8, 12)
    wider = torch.nn.functional.pad(clip, (0, 3, 0, 2), value=9.0)
    assert torch.equal(patch_differences(wider, 4), patch_differences(clip, 4))


def test_half_precision_pixels_are_compared_in_float32() -> None:
    clip = _clip(1, 4, 3, 32, 32)
    assert torch.equal(patch_differences(clip.half(), 16), patch_differences(clip, 16))


def test_tubelets_must_divide_the_frames() -> None:
    with pytest.raises(ValueError, match="tubelets"):
        patch_differences(_clip(1, 5, 3, 4, 4), 2, 2)


def test_a_difference_that_equals_the_threshold_is_no_change() -> None:
    difference = torch.tensor([0.25, 0.5, 0.75]).view(1, 1, 3)
    assert changed(difference, 0.5).keep_BTL.tolist() == [[[True, True, True], [False, False, True]]]
    assert changed(torch.zeros(1, 1, 2), -1.0).keep_BTL.all()


def test_slow_changes_add_up_unseen() -> None:
    """The comparison is with the frame before, not with the patch that stands for it."""
    fade = torch.linspace(0, 1, 16).view(1, 16, 1, 1, 1).expand(1, 16, 3, 4, 4)
    assert changed(patch_differences(fade, 4), 0.1).kept_S.tolist() == [1]


KEEP = torch.tensor([[1, 1, 1], [0, 1, 0], [0, 0, 1], [1, 0, 0]]).bool().unsqueeze(0)


def test_a_run_is_a_kept_patch_and_the_dropped_ones_after_it_at_its_place() -> None:
    runs = Runs(keep_BTL=KEEP)
    assert runs.head_BTL[0].tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 2], [3, 1, 2]]
    assert runs.length_BTL[0].tolist() == [[3, 1, 2], [0, 3, 0], [0, 0, 2], [1, 0, 0]]
    assert runs.representative.tolist() == [[0, 1, 2, 0, 4, 2, 0, 4, 8, 9, 4, 8]]
    assert runs.kept_S.tolist() == [6]
    assert runs.share_S.tolist() == [0.5]


@pytest.mark.parametrize(("frames", "patches"), [(1, 4), (2, 1), (7, 5)])
def test_runs_cover_every_patch_once(frames: int, patches: int) -> None:
    keep = torch.rand(6, frames, patches, generator=torch.Generator().manual_seed(1)) < 0.4
    keep[:, 0] = True
    runs = Runs(keep_BTL=keep)
    assert (runs.length_BTL.sum(dim=1) == frames).all()
    assert torch.equal(runs.length_BTL > 0, keep)
    held = torch.zeros(6, frames * patches, dtype=torch.long)
    held.scatter_add_(1, runs.representative, torch.ones_like(runs.representative))
    assert torch.equal(held.view_as(keep), runs.length_BTL)


@pytest.mark.parametrize("kept", [3, 5, 9])
def test_a_budget_keeps_the_first_frame_and_the_largest_changes(kept: int) -> None:
    difference = torch.tensor([[[0.1, 0.9, 0.3], [0.9, 0.3, 0.3]], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    keep = most_changed(difference, kept).keep_BTL
    assert keep.sum(dim=(1, 2)).tolist() == [kept, kept]
    # Of equal ones earlier frames come first, then lower places.
    order = ([(1, 1), (2, 0), (1, 2), (2, 1), (2, 2), (1, 0)], [(t, place) for t in (1, 2) for place in range(3)])
    for video, ranked in enumerate(order):
        assert keep[video, 0].all()
        assert sorted(map(tuple, keep[video, 1:].nonzero().tolist())) == sorted(
            (t - 1, place) for t, place in ranked[: kept - 3]
        )
