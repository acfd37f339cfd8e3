"""VidToMe's local and global merges against the released code.

``randframe`` is one level of the local merge with the target frame it drew, ``two_set`` one global merge,
``compute_merge`` a sequence of chunks with one generator: it draws a target frame at every level and, from the second
chunk on, a number that decides which side is the source. Cases that align the decisions of a batch (the released code
does so for the two halves of classifier-free guidance) are left out: here a video never depends on its batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tvrbench.methods.ops.local_merge import global_match, local_match, match_frames, strides, two_set_match

pytestmark = pytest.mark.golden
FIXTURE = torch.load(Path(__file__).parents[1] / "fixtures" / "vidtome.pt", weights_only=True)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", FIXTURE["randframe"])
def test_one_level_of_the_local_merge(name: str) -> None:
    case = FIXTURE["randframe"][name]
    x, frames, loose = case["x"], case["F"], case["unm_pre"]
    patches = (x.shape[1] - loose) // frames
    stride = min(case["target_stride"], frames)
    merge = match_frames(
        x, frames, patches, case["ratio"], stride, case["randf"], loose=loose, average=case["mode"] == "mean"
    )
    close(merge(x), case["merged"])
    close(merge.unmerge(case["merged"]), case["unmerged"])


@pytest.mark.parametrize("name", FIXTURE["two_set"])
def test_global_merge(name: str) -> None:
    case = FIXTURE["two_set"][name]
    merge = two_set_match(case["x"], case["src_len"], case["ratio"], case["mode"] == "mean")
    close(merge(case["x"]), case["merged"])
    close(merge.unmerge(case["merged"])[:, : case["src_len"]], case["unmerged"])


def _chunk(x: Tensor, bank: Tensor | None, config: dict[str, Any], frames: int, draw: torch.Generator) -> Any:
    """One chunk [B, N, D]: the tokens that attend, what un-merging gives back, and the next bank."""
    targets = [int(torch.randint(0, step, (1,), generator=draw)) for step in strides(frames, config["target_stride"])]
    local = local_match(x, frames, config["local_merge_ratio"], config["target_stride"], targets)
    tokens = local(x)
    if bank is None:
        return tokens, local.unmerge(tokens), tokens
    bank_first = torch.rand(1, generator=draw).expand(len(x)) < config["global_rand"]
    merge = global_match(tokens, bank, config["global_merge_ratio"], bank_first)
    return merge.tokens, local.unmerge(merge.unmerge(merge.tokens)), merge.bank


@pytest.mark.parametrize("name", FIXTURE["compute_merge"])
def test_a_sequence_of_chunks(name: str) -> None:
    case = FIXTURE["compute_merge"][name]
    config, bank = case["config"], None
    draw = torch.Generator().manual_seed(config["seed"])
    for step in case["steps"]:
        frames = len(step["x"]) // config["batch_size"]
        x = step["x"].reshape(config["batch_size"], -1, step["x"].shape[-1])
        merged, unmerged, left = _chunk(x, bank, config, frames, draw)
        close(merged, step["merged"])
        close(unmerged.reshape(step["x"].shape), step["unmerged"])
        if config["merge_global"]:
            close(left, step["global_tokens"])
            bank = left
