"""``tvrbench run --checkpoint FILE --eval-only``: our own checkpoints, released ones, and every way to get it wrong."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from report_records import table_text
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from standin import short, shorten_runs
from torch import Tensor, nn

from tvrbench.harness import load_model
from tvrbench.harness.cli import app as cli
from tvrbench.harness.config.protocol import load_protocol
from tvrbench.harness.core.io import file_sha256
from tvrbench.harness.evaluation.evaluate import evaluate
from tvrbench.harness.models.checkpoint import save_checkpoint
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.records.record import Record
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.runs.context import RunContext, open_context, weights_of

pytestmark = [pytest.mark.cli, pytest.mark.slow]
NAME = "standin/uniform"
QUICK = ("--device", "cpu", "--full-size-costs", "off")


@pytest.fixture(scope="module", autouse=True)
def _short_runs(standin_cache: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TVRBENCH_CACHE", str(standin_cache))
        shorten_runs(patch)
        yield


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run and the checkpoint it saved."""

    results: Path
    record: Record
    checkpoint: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    places = ("--results", str(folder / "results"), "--reports", str(folder / "reports"))
    assert cli.main(["run", NAME, "--methods", "lora", *QUICK, *places]) == 0
    (record,) = RecordStore(folder / "results").load_all(NAME)
    (checkpoint,) = (folder / "results" / "checkpoints").rglob("*.safetensors")
    return Trained(results=folder / "results", record=record, checkpoint=checkpoint)


@pytest.fixture(scope="module")
def context() -> RunContext:
    """The protocol's data and weights, for scoring a model without the command line."""
    return open_context(short(NAME), None, None)


def score(*arguments: str) -> Record:
    """The record of a checkpoint scored into the working directory, which holds no other."""
    assert cli.main(["run", NAME, "--eval-only", *QUICK, *arguments]) == 0
    (record,) = [r for r in RecordStore(Path("runs")).load_all(NAME) if "checkpoint" in r]
    return record


def refused(capsys: pytest.CaptureFixture[str], code: str, *arguments: str) -> str:
    """The one line of a call that must exit with 2, name this code and leave no record."""
    capsys.readouterr()
    assert cli.main(["run", NAME, *QUICK, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert not list(Path("runs").rglob("*.json"))
    (line,) = [line for line in err.splitlines() if line.startswith("tvrbench: ")]
    assert err.strip().endswith(line)
    assert line.endswith(f"[{code}]"), line
    return line


def model_of(method: str, **options: Any) -> RetrievalModel:
    """The method on the stand-in's CLIP with everything it learns moved off its start."""
    model = load_model(method, weights=weights_of(short(NAME)), **(method_class(method).card.tiny | options))
    torch.manual_seed(7)
    for key, parameter in model.trainable().items():
        nn.init.normal_(parameter, std=0.05) if not key.startswith("clip.") or ".lora." in key else None
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model.eval()


def direct(model: RetrievalModel, context: RunContext) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metrics and ranks of a model without checkpoint or command line."""
    loader = context.loader(context.spec("tempme"))
    found = evaluate(model, context.test, loader, context.tokenizer, context.protocol.words)
    return found.metrics, found.ranks


def without_selection(metrics: dict[str, Any]) -> dict[str, Any]:
    """What scoring a model finds, without what the run adds."""
    return {key: value for key, value in metrics.items() if key not in ("selection", "evaluation")}


def test_a_saved_checkpoint_scores_what_its_run_recorded(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwanted(*_: Any) -> None:
        raise AssertionError("the checkpoint holds all weights, so no others are to be loaded")

    monkeypatch.setattr("tvrbench.harness.runs.context.load_weights", unwanted)
    monkeypatch.setattr("tvrbench.harness.runs.runner.TrainingLoop", unwanted)
    shutil.copytree(trained.results, "runs")
    file = str(Path("runs") / trained.checkpoint.relative_to(trained.results))
    monkeypatch.setattr("sys.argv", ["tvrbench", "run", NAME, "--eval-only", "--checkpoint", str(Path(file).resolve())])
    record = score("--checkpoint", file)
    assert record["command"] == f"tvrbench run {NAME} --eval-only --checkpoint {file}"
    before = {key: value for key, value in trained.record["metrics"].items() if key != "training"}
    assert record["metrics"] == before
    store = RecordStore(Path("runs"))
    for direction, ranks in store.load_ranks(trained.record).items():
        assert (ranks == store.load_ranks(record)[direction]).all()
    sha256 = file_sha256(trained.checkpoint)
    assert record.get("checkpoint") == {"file": trained.checkpoint.name, "sha256": sha256, "format": "tvrbench"}
    assert record["weights_sha256"] == sha256 != trained.record["weights_sha256"]
    for same in ("protocol", "method", "tuning"):
        assert record[same] == trained.record[same]  # type: ignore[literal-required]
    assert record["data"]["frames_fingerprint"] == trained.record["data"]["frames_fingerprint"]
    assert not [key for key in record["data"] if key.startswith("train_")]
    main, scored = (table_text(Path("runs/reports/standin/uniform"), name) for name in ("main", "scored"))
    assert "scored checkpoint" not in main
    assert f"lora, scored checkpoint {trained.checkpoint.name}" in scored
    assert trained.record in store.load_all(NAME)


def test_an_exported_folder_scores_what_its_run_recorded(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    """It holds the tuned parameters alone, so they are scored on the protocol's weights, and refused on others."""
    assert cli.main(["export", "lora", "--results", str(trained.results), "--to", "out"]) == 0
    refused(capsys, "checkpoint.backbone", "--eval-only", "--checkpoint", "out", "--backbone", "ViT-B-32")
    shutil.copytree(Path(weights_of(short(NAME))).parent, "other", ignore=shutil.ignore_patterns("*.py"))
    _rewrite(Path(weights_of(short(NAME))), Path("other/clip.safetensors"), lambda state: state["visual.proj"].mul_(2))
    refused(capsys, "checkpoint.not-this-method", "--eval-only", "--checkpoint", "out", "--weights", "other")
    record = score("--checkpoint", "out")
    before = {key: value for key, value in trained.record["metrics"].items() if key != "training"}
    assert record["metrics"] == before
    sha256 = file_sha256(Path("out", "model.safetensors"))
    assert record.get("checkpoint") == {"file": "out", "sha256": sha256, "format": "tvrbench"}
    assert record["weights_sha256"] == trained.record["weights_sha256"]


def tempme(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names as TempMe's code writes them."""
    out = {}
    for key, tensor in state.items():
        if match := re.fullmatch(r"reducer\.frame_positions\.(\d+)", key):
            block = f"clip.visual.transformer.resblocks.{match.group(1)}."
            out[block + "TVPt_Video_Positional_embedding"] = tensor[None, :, None]
        else:
            out[key.replace(".lora.A", ".TVPt_LoRA_a").replace(".lora.B", ".TVPt_LoRA_b")] = tensor
    return out


def wrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As data-parallel training saves it, with the numbers that OpenAI's loader leaves beside the weights."""
    numbers = {"clip.input_resolution": torch.tensor(64), "clip.context_length": torch.tensor(32)}
    return {f"module.{key}": tensor for key, tensor in (state | numbers).items()}


def seq_transf(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names as CLIP4Clip's code writes them."""
    names = {"head.frame_positions": "frame_position_embeddings.weight", "head.transformer.": "transformerClip."}
    out = {}
    for key, tensor in state.items():
        ours = next((name for name in names if key.startswith(name)), "")
        out[names[ours] + key.removeprefix(ours) if ours else key] = tensor
    return out


Renaming = Callable[[dict[str, Tensor]], dict[str, Tensor]]
RELEASED: dict[str, tuple[str, dict[str, Any], Renaming]] = {
    "tempme": ("tempme", {}, tempme),
    "clip4clip-meanP": ("clip4clip", {}, wrapped),
    "clip4clip-seqTransf": ("clip4clip", {"head": "seqTransf"}, seq_transf),
    "centerclip": ("centerclip", {"schedule": ((6, 3, 9),)}, wrapped),
}


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_state_dict_scores_what_its_model_scores(name: str, context: RunContext, tmp_path: Path) -> None:
    method, options, rename = RELEASED[name]
    model = model_of(method, **options)
    file = tmp_path / "pytorch_model.bin.4"
    torch.save(rename(dict(model.state_dict())), file)
    given = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
    record = score("--checkpoint", str(file), "--methods", method, *given)
    metrics, ranks = direct(model, context)
    assert without_selection(record["metrics"]) == json.loads(json.dumps(without_selection(metrics)))
    stored = RecordStore(Path("runs")).load_ranks(record)
    assert all((stored[direction] == ranks[direction].astype("f4")).all() for direction in ranks)
    assert record["metrics"]["selection"] == "unknown"
    assert record["checkpoint"] == {"file": file.name, "sha256": file_sha256(file), "format": "released"}
    assert record["weights_sha256"] == file_sha256(file)
    assert record["method"]["options"] == json.loads(
        json.dumps({"backbone": record["method"]["options"]["backbone"], "frames": 12} | model.spec.describe())
    )
    assert "Nothing was trained" in Path("runs/reports/standin/uniform/README.md").read_text()


def test_tuned_parameters_alone_are_scored_on_the_protocols_weights(context: RunContext, tmp_path: Path) -> None:
    model = model_of("tempme")
    file = tmp_path / "tuned.pth"
    torch.save(tempme({key: p.detach() for key, p in model.trainable().items()}), file)
    record = score("--checkpoint", str(file), "--methods", "tempme")
    assert without_selection(record["metrics"]) == json.loads(json.dumps(without_selection(direct(model, context)[0])))
    assert record["weights_sha256"] == context.weights.sha256
    assert record["checkpoint"]["sha256"] == file_sha256(file)


def test_no_training_video_is_needed(trained: Trained, context: RunContext, tmp_path: Path) -> None:
    data = tmp_path / "data"
    test = set(context.test.video_ids)
    shutil.copytree(
        context.dataset.root,
        data,
        ignore=lambda _, names: [n for n in names if n.endswith(".mp4") and Path(n).stem not in test],
    )
    record = score("--checkpoint", str(trained.checkpoint), "--data", str(data))
    assert record["metrics"]["t2v"] == trained.record["metrics"]["t2v"]
    assert record["data"]["skipped"] == []


def test_the_plan_has_no_step(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--checkpoint", str(trained.checkpoint), "--eval-only", "--dry-run", "--json")
    assert cli.main(["run", NAME, *QUICK, *arguments]) == 0
    (planned,) = json.loads(capsys.readouterr().out)["runs"]
    assert (planned["method"], planned["tuning"], planned["steps"], planned["trainings"]) == ("lora", "lora", 0, 0)
    assert not list(Path("runs").rglob("*.json"))


def test_a_regression_check_reads_past_it(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    protocol, record = load_protocol(NAME), trained.record
    r1 = record["metrics"]["t2v"]["R1"]
    other = record["metrics"] | {"t2v": record["metrics"]["t2v"] | {"R1": r1 + 50}}
    reference = {"file": "other.bin", "sha256": "c" * 64, "format": "released"}
    store, ref = RecordStore(Path("runs")), {"name": protocol.name, "hash": protocol.hash}
    store.save(dict(record) | {"protocol": ref, "checkpoint": reference, "metrics": other})
    baseline = {
        "schema_version": 1,
        "device": "cpu",
        "standin": {"protocol": protocol.name, "hash": protocol.hash, "seed": 0, "methods": ["lora"]},
        "entries": {"standin/lora/t2v_R1": {"value": r1, "margin": 0.0}},
        "accepted": [{"date": "2024-01-01", "reason": "a test", "git_sha": None}],
    }
    Path("baseline.json").write_text(json.dumps(baseline))
    check = ["check", "--against", "baseline.json", "--records", "runs", "--json"]
    assert cli.main(check) == 1
    assert [row["measured"] for row in json.loads(capsys.readouterr().out)] == [None]
    store.save(dict(record) | {"protocol": ref})
    assert cli.main(check) == 0
    assert [row["measured"] for row in json.loads(capsys.readouterr().out)] == [r1]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--eval-only",), "eval-only.no-checkpoint"),
        (("--checkpoint", "FILE"), "eval-only.missing"),
        (("--eval-only", "--checkpoint", "FILE", "--methods", "lora,tempme"), "checkpoint.one-method"),
        (("--eval-only", "--checkpoint", "FILE", "--seeds", "0,1"), "eval-only.seeds"),
        (("--eval-only", "--checkpoint", "FILE", "--checkpoint-selection", "best-on-test"), "eval-only.selection"),
        (("--eval-only", "--checkpoint", "FILE", "--methods", "tempme"), "checkpoint.method"),
        (("--eval-only", "--checkpoint", "FILE", "--methods", "zap"), "registry.unknown"),
        (("--eval-only", "--checkpoint", "FILE", "--weights", "openai"), "checkpoint.weights"),
        (("--eval-only", "--checkpoint", "FILE", "--backbone", "ViT-B-32"), "checkpoint.backbone"),
        (("--eval-only", "--checkpoint", "FILE", "--set", "rank=4"), "checkpoint.not-this-method"),
        (("--eval-only", "--checkpoint", "FILE", "--set", "speed=4"), "checkpoint.not-this-method"),
        (("--eval-only", "--checkpoint", "nowhere.bin", "--methods", "lora"), "checkpoint.missing"),
        (("--eval-only", "--checkpoint", "."), "checkpoint.not-exported"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    capsys: pytest.CaptureFixture[str], trained: Trained, arguments: tuple[str, ...], code: str
) -> None:
    refused(capsys, code, *(str(trained.checkpoint) if part == "FILE" else part for part in arguments))


class _Code:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.bin", b""),
        ("noise.bin", b"\x80\x02no pickle at all"),
        ("noise.safetensors", b"\xff" * 64),
        ("code.bin", pickle.dumps({"a": _Code()}, protocol=2)),
    ],
    ids=["empty", "no-pickle", "no-safetensors", "code"],
)
def test_broken_and_hostile_files_are_refused(capsys: pytest.CaptureFixture[str], name: str, content: bytes) -> None:
    Path(name).write_bytes(content)
    refused(capsys, "weights.unreadable", "--eval-only", "--checkpoint", name, "--methods", "lora")
    assert not Path("executed").exists()


def test_a_state_dict_of_another_method_is_refused_before_any_video_is_decoded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tvrbench.harness.runs.suite.check_videos", lambda *_, **__: pytest.fail("decodes videos"))
    torch.save(tempme(dict(model_of("tempme").state_dict())), "released.bin")
    arguments = ("--eval-only", "--checkpoint", "released.bin")
    line = refused(capsys, "checkpoint.not-this-method", *arguments, "--methods", "lora")
    assert "released.bin" in line
    assert "TVPt_Video_Positional_embedding" in line
    refused(capsys, "checkpoint.no-method", *arguments)
    torch.save({3: torch.zeros(2)}, "numbered.bin")
    refused(capsys, "weights.unreadable", "--eval-only", "--checkpoint", "numbered.bin", "--methods", "lora")
    torch.save({"clip.visual.proj": torch.zeros(2)}, "torn.bin")
    arguments = ("--eval-only", "--checkpoint", "torn.bin", "--methods", "clip4clip")
    refused(capsys, "checkpoint.not-this-method", *arguments)


def test_other_frames_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(load_model("lora", weights=weights_of(short(NAME)), frames=6), Path("six.safetensors"))
    refused(capsys, "checkpoint.frames", "--eval-only", "--checkpoint", "six.safetensors")


def test_features_that_cannot_be_ranked_are_refused(capsys: pytest.CaptureFixture[str], trained: Trained) -> None:
    _rewrite(trained.checkpoint, Path("huge.safetensors"), lambda state: state["clip.visual.proj"].fill_(3e38))
    assert "huge.safetensors" in refused(
        capsys, "checkpoint.features", "--eval-only", "--checkpoint", "huge.safetensors"
    )


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"options": "[]"}, "checkpoint.description"),
        ({"options": "[" * 100_000}, "checkpoint.description"),
        ({"frames": "0"}, "checkpoint.description"),
        ({"architecture": "{}"}, "option.invalid"),
        ({"architecture": {"vision_width": 64 * 10**9}}, "checkpoint.description"),
        ({"method": "zap"}, "registry.unknown"),
    ],
)
def test_a_damaged_description_is_refused(
    capsys: pytest.CaptureFixture[str], trained: Trained, change: dict[str, Any], code: str
) -> None:
    with safe_open(trained.checkpoint, framework="pt") as handle:
        description = dict(handle.metadata())
    if isinstance(change.get("architecture"), dict):
        change = {"architecture": json.dumps(json.loads(description["architecture"]) | change["architecture"])}
    _rewrite(trained.checkpoint, Path("damaged.safetensors"), lambda _: None, description | change)
    refused(capsys, code, "--eval-only", "--checkpoint", "damaged.safetensors")


def _rewrite(
    source: Path, target: Path, change: Callable[[dict[str, Tensor]], Any], description: dict[str, str] | None = None
) -> None:
    state = load_file(source)
    change(state)
    with safe_open(source, framework="pt") as handle:
        save_file(state, target, metadata=description or dict(handle.metadata()))
