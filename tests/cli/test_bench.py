"""``tvrbench bench``: a table, one JSON document, records, and one sentence for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from quick_machine import make_quick

from tvrbench.harness.cli import app as cli
from tvrbench.harness.cli.bench import print_clips, print_costs
from tvrbench.harness.profiling import plan, suite
from tvrbench.harness.profiling.launcher import isolated
from tvrbench.harness.profiling.plan import Timing
from tvrbench.harness.records.record import Measurement
from tvrbench.harness.records.store import RecordStore

pytestmark = pytest.mark.cli
TEMPME = "tempme:r=1;clip_ratio=0.3;intra_ratio=0.1"


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["bench", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_json_and_records(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_weights: Path, tmp_path: Path
) -> None:
    monkeypatch.setitem(plan._TIMING, "cpu", Timing(min_iterations=2, min_seconds=0.0, warmup=0))  # type: ignore[index]
    monkeypatch.setattr(isolated, "call", lambda title, timeout_s, function, *given: function(*given))
    make_quick(monkeypatch)
    small = ("--weights", str(tiny_weights), "--batches", "2", "--repeats", "2", "--threads", "1", "--device", "cpu")
    code, out, err = call(capsys, TEMPME, *small, "--results", str(tmp_path), "--no-report", "--json")
    assert code == 0, err
    document = json.loads(out)
    (row,) = document["rows"]
    cost = {m["name"]: m for m in row["cost"]}
    assert {"gmacs_video", "throughput", "throughput_best", "speedup", "share_of_peak", "matmul_peak"} <= set(cost)
    assert len(cost["speedup"]["samples"]) == 2
    assert cost["speedup"]["conditions"]["against"] == "lora"
    assert cost["throughput"]["conditions"]["precision"] == "float32"
    assert cost["throughput"]["conditions"]["largest_relative_error"] < 1e-3
    (record,) = RecordStore(tmp_path).load_all("efficiency")
    assert record["protocol"] == document["protocol"]
    assert record["method"]["name"] == "tempme"
    assert record["method"]["options"]["r"] == 1
    assert record["metrics"] == {}
    assert record["weights_sha256"]
    assert record["cost"] == row["cost"]
    assert str(tmp_path) not in json.dumps(record)


def test_counts_alone_are_records_of_no_device(
    capsys: pytest.CaptureFixture[str], tiny_weights: Path, tmp_path: Path
) -> None:
    small = ("--weights", str(tiny_weights), "--results", str(tmp_path), "--no-report")
    code, out, err = call(capsys, "lora", *small, "--count-only", "--frames", "4,8", "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [row["frames"] for row in rows] == [4, 8]
    few, many = ({m["name"]: m for m in row["cost"]} for row in rows)
    assert many["gmacs_video"]["value"] == pytest.approx(2 * few["gmacs_video"]["value"])
    assert many["step_memory"]["conditions"]["batch"] == 32
    assert not {"throughput", "latency_median", "speedup"} & set(many)
    records = RecordStore(tmp_path).load_all("efficiency/counted")
    assert {record["environment"]["device"] for record in records} == {"meta"}
    assert {record["protocol"]["hash"] for record in records} == {rows[0]["protocol"]["hash"]}
    assert [record["method"].get("given") for record in records] == [{}, {}]
    assert RecordStore(tmp_path).load_all("efficiency") == []
    again = call(capsys, "lora", *small, "--count-only", "--frames", "8")
    assert again[0] == 0
    assert "counted" in again[1]
    assert len(RecordStore(tmp_path).load_all("efficiency/counted")) == 2


@pytest.mark.parametrize(("videos", "clips"), [(2, "2 clips of standin, mean of these"), (1, "1 clip of standin")])
def test_means_over_clips_say_so_and_tokens_are_whole(
    capsys: pytest.CaptureFixture[str], videos: int, clips: str
) -> None:
    where = {"dataset": "standin", "videos": videos, "share_kept": 0.7}
    bound = Measurement("gmacs_video", 52.96, "GMACs", conditions={"upper_bound": True})
    tables = {
        "rlt": [bound, Measurement("gmacs_video_mean", 39.1, "GMACs", conditions=where)],
        "tempme": [Measurement("output_tokens", 127, "tokens"), Measurement("gmacs_video", 30.25, "GMACs")],
    }
    print_costs(tables)
    print_clips(tables)
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == f"  rlt: on {clips}; at most 52.96 GMACs"
    assert out[-2].split() == ["tempme", "30.25", "127"]


@pytest.fixture
def nothing_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts that take no time."""
    counted = [Measurement("gmacs_video", 1.0, "GMACs")]
    monkeypatch.setattr(suite, "count_method", lambda *_: counted)


@pytest.mark.usefixtures("nothing_counted")
def test_of_all_methods_those_that_refuse_the_frames_are_left_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = ("all", "--count-only", "--frames", "12,7", "--results", str(tmp_path), "--no-report", "--json")
    code, out, err = call(capsys, *given)
    assert code == 0, err
    document = json.loads(out)
    refused = {each["method"]: each for each in document["left_out"]}
    assert {"tempme", "vidtome"} <= set(refused)
    assert {each["frames"] for each in refused.values()} == {7}
    assert all(each["code"] and each["reason"] for each in refused.values())
    assert sum("left out at 7 frames" in line for line in err.splitlines()) == len(refused)
    measured = {frames: {row["method"] for row in document["rows"] if row["frames"] == frames} for frames in (12, 7)}
    assert measured[12] - measured[7] == set(refused)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("temme",), "temme"),
        (("tempme:r",), "key=value"),
        (("tempme:color=1",), "color"),
        (("lora", "--baseline", "loraa"), "loraa"),
        (("lora", "--batches", "0"), "--batches"),
        (("lora", "--repeats", "0"), "--repeats"),
        (("lora", "--backbone", "ViT-Z"), "ViT-Z"),
        (("lora", "--device", "cpu", "--cuda-graphs"), "measurement.cuda-graphs"),
        (("lora", "--frames", "0"), "--frames"),
        (("lora", "vidtome", "--frames", "12,7", "--count-only"), "option.value"),
        (("all", "--frames", "12,7", "--set", "color=1", "--count-only"), "color"),
        (("lora", "--count-only", "--training"), "measurement.count-only"),
        (("lora", "--count-only", "--batches", "4"), "measurement.count-only"),
        (("lora", "--count-only", "--baseline", "lora"), "measurement.count-only"),
        (("lora", "lora"), "option.duplicate"),
        (("lora", "--weights", "no/such/file"), "no/such/file"),
        (("lora", "--set", "color=1"), "color"),
        (("lora", "--end-to-end", "--dataset", "msrvtt"), "dataset.folder"),
        (("lora", "--end-to-end", "--dataset", "msrvttt"), "msrvtt"),
    ],
)
def test_bad_input_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: tuple[str, ...], named: str
) -> None:
    code, out, err = call(capsys, *arguments, "--results", str(tmp_path / "results"))
    assert code == 2
    assert out == ""
    assert named in err.strip().splitlines()[-1]
    assert "Traceback" not in err
    assert not (tmp_path / "results").exists()
