"""TESTA's matching, merging and encoders against what the released code computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tvrbench.harness import load_model
from tvrbench.harness.models.backbone.blocks import Attention, Block
from tvrbench.harness.models.decisions import Recorder, watched
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.tokens import TokenStream
from tvrbench.methods.ops import FrameMerge, Merge, bipartite_match, frame_match
from tvrbench.methods.testa import TemporalAttention

pytestmark = pytest.mark.golden
FRAME_CASES, PATCH_CASES = range(10), range(5)
SPACE: dict[str, dict[str, Any]] = {
    "patch_frame": {"patches_r": (3, 0, 3, 0), "frames_r": (0, 2, 0, 1)},
    "frame_patch": {"frames_r": (0, 0, 2, 0), "patches_r": (0, 2, 0, 5)},
    "frame": {"frames_r": (0, 2, 1, 1), "patches_r": 0},
    "patch": {"frames_r": 0, "patches_r": (3, 3, 2, 3)},
    "none": {"frames_r": 0, "patches_r": 0},
}
BEFORE = ("both", "frames", "patches", "none")
ENCODERS = [("space", name) for name in SPACE] + [("before", name) for name in BEFORE]


def close(got: Tensor, want: Tensor, bar: float = 1e-5) -> None:
    torch.testing.assert_close(got, want.float(), rtol=0, atol=bar)


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    data: dict[str, Any] = torch.load(shared / "golden" / "testa_rlt.pt", weights_only=True)
    return data


def by_frame(rows_first: Tensor | None) -> Tensor | None:
    """[B, R, T, D] -> [B, T, R, D]."""
    return None if rows_first is None else rows_first.transpose(1, 2)


def check_decision(merge: Merge, want: dict[str, Any]) -> None:
    """The same sources, in their order, into the same destinations."""
    assert torch.equal(merge.source_SR, 2 * want["source"].flatten(0, -2))
    into = merge.kept_SM.gather(1, merge.target_SR)
    assert torch.equal(into, 2 * want["destination"].flatten(0, -2) + 1)


def check_frames(case: dict[str, Any], merge: FrameMerge) -> None:
    x, size = merge(case["x"].transpose(1, 2), by_frame(case["size"]))
    close(x.transpose(1, 2), case["out_x"], 1e-6)
    close(size.transpose(1, 2), case["out_size"], 1e-6)
    if not case["r_effective"]:
        assert torch.equal(x.transpose(1, 2), case["x"])
        return
    best, partner = merge.cosine_SRAB.max(dim=3)
    close(best, case["row_best"], 1e-6)
    assert torch.equal(partner, case["row_partner"])
    assert torch.equal(merge.votes_SAB, case["votes"])
    assert torch.equal(merge.votes_SAB.max(dim=2).indices, case["partner"])
    close(merge.scores_SA, case["score"].gather(1, case["order"]), 1e-6)
    check_decision(merge, case)
    unmerged = merge.kept_SM[:, : case["unmerged"].shape[1]]
    assert torch.equal(unmerged, 2 * case["unmerged"])


@pytest.mark.parametrize("score", ["min", "mode"])
@pytest.mark.parametrize("number", FRAME_CASES)
def test_frames_merge_as_released(number: int, score: Any, golden: dict[str, Any]) -> None:
    case = golden["frame"][number]
    merge = frame_match(case["metric"], case["r"], case["protected"], score)
    check_frames(case, merge)
    margins = case["margins"]
    if margins:
        assert float(merge.margin_S.min()) >= 1e-3
        assert float(merge.margin_S.min()) <= margins["score_gap"] + 1e-6


@pytest.mark.parametrize("number", range(2))
def test_frames_without_a_margin(number: int, golden: dict[str, Any]) -> None:
    """Tied votes go to the first destination; a repeated score is the mode, and not the least."""
    case = golden["undecided"][number]
    check_frames(case, frame_match(case["metric"], case["r"], case["protected"], "mode"))
    if not case["score_is_row_minimum"]:
        scores = frame_match(case["metric"], case["r"], case["protected"], "min").scores_SA
        assert not torch.allclose(scores.sort().values, case["score"].sort().values, atol=1e-4)


@pytest.mark.parametrize("number", PATCH_CASES)
def test_patches_merge_as_released(number: int, golden: dict[str, Any]) -> None:
    case = golden["patch"][number]
    x, size, metric = (None if case[key] is None else case[key].flatten(0, 1) for key in ("x", "size", "metric"))
    assert x is not None
    assert metric is not None
    merge = bipartite_match(metric, case["r_effective"], case["protected"])
    merged, sizes = merge(x, size)
    close(merged.view(case["out_x"].shape), case["out_x"], 1e-6)
    close(sizes.view(case["out_size"].shape), case["out_size"], 1e-6)
    if case["r_effective"]:
        check_decision(merge, case)


def test_a_sequence_of_merges(golden: dict[str, Any]) -> None:
    """Frame, patch, frame, patch as the divided block carries them: no class token among frames, its size always 1."""
    case = golden["sequence"]
    T, B = case["frames"], len(case["x"])
    x = case["x"][:, 1:].unflatten(1, (-1, T)).transpose(1, 2)  # [B, T, L, D]
    classes, size = case["x"][:, :1], None
    for step in case["steps"]:
        metric = step["metric"].unflatten(0, (B, -1))
        if step["kind"] == "frame":
            merge: Merge = frame_match(metric, step["r"], 1)
            x, size = merge(x, size)
        else:
            T = x.shape[1]
            merge = bipartite_match(step["metric"], step["r"], 1)
            both = torch.cat([classes.unsqueeze(1).expand(-1, T, -1, -1), x], dim=2).flatten(0, 1)
            assert size is not None
            sizes = torch.cat([torch.ones_like(size[:, :, :1]), size], dim=2).flatten(0, 1)
            merged, sizes = merge(both, sizes)
            x, size = merged.view(B, T, *merged.shape[1:])[:, :, 1:], sizes.view(B, T, -1, 1)[:, :, 1:]
        check_decision(merge, step["decision"])
        assert x.shape[1:3] == (step["frames"], step["patches"])
        close(torch.cat([classes, x.transpose(1, 2).flatten(1, 2)], dim=1), step["x"], 1e-6)
        assert size is not None
        close(size, step["size"][:, :, 1:], 1e-6)


class Encoded:
    """A released state dict through the whole encoder, with all that can be compared."""

    def __init__(self, golden: dict[str, Any], folder: Path, layout: str, wrapper: str = "", **options: Any) -> None:
        clip = golden["clip"]
        state = {f"{wrapper}clip.{key}": tensor for key, tensor in clip["state_dict"].items()}
        torch.save(state, folder / "released.bin")
        frames = clip["config"]["frames"]
        checkpoint = folder / "released.bin"
        self.model: RetrievalModel = load_model(
            "testa", checkpoint=checkpoint, frames=frames, layout=layout, tuning="frozen", **options
        )
        self.video, self.mask = clip["video_int8"].float() / 32, torch.ones(2, frames, dtype=torch.bool)
        self.streams: list[TokenStream] = []
        after, recorder = self.model.reducer.after_block, Recorder()
        self.model.reducer.after_block = lambda s, i: self.streams.append(s) or after(s, i)  # type: ignore[method-assign, func-returns-value]
        with torch.no_grad(), watched(self.model.reducer, recorder):
            self.stream = self.model.video_tokens(self.video, self.mask, trace=True)
            self.frame_feat = self.model.clip.visual.class_features(self.stream)
        self.made = recorder.made


@pytest.mark.parametrize(("layout", "name"), ENCODERS)
def test_the_whole_encoder(layout: str, name: str, golden: dict[str, Any], tmp_path: Path) -> None:
    want = golden["clip"][layout][name]
    options = SPACE[name] if layout == "space" else {"frames_r": want["frames_r"], "patches_r": want["patch_r"]}
    got = Encoded(golden, tmp_path, layout, **options)
    close(got.frame_feat, want["frame_feat"])
    assert [list(block) for block in got.model.tokens] == want["tokens"]
    assert [[s.per_video, s.x.shape[1]] for s in got.streams] == want["tokens"]
    for stream, rows in zip(got.streams, want["class_rows"], strict=True):
        close(stream.x[:, 0].view(rows.shape), rows)
    assert len(got.made) == len(want["decisions"])
    for merge, decision in zip(got.made, want["decisions"], strict=True):
        assert isinstance(merge, Merge)
        check_decision(merge, decision)
    if "last_block_video0" in want:
        close(got.stream.x.unflatten(0, (2, -1))[0], want["last_block_video0"])
    if layout == "space":
        for stream, sizes in zip(got.streams[-len(want["sizes"]) or len(got.streams) :], want["sizes"], strict=True):
            assert stream.size is not None
            close(stream.size.view(sizes.shape), sizes)
        return
    F = want["tokens"][-1][0]
    member = torch.arange(F).expand(2, F) if got.stream.member is None else got.stream.member
    assert torch.equal(member, want["member"])
    weights = got.model.reducer.class_weights(got.stream, got.mask)
    assert torch.equal(weights.float(), want["frame_size"])
    if got.stream.size is not None:
        close(got.stream.size.view(want["size"].shape), want["size"])
    unit = torch.nn.functional.normalize(want["frame_feat"], dim=-1) * want["frame_size"].unsqueeze(-1)
    with torch.no_grad():
        close(
            got.model.encode_video(got.video, got.mask), unit.sum(dim=1) / want["frame_size"].sum(dim=1, keepdim=True)
        )


class DividedBlock:
    """A released divided space-time block, made of our temporal attention, frame match, attention and patch match.

    One class token a video, which every frame attends with; it is the mean of what they make of it.
    """

    def __init__(self, golden: dict[str, Any], index: int) -> None:
        config, D = golden["config"], golden["config"]["width"]
        names = {"temporal_norm1": "temporal.norm", "temporal_attn.qkv.": "temporal.attn.in_proj_", "norm1": "ln_1"}
        names |= {"temporal_attn.proj": "temporal.attn.out_proj", "temporal_fc": "temporal.out", "norm2": "ln_2"}
        names |= {"attn.qkv.": "attn.in_proj_", "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc"}
        names |= {"mlp.fc2": "mlp.c_proj"}
        self.block, self.temporal = Block(D, "gelu", config["heads"]), TemporalAttention(D)
        self.temporal.attn = Attention(D, config["heads"])
        whole, state = nn.ModuleDict({"temporal": self.temporal}), {}
        whole.update({key: getattr(self.block, key) for key in ("ln_1", "attn", "ln_2", "mlp")})
        for key, tensor in golden["state_dict"].items():
            if key.startswith(prefix := f"blocks.{index}."):
                own = key.removeprefix(prefix)
                old = next(name for name in names if own.startswith(name))
                state[names[old] + own.removeprefix(old)] = tensor.float()
        whole.load_state_dict(state)
        for norm in (self.temporal.norm, self.block.ln_1, self.block.ln_2):
            norm.eps = config["layer_norm_eps"]

    def __call__(self, c: Tensor, x: Tensor, size: Tensor, frames_r: int, patches_r: int) -> tuple[Any, ...]:
        """Class token [B, 1, D], patches and their sizes [B, T, P, ...] -> the same, and the merges."""
        B, D, made = len(x), x.shape[-1], []
        delta, metric = self.temporal(x, None)
        x = x + delta
        if frames_r:
            made.append(frame_match(metric, frames_r, 1))
            x, size = made[-1](x, size)
        frames = torch.cat([c.unsqueeze(1).expand(-1, x.shape[1], -1, -1), x], dim=2).flatten(0, 1)
        out = self.block.attend(frames)
        parts = out.delta.view(B, -1, *out.delta.shape[1:])
        c, x = c + parts[:, :, :1].mean(dim=1), x + parts[:, :, 1:]
        if patches_r:
            made.append(bipartite_match(out.keys.mean(dim=1), patches_r))
            tokens, sizes = (torch.cat([t[:, :, :1], t], dim=2).flatten(0, 1) for t in (x, size))
            merged, total = made[-1](tokens, sizes)
            x, size = merged[:, 1:].view(B, x.shape[1], -1, D), total[:, 1:].view(B, x.shape[1], -1, 1)
        return c + self.block.feed_forward(c), x + self.block.feed_forward(x), size, made


@pytest.mark.parametrize("name", ["none", "frame_and_patch", "patch", "frame"])
def test_temporal_attention_in_the_released_encoder(name: str, golden: dict[str, Any]) -> None:
    divided, want = golden["divided"], golden["divided"]["runs"][name]
    config, state = divided["config"], {key: tensor.float() for key, tensor in divided["state_dict"].items()}
    video = divided["video_int8"].float() / 32
    B, T = video.shape[:2]
    pairs = list(zip(want["r"][::2], want["r"][1::2], strict=True)) if name != "patch" else [(0, r) for r in want["r"]]
    embed = nn.functional.conv2d
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    patches = embed(video.flatten(0, 1), weight, bias, stride=config["patch"]).flatten(2).transpose(1, 2)
    x = patches.view(B, T, *patches.shape[1:]) + state["pos_embed"][:, 1:] + state["time_embed"].unsqueeze(2)
    c, size, made = (state["cls_token"] + state["pos_embed"][:, :1]).expand(B, -1, -1), torch.ones(*x.shape[:3], 1), []
    with torch.no_grad():
        for index, (frames_r, patches_r) in enumerate(pairs):
            c, x, size, merges = DividedBlock(divided, index)(c, x, size, frames_r, patches_r)
            made += merges
            assert list(x.shape[1:3]) == want["tokens"][index]
    tokens = torch.cat([c, x.transpose(1, 2).flatten(1, 2)], dim=1)
    out = nn.functional.layer_norm(
        tokens, tokens.shape[-1:], state["norm.weight"], state["norm.bias"], config["layer_norm_eps"]
    )
    close(out[: len(want["out"])], want["out"])
    close(out.mean(dim=1), want["pooled"])
    for merge, decision in zip(made, want["decisions"], strict=True):
        check_decision(merge, decision)
    if "size" in want:
        close(size, want["size"][:, :, 1:])


def test_a_wrapped_checkpoint_gives_the_same(golden: dict[str, Any], tmp_path: Path) -> None:
    want = golden["clip"]["before"]["both"]
    options = {"frames_r": want["frames_r"], "patches_r": want["patch_r"]}
    got = Encoded(golden, tmp_path, "before", "module.", **options)
    close(got.frame_feat, want["frame_feat"])


def test_wrong_readings_show(golden: dict[str, Any], tmp_path: Path) -> None:
    """Class tokens that vote or not, the other layout, and the plain mean in the place of the weighted one."""
    want = golden["clip"]["space"]["patch_frame"]
    both = golden["clip"]["before"]["both"]
    options = {"frames_r": both["frames_r"], "patches_r": both["patch_r"]}
    weighted, plain = (Encoded(golden, tmp_path, "before", **options, weighted=on) for on in (True, False))
    with torch.no_grad():
        features = [each.model.encode_video(each.video, each.mask) for each in (weighted, plain)]
    assert (features[0] - features[1]).abs().max() > 1e-3
    other = Encoded(golden, tmp_path, "before", **SPACE["patch_frame"])
    assert (other.frame_feat - want["frame_feat"]).abs().max() > 1e-2
