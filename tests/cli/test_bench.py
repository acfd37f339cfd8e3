"""``tvrbench bench``: a table, one JSON document, records, and one sentence for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from quick_machine import make_quick

from tvrbench.harness.cli import app as cli
from tvrbench.harness.profiling import plan
from tvrbench.harness.profiling.launcher import isolated
from tvrbench.harness.profiling.plan import Timing
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
