"""Features saved by a run and ranked again: the same metrics, and every way in which a file can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_run
import torch
from errors import raises
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tvrbench.harness.cli import app as cli
from tvrbench.harness.core.io import file_sha256
from tvrbench.harness.data.types import Split
from tvrbench.harness.evaluation.embeddings import load_embeddings, rescore, save_embeddings
from tvrbench.harness.evaluation.evaluate import Evaluation, score
from tvrbench.harness.evaluation.metrics import (
    cosine_scores,
    pair_accuracy,
    rank_counts,
    retrieval_metrics,
    without_ranks,
)
from tvrbench.harness.evaluation.tensor_file import file_checksum

pytestmark = pytest.mark.unit
RUN = {"protocol": {"name": "p/q"}, "method": {"name": "lora"}, "seed": 3, "selection": "last"}


def split_of(texts: int, videos: int, seed: int = 0) -> Split:
    """Captions of videos drawn at random, two subsets, and videos that share scenes by threes."""
    generator = np.random.default_rng(seed)
    return Split(
        name="t",
        video_ids=tuple(f"v{i}" for i in range(videos)),
        captions=tuple(f"c{i}" for i in range(texts)),
        caption_video=tuple(generator.integers(0, videos, texts).tolist()),
        subsets={"even": tuple(range(0, texts, 2)), "none": ()},
        scenes=tuple(i // 3 for i in range(videos)),
    )


def features(texts: int, videos: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    text, video = (torch.randn(count, 8, generator=generator) for count in (texts, videos))
    video[1] = 2 * video[0]  # a tie in exact arithmetic
    return text, video


@pytest.fixture
def kept(tmp_path: Path) -> tuple[Path, Evaluation]:
    split = split_of(40, 12)
    found = score(*features(40, 12), split)
    path = tmp_path / "embeddings" / "run.safetensors"
    save_embeddings(path, found, split, RUN)
    return path, found


def test_metrics_are_those_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks are a few queries long here, so that there are many of them."""
    monkeypatch.setattr("tvrbench.harness.evaluation.metrics.BLOCK_BYTES", 8 * 40 * 7)
    split, (text, video) = split_of(40, 12), features(40, 12)
    found = score(text, video, split)
    sim = cosine_scores(text, video)
    whole = retrieval_metrics(sim, split.caption_video)
    assert {key: found.metrics[key] for key in ("t2v", "v2t", "RSum")} == without_ranks(whole)
    assert all(np.array_equal(found.ranks[name], whole[name]["ranks"]) for name in ("t2v", "v2t"))
    counts, _ = rank_counts(sim, split.caption_video)
    for k in (1, 5, 10):
        assert found.metrics["ties_shared"]["t2v"][f"R{k}"] == 100 * counts.hit_probability(k).mean()
    whole_pairs = pair_accuracy(text, video, split.caption_video, split.scenes, block=len(text))
    assert found.metrics["pair_accuracy"] == whole_pairs
    assert set(found.metrics["subsets"]) == {"even"}


def test_saved_features_give_the_same_metrics_and_ranks(kept: tuple[Path, Evaluation]) -> None:
    path, found = kept
    saved = load_embeddings(path)
    again = rescore(saved, path)
    assert saved.run == RUN
    assert again.metrics == found.metrics
    assert all(np.array_equal(again.ranks[name], found.ranks[name]) for name in ("t2v", "v2t"))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_how_the_checkpoint_was_chosen_stays_with_its_features(tmp_path: Path) -> None:
    split, path = split_of(5, 5), tmp_path / "e.safetensors"
    save_embeddings(path, score(*features(5, 5), split), split, RUN | {"selection": "best-on-test"})
    assert rescore(load_embeddings(path), path).metrics["selection"] == "best-on-test"


def test_a_run_keeps_what_it_was_scored_by(tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--weights", str(tiny_weights), "--results", str(tmp_path), "--method", "tempme", "--steps", "2"]
    monkeypatch.setattr("sys.argv", ["tiny_run.py", *arguments, "--save-embeddings"])
    tiny_run.main()
    (record,), (path,) = tmp_path.rglob("*.json"), (tmp_path / "embeddings").rglob("*.safetensors")
    recorded, saved = json.loads(record.read_text()), load_embeddings(path)
    again = json.loads(json.dumps(rescore(saved, path).metrics))
    assert again == {
        key: value
        for key, value in recorded["metrics"].items()
        if key not in ("training", "evaluation", "merge_margin")
    }
    (model,) = (tmp_path / "checkpoints").rglob("*.safetensors")
    assert saved.run["model_sha256"] == file_sha256(model)
    assert saved.run["weights_sha256"] == recorded["weights_sha256"]
    for key in ("split_fingerprint", "frames_fingerprint"):
        assert saved.run["data"][key] == recorded["data"][key]
    (ranks,) = tmp_path.rglob("*.npz")
    assert np.array_equal(np.load(ranks)["t2v"], rescore(saved, path).ranks["t2v"].astype(np.float32))


def test_the_command_prints_metrics_and_writes_ranks(
    kept: tuple[Path, Evaluation], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, found = kept
    assert cli.main(["rescore", str(path), "--ranks", str(tmp_path / "r.npz"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["run"] == RUN
    assert printed["metrics"] == json.loads(json.dumps(found.metrics))
    with np.load(tmp_path / "r.npz", allow_pickle=False) as ranks:
        assert all(np.array_equal(ranks[name], found.ranks[name].astype(np.float32)) for name in ("t2v", "v2t"))
    assert cli.main(["rescore", str(path)]) == 0
    out = capsys.readouterr().out
    assert "lora seed 3 under p/q, checkpoint: last" in out
    assert f"{found.metrics['t2v']['R1']:.1f}".rstrip("0").rstrip(".") in out
    assert cli.main(["rescore", str(path), "--ranks", "r.txt"]) == 2
    assert "[rescore.ranks-suffix]" in capsys.readouterr().err


def test_a_disk_that_is_full_keeps_what_was_there(
    kept: tuple[Path, Evaluation], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, found = kept
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with raises("embeddings.write", path=str(path)):
        save_embeddings(path, replace(found, text=found.text + 1), split_of(40, 12), RUN)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def rewrite(path: Path, *, tensors: dict[str, Any] | None = None, said: dict[str, str] | None = None) -> None:
    """The file with some tensors (None: left out) or words of its metadata changed, its checksum made good again."""
    with safe_open(path, framework="pt") as handle:
        metadata = dict(handle.metadata())
    state = load_file(path) | (tensors or {})
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    checksum = file_checksum({name: tensor.numpy() for name, tensor in state.items()})
    save_file(state, path, metadata=metadata | {"checksum": checksum} | (said or {}))


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "absent": (lambda path: path.unlink(), "embeddings.read"),
    "empty": (lambda path: path.write_bytes(b""), "embeddings.damaged"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:900]), "embeddings.damaged"),
    "other": (lambda path: save_file({"text": torch.ones(2, 2)}, path), "embeddings.damaged"),
    "bit": (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x07"), "embeddings.damaged"),
    "no video": (lambda path: rewrite(path, tensors={"video": None}), "embeddings.damaged"),
    "half": (lambda path: rewrite(path, tensors={"text": torch.ones(40, 8).half()}), "embeddings.damaged"),
    "flat": (lambda path: rewrite(path, tensors={"text": torch.ones(320)}), "embeddings.damaged"),
    "stranger": (lambda path: rewrite(path, tensors={"code": torch.ones(3)}), "embeddings.damaged"),
    "nan": (lambda path: rewrite(path, tensors={"video": torch.full((12, 8), torch.nan)}), "embeddings.unrankable"),
    "width": (lambda path: rewrite(path, tensors={"video": torch.ones(12, 9)}), "embeddings.unrankable"),
    "videos": (lambda path: rewrite(path, tensors={"video": torch.ones(2, 8)}), "embeddings.unrankable"),
    "captions": (lambda path: rewrite(path, tensors={"caption_video": torch.zeros(3).long()}), "embeddings.unrankable"),
    "no rows": (
        lambda path: rewrite(path, tensors={"text": torch.ones(0, 8), "subset.even": None}),
        "embeddings.unrankable",
    ),
    "subset": (lambda path: rewrite(path, tensors={"subset.x": torch.tensor([40])}), "embeddings.unrankable"),
    "scenes": (lambda path: rewrite(path, tensors={"scenes": torch.tensor([1])}), "embeddings.unrankable"),
    "run": (lambda path: rewrite(path, said={"run": "{"}), "embeddings.damaged"),
    "nested": (lambda path: rewrite(path, said={"run": "[" * 100_000}), "embeddings.damaged"),
    "escape": (
        lambda path: rewrite(path, said={"run": json.dumps(RUN | {"method": {"name": "\x1b[31m"}})}),
        "embeddings.damaged",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_file_is_refused_in_one_sentence(
    wrong: str, kept: tuple[Path, Evaluation], capsys: pytest.CaptureFixture[str]
) -> None:
    path, (spoil, code) = kept[0], WRONG[wrong]
    spoil(path)
    assert cli.main(["rescore", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert path.name in line
    assert line.endswith(f"[{code}]")
