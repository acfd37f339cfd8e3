"""The regression check: silent when nothing moved, and loud for each injected fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from records import weights_section

from tvrbench.harness.cli import app as cli
from tvrbench.harness.config.protocol import load_protocol
from tvrbench.harness.core import registry
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.regression.measure import measure_exact
from tvrbench.methods.ops import matching
from tvrbench.methods.tempme import TempMeReducer

pytestmark = pytest.mark.cli
SUBJECT = "tempme@ViT-B-32"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """A baseline of one method's exact tier, measured by the code as it is."""
    entries = {key: {"value": value, "margin": 0} for key, value in measure_exact([SUBJECT]).items()}
    accepted = [{"date": "2026-01-01", "reason": "first", "git_sha": None}]
    return {"schema_version": 1, "device": "cpu", "standin": None, "entries": entries, "accepted": accepted}


@pytest.fixture
def baseline(document: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(document))
    return path


def rows(capsys: pytest.CaptureFixture[str], baseline: Path, *more: str) -> tuple[int, dict[str, str]]:
    """Exit code, and the state of each metric."""
    code = cli.main(["check", "--against", str(baseline), "--json", *more])
    out = capsys.readouterr().out
    return code, {row["key"].split("/")[-1]: row["state"] for row in json.loads(out)} if out else {}


def test_an_undisturbed_rerun_is_silent(capsys: pytest.CaptureFixture[str], baseline: Path) -> None:
    code, states = rows(capsys, baseline)
    assert code == 0
    assert set(states.values()) == {"same"}


def test_one_merge_too_few_is_caught(
    capsys: pytest.CaptureFixture[str], baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TempMeReducer.after_attention

    def lazy(self: TempMeReducer, stream: Any, keys: torch.Tensor, index: int) -> Any:
        return stream if index == 7 else whole(self, stream, keys, index)

    monkeypatch.setattr(TempMeReducer, "after_attention", lazy)
    assert cli.main(["check", "--against", str(baseline)]) == 1


def test_a_wrong_schedule_is_caught(
    capsys: pytest.CaptureFixture[str], baseline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tvrbench.methods.tempme import TempMe

    monkeypatch.setitem(TempMe.card.presets["ViT-B-32"], "r", 1)
    code, states = rows(capsys, baseline)
    assert code == 1
    assert {name for name, state in states.items() if state == "moved"} == {"gmacs_video", "tokens", "output_tokens"}


def test_a_metric_that_was_not_measured_fails(
    capsys: pytest.CaptureFixture[str], baseline: Path, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {key: entry["value"] for key, entry in document["entries"].items()}
    monkeypatch.setattr("tvrbench.harness.regression.measure.measure_exact", lambda subjects: values)
    key = f"exact/{SUBJECT}/joules"
    baseline.write_text(json.dumps(document | {"entries": document["entries"] | {key: {"value": 1.0, "margin": 1.0}}}))
    code, states = rows(capsys, baseline)
    assert code == 1
    assert states["joules"] == "missing"


def test_accepting_keeps_the_reason_and_takes_in_new_methods(
    capsys: pytest.CaptureFixture[str], baseline: Path, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {key.rpartition("/")[2]: entry["value"] for key, entry in document["entries"].items()}
    monkeypatch.setattr(
        "tvrbench.harness.regression.measure.measure_exact",
        lambda subjects: {f"exact/{subject}/{name}": value for subject in subjects for name, value in counts.items()},
    )
    monkeypatch.setattr("tvrbench.harness.regression.measure.signature", lambda method: {"loss": float(len(method))})
    entries = {key: entry | {"value": 1.0} if "gmacs" in key else entry for key, entry in document["entries"].items()}
    baseline.write_text(json.dumps(document | {"entries": entries}))
    assert rows(capsys, baseline)[0] == 1
    assert rows(capsys, baseline, "--update-baseline", "the counter was wrong")[0] == 0
    assert rows(capsys, baseline)[0] == 0
    accepted = json.loads(baseline.read_text())
    assert accepted["accepted"][-1]["reason"] == "the counter was wrong"
    for name in registry.names("methods", "baselines"):
        assert accepted["entries"][f"signature/{name}/loss"]["value"] == len(name)
        assert {f"exact/{name}@{backbone}/tokens" for backbone in ("ViT-B-32", "ViT-B-16")} <= set(accepted["entries"])
    assert cli.main(["check", "--against", str(baseline), "--update-baseline", " "]) == 2
    assert "[check.reason]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "NVIDIA H200"}, "[baseline.device]"),
        ({"entries": {}}, "$.entries"),
        ({"entries": {"speed": {"value": 1, "margin": 0}}}, "$.entries.speed"),
        ({"entries": {"exact/a/b": {"value": "1", "margin": 0}}}, "$.entries['exact/a/b'].value"),
        ({"accepted": []}, "$.accepted"),
        ({"standin": {"protocol": "a", "hash": "b", "seed": 0, "methods": []}}, "$.standin.methods"),
        ({"schema_version": 2}, "$.schema_version"),
        ({"surprise": 1}, "$.surprise"),
    ],
)
def test_a_baseline_that_cannot_be_used_exits_with_2(
    capsys: pytest.CaptureFixture[str],
    baseline: Path,
    document: dict[str, Any],
    change: dict[str, Any],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    baseline.write_text(json.dumps(document | change))
    assert cli.main(["check", "--against", str(baseline)]) == 2
    assert words in capsys.readouterr().err


def test_the_standin_tier_compares_records(
    capsys: pytest.CaptureFixture[str], baseline: Path, document: dict[str, Any], tmp_path: Path
) -> None:
    record = json.loads((Path(__file__).parents[1] / "fixtures" / "standin_record.json").read_text())
    protocol = load_protocol("standin/uniform")
    record["protocol"] = {"name": protocol.name, "hash": protocol.hash}
    RecordStore(tmp_path / "results").save(record, None)
    name, r1 = record["method"]["name"], record["metrics"]["t2v"]["R1"]
    standin = {"protocol": protocol.name, "hash": protocol.hash, "seed": record["seed"], "methods": [name]}
    for value, code, state in ((r1, 0, "same"), (r1 + 1, 0, "within"), (r1 - 9, 1, "moved")):
        entries = {f"standin/{name}/t2v_R1": {"value": value, "margin": 2.0}}
        baseline.write_text(json.dumps(document | {"standin": standin, "entries": entries}))
        assert rows(capsys, baseline, "--records", str(tmp_path / "results")) == (code, {"t2v_R1": state})
    (path,) = (tmp_path / "results" / "records").glob("*/*.json")
    better = record["metrics"]["t2v"] | {"R1": r1 - 9}
    path.with_name("z.json").write_text(
        json.dumps(record | {"started": "2020-01-01T00:00:00Z", "metrics": {**record["metrics"], "t2v": better}})
    )
    assert (
        rows(capsys, baseline, "--records", str(tmp_path / "results"))[0] == 1
    )  # the newest counts, not the older one in z.json
    assert cli.main(["check", "--against", str(baseline), "--records", str(tmp_path / "nowhere")]) == 2
    baseline.write_text(json.dumps(document | {"standin": standin | {"hash": "0" * 16}, "entries": entries}))
    assert cli.main(["check", "--against", str(baseline), "--records", str(tmp_path / "results")]) == 2
    assert "[baseline.protocol-changed]" in capsys.readouterr().err


class TestRecordsThatDoNotCompare:
    """What is not the run that the baseline means is named and left out, and so never accepted."""

    @pytest.fixture
    def results(self, baseline: Path, document: dict[str, Any], tmp_path: Path) -> RecordStore:
        """Three methods as the baseline has them."""
        self.store = store = RecordStore(tmp_path / "results")
        self.protocol = load_protocol("standin/uniform")
        methods = ("tempme", "lora", "clip4clip")
        values = [store.save(self.record(method)) and self.record(method)["metrics"]["t2v"]["R1"] for method in methods]
        entries = {f"standin/{m}/t2v_R1": {"value": v, "margin": 2.0} for m, v in zip(methods, values, strict=True)}
        runs = {"protocol": self.protocol.name, "hash": self.protocol.hash, "seed": 0, "methods": list(methods)}
        baseline.write_text(json.dumps(document | {"standin": runs, "entries": entries}))
        return store

    def record(self, method: str) -> dict[str, Any]:
        made: dict[str, Any] = json.loads(
            (Path(__file__).parents[1] / "fixtures" / "standin_record.json").read_text(encoding="utf-8")
        )
        made["method"]["name"] = method
        return made | {"protocol": {"name": self.protocol.name, "hash": self.protocol.hash}, "seed": 0}

    @pytest.mark.parametrize(
        "edit",
        [
            lambda record: record.update(weights_sha256=None),
            lambda record: record.update(weights_sha256="e" * 64),
            lambda record: record["data"].update(test_videos=290, split_fingerprint="e" * 64),
            lambda record: record["data"].update(skipped=["video1"]),
            lambda record: record["data"].update(split_fingerprint=None),
            lambda record: record["data"].update(frames_fingerprint="e" * 64),
            lambda record: record["metrics"].update(selection="best-on-test"),
            lambda record: record["method"]["options"].update(frames=6),
            lambda record: record["method"]["options"].update(backbone="ViT-B-16"),
            lambda record: record.update(weights=weights_section(sha256=record["weights_sha256"], activation="gelu")),
        ],
    )
    def test_they_are_missing(
        self, capsys: pytest.CaptureFixture[str], baseline: Path, results: RecordStore, edit: Any
    ) -> None:
        (path,) = results.folder(self.protocol.name).glob("lora*.json")
        assert rows(capsys, baseline, "--records", str(results.root))[0] == 0
        made = json.loads(path.read_text(encoding="utf-8"))
        edit(made)
        path.write_text(json.dumps(made), encoding="utf-8")
        assert cli.main(["check", "--against", str(baseline), "--records", str(results.root), "--json"]) == 1
        out = capsys.readouterr()
        states = {row["key"].split("/")[1]: row["state"] for row in json.loads(out.out)}
        assert states == {"tempme": "same", "lora": "missing", "clip4clip": "same"}
        assert path.name in out.err

    def test_two_of_one_method_are_refused_by_name(
        self, capsys: pytest.CaptureFixture[str], baseline: Path, results: RecordStore
    ) -> None:
        other = self.record("lora")
        other["method"]["options"]["rank"] = 4
        path = results.save(other)
        assert cli.main(["check", "--against", str(baseline), "--records", str(results.root)]) == 2
        told = capsys.readouterr().err
        assert "[check.ambiguous]" in told
        assert path.name in told

    def test_the_best_on_test_beside_the_last_does_not_take_its_place(
        self, capsys: pytest.CaptureFixture[str], baseline: Path, results: RecordStore
    ) -> None:
        best = self.record("lora")
        best["metrics"]["selection"], best["metrics"]["t2v"]["R1"] = "best-on-test", 99.0
        results.save(best)
        assert rows(capsys, baseline, "--records", str(results.root))[0] == 0


def test_a_swapped_split_of_sources_and_destinations_moves_features(
    tiny_weights: Path, tiny_batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts cannot see this fault; the stand-in tier and the golden tests can, because features change."""
    from tvrbench.harness import load_model

    model = load_model("tempme", weights=tiny_weights, r=1, clip_ratio=0.3, intra_ratio=0.1)
    with torch.no_grad():
        right = model.encode_video(tiny_batch["frames"], tiny_batch["mask"])
        monkeypatch.setattr(
            "tvrbench.methods.tempme.bipartite_match",
            lambda metric, r, protected: matching.bipartite_match(metric.roll(1, dims=1), r, protected),
        )
        wrong = model.encode_video(tiny_batch["frames"], tiny_batch["mask"])
    assert not torch.allclose(right, wrong, atol=1e-3)
