"""``tvrbench export``: a folder that gives the same model again, and every run that cannot be exported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from errors import raises
from fake_hub import TOKEN, FakeHub, fake_hub
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from tvrbench.harness import load_model
from tvrbench.harness.cli import app as cli
from tvrbench.harness.core.io import file_sha256
from tvrbench.harness.models.model import RetrievalModel, trainable_state_dict
from tvrbench.harness.records.record import read_record
from tvrbench.harness.records.runs import StoredRecord
from tvrbench.harness.runs.config import RunConfig
from tvrbench.harness.runs.export import export_run

pytestmark = pytest.mark.unit


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run of two steps: its record, its checkpoint and the weights that it started from."""

    run: StoredRecord
    checkpoint: Path
    weights: Path
    results: Path

    def changed(
        self, folder: Path, change: Callable[[dict[str, Any]], None], *, keeps_name: bool = False
    ) -> StoredRecord:
        """The run with a record that says something else, in another place."""
        document = json.loads(self.run.path.read_text())
        change(document)
        path = folder / self.run.path.name if keeps_name else folder / "record.json"
        path.write_text(json.dumps(document))
        return StoredRecord(record=read_record(path), path=path)


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, small_weights: Path) -> Callable[..., Trained]:
    made: dict[str, Trained] = {}

    def once(method: str, **options: Any) -> Trained:
        key = f"{method} {options}"
        if key not in made:
            folder = tmp_path_factory.mktemp(method)
            context = tiny_run.tiny_context(small_weights, steps=2)
            path = tiny_run.run_in(folder, context, RunConfig(method=method, seed=0, options=options, timing=False))
            assert path is not None
            made[key] = Trained(
                run=StoredRecord(record=read_record(path), path=path.resolve()),
                checkpoint=tiny_run.only(folder, "*.safetensors"),
                weights=small_weights,
                results=folder,
            )
        return made[key]

    return once


@pytest.fixture
def lora(train: Callable[..., Trained]) -> Trained:
    return train("lora")


def features(model: RetrievalModel, batch: dict[str, Any]) -> list[torch.Tensor]:
    with torch.inference_mode():
        sides = model.text_side(batch["ids"], batch["text_mask"]), model.video_side(batch["frames"], batch["mask"])
    return [tensor for side in sides for tensor in side.tensors]


TUNED = {"lora": {}, "bias": {}, "tempme": {"merge_blocks": (0, 1, 2), "r": 1}, "drl": {}}
WHOLE: dict[str, dict[str, Any]] = {"clip4clip": {}, "eercf": {}}


@pytest.mark.parametrize(("method", "options"), [*TUNED.items(), *WHOLE.items()])
def test_a_loaded_export_gives_the_features_of_its_checkpoint(
    method: str, options: dict[str, Any], train: Callable[..., Trained], tiny_batch: dict[str, Any], tmp_path: Path
) -> None:
    trained = train(method, **options)
    made = export_run(trained.run, tmp_path / "out", tmp_path)
    weights = trained.weights if made.tuned_only else None
    model, before = (
        load_model(checkpoint=made.folder, weights=weights),
        load_model(method, checkpoint=trained.checkpoint),
    )
    assert all(
        torch.equal(*pair) for pair in zip(features(model, tiny_batch), features(before, tiny_batch), strict=True)
    )
    tiny_run.assert_equal(model.state_dict(), before.state_dict())
    held = load_file(made.folder / "model.safetensors")
    assert made.tuned_only == (method in TUNED)
    tiny_run.assert_equal(held, trainable_state_dict(before) if made.tuned_only else before.state_dict())
    assert "clip.visual.conv1.weight" not in held or method in WHOLE
    config = json.loads((made.folder / "config.json").read_text())
    assert (config["method"], config["frames"], config["selection"]) == (method, 12, "last")
    assert (config["base"] or {"sha256": None})["sha256"] == (file_sha256(trained.weights) if weights else None)


def test_a_fresh_process_loads_the_same_model(lora: Trained, tiny_batch: dict[str, Any], tmp_path: Path) -> None:
    export_run(lora.run, tmp_path / "out", tmp_path)
    torch.save(tiny_batch, tmp_path / "batch.pt")
    script = (
        "import sys, torch; from tvrbench.harness import load_model; torch.set_num_threads(1);"
        "b = torch.load('batch.pt'); m = load_model(checkpoint='out', weights=sys.argv[1]);"
        "torch.save(m.encode_video(b['frames'], b['mask']).detach(), 'video.pt')"
    )
    subprocess.run([sys.executable, "-c", script, str(lora.weights)], cwd=tmp_path, check=True)
    model = load_model("lora", checkpoint=lora.checkpoint)
    video = model.encode_video(tiny_batch["frames"], tiny_batch["mask"])
    assert torch.equal(torch.load(tmp_path / "video.pt"), video)


def test_tuned_parameters_are_loaded_on_their_own_weights_alone(
    lora: Trained, tiny_weights: Path, tmp_path: Path
) -> None:
    out = export_run(lora.run, tmp_path / "out", tmp_path).folder
    with raises("weights.missing"):  # a file of the user's has no name that others could find it by
        load_model(checkpoint=out)
    with raises("checkpoint.base-weights"):
        load_model(checkpoint=out, weights=tiny_weights)
    with raises("checkpoint.method"):
        load_model("tempme", checkpoint=out, weights=lora.weights)
    assert load_model(checkpoint=out / "model.safetensors", weights=lora.weights).name == "lora"  # the file alone too
    with raises("checkpoint.no-method"):
        load_model(weights=lora.weights)


def test_the_code_on_the_card_runs_and_its_front_matter_is_read(
    train: Callable[..., Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train("clip4clip")
    out = export_run(trained.run, tmp_path / "out", tmp_path, license="cc-by-4.0").folder
    card, record = ModelCard.load(out / "README.md"), trained.run.record
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    monkeypatch.chdir(out)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["video"].shape == (1, names["model"].clip.arch.embed_dim)
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == ("cc-by-4.0", "tvrbench", "feature-extraction")
    assert data.eval_results is not None
    found = {each.metric_type: each.metric_value for each in data.eval_results}
    assert found["t2v_R1"] == pytest.approx(record["metrics"]["t2v"]["R1"], abs=1e-4)
    assert record["protocol"]["hash"] in card.text
    assert read_record(out / "record.json") == record
    assert (out / str(record["per_query_ranks_path"])).is_file()


def test_names_and_options_of_others_are_text_on_the_card(lora: Trained, tmp_path: Path) -> None:
    hostile = "<script>x</script> `a` |\n---\n# title\n![i](http://x) [l](y)"

    def change(document: dict[str, Any]) -> None:
        document["command"] = document["data"]["dataset"] = document["data"]["test_split"] = hostile
        document["environment"]["device"] = document["weights"]["source"] = hostile.replace("/", "")

    out = export_run(lora.changed(tmp_path, change), tmp_path / "out", lora.results).folder
    text = (out / "README.md").read_text()
    front, body = text.removeprefix("---\n").split("\n---\n", 1)
    assert not re.search(r"^# title", text, re.MULTILINE)
    assert "<script>" not in re.sub(r"`+.*?`+", "", body)
    assert not re.search(r"(?<!\\)!?\[[^\]]*\]\(", re.sub(r"(`+).*?\1", "", body))
    assert ModelCard(text).data.library_name == "tvrbench"
    assert len(front.splitlines()) > 10


def _set(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


def _failed(document: dict[str, Any]) -> None:
    document |= {"status": "failed", "failure": "out of memory"}


def _scored(document: dict[str, Any]) -> None:
    document["checkpoint"] = {"file": "x.safetensors", "sha256": "0" * 64, "format": "tvrbench"}


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "failed": (_failed, "export.failed"),
    "scored": (_scored, "export.scored"),
    "costs alone": (_set("metrics", value={}), "export.untrained"),
    "nothing trained": (_set("tuning", value="frozen"), "export.untrained"),
    "another seed": (_set("seed", value=7), "export.no-checkpoint"),
    "other weights": (_set("weights_sha256", value="0" * 64), "export.no-checkpoint"),
    "another protocol": (_set("protocol", "name", value="other/uniform"), "export.no-checkpoint"),
    "a later training": (_set("metrics", "training", "model_sha256", value="0" * 64), "export.disagrees"),
    "another checkpoint": (_set("metrics", "selection", value="best-on-test"), "export.no-checkpoint"),
    "a name that is no folder": (_set("protocol", "name", value="../uniform"), "name.unsafe"),
}


def test_tuned_parameters_of_weights_that_the_record_does_not_name_are_refused(lora: Trained, tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["weights_sha256"] = document.pop("weights") and None

    with raises("export.no-base"):
        export_run(lora.changed(tmp_path, change, keeps_name=True), tmp_path / "out", lora.results)


@pytest.mark.parametrize("case", REFUSED)
def test_a_run_without_a_checkpoint_of_its_own_is_refused(case: str, lora: Trained, tmp_path: Path) -> None:
    change, code = REFUSED[case]
    with raises(code):
        export_run(lora.changed(tmp_path, change), tmp_path / "out", lora.results)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model_under_the_runs_name_is_refused(
    lora: Trained, train: Callable[..., Trained], tmp_path: Path
) -> None:
    other = train("lora", rank=4)
    place = tmp_path / lora.checkpoint.relative_to(lora.results)
    place.parent.mkdir(parents=True)
    place.write_bytes(other.checkpoint.read_bytes())
    with raises("export.disagrees") as refused:
        export_run(lora.changed(tmp_path, lambda _: None), tmp_path / "out", tmp_path)
    assert refused.value.fields["differ"] == ["options", "weights"]


def test_records_without_the_hash_of_their_model_are_exported(lora: Trained, tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        del document["metrics"]["training"]["model_sha256"], document["weights"]

    run = lora.changed(tmp_path, change, keeps_name=True)  # the name of the run depends on how its weights were read
    made = export_run(run, tmp_path / "out", lora.results)
    assert "no hash of its model" in (made.folder / "README.md").read_text()
    assert json.loads((made.folder / "record.json").read_text())["per_query_ranks_path"] is None  # it is not here
    assert load_model(checkpoint=made.folder, weights=lora.weights).name == "lora"


@pytest.mark.parametrize("broken", ["a link to a secret", "no archive"])
def test_what_only_has_the_name_of_a_file_of_ranks_is_not_handed_on(broken: str, lora: Trained, tmp_path: Path) -> None:
    run = lora.changed(tmp_path, lambda _: None)
    ranks = tmp_path / str(run.record["per_query_ranks_path"])
    secret = tmp_path / "id_ed25519"
    secret.write_text("secret")
    if broken == "no archive":
        ranks.write_bytes(b"secret")
    else:
        ranks.symlink_to(secret)
    with raises("ranks.read"):
        export_run(run, tmp_path / "out", lora.results)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_another_wrote_meanwhile_stays(
    lora: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def slow(*_: Any) -> str:
        out.mkdir()
        (out / "README.md").write_text("mine")
        return ""

    monkeypatch.setattr("tvrbench.harness.runs.export.model_card", slow)
    with raises("export.not-empty"):
        export_run(lora.run, out, tmp_path)
    assert [path.name for path in out.iterdir()] == ["README.md"]
    assert (out / "README.md").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_of_something_else_stays_as_it_is(lora: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    for force in (False, True):
        with raises("export.not-empty"):
            export_run(lora.run, out, tmp_path, force=force)
    with raises("export.not-a-folder"):
        export_run(lora.run, out / "notes.txt", tmp_path)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_force_replaces_the_files_of_an_earlier_export_alone(
    lora: Trained, train: Callable[..., Trained], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty folder is fine
    first = export_run(lora.run, out, tmp_path)
    (out / ".git").mkdir()
    with raises("export.exists"):
        export_run(lora.run, out, tmp_path)
    second = export_run(train("clip4clip").run, out, tmp_path, force=True)
    assert {path.name for path in out.iterdir()} == {*second.files, ".git"}
    assert set(first.files) != set(second.files)  # each has a file of ranks of its own
    assert load_model(checkpoint=out).name == "clip4clip"


@pytest.mark.parametrize(("stop", "code"), [(OSError(28, "No space left on device"), "export.write"), (None, None)])
def test_a_broken_off_export_leaves_nothing(
    stop: OSError | None, code: str | None, lora: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> str:
        raise stop or KeyboardInterrupt

    monkeypatch.setattr("tvrbench.harness.runs.export.model_card", fail)
    with raises(code) if code else pytest.raises(KeyboardInterrupt):
        export_run(lora.run, tmp_path / "out", tmp_path)
    assert list(tmp_path.iterdir()) == []


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.main(["export", *arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


def test_the_command_says_what_it_wrote(
    lora: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = call(capsys, "lora", "--results", str(lora.results), "--to", "out", "--json")
    document = json.loads(out)
    assert (code, document["folder"], document["tuned_only"], document["commit"]) == (0, "out", True, None)
    assert {path.name for path in Path("out").iterdir()} == set(document["files"])
    for arguments, expected in {
        ("lora", "--to", "out"): "export.exists",
        ("nobody", "--to", "new"): "record.missing",
        ("lora", "--to", "new", "--license", "Do what you like"): "export.license",
        ("lora", "--to", "new", "--private"): "export.private",
        ("lora", "--to", "new", "--push-to-hub", "no-owner"): "hub.name",
        ("lora", "--to", "new", "--push-to-hub", "../x"): "hub.name",
    }.items():
        code, out, err = call(capsys, *arguments, "--results", str(lora.results))
        assert (code, out) == (2, "")
        assert err.strip().endswith(f"[{expected}]")
    assert not Path("new").exists()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as made:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # a protocol of its own, in Rust
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield made


def test_a_push_is_one_commit_of_the_exported_files(
    hub: FakeHub, lora: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (str(lora.run.path), "--to", str(tmp_path / "out"), "--push-to-hub", "me/model")
    code, out, _ = call(capsys, *arguments, "--private")
    assert (code, out.splitlines()[-1]) == (0, f"{hub.address}/me/model/commit/{'0' * 40}")
    assert hub.repositories["me/model"] == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert hub.private == {"me/model": True}
    (tmp_path / "out" / ".env").write_text("secret")
    assert call(capsys, *arguments, "--force")[0] == 0  # the repository is there already
    assert ".env" not in hub.repositories["me/model"]
    assert len([request for request in hub.requests if "/commit/" in request]) == 2


def test_a_hub_that_refuses_or_is_gone_leaves_the_folder(
    hub: FakeHub,
    lora: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = (str(lora.run.path), "--to", str(tmp_path / "out"), "--push-to-hub", "me/model", "--force")
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    assert call(capsys, *arguments)[2].strip().endswith("[hub.refused]")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.strip().endswith("[hub.unreachable]")
    assert (tmp_path / "out" / "config.json").is_file()
    assert hub.repositories == {}
