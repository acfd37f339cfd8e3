"""What a record says of its data: each split as used and as declared, and whether it is the published one."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import Clips, tiny_context

from tvrbench.harness.data.types import VideoFault
from tvrbench.harness.runs.config import RunConfig, RunKey
from tvrbench.harness.runs.context import check_videos

pytestmark = pytest.mark.unit


def test_a_run_without_some_videos_records_the_whole_splits_too(
    tiny_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny_context(tiny_weights)
    gone = (whole.test.video_ids[0], whole.train.video_ids[0], whole.train.video_ids[1])
    faults = [VideoFault(video_id=name, path=Path(name), kind="missing", detail="gone") for name in gone]
    monkeypatch.setattr(Clips, "check_videos", lambda *_, **__: faults)
    part = check_videos(whole, skip_bad=True, log=lambda _: None)
    config = RunConfig(method="lora", seed=0)
    one, other = (RunKey.of(context, config).head["data"] for context in (whole, part))
    for kind, texts, used in (("test", "captions", "split_fingerprint"), ("train", "pairs", "train_fingerprint")):
        for key in (f"{kind}_videos", f"{kind}_{texts}"):
            assert one[key] == one[f"{key}_declared"] == other[f"{key}_declared"] > other[key]
        assert one[used] == one[f"{kind}_fingerprint_declared"] == other[f"{kind}_fingerprint_declared"] != other[used]
        assert other[f"{kind}_split_published"] is None  # the data set knows no fingerprint


def test_a_split_is_compared_with_the_published_one(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = tiny_context(tiny_weights)
    known = {context.train.name: context.train.fingerprint, context.test.name: "e" * 64}
    monkeypatch.setattr(Clips, "expected_fingerprints", known, raising=False)
    data = RunKey.of(context, RunConfig(method="lora", seed=0)).head["data"]
    assert (data["train_split_published"], data["test_split_published"]) == (True, False)


@pytest.mark.parametrize(("given", "rank"), [({}, 8), ({"rank": 4}, 4)])
def test_a_record_tells_which_options_were_given(tiny_weights: Path, given: dict[str, int], rank: int) -> None:
    config = RunConfig(method="lora", seed=0, options=given)
    method = RunKey.of(tiny_context(tiny_weights), config).head["method"]
    assert (method["given"], method["options"]["rank"]) == (given, rank)
