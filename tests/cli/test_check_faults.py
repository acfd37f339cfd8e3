"""Injected faults that counts cannot see, each caught by the tier made for it; clean reruns raise no alarm."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from report_records import msrvtt_record
from search_records import staged_record

from tvrbench.harness.cli import app as cli
from tvrbench.harness.config.protocol import load_protocol
from tvrbench.harness.evaluation.statistics import rank_intervals
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.records.record import Measurement
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.regression.baseline import Baseline, compare
from tvrbench.harness.regression.measure import (
    cost_ratios,
    default_margin,
    measure_exact,
    measure_signatures,
    retrieval_metrics,
)
from tvrbench.methods.ops import matching
from tvrbench.methods.tempme import TempMeReducer

pytestmark = pytest.mark.cli

FIXTURE = Path(__file__).parents[1] / "fixtures" / "standin_record.json"
METHOD = "tempme"
NOTE = {"date": "2026-01-01", "reason": "first", "git_sha": None}


def baseline_of(values: dict[str, Any], intervals: dict[str, Any] | None = None, **changes: Any) -> Baseline:
    extra = intervals or {}
    entries = {
        key: {"value": value, "margin": default_margin(key)} | ({"interval": extra[key]} if key in extra else {})
        for key, value in values.items()
    }
    return Baseline(**({"device": "cpu", "standin": None, "entries": entries, "accepted": [NOTE]} | changes))


def moved(baseline: Baseline, values: dict[str, Any], tier: Any) -> set[str]:
    return {row.key.split("/")[-1] for row in compare(baseline, values, [tier]) if row.state in ("moved", "missing")}


@pytest.fixture(scope="module")
def signature_baseline() -> Baseline:
    return baseline_of(dict(measure_signatures([METHOD])))


class TestSignatures:
    def test_clean_reruns_on_one_and_two_threads_raise_no_alarm(self, signature_baseline: Baseline) -> None:
        threads = torch.get_num_threads()
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                assert moved(signature_baseline, dict(measure_signatures([METHOD])), "exact") == set()
        finally:
            torch.set_num_threads(threads)

    def test_one_merge_too_few(self, signature_baseline: Baseline, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = TempMeReducer.after_attention
        monkeypatch.setattr(
            TempMeReducer, "after_attention", lambda self, s, keys, i: s if i == 7 else whole(self, s, keys, i)
        )
        assert {"loss", "match"} <= moved(signature_baseline, dict(measure_signatures([METHOD])), "exact")

    def test_swapped_sources_and_destinations(
        self, signature_baseline: Baseline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def swapped(metric: torch.Tensor, r: int, protected: int = 1) -> matching.Merge:
            """The same counts, with every source's vector taken from a destination and back."""
            rolled = torch.cat([metric[:, :protected], metric[:, protected:].roll(1, dims=1)], dim=1)
            return matching.bipartite_match(rolled, r, protected)

        monkeypatch.setattr("tvrbench.methods.tempme.bipartite_match", swapped)
        assert moved(signature_baseline, dict(measure_signatures([METHOD])), "exact")

    def test_a_wrong_temperature(self, signature_baseline: Baseline, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = RetrievalModel.similarity
        monkeypatch.setattr(RetrievalModel, "similarity", lambda self, text, video: 1.05 * whole(self, text, video))
        assert {"loss", "grad_norm", "match"} <= moved(signature_baseline, dict(measure_signatures([METHOD])), "exact")


class TestSearches:
    def test_what_a_search_takes_is_exact(self) -> None:
        values = dict(measure_exact(["lora@ViT-B-32", "ts2net@ViT-B-32"]))
        assert values["exact/lora@ViT-B-32/search_macs_per_pair"] == 512
        assert values["exact/lora@ViT-B-32/search_bytes_per_video"] == 4 * 512
        assert values["exact/ts2net@ViT-B-32/search_floats_per_video"] == 13 * 512
        fatter = values | {"exact/ts2net@ViT-B-32/search_bytes_per_video": 2**20}
        assert moved(baseline_of(values), fatter, "exact") == {"search_bytes_per_video"}

    def test_a_coarse_stage_that_got_worse_is_caught_where_the_last_one_hides_it(self) -> None:
        values, _ = retrieval_metrics("standin", [staged_record("eercf", 48.0, 42.0)])
        now, _ = retrieval_metrics("standin", [staged_record("eercf", 48.0, 30.0)])
        found = moved(baseline_of(dict(values)), dict(now), "tight")
        assert found == {"coarse_t2v_R1", "coarse_v2t_R1"}


class TestRatios:
    @staticmethod
    def record(method: str, seconds: float, memory: float = 500.0, **said: Any) -> Any:
        record: dict[str, Any] = json.loads(FIXTURE.read_text())
        conditions = {"what": "inference", "batch": 2, "precision": "float32", "threads": 1} | said
        record["method"]["name"] = method
        record["cost"] = [
            Measurement("throughput", 1 / seconds, "videos/s", conditions=conditions).to_json(),
            Measurement("peak_process_memory", memory, "MiB", conditions=conditions).to_json(),
        ]
        return record

    def test_a_slower_kernel(
        self,
        tiny_model: Callable[..., RetrievalModel],
        tiny_batch: dict[str, Any],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def seconds(name: str) -> float:
            model, found = tiny_model(name), []
            for _ in range(3):
                start = time.perf_counter()
                with torch.no_grad():
                    model.encode_video(tiny_batch["frames"], tiny_batch["mask"])
                found.append(time.perf_counter() - start)
            return min(found)

        lora = self.record("lora", seconds("lora"))
        baseline = baseline_of(dict(cost_ratios([lora, self.record(METHOD, seconds(METHOD))], "lora")))
        whole = TempMeReducer.after_attention

        def slow(self: TempMeReducer, *arguments: Any) -> Any:
            time.sleep(0.05)  # per block, where the whole forward takes milliseconds
            return whole(self, *arguments)

        monkeypatch.setattr(TempMeReducer, "after_attention", slow)
        now = dict(cost_ratios([lora, self.record(METHOD, seconds(METHOD))], "lora"))
        assert moved(baseline, now, "loose") == {"time_inference"}

    def test_only_a_rise_beyond_the_margin_is_a_regression(self) -> None:
        lora = self.record("lora", 1.0)
        baseline = baseline_of(dict(cost_ratios([lora, self.record(METHOD, 0.8)], "lora")))
        states = {}
        for seconds in (0.3, 0.7, 1.2, 2.0):
            rows = compare(baseline, cost_ratios([lora, self.record(METHOD, seconds)], "lora"), ["loose"])
            states[seconds] = {row.key.split("/")[-1]: row.state for row in rows}["time_inference"]
        assert states == {0.3: "better", 0.7: "within", 1.2: "within", 2.0: "moved"}
        heavier = cost_ratios([lora, self.record(METHOD, 0.8, memory=800.0)], "lora")
        assert moved(baseline, dict(heavier), "loose") == {"memory_inference"}

    def test_a_record_of_a_gpu_has_a_ratio_of_memory(self) -> None:
        """That of its tensors: the driver's figure and the reserved one depend on more than the method."""
        records = [self.record("lora", 1.0, memory=800.0), self.record(METHOD, 1.0, memory=600.0)]
        for record in records:
            allocated = record["cost"].pop()
            record["cost"] += [
                allocated | {"name": f"peak_memory_{name}", "value": factor * allocated["value"]}
                for name, factor in (("nvml", 3), ("allocated", 1), ("reserved", 2))
            ]
        ratios = cost_ratios(records, "lora")
        assert ratios == {f"loose/{METHOD}/time_inference": 1.0, f"loose/{METHOD}/memory_inference": 0.75}

    def test_another_device_or_batch_or_no_reference_is_missing(self) -> None:
        lora, tempme = self.record("lora", 1.0), self.record(METHOD, 0.8)
        baseline = baseline_of(dict(cost_ratios([lora, tempme], "lora")))
        elsewhere = self.record("lora", 1.0)
        elsewhere["environment"]["device"] = "another"
        for reference in (elsewhere, self.record("lora", 1.0, batch=4), self.record("zero_shot", 1.0)):
            assert moved(baseline, dict(cost_ratios([reference, tempme], "lora")), "loose") == {
                "time_inference",
                "memory_inference",
            }


class TestRecall:
    def test_the_interval_and_the_margin_must_both_hold(self) -> None:
        key = "standin/tempme/t2v_R1"
        for margin, value, state in ((9.0, 57.0, "moved"), (9.0, 54.0, "within"), (2.0, 54.0, "moved")):
            entry = {key: {"value": 50.0, "margin": margin, "interval": [45.0, 55.0]}}
            (row,) = compare(baseline_of({}, entries=entry), {key: value}, ["tight"])
            assert row.state == state

    def test_twenty_reruns_with_another_machines_rounding_raise_no_alarm(self) -> None:
        """Rounding changes the rank of a query here and there, which the tight tier must bear."""
        generator = np.random.default_rng(0)
        ranks = generator.geometric(0.4, 300).astype(float)
        names = {"R1": 1, "R5": 5, "R10": 10}
        values = {f"standin/x/t2v_{name}": 100 * float(np.mean(ranks <= k)) for name, k in names.items()}
        intervals = {f"standin/x/t2v_{name}": rank_intervals(ranks)[name] for name in names}
        baseline = baseline_of(values, intervals)
        for _ in range(20):
            nudged = np.maximum(1, ranks + generator.choice([-1, 0, 1], p=[0.01, 0.98, 0.01], size=300))
            now = {f"standin/x/t2v_{name}": 100 * float(np.mean(nudged <= k)) for name, k in names.items()}
            assert moved(baseline, now, "tight") == set()
        worse = np.where(generator.random(300) < 0.25, ranks + 10, ranks)
        now = {f"standin/x/t2v_{name}": 100 * float(np.mean(worse <= k)) for name, k in names.items()}
        assert moved(baseline, now, "tight") == {"t2v_R1", "t2v_R5", "t2v_R10"}


class TestCommand:
    @pytest.fixture
    def results(self, tmp_path: Path) -> Path:
        protocol = load_protocol("standin/uniform")
        for method, seconds in (("lora", 1.0), (METHOD, 0.8)):
            record = TestRatios.record(method, seconds)
            record["protocol"] = {"name": protocol.name, "hash": protocol.hash}
            RecordStore(tmp_path / "results").save(record, None)
        return tmp_path / "results"

    def check(self, *arguments: object) -> int:
        return cli.main(["check", *map(str, arguments)])

    def test_a_baseline_is_made_updated_and_compared(
        self, tmp_path: Path, results: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "new.json"
        tiers = ("--records", results, "--tier", "tight,loose")
        assert self.check("--against", path, *tiers) == 2
        assert self.check("--against", path, *tiers, "--update-baseline", "first measurement") == 0
        document = json.loads(path.read_text())
        assert document["accepted"][0]["reason"] == "first measurement"
        assert document["loose"] == {"reference": "lora"}
        assert document["entries"][f"loose/{METHOD}/time_inference"]["value"] == pytest.approx(0.8)
        assert document["entries"][f"standin/{METHOD}/t2v_R1"]["interval"]
        capsys.readouterr()
        assert self.check("--against", path, "--records", results, "--json") == 0
        states = {row["key"]: row["state"] for row in json.loads(capsys.readouterr().out)}
        assert set(states.values()) == {"same"}
        assert {key.partition("/")[0] for key in states} == {"standin", "loose"}

    @pytest.mark.parametrize(
        ("arguments", "code"),
        [
            (("--tier", "fast"), "check.tier-unknown"),
            (("--tier", "real"), "check.tier-absent"),
            (("--tier", "real", "--update-baseline", "mine"), "check.data"),
            (("--records", "/nowhere"), "check.records"),
        ],
    )
    def test_tiers_that_do_not_fit_exit_with_2(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: str
    ) -> None:
        entries = {"exact/tempme@ViT-B-32/gmacs_video": {"value": 1.0, "margin": 0}}
        path = tmp_path / "baseline.json"
        document = {"schema_version": 1, "device": "cpu", "standin": None, "entries": entries, "accepted": [NOTE]}
        path.write_text(json.dumps(document))
        assert self.check("--against", path, *arguments) == 2
        assert f"[{code}]" in capsys.readouterr().err

    def test_the_tier_real_compares_records_of_real_data(self, tmp_path: Path, capsys: Any) -> None:
        RecordStore(tmp_path / "results").save(msrvtt_record("zero_shot", 40.0, kind="uniform"), None)
        path, real = tmp_path / "mine.json", ("--records", tmp_path / "results", "--tier", "real")
        assert self.check("--against", path, *real, "--update-baseline", "my machine") == 0
        assert self.check("--against", path, *real) == 0
        document = json.loads(path.read_text())
        assert document["real"]["methods"] == ["zero_shot"]
        document["entries"]["real/zero_shot/t2v_R1"]["value"] += 3.0
        path.write_text(json.dumps(document))
        assert self.check("--against", path, *real) == 1
