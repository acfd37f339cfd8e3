"""Weights that are no regular file, whose names are too long, or whose tensors are none: a sentence, and no wait."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from safetensors.torch import load_file, save_file
from torch import Tensor

from tvrbench.harness import load_model
from tvrbench.harness.config.protocol import load_protocol
from tvrbench.harness.core.errors import TvrbenchError, UsageError
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.backbone.weights import is_downloaded, load_weights
from tvrbench.harness.models.checkpoint import save_checkpoint
from tvrbench.harness.regression.signature import TINY

pytestmark = pytest.mark.unit
State = dict[str, Tensor]
QUICK: Any = {"activation": "quick_gelu"}
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return dict(CLIP(replace(TINY, vision_layers=1, text_layers=1)).state_dict())


@contextmanager
def unreadable(kind: str) -> Iterator[pytest.ExceptionInfo[TvrbenchError]]:
    with raises("weights.unreadable") as error:
        yield error
    assert error.value.fields["kind"] == kind


def indexed(folder: Path, weight_map: Any) -> Path:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w", INDEX])
@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("given", ["weights", "checkpoint"])
def test_a_pipe_or_a_device_is_not_read(given: str, kind: str, name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name) if kind == "pipe" else (tmp_path / name).symlink_to("/dev/zero")
    with unreadable("special"):
        load_model("lora", **{given: tmp_path / name})


def test_a_pipe_beside_weights_does_no_harm(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "model.safetensors")
    for name in ("other.index.json", "open_clip_config.json", "preprocessor_config.json", "vocab.json", "a.pt"):
        os.mkfifo(tmp_path / name)
    assert load_weights(tmp_path, **QUICK).state.keys() == state.keys()
    indexed(tmp_path, dict.fromkeys(state, "shard"))
    os.mkfifo(tmp_path / "shard")
    with raises("weights.index"):
        load_weights(tmp_path / INDEX, **QUICK)


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 300 + ".pt", "y/" + "x" * 5000, "\x1b[31mred.pt", "\0.pt"])
@pytest.mark.parametrize("backbone", [None, "ViT-B-32"])
def test_a_name_that_no_file_has_is_cut(name: str, backbone: str | None) -> None:
    load_protocol("msrvtt-1ka-9k/uniform").on(None, name)
    for given in ({"weights": name}, {"checkpoint": name}):
        with pytest.raises(UsageError) as error:
            load_model("lora", backbone=backbone, **given)  # type: ignore[arg-type]
        assert error.value.code in ("weights.missing", "checkpoint.missing")
        assert len(str(error.value)) < 900  # with the known tags
        assert "\x1b" not in str(error.value)
    if backbone is None:
        assert is_downloaded(name)


@pytest.mark.parametrize("seed", ["9" * 5000, "\u00b2", "-1", "\x1b"])
def test_a_seed_that_is_none_is_refused(seed: str) -> None:
    with raises("weights.seed") as error:
        load_weights(f"random:{seed}", "ViT-B-32")
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["a" * 256, "a" * 5000, "\u00e9" * 200], ids=["256", "5000", "bytes"])
def test_an_index_that_names_no_possible_file_is_refused_shortly(name: str, tmp_path: Path) -> None:
    with raises("weights.index") as error:
        load_weights(indexed(tmp_path, {"visual.proj": name}), **QUICK)
    assert len(str(error.value)) < 400
    with raises("weights.index") as error:
        load_weights(indexed(tmp_path, {"visual.proj": "a" * 250}), **QUICK)
    assert len(str(error.value)) < 400


def test_an_index_of_one_file_does_not_stand_in_its_way(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "model.safetensors")
    indexed(tmp_path, dict.fromkeys(state, "model.safetensors"))
    for path in (tmp_path, tmp_path / "model.safetensors", tmp_path / INDEX):
        assert load_weights(path, **QUICK).state.keys() == state.keys()


def test_the_advice_for_a_shard_helps(state: State, tmp_path: Path) -> None:
    keys = sorted(state)
    parts = {"model.safetensors": keys[:9], "more.safetensors": keys[9:]}
    for name, part in parts.items():
        save_file({key: state[key] for key in part}, tmp_path / name)
    indexed(tmp_path, {key: name for name, part in parts.items() for key in part})
    with raises("weights.shard") as error:
        load_weights(tmp_path, **QUICK)
    assert load_weights(tmp_path / error.value.fields["index"], **QUICK).state.keys() == state.keys()


KINDS = [torch.int8, torch.uint8, torch.bool, torch.int64]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("given", ["weights", "checkpoint"])
def test_tensors_that_are_not_floating_point_are_no_weights(
    kind: torch.dtype, given: str, state: State, tmp_path: Path
) -> None:
    torch.save({f"clip.{key}": tensor.to(kind) for key, tensor in state.items()}, tmp_path / "w.pt")
    with unreadable("tensor"):
        load_model("zero_shot", **{given: tmp_path / "w.pt"})


BAD = {
    "nan": torch.tensor(float("nan")),
    "infinity": torch.tensor(float("-inf")),
    "one int": torch.tensor(3),
    "no values": torch.ones((), device="meta"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_value_that_is_no_number_is_named(name: str, state: State, tmp_path: Path) -> None:
    torch.save(state | {"logit_scale": BAD[name]}, tmp_path / "w.pt")
    with unreadable("tensor") as error:
        load_weights(tmp_path / "w.pt", **QUICK)
    assert "logit_scale" in str(error.value)


def test_our_own_checkpoint_is_checked_too(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "model.safetensors")
    model = load_model("zero_shot", weights=tmp_path / "model.safetensors", **QUICK)
    model.clip.logit_scale.data.fill_(float("nan"))
    save_checkpoint(model, tmp_path / "own.safetensors")
    assert load_file(tmp_path / "own.safetensors")["clip.logit_scale"].isnan()
    with unreadable("tensor"):
        load_model("zero_shot", checkpoint=tmp_path / "own.safetensors")


def test_large_and_half_values_and_buffers_are_left_alone(state: State, tmp_path: Path) -> None:
    buffers = {"n_averaged": torch.tensor(3), "vocab_size": torch.tensor(512)}
    huge = state | {"visual.proj": torch.full_like(state["visual.proj"], 3e38)} | buffers
    torch.save(huge, tmp_path / "w.pt")
    assert load_weights(tmp_path / "w.pt", **QUICK).state["visual.proj"].max() > 1e38
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        torch.save({key: tensor.to(kind) for key, tensor in state.items()}, tmp_path / "w.pt")
        assert load_weights(tmp_path / "w.pt", **QUICK).state["visual.proj"].dtype == torch.float32


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"model": [torch.ones(1)]}, "model: list of 1"),
        ([torch.ones(1)], "list of 1"),
        ({"model": {"a": 1}, "epoch": 3}, "epoch: int, model: dict of 1"),
        ({}, "dict of 0"),
    ],
)
def test_what_a_file_holds_instead_of_tensors_is_said(content: Any, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pt")
    with unreadable("no-tensors") as error:
        load_weights(tmp_path / "w.pt", **QUICK)
    assert words in str(error.value)
