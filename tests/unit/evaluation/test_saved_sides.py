"""Saved embeddings of a scorer: the run's numbers without model or data, other settings beside them, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
import toy_scorer
from errors import raises
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tvrbench.harness import load_model
from tvrbench.harness.cli import app as cli
from tvrbench.harness.data.types import Split
from tvrbench.harness.evaluation.embeddings import SIDES, VECTORS, load_embeddings, rescore, save_embeddings
from tvrbench.harness.evaluation.evaluate import Evaluation, Sides, score, score_sides
from tvrbench.harness.evaluation.missing_videos import better_of
from tvrbench.harness.evaluation.side_store import SideStore, Storage, store_sides
from tvrbench.harness.evaluation.tensor_file import file_checksum
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.scorer import Side

pytestmark = pytest.mark.unit
TEXTS, VIDEOS = 30, 20


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    toy_scorer.register(monkeypatch)


def split_of() -> Split:
    return Split(
        name="t",
        video_ids=tuple(f"v{i}" for i in range(VIDEOS)),
        captions=tuple(f"c{i}" for i in range(TEXTS)),
        caption_video=tuple(i % VIDEOS for i in range(TEXTS)),
        subsets={"even": tuple(range(0, TEXTS, 2))},
        scenes=tuple(i // 2 for i in range(VIDEOS)),
    )


def stored(folder: Path, kind: str, count: int, fine: Mapping[str, tuple[int, ...]], storage: Storage) -> SideStore:
    generator = torch.Generator().manual_seed(count)
    tensors = {name: torch.randn(count, *shape, generator=generator) for name, shape in fine.items()}
    tensors |= {name: (tensor > 0.5).float() for name, tensor in tensors.items() if "mask" in name or "weight" in name}
    tensors |= {"word_mask": torch.ones(count, 5)} if kind == "text" else {}
    side = Side(coarse=torch.randn(count, 64, generator=generator), fine=tensors)
    return store_sides(folder / f"{kind}.safetensors", count, [(0, side)], storage)


def run_of(model: RetrievalModel) -> dict[str, Any]:
    method = {"name": model.name, "options": model.spec.describe()}
    return {"protocol": {"name": "p/q"}, "method": method, "seed": 3, "selection": "last"}


Kept = tuple[Path, Evaluation]


@pytest.fixture
def keep(tiny_weights: Path, tmp_path: Path) -> Callable[..., Kept]:
    """Save a run of the toy scorer with these options."""

    def make(**options: Any) -> Kept:
        model = load_model(toy_scorer.NAME, weights=tiny_weights, frames=12, **options)
        storage = model.scorer.storage
        text = stored(tmp_path, "text", TEXTS, {"words": (5, 64), "word_mask": (5,)}, storage)
        video = stored(tmp_path, "video", VIDEOS, {"frames": (12, 64), "weight": (12,)}, storage)
        found = score_sides(model.scorer, Sides(text=text, video=video), split_of())
        path = tmp_path / "embeddings" / "run.safetensors"
        save_embeddings(path, found, split_of(), run_of(model), model)
        for file in tmp_path.glob("*.safetensors"):  # what the run removes at its end
            file.unlink()
        return path, found

    return make


SETTINGS: list[dict[str, Any]] = [
    {},
    {"depth": 4},
    {"depth": 4, "v2t": "transposed", "storage": "float16"},
    {"depth": 0},
    {"storage": "int8"},
]


@pytest.mark.parametrize("options", SETTINGS)
def test_a_file_gives_the_numbers_of_its_run_bit_for_bit(keep: Callable[..., Kept], options: dict[str, Any]) -> None:
    path, found = keep(**options)
    again = rescore(load_embeddings(path), path)
    assert again.metrics == found.metrics
    assert all(np.array_equal(again.ranks[name], found.ranks[name]) for name in ("t2v", "v2t"))
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with safe_open(path, framework="pt") as handle:
        assert handle.metadata()["format"] == SIDES
        assert {"scorer.mix", "text.fine.words", "video.fine.weight"} <= set(handle.keys())


@pytest.mark.parametrize("changed", [{"depth": 4}, {"depth": None, "v2t": "transposed"}, {"storage": "int8"}])
def test_another_setting_gives_the_numbers_of_a_run_with_it(
    keep: Callable[..., Kept], changed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    _, wanted = keep(depth=2, **{name: value for name, value in changed.items() if name != "depth"})
    _, wanted = keep(**{"depth": 2} | changed)
    path, found = keep(depth=2)
    saved = load_embeddings(path)
    assert rescore(saved, path, changed).metrics == wanted.metrics
    assert rescore(saved, path).metrics == found.metrics  # nothing stays changed
    assert not list((tmp_path / "temporary").iterdir())


def test_the_command_prints_what_changed(keep: Callable[..., Kept], capsys: pytest.CaptureFixture[str]) -> None:
    path, found = keep(depth=4)
    assert cli.main(["rescore", str(path), "--depth", "none", "--storage", "int8", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["metrics_of_run"] == json.loads(json.dumps(found.metrics))
    assert printed["changed"] == {"depth": None, "storage": "int8"}
    assert printed["metrics"]["two_stage"]["storage"] == "int8"
    assert cli.main(["rescore", str(path), "--depth", "1"]) == 0
    out = capsys.readouterr().out
    assert (out.count("best 4"), out.count("best 1")) == (2, 2)
    for wrong in ("-1", "1.5", "all"):
        assert cli.main(["rescore", str(path), f"--depth={wrong}"]) == 2
        assert "[rescore.depth]" in capsys.readouterr().err


def test_what_a_smaller_type_lost_does_not_come_back(keep: Callable[..., Kept]) -> None:
    path, _ = keep(storage="int8")
    with raises("rescore.storage", stored="int8", asked="float32"):
        rescore(load_embeddings(path), path, {"storage": "float32"})
    rescore(load_embeddings(path), path, {"storage": "int8"})


def test_a_coarse_file_of_such_a_method_prints_no_number(tiny_weights: Path, tmp_path: Path, capsys: Any) -> None:
    model, path = load_model("ts2net", weights=tiny_weights, frames=12), tmp_path / "e.safetensors"
    coarse = score(torch.randn(TEXTS, 8), torch.randn(VIDEOS, 8), split_of())
    save_embeddings(path, coarse, split_of(), run_of(model))
    with raises("embeddings.coarse-only", method="ts2net"):
        rescore(load_embeddings(path), path)
    assert cli.main(["rescore", str(path)]) == 2
    assert capsys.readouterr().out == ""


def test_a_file_without_second_stage_has_none_to_change(tmp_path: Path) -> None:
    path, run = tmp_path / "e.safetensors", {"protocol": {"name": "p"}, "method": {"name": "lora"}, "seed": 0}
    save_embeddings(path, score(torch.randn(TEXTS, 8), torch.randn(VIDEOS, 8), split_of()), split_of(), run | SELECTED)
    for changed in ({"depth": 3}, {"v2t": "own"}, {"storage": "int8"}):
        with raises("rescore.no-second-stage", method="lora"):
            rescore(load_embeddings(path), path, changed)
    with safe_open(path, framework="pt") as handle:
        assert handle.metadata()["format"] == VECTORS


SELECTED = {"selection": "last"}


def test_a_run_of_a_scorer_is_kept_whole(tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--weights", str(tiny_weights), "--results", str(tmp_path), "--method", "ts2net", "--steps", "2"]
    monkeypatch.setattr("sys.argv", ["tiny_run.py", *arguments, "--save-embeddings"])
    tiny_run.main()
    recorded = tiny_run.record_of(tmp_path)
    (path,) = (tmp_path / "embeddings").rglob("*.safetensors")
    again = json.loads(json.dumps(rescore(load_embeddings(path), path).metrics))
    left_out = ("training", "evaluation", "merge_margin")
    assert again == {name: value for name, value in recorded["metrics"].items() if name not in left_out}
    assert recorded["metrics"]["two_stage"]["depth"] is None
    assert not list(tmp_path.rglob("*.sides"))
    assert better_of(rescore(load_embeddings(path), path).ranks["t2v"]).min() >= 0


def rewrite(path: Path, tensors: Mapping[str, Tensor | None] | None = None, said: dict[str, str] | None = None) -> None:
    """The file with some tensors (None: left out) or words of its metadata changed, its checksum made good again."""
    with safe_open(path, framework="pt") as handle:
        metadata = dict(handle.metadata())
    state = {name: tensor for name, tensor in (load_file(path) | dict(tensors or {})).items() if tensor is not None}
    checksum = file_checksum({name: tensor.numpy() for name, tensor in state.items()})
    save_file(state, path, metadata=metadata | {"checksum": checksum} | (said or {}))


def described(path: Path, **changes: Any) -> None:
    """The file with another description of its scorer."""
    with safe_open(path, framework="pt") as handle:
        scorer = json.loads(handle.metadata()["scorer"])
    rewrite(path, said={"scorer": json.dumps(scorer | changes)})


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "bit": (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x07"), "embeddings.damaged"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-4]), "embeddings.damaged"),
    "stranger": (lambda path: rewrite(path, {"code": torch.ones(3)}), "embeddings.damaged"),
    "fewer": (lambda path: rewrite(path, {"video.fine.frames": torch.ones(2, 12, 64)}), "embeddings.damaged"),
    "no scale": (lambda path: rewrite(path, {"video.fine.frames.scale": None}), "embeddings.damaged"),
    "other scale": (lambda path: rewrite(path, {"video.fine.frames.scale": torch.ones(20, 3)}), "embeddings.damaged"),
    "half mask": (lambda path: rewrite(path, {"video.fine.weight": torch.ones(20, 12).half()}), "embeddings.damaged"),
    "no words": (lambda path: rewrite(path, {"text.fine.word_mask": None}), "embeddings.scorer"),
    "no second stage": (lambda path: rewrite(path, dict.fromkeys(FINE)), "embeddings.coarse-only"),
    "no parameter": (lambda path: rewrite(path, {"scorer.mix": None}), "embeddings.scorer"),
    "more": (lambda path: rewrite(path, {"scorer.more": torch.ones(2)}), "embeddings.scorer"),
    "shape": (lambda path: rewrite(path, {"scorer.mix": torch.ones(2, 2)}), "embeddings.scorer"),
    "huge": (
        lambda path: described(path, architecture={"embed_dim": 10**9, **dict.fromkeys(SHAPES, 64)}),
        "embeddings.scorer",
    ),
    "method": (lambda path: described(path, method="os:system"), "embeddings.scorer"),
    "options": (lambda path: described(path, options={"depth": "x", "tuning": "lora"}), "embeddings.scorer"),
    "frames": (lambda path: described(path, frames=-1), "embeddings.scorer"),
    "list": (lambda path: rewrite(path, said={"scorer": "[1]"}), "embeddings.scorer"),
    "nested": (lambda path: rewrite(path, said={"scorer": "[" * 100_000}), "embeddings.scorer"),
    "nan": (
        lambda path: rewrite(path, {"video.fine.weight": torch.full((20, 12), torch.nan)}),
        "embeddings.unrankable",
    ),
    "width": (lambda path: rewrite(path, {"video": torch.ones(20, 9)}), "embeddings.unrankable"),
    "frames' width": (
        lambda path: rewrite(path, {"video.fine.frames": torch.ones(20, 12, 9, dtype=torch.int8)}),
        "embeddings.unrankable",
    ),
    "both widths": (
        lambda path: rewrite(path, {"video": torch.ones(20, 9), "text": torch.ones(30, 9)}),
        "embeddings.unrankable",
    ),
    "subset": (lambda path: rewrite(path, {"subset.x": torch.tensor([99])}), "embeddings.unrankable"),
}
FINE = (
    "text.fine.word_mask",
    "text.fine.words",
    "text.fine.words.scale",
    "video.fine.frames",
    "video.fine.frames.scale",
    "video.fine.weight",
)
SHAPES = ("image_size", "patch_size", "vision_width", "vision_layers", "text_width", "text_layers", "context_length")


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_file_is_refused_in_one_sentence(
    wrong: str, keep: Callable[..., Kept], capsys: pytest.CaptureFixture[str]
) -> None:
    (path, _), (spoil, code) = keep(storage="int8"), WRONG[wrong]
    spoil(path)
    assert cli.main(["rescore", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert path.name in line
    assert line.endswith(f"[{code}]")
