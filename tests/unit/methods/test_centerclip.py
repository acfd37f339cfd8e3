"""CenterCLIP's reducer and its controls: what they do to tokens, traces and masks, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises

from tvrbench.harness import load_model
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.backbone.architecture import Architecture, preset
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.tokens import TokenReducer, TokenStream
from tvrbench.methods.ops.segments import cluster_means

pytestmark = pytest.mark.unit
NAMES = ("centerclip", "token_sampling")


def reducer(name: str, arch: Architecture, frames: int = 12, **options: Any) -> TokenReducer:
    return method_class(name).configure(name, arch, frames, options).build_reducer()


def leaving(method: TokenReducer) -> list[tuple[int, int]]:
    return [block.leaving for block in method.plan()]


def entering(arch: Architecture, videos: int, frames: int = 12) -> TokenStream:
    """Random tokens before block 0, traced."""
    tokens = arch.patches + 1
    x = torch.randn(videos * frames, tokens, arch.vision_width, generator=torch.Generator().manual_seed(0))
    place = torch.arange(frames * tokens).view(frames, tokens)[:, 1:].reshape(1, -1)
    return TokenStream(x=x, classes=1, per_video=frames, origin=place.repeat(videos, 1))


def test_published_presets() -> None:
    small, large = preset("ViT-B-32"), preset("ViT-B-16")
    for name in NAMES:
        assert leaving(reducer(name, small)) == [(12, 50)] * 6 + [(4, 50)] * 6
        assert leaving(reducer(name, large)) == [(12, 197)] * 6 + [(4, 161)] * 6
    pooled = reducer("token_sampling", large, mode="pooling")
    assert leaving(pooled) == [(12, 197)] * 6 + [(4, 197)] * 6
    three = reducer("centerclip", small, schedule=((6, 3, 49),))
    assert leaving(three)[-1] == (3, 50)
    # 4 segments of 3 x 49 tokens; the distances are the product that counts.
    assert [block.overhead_macs for block in reducer("centerclip", small).plan()][6] == 4 * 147**2 * 768


def test_medoids_are_tokens_and_every_patch_knows_its_cluster(tiny_arch: Architecture) -> None:
    stream = entering(tiny_arch, 2)
    stages = ((2, 6, 20), (5, 2, 7))
    model = reducer("centerclip", tiny_arch, schedule=stages)
    for index, (_, segments, clusters) in zip((2, 5), stages, strict=True):
        before, stream = stream, model.before_block(stream, index)
        assert (stream.per_video, stream.classes, stream.patches) == (segments, 1, clusters)
        join = before.per_video // segments
        classes = before.x[:, 0].view(-1, join, 64).mean(dim=1)
        torch.testing.assert_close(stream.x[:, 0], classes)
        patches = before.x[:, 1:].reshape(len(stream.x), -1, 64)
        same = (stream.x[:, 1:].unsqueeze(2) == patches.unsqueeze(1)).all(dim=-1)
        assert same.any(dim=2).all()
        chosen = same.int().argmax(dim=2)
        assert (chosen.diff(dim=1) > 0).all()
        # The token a patch belongs to is the nearest of its segment.
        nearest = torch.cdist(patches.double(), stream.x[:, 1:].double()).argmin(dim=2)
        tokens = before.patches + 1
        flat = torch.arange(before.per_video * tokens).view(segments, join, tokens)[..., 1:].flatten(1)
        table = torch.full((2, before.per_video * tokens), -1)
        place = nearest.view(2, segments, -1) + 1 + torch.arange(segments).view(1, -1, 1) * (clusters + 1)
        table[:, flat.flatten()] = place.flatten(1)
        assert before.origin is not None
        assert stream.origin is not None
        assert torch.equal(stream.origin, table.gather(1, before.origin))


def test_as_many_clusters_as_patches_in_segments_of_one_frame_change_nothing(tiny_arch: Architecture) -> None:
    stream = entering(tiny_arch, 2)
    for name in NAMES:
        out = reducer(name, tiny_arch, schedule=((3, 12, 16),)).before_block(stream, 3)
        assert torch.equal(out.x, stream.x)
        assert out.origin is not None
        assert stream.origin is not None
        assert torch.equal(out.origin, stream.origin)


def test_means_of_clusters() -> None:
    x = torch.randn(2, 6, 4, requires_grad=True)
    assign = torch.tensor([[0, 1, 0, 2, 1, 1], [2, 2, 2, 2, 1, 0]])
    means = cluster_means(x, assign, 3)
    for s in range(2):
        for c in range(3):
            torch.testing.assert_close(means[s, c], x[s][assign[s] == c].mean(dim=0))
    means.sum().backward()
    assert x.grad is not None
    assert x.grad[1, 5].tolist() == [1.0] * 4
    torch.testing.assert_close(x.grad[1, 0], torch.full((4,), 0.25))


def test_cluster_embedding_starts_from_patch_positions_and_learns(
    tiny_weights: Path, tiny_batch: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"weights": tiny_weights, "schedule": ((6, 4, 5), (9, 2, 3)), "cluster_embedding": True}
    model = load_model("centerclip", aggregate="mean", **options)
    tables = {key: p for key, p in model.trainable().items() if key.startswith("reducer.")}
    assert {key: tuple(p.shape) for key, p in tables.items()} == {
        "reducer.cluster_embeddings.6": (5, 64),
        "reducer.cluster_embeddings.9": (3, 64),
    }
    for table in tables.values():
        assert torch.equal(table, model.clip.visual.positional_embedding[1 : 1 + len(table)])
    model.encode_video(tiny_batch["frames"], tiny_batch["mask"]).sum().backward()
    assert all(table.grad is not None and table.grad.abs().sum() > 0 for table in tables.values())


def test_masks_of_segments(tiny_arch: Architecture) -> None:
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 7:] = False
    for name in NAMES:
        schedule = ((3, 6, 8), (6, 3, 8))
        kept = reducer(name, tiny_arch, schedule=schedule).output_mask(mask)
        assert kept.tolist() == [[True, True, True], [True, True, False]]
        last = reducer(name, tiny_arch, schedule=schedule, segment_mask="last").output_mask(mask)
        assert last.tolist() == [[True, True, True], [True, False, False]]


def test_sparse_sampling_and_pooling(tiny_arch: Architecture) -> None:
    stream = entering(tiny_arch, 1)
    patches = stream.x[:, 1:].reshape(4, 48, 64)
    sampler = reducer("token_sampling", tiny_arch, schedule=((6, 4, 5),)).eval()
    out = sampler.before_block(stream, 6)
    middle = [4, 14, 24, 33, 43]  # int(48 / 5 / 2 + 48 / 5 x)
    assert torch.equal(out.x[:, 1:], patches[:, middle])
    assert out.origin is not None
    assert sorted(set(out.origin[0].tolist())) == [-1, *(6 * s + t for s in range(4) for t in range(1, 6))]
    sampler.train()
    torch.manual_seed(0)
    drawn = {
        tuple(
            (patches[0].unsqueeze(0) == sampler.before_block(stream, 6).x[0, 1:].unsqueeze(1))
            .all(2)
            .nonzero()[:, 1]
            .tolist()
        )
        for _ in range(20)
    }
    assert len(drawn) > 1
    assert all(9 * x <= ids[x] < 9 * (x + 1) for ids in drawn for x in range(5))
    everything = reducer("token_sampling", tiny_arch, schedule=((6, 4, 100),))
    assert leaving(everything)[-1] == (4, 49)
    assert torch.equal(everything.before_block(stream, 6).x[:, 1:], patches)
    pooled = reducer("token_sampling", tiny_arch, schedule=((6, 4, 5),), mode="pooling").before_block(stream, 6)
    torch.testing.assert_close(pooled.x, stream.x.view(4, 3, 17, 64).mean(dim=1))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "schedule",
    [
        ((12, 4, 4),),
        ((6, 4, 4), (6, 2, 4)),
        ((6, 5, 4),),
        ((6, 0, 4),),
        ((6, 4, 4), (7, 8, 4)),
        ((6, 4, 0),),
    ],
)
def test_a_schedule_that_does_not_fit(name: str, schedule: Any, tiny_arch: Architecture) -> None:
    with raises("option.value", method=name, option="schedule"):
        reducer(name, tiny_arch, schedule=schedule)


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_is_needed_and_typed(name: str, tiny_arch: Architecture) -> None:
    with raises("method.no-preset", method=name, missing=["schedule"]):
        reducer(name, tiny_arch)
    for option, value in {"schedule": ((6, 4),), "segment_mask": "first"}.items():
        with pytest.raises(UsageError, match=option):
            reducer(name, tiny_arch, **({"schedule": ((6, 4, 4),)} | {option: value}))


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"schedule": ((6, 4, 49),)}, "schedule"),
        ({"p": 0.0}, "p"),
        ({"metric": "l2"}, "metric"),
        ({"clustering": "kmeans"}, "clustering"),
        ({"aggregate": "max"}, "aggregate"),
        ({"schedule": ((6, 4, 17),), "cluster_embedding": True}, "schedule"),
    ],
)
def test_what_cannot_be_clustered_is_named(options: dict[str, Any], option: str, tiny_arch: Architecture) -> None:
    with pytest.raises(UsageError, match=option):
        reducer("centerclip", tiny_arch, **({"schedule": ((6, 4, 4),)} | options))
