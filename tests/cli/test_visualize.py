"""``tvrbench visualize`` on the embedded stand-in: with and without checkpoints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from errors import raises

from tvrbench.harness import load_model
from tvrbench.harness.cli import app as cli
from tvrbench.harness.cli.visualize import Visualize, compare_with_record
from tvrbench.harness.config.protocol import load_protocol
from tvrbench.harness.models.checkpoint import save_checkpoint
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.records.store import RecordStore, run_name
from tvrbench.harness.runs.config import RunConfig, RunFiles, RunKey
from tvrbench.harness.runs.context import open_context, weights_of

pytestmark = [pytest.mark.cli, pytest.mark.slow]
PROTOCOL = "standin/uniform"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _here(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TVRBENCH_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)


def visualize(*arguments: str) -> int:
    return cli.main(["visualize", *arguments, "--device", "cpu"])


def files_of(method: str, seed: int = 0, **options: Any) -> RunFiles:
    context = open_context(load_protocol(PROTOCOL), None, None)
    name = RunKey.of(context, RunConfig(method=method, seed=seed, options=options)).name
    return RunFiles(RecordStore(Path("runs")), PROTOCOL, name)


def save(method: str, seed: int = 0) -> Path:
    model = load_model(method, weights=weights_of(load_protocol(PROTOCOL)), **method_class(method).card.tiny)
    path = files_of(method, seed).checkpoint
    save_checkpoint(model, path)
    return path


def test_tokens_are_drawn_with_checkpoints_where_there_are_and_the_protocol_s_weights_elsewhere(
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoint = save("tempme")
    save("tempme", seed=1)
    assert visualize("tokens", PROTOCOL, "tempme", "vidtome:mode=persistent", "--json") == 0
    done = capsys.readouterr()
    assert f"tempme: trained: {checkpoint.name}\n" in done.err
    assert "vidtome:mode=persistent: not trained: on the protocol's weights\n" in done.err
    assert "Embedded stand-in, not MSR-VTT" in done.err
    file = Path(json.loads(done.out)["file"])
    assert file == Path("runs/reports/standin/uniform/tokens.png")
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_checkpoint_of_other_options_is_not_the_run_s(capsys: pytest.CaptureFixture[str]) -> None:
    save("tempme")
    assert visualize("tokens", PROTOCOL, "tempme:r=0") == 0
    assert "tempme:r=0: not trained: on the protocol's weights\n" in capsys.readouterr().err


def test_a_gallery_of_two_methods(capsys: pytest.CaptureFixture[str]) -> None:
    assert visualize("gallery", PROTOCOL, "zero_shot", "frame_subsample", "--queries", "3") == 0
    page = Path("runs/reports/standin/uniform/gallery.html").read_text(encoding="utf-8")
    assert page.count("<article") == 3
    assert "zero_shot: R@1 15.3 % (not trained: on the protocol&#39;s weights)" in page
    assert "reports/standin/uniform/gallery.html" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"video": "video1.mp4/../x"}, "video.missing"),
        ({"kind": "gallery", "methods": ("tempme",)}, "visualize.gallery-methods"),
        ({"kind": "gallery"}, "visualize.gallery-methods"),
        ({"queries": 0}, "option.range"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(changes: dict[str, Any], code: str) -> None:
    options: dict[str, Any] = {"kind": "tokens", "protocol": PROTOCOL, "device": "cpu"}
    with raises(code):
        Visualize(**(options | changes)).run()
    assert not Path("runs/reports").exists()


@pytest.mark.parametrize(
    "arguments",
    [("tokens", PROTOCOL, "tempmee"), ("tokens", "standin/unform"), ("tokens", "msrvtt-1ka-9k/uniform")],
)
def test_unknown_names_and_absent_data_exit_with_2(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert visualize(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not Path("runs/reports").exists()


def test_ranks_are_compared_with_the_record(tmp_path: Path) -> None:
    record = json.loads((Path(__file__).parents[1] / "fixtures" / "standin_record.json").read_text(encoding="utf-8"))
    store, ranks = RecordStore(tmp_path), np.array([1.0, 1.5, 3.0, 7.0])
    files = RunFiles(store, PROTOCOL, run_name(record))
    assert compare_with_record(ranks, files) is None
    assert store.save(record, {"t2v": ranks, "v2t": ranks}) == files.record
    assert compare_with_record(ranks, files) == 0
    assert compare_with_record(np.array([1.0, 1.5, 4.0, 8.0]), files) == 2
    assert compare_with_record(ranks[:3], files) is None
    store.save(record, None)
    assert compare_with_record(ranks, files) is None


def test_a_method_that_ranks_by_more_is_in_no_gallery(capsys: pytest.CaptureFixture[str]) -> None:
    assert visualize("gallery", PROTOCOL, "ts2net", "zero_shot") == 2
    assert "[visualize.scorer]" in capsys.readouterr().err
