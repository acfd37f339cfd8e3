"""``tvrbench compare``: differences before numbers, intervals only where queries pair, no ratio across devices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from errors import raises
from records import weights_section
from search_records import ranks, search_costs, search_times, staged_record, with_costs

from tvrbench.harness.cli import app as cli
from tvrbench.harness.cli.compare import find_record
from tvrbench.harness.records.record import Measurement
from tvrbench.harness.records.store import RecordStore

pytestmark = pytest.mark.cli

FIXTURE = Path(__file__).parents[1] / "fixtures" / "standin_record.json"
RANKS = np.where(np.arange(300) % 2 == 0, 1.0, 7.0)


def record(method: str = "tempme", **changes: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(FIXTURE.read_text(encoding="utf-8"))
    made["method"]["name"] = method
    said = {"what": "inference", "batch": 32, "device": "cpu"}
    made["cost"] = [
        Measurement("gmacs_video", 40.0 if method == "tempme" else 50.0, "GMACs").to_json(),
        Measurement("throughput", 30.0 if method == "tempme" else 20.0, "videos/s", conditions=said).to_json(),
    ]
    return made | changes


class Bench:
    """Two records in a results folder, and the command on them."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.results, self.capsys = folder / "results", capsys
        self.store = RecordStore(self.results)

    def save(self, made: dict[str, Any], ranks: Any = RANKS) -> Path:
        return self.store.save(made, None if ranks is None else {"t2v": ranks, "v2t": ranks})

    def compare(self, a: object, b: object) -> dict[str, Any]:
        assert cli.main(["compare", str(a), str(b), "--results", str(self.results), "--json"]) == 0
        found: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return found

    def fails(self, *arguments: object) -> str:
        assert cli.main(["compare", *map(str, arguments), "--results", str(self.results)]) == 2
        out = self.capsys.readouterr()
        assert out.out == ""
        assert "Traceback" not in out.err
        return out.err


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Bench:
    return Bench(tmp_path, capsys)


def facts(found: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {fact["what"]: (fact["a"], fact["b"]) for fact in found["facts"]}


def costs(found: dict[str, Any]) -> dict[str, Any]:
    return {line["name"]: line for line in found["costs"]}


def metrics(found: dict[str, Any]) -> dict[str, Any]:
    return {line["metric"]: line for line in found["metrics"]}


def test_everything_that_differs_is_named(bench: Bench) -> None:
    a = bench.save(record())
    other = record(
        "lora", seed=3, tuning="full", weights_sha256="9" * 64, protocol={"name": "x/uniform", "hash": "f" * 16}
    )
    other["method"]["options"] |= {"r": 5, "new": [1, 2]}
    other["data"] |= {"frames_fingerprint": "8" * 64}
    other["environment"] |= {"device": "a GPU", "git_sha": "7" * 40, "dirty": True, "versions": {"torch": "9.9"}}
    found = facts(bench.compare(a, bench.save(other)))
    assert found["protocol"] == ("standin/uniform", "x/uniform")
    assert found["option r"] == ("2", "5")
    assert found["option new"] == (None, "(1, 2)")
    assert found["seed"] == ("0", "3")
    assert found["uncommitted changes"] == ("no", "yes")
    wanted = {
        "protocol hash",
        "method",
        "tuning",
        "weights",
        "data: frames_fingerprint",
        "device",
        "version of torch",
        "commit",
    }
    assert wanted <= found.keys()
    assert "data: split_fingerprint" not in found


def test_two_records_of_one_run_are_said_to_be_one(bench: Bench, tmp_path: Path) -> None:
    path, again = bench.save(record()), tmp_path / "again.json"
    made = record(started="2030-01-01T00:00:00Z")
    made["metrics"]["t2v"]["R1"] -= 2
    again.write_text(json.dumps(made))
    assert bench.compare(path, again)["same_run"] == "a repetition whose R@1 is 2.00 points lower"
    assert bench.compare(path, bench.save(record(seed=1, duration_s=77.0)))["same_run"] is None
    assert cli.main(["compare", str(path), str(again)]) == 0
    assert "count as one seed" in bench.capsys.readouterr().out


@pytest.mark.parametrize("change", [{"weights_sha256": None}, {"data": {"frames_fingerprint": "8" * 64}}])
def test_two_methods_that_saw_different_things_are_not_tested(bench: Bench, change: dict[str, Any]) -> None:
    other = record("lora")
    other |= {"data": other["data"] | change["data"]} if "data" in change else change
    found = bench.compare(bench.save(record()), bench.save(other))
    assert (found["mcnemar"], metrics(found)["t2v R1"]["paired"]) == ({}, None)
    assert "do not compare" in found["why_not_paired"]


def best_on_test(made: dict[str, Any]) -> None:
    made["metrics"]["selection"] = "best-on-test"


@pytest.mark.parametrize(
    "edit",
    [
        best_on_test,
        lambda made: made.update(weights_sha256=None),
        lambda made: made.update(protocol={"name": "standin/published", "hash": made["protocol"]["hash"]}),
        lambda made: made["data"].update(frames_fingerprint="8" * 64),
        lambda made: made["method"]["options"].update(frames=6),
        lambda made: (made.update(weights_sha256="9" * 64), made["method"]["options"].update(backbone="ViT-B-16")),
    ],
)
def test_runs_of_one_method_that_do_not_compare_are_not_tested(bench: Bench, edit: Callable[[Any], object]) -> None:
    other = record(seed=1)
    edit(other)
    a, b = bench.save(record()), bench.save(other)
    for pair in ((a, b), (b, a)):
        found = bench.compare(*pair)
        assert (found["mcnemar"], metrics(found)["t2v R1"]["paired"]) == ({}, None)
        assert "do not compare" in found["why_not_paired"]


def test_one_method_on_other_weights_is_tested_with_a_caveat(bench: Bench) -> None:
    a, seed, other = (bench.save(made) for made in (record(), record(seed=1), record(seed=2, weights_sha256="9" * 64)))
    assert bench.compare(a, seed)["caveat"] is None
    found = bench.compare(a, other)
    assert found["mcnemar"]
    assert found["caveat"]
    assert cli.main(["compare", str(a), str(other)]) == 0
    assert found["caveat"][1:] in bench.capsys.readouterr().out


def test_weights_that_are_read_in_another_way_are_named(bench: Bench) -> None:
    half = [0.5] * 3
    quick = weights_section(sha256="9" * 64, activation_source="config.json", mean=half, std=half)
    a, b = bench.save(record(weights=quick)), bench.save(record(weights=quick | {"activation": "gelu"}))
    assert a != b  # neither takes the other's place
    assert facts(bench.compare(a, b)) == {"weights: activation": ("quick_gelu", "gelu")}
    assert facts(bench.compare(a, bench.save(record(seed=9))))["weights: mean"] == ("(0.5, 0.5, 0.5)", None)


def test_a_record_and_itself_differ_in_nothing(bench: Bench) -> None:
    path = bench.save(record())
    found = bench.compare(path, path)
    assert (found["same_run"], found["facts"]) == ("an exact copy", [])
    assert {line["difference"] for line in found["metrics"]} == {0.0}
    assert {line["ratio"] for line in found["costs"]} == {1.0}


def test_paired_intervals_where_queries_are_the_same(bench: Bench) -> None:
    better = np.where(np.arange(300) % 4 == 1, 1.0, RANKS)
    a, b = bench.save(record("lora")), bench.save(record("tempme"), better)
    found = bench.compare(a, b)
    assert found["why_not_paired"] is None
    r1 = metrics(found)["t2v R1"]
    assert r1["paired"]["difference"] == pytest.approx(25.0)
    assert r1["paired"]["low"] < 25.0 < r1["paired"]["high"]
    assert found["mcnemar"]["R1"] == {"only_a": 0, "only_b": 75, "p_value": pytest.approx(2**-74)}


@pytest.mark.parametrize(
    ("change", "ranks", "reason"),
    [
        ({"data": {"split_fingerprint": "e" * 64}}, RANKS, "the split fingerprints differ"),
        ({}, None, "holds no per-query ranks"),
        ({}, RANKS[:299], "different numbers of queries"),
        ({"protocol": {"name": "standin/uniform", "hash": "f" * 16}}, RANKS, "one and the same uniform protocol"),
    ],
)
def test_otherwise_it_says_why_not(bench: Bench, change: dict[str, Any], ranks: Any, reason: str) -> None:
    other = record("lora")
    a, b = bench.save(record()), bench.save(other | {key: other[key] | value for key, value in change.items()}, ranks)
    found = bench.compare(a, b)
    assert reason in found["why_not_paired"]
    assert found["mcnemar"] == {}
    assert all(line["paired"] is None for line in found["metrics"])
    assert metrics(found)["t2v R1"]["difference"] == 0.0


def test_one_method_under_two_versions_of_a_protocol_is_still_paired(bench: Bench) -> None:
    a = bench.save(record())
    b = bench.save(record(protocol={"name": "standin/uniform", "hash": "f" * 16}))
    assert bench.compare(a, b)["why_not_paired"] is None


def test_ranks_that_are_gone_are_a_reason_and_not_an_end(bench: Bench, tmp_path: Path) -> None:
    path = bench.save(record())
    copy = tmp_path / "alone.json"
    copy.write_bytes(path.read_bytes())
    assert "ranks cannot be read" in bench.compare(path, copy)["why_not_paired"]


def test_counts_have_ratios_everywhere_and_times_only_on_one_device(bench: Bench) -> None:
    other = record("lora")
    a, b = bench.save(record()), bench.save(other)
    found = costs(bench.compare(a, b))
    assert (found["gmacs video"]["ratio"], found["throughput, inference"]["ratio"]) == (1.25, pytest.approx(2 / 3))
    other["environment"] |= {"device": "a GPU"}
    found = costs(bench.compare(a, bench.save(other)))
    assert found["gmacs video"]["ratio"] == 1.25
    assert found["throughput, inference"]["ratio"] is None
    assert "made on different devices (a CPU; a GPU): not compared" in found["throughput, inference"]["reason"]


def test_times_under_other_conditions_have_no_ratio(bench: Bench) -> None:
    other = record("lora")
    other["cost"][1]["conditions"]["batch"] = 1
    other["cost"] = [other["cost"][1]]
    found = costs(bench.compare(bench.save(record()), bench.save(other)))
    assert found["throughput, inference"]["reason"] == "batch was 32 and 1: not compared"
    assert found["gmacs video"]["reason"] == "measured in one of them only"


def test_names_are_found_below_the_results(bench: Bench) -> None:
    a, b = bench.save(record("tempme")), bench.save(record("lora"))
    for name in (a.stem, a.name, a.stem[:14], f"standin__uniform/{a.stem}"):
        assert bench.compare(name, b.stem)["a"]["record"] == a.name


def test_what_is_no_record_is_refused(bench: Bench, tmp_path: Path) -> None:
    path = bench.save(record())
    bench.save(record(seed=1))
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    with raises("record.missing", record="nowhere"):
        find_record("nowhere", bench.results)
    with raises("record.ambiguous", record="tempme", matches=2):
        find_record("tempme", bench.results)
    for name in ("nowhere", broken):
        assert bench.fails(path, name).count("\n") == 1


def test_text_comes_with_differences_first(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = bench.save(record()), bench.save(record("lora"))
    assert cli.main(["compare", str(a), str(b), "--results", str(bench.results)]) == 0
    out = capsys.readouterr().out
    assert out.index("Differences") < out.index("Retrieval") < out.index("Cost")
    assert "McNemar" in out


def test_runs_without_metrics_or_that_failed_compare_what_they_have(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    a = bench.save(record())
    b = bench.save(record(status="failed", failure="out of memory", metrics={}, seed=1), None)
    found = bench.compare(a, b)
    assert facts(found)["failure"] == (None, "out of memory")
    assert found["metrics"] == []
    assert cli.main(["compare", str(a), str(b)]) == 0
    assert "No metrics to compare" in capsys.readouterr().out


class TestTwoStages:
    """Beside the metrics of the last stage, those of the coarse one, and what a search costs."""

    def save(self, bench: Bench, r1: float, coarse: float, *costs: Measurement, **changes: Any) -> Path:
        staged = with_costs(staged_record("eercf", r1, coarse, **changes), *costs)
        return bench.store.save(staged, ranks(r1, coarse))

    def test_coarse_metrics_are_paired_where_their_ranks_are_kept(self, bench: Bench) -> None:
        a, b = self.save(bench, 48.0, 42.0), self.save(bench, 48.0, 30.0, given={"storage": "int8"})
        found = metrics(bench.compare(a, b))
        assert found["ceiling of the coarse stage"]["difference"] == 0
        line = found["coarse t2v R1"]
        assert (line["a"], line["b"], line["paired"]["difference"]) == (42.0, 30.0, pytest.approx(-12.0))
        assert line["paired"]["p_value"] < 0.05
        assert found["t2v R1"]["paired"]["difference"] == 0

    def test_a_run_of_one_stage_compares_in_what_both_have(self, bench: Bench) -> None:
        a, b = self.save(bench, 48.0, 42.0), bench.save(record("lora"))
        found = metrics(bench.compare(a, b))
        assert "t2v R1" in found
        assert not [name for name in found if "coarse" in name]

    def test_counts_have_a_ratio_on_any_device_and_times_within_one_gallery(self, bench: Bench) -> None:
        own = [*search_costs(pair=100, depth=50), *search_times(1.0, (1000, 10_000))]
        other = [*search_costs(pair=200, depth=None), *search_times(3.0, (1000,)), *search_times(5.0, (500,))]
        b = staged_record("eercf", 47.0, 42.0, None)
        b["environment"] = {**b["environment"], "device": "another"}
        found = costs(bench.compare(self.save(bench, 48.0, 42.0, *own), bench.store.save(with_costs(b, *other))))
        assert found["search macs 1k"]["ratio"] is not None
        assert found["storage video"]["ratio"] == 1
        assert found["search read 1m"]["ratio"] == 1
        time = found["search latency median, search, gallery 1000"]
        assert (time["ratio"], "different devices" in time["reason"]) == (None, True)

    def test_times_of_one_gallery_each_are_not_taken_for_those_of_another(self, bench: Bench) -> None:
        a = self.save(bench, 48.0, 42.0, *search_times(1.0, (1000,)))
        b = self.save(bench, 48.0, 42.0, *search_times(1.0, (500,)), given={"storage": "int8"})
        line = costs(bench.compare(a, b))["search latency median, search"]
        assert (line["ratio"], line["reason"]) == (None, "gallery was 1000 and 500: not compared")
