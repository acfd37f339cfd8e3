"""The share of patches that test videos keep: over all videos and processes, in the metrics and in a run's record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from still_patches import NAME, registered_still_patches
from tiny_run import record_of, run_in, tiny_context
from torch import Tensor

from tvrbench.harness.models import decisions
from tvrbench.harness.models.decisions import KeptPatches, Margins, Recorder, watched
from tvrbench.harness.models.tokens import TokenReducer
from tvrbench.harness.profiling.counts.content import mean_gmacs
from tvrbench.harness.profiling.plan import Job
from tvrbench.harness.runs import runner
from tvrbench.harness.runs.config import RunConfig, new_model

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Kept:
    """A decision that says what stays."""

    kept_S: Tensor
    share_S: Tensor

    @property
    def representative(self) -> Tensor:
        return torch.zeros(len(self.kept_S), 1, dtype=torch.long)


@pytest.fixture
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with registered_still_patches(tmp_path_factory.mktemp("plugin")):
        yield


def _decisions() -> list[Kept]:
    numbers = [[16, 96, 192], [96]]
    return [Kept(torch.tensor(each), torch.tensor(each) / 192) for each in numbers]


def test_counts_and_quantiles_are_over_videos() -> None:
    kept = KeptPatches()
    for decision in _decisions():
        assert kept(decision) is decision
    assert kept.counts() == {16: 1, 96: 2, 192: 1}
    found = kept.summary()
    assert found is not None
    assert list(found) == ["mean", "quantile_05", "median", "quantile_95", "min", "max"]
    assert found["mean"] == pytest.approx((16 + 96 + 96 + 192) / 4 / 192)
    assert (found["median"], found["min"], found["max"]) == pytest.approx((0.5, 16 / 192, 1.0))
    assert found["min"] < found["quantile_05"] < found["median"] < found["quantile_95"] < found["max"]


def test_the_videos_of_all_processes_count(monkeypatch: pytest.MonkeyPatch) -> None:
    other = {torch.long: torch.tensor([192, 192]), torch.float32: torch.tensor([1.0, 1.0])}
    monkeypatch.setattr(decisions, "gather_shares", lambda own: torch.cat([own, other[own.dtype]]))
    kept, nothing = KeptPatches(), KeptPatches()
    kept(_decisions()[0])
    assert kept.counts() == {16: 1, 96: 1, 192: 3}
    assert (kept.summary() or {})["mean"] == pytest.approx((16 + 96 + 3 * 192) / 5 / 192)
    assert nothing.counts() == {192: 2}  # a process without a batch


def test_other_decisions_say_nothing() -> None:
    kept = KeptPatches()
    kept(type("Merge", (), {"representative": torch.zeros(1, 4)})())
    assert kept.counts() == {}
    assert kept.summary() is None


def test_several_observers_hand_a_decision_on(tiny_arch: object) -> None:
    reducer = TokenReducer(tiny_arch, 12)  # type: ignore[arg-type]
    one, other = _decisions()
    margins, kept, seen = Margins(), KeptPatches(), Recorder()
    with watched(reducer, margins, kept, lambda _: other, seen):
        assert reducer.decide(one) is other
    assert kept.counts() == {16: 1, 96: 1, 192: 1}
    assert seen.made == [other]
    assert reducer.observer is None


@pytest.mark.usefixtures("plugin")
def test_a_run_records_the_share_and_the_mean_cost_of_its_test_videos(small_weights: Path, tmp_path: Path) -> None:
    context, config = tiny_context(small_weights, test_videos=9), RunConfig(method=NAME, seed=0, timing=False)
    run_in(tmp_path, context, config)
    record = record_of(tmp_path)
    shares = record["metrics"]["tokens_kept"]
    assert 0 < shares["min"] <= shares["mean"] <= shares["max"] <= 1
    assert shares["min"] < shares["max"]  # the clips differ in padding, which stands still
    costs = {m["name"]: m for m in record["cost"]}
    assert costs["gmacs_video"]["conditions"]["upper_bound"] is True
    mean = costs["gmacs_video_mean"]
    assert mean["conditions"] == {"videos": 9, "frames": 12, "dataset": "tiny", "share_kept": shares["mean"]}
    model, patches = new_model(context, config), 12 * 16
    assert mean["value"] == pytest.approx(mean_gmacs(model, {round(shares["mean"] * patches): 1}), rel=1e-3)
    assert costs["output_tokens_mean"]["value"] == pytest.approx(12 + shares["mean"] * patches)


@pytest.mark.usefixtures("plugin")
def test_what_is_the_same_for_all_videos_is_no_mean_over_them(
    small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, config = tiny_context(small_weights), RunConfig(method=NAME, seed=0, timing=False)
    monkeypatch.setattr(type(new_model(context, config).reducer), "depends_on_content", False)
    run_in(tmp_path, context, config)
    record = record_of(tmp_path)
    assert "tokens_kept" not in record["metrics"]
    assert "gmacs_video_mean" not in {m["name"] for m in record["cost"]}


@pytest.mark.parametrize("method", [NAME, "lora"])
@pytest.mark.usefixtures("plugin")
def test_a_run_is_timed_on_its_test_videos(
    method: str, small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Job] = []
    monkeypatch.setattr(runner, "time_costs", lambda job, *, trains: asked.append(job) or [])
    context = tiny_context(small_weights, test_videos=9)
    context.dataset.root = tmp_path / "clips"
    run_in(tmp_path, context, RunConfig(method=method, seed=0))
    (job,) = asked
    on_clips = ("tiny", tmp_path / "clips", context.test.video_ids[: job.batch])
    assert (job.dataset, job.data, job.videos) == (on_clips if method == NAME else (None, None, ()))
