"""Weights files from the wild: every wrapper and container is read, and everything else is refused in a sentence."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from errors import raises
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tvrbench.harness import load_model
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.backbone.weights import load_weights
from tvrbench.harness.regression.signature import TINY

pytestmark = pytest.mark.unit
State = dict[str, Tensor]
QUICK: Any = {"activation": "quick_gelu"}


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return dict(CLIP(replace(TINY, vision_layers=2)).state_dict())


def same(loaded: dict[str, Tensor], state: State) -> bool:
    return loaded.keys() == state.keys() and all(torch.equal(loaded[key], state[key]) for key in state)


PREFIXES = [
    "module.",
    "model.",
    "_orig_mod.",
    "clip.",
    "clip_model.",
    "net.",
    "ddp.",
    "backbone.",
    "student.",
    "module._orig_mod.",
    "_orig_mod.module.model.clip.",
    "model.module.backbone.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_before_every_key_is_taken_off(prefix: str, state: State, tmp_path: Path) -> None:
    torch.save({"epoch": 1, "state_dict": {prefix + key: t for key, t in state.items()}}, tmp_path / "w.pt")
    assert same(load_weights(tmp_path / "w.pt", **QUICK).state, state)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.module.", "net._orig_mod."])
def test_a_prefix_of_a_checkpoint_is_taken_off_the_tuned_tensors_too(prefix: str, state: State, tmp_path: Path) -> None:
    tables = {f"clip.visual.transformer.resblocks.0.attn.TVPt_LoRA_{part}": torch.ones(1) for part in "ab"}
    lora = load_model("lora", weights=_plain(state, tmp_path), **QUICK).state_dict()
    tables = {key.replace("lora.A", "TVPt_LoRA_a").replace("lora.B", "TVPt_LoRA_b"): t for key, t in lora.items()}
    torch.save({prefix + key: t for key, t in tables.items()}, tmp_path / "c.pt")
    model = load_model("lora", checkpoint=tmp_path / "c.pt")
    assert same(dict(model.state_dict()), dict(lora))
    only = {prefix + key: t for key, t in tables.items() if "TVPt" in key}
    torch.save(only, tmp_path / "tuned.pt")
    model = load_model("lora", checkpoint=tmp_path / "tuned.pt", weights=_plain(state, tmp_path), **QUICK)
    assert same(dict(model.state_dict()), dict(lora))


def test_tensors_around_the_clip_lose_the_outer_wrapper_alone(state: State, tmp_path: Path) -> None:
    from tvrbench.harness.models.backbone.state_dict import named_tensors

    whole = {f"model.clip.{key}": t for key, t in state.items()} | {"model.head.weight": torch.ones(1)}
    found = named_tensors(whole, "w.pt")
    assert (found.prefix, set(found.rest)) == ("model.clip.", {"head.weight"})
    assert same(found.clip, state)


INNER: dict[str, Callable[[str], str]] = {
    "compiled tower": lambda key: key.replace("visual.", "visual._orig_mod."),
    "wrapped blocks": lambda key: key.replace("resblocks.1.", "resblocks.1._checkpoint_wrapped_module."),
    "wrapped twice": lambda key: "module." + key.replace("transformer.", "transformer.module._orig_mod."),
    "custom text tower": lambda key: key if key.startswith(("visual.", "logit_scale")) else f"text.{key}",
}


@pytest.mark.parametrize("name", INNER)
def test_wrappers_inside_names_are_taken_out(name: str, state: State, tmp_path: Path) -> None:
    torch.save({INNER[name](key): t for key, t in state.items()}, tmp_path / "w.pt")
    assert same(load_weights(tmp_path / "w.pt", **QUICK).state, state)


CONTAINERS = ["state_dict", "model_state_dict", "model", "module", "net", "weights", "params", "ema_state_dict"]


@pytest.mark.parametrize("path", [*([name] for name in CONTAINERS), ["checkpoint", "model"], ["a", "b", "c"], []])
def test_a_state_dict_is_found_in_any_container(path: list[str], state: State, tmp_path: Path) -> None:
    content: Any = state if path else {**state, "epoch": 3, "args": {"lr": 0.1}}
    for name in reversed(path):
        content = {name: content, "epoch": 3, "scaler": {"scale": torch.ones(1)}, "history": [1.0]}
    module = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(2)).sum().backward()
    optimizer.step()
    torch.save({**content, "optimizer": optimizer.state_dict()}, tmp_path / "w.pt")
    assert same(load_weights(tmp_path / "w.pt", **QUICK).state, state)


@pytest.mark.parametrize(
    "content",
    [
        lambda s: {"model": s, "ema_state_dict": {k: t + 1 for k, t in s.items()}},
        lambda s: {**s, **{f"ema.{k}": t for k, t in s.items()}},
        lambda s: {f"{name}.{k}": t for name in ("model", "model_ema") for k, t in s.items()},
        lambda s: {f"{name}.{k}": t for name in ("student", "teacher") for k, t in s.items()},
        lambda s: {f"{name}{k}": t for name in ("module.", "") for k, t in s.items()},
    ],
    ids=["containers", "ema beside", "model and ema", "student and teacher", "wrapped and plain"],
)
def test_two_sets_of_weights_are_refused_by_name(content: Callable[[State], Any], state: State, tmp_path: Path) -> None:
    torch.save(content(state), tmp_path / "w.pt")
    with raises("weights.ambiguous") as error:
        load_weights(tmp_path / "w.pt", **QUICK)
    assert len(error.value.fields["keys"]) == 2
    assert len(str(error.value)) < 400


def _plain(state: State, folder: Path) -> Path:
    torch.save(state, folder / "plain.pt")
    return folder / "plain.pt"


HARMLESS: dict[str, Any] = {
    "numpy scalar": np.float64(3),
    "numpy float32": np.float32(3),
    "numpy integer": np.int64(3),
    "numpy array": np.random.default_rng(0).integers(0, 9, 5),
    "namespace": argparse.Namespace(lr=0.1, best=np.float64(1)),
    "path": Path("a/b"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_neighbors_of_the_tensors_are_passed_over(name: str, state: State, tmp_path: Path) -> None:
    torch.save({"state_dict": state, "args": HARMLESS[name], "all": [HARMLESS[name]]}, tmp_path / "w.pt")
    assert same(load_weights(tmp_path / "w.pt", **QUICK).state, state)
    torch.save({"state_dict": {f"clip.{k}": t for k, t in state.items()}, "args": HARMLESS[name]}, tmp_path / "c.pt")
    load_model("zero_shot", checkpoint=tmp_path / "c.pt")


class _Custom:
    """A class of a training script."""


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("was-here"),))


def _archive(write: Callable[[zipfile.ZipFile], None]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        write(archive)
    return out.getvalue()


def _saved(content: Any) -> bytes:
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("w.pt"), io.BytesIO())
    return out.getvalue()


def _numpy() -> bytes:
    out = io.BytesIO()
    np.savez(out, a=np.ones(2))
    return out.getvalue()


TENSORS = {"visual.proj": torch.ones(64, 64)}
BAD: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty": ("empty", lambda: b""),
    "pointer": ("git-lfs", lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
    "page": ("html", lambda: b"\n<!DOCTYPE html><html><title>Sign in</title></html>"),
    "old page": ("html", lambda: b"<HTML><HEAD>"),
    "xml error": ("html", lambda: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"),
    "JSON error": ("json", lambda: b'{"error": "Repository not found"}'),
    "text": ("text", lambda: b"not a checkpoint at all"),
    "text in UTF-8": ("text", lambda: "Zugriff verweigert – bitte anmelden. ".encode() * 50),
    "gzip": ("gzip", lambda: gzip.compress(b"weights")),
    "tar": ("tar", _tar),
    "zip of something else": ("zip", lambda: _archive(lambda a: a.writestr("readme.txt", "hello"))),
    "NumPy archive": ("zip", _numpy),
    "TorchScript": ("torchscript", lambda: _archive(lambda a: a.writestr("m/code/__torch__.py", "import os"))),
    "cut zip": ("cut", lambda: _saved(TENSORS)[:5000]),
    "pickled, not saved": ("code", lambda: pickle.dumps(TENSORS, protocol=2)),
    "noise": ("unknown", lambda: b"\xff" * 64),
    "broken pickle": ("damaged", lambda: b"\x80\x02no pickle at all"),
    "code": ("code", lambda: _saved({"visual.proj": _Evil()})),
    "bare code": ("code", lambda: pickle.dumps({"a": _Evil()}, protocol=2)),
    "custom class": ("code", lambda: _saved(TENSORS | {"config": _Custom()})),
    "whole module": ("code", lambda: _saved(nn.Linear(2, 2))),
    "list": ("no-tensors", lambda: _saved([torch.zeros(3)])),
    "numbered": ("no-tensors", lambda: _saved({0: torch.zeros(3)})),
    "nothing": ("no-tensors", lambda: _saved({})),
    "sparse": ("tensor", lambda: _saved({"visual.proj": torch.eye(3).to_sparse()})),
}


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "bin"])
@pytest.mark.parametrize("name", BAD)
def test_what_holds_no_weights_is_refused_in_a_sentence(
    name: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kind, content = BAD[name]
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content())
    for given in ({"weights": path}, {"checkpoint": path}):
        with raises("weights.unreadable", file=path.name) as error:
            load_model("lora", **given)
        assert error.value.fields["kind"] in (kind, "damaged")
        _is_short(str(error.value))
    assert not (tmp_path / "was-here").exists()


def _is_short(message: str) -> None:
    assert "\n" not in message
    assert "\x1b" not in message
    assert "weights_only" not in message
    assert "add_safe_globals" not in message
    assert len(message) < 400


@pytest.mark.parametrize("cut", [4, 60, 5000])
def test_safetensors_that_are_cut_short(cut: int, state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "whole.safetensors")
    (tmp_path / "w.bin").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:cut])
    with raises("weights.unreadable") as error:
        load_weights(tmp_path / "w.bin", **QUICK)
    assert error.value.fields["kind"] in ("cut", "unknown")
    _is_short(str(error.value))


def test_formats_are_told_by_content(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.pt")
    torch.save(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("w.pt", "w.safetensors", "old.bin"):
        assert same(load_weights(tmp_path / name, **QUICK).state, state)


ADAPTERS = {
    "PEFT": "base_model.model.vision_model.encoder.layers.{}.self_attn.q_proj.lora_A.weight",
    "PEFT, whole": "base_model.model.visual.transformer.resblocks.{}.mlp.c_fc.lora_B.default.weight",
    "kohya": "lora_te_text_model_encoder_layers_{}_mlp_fc1.lora_down.weight",
}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("given", ["weights", "checkpoint"])
def test_adapters_of_other_libraries_are_refused_shortly(name: str, given: str, tmp_path: Path) -> None:
    save_file({ADAPTERS[name].format(i): torch.ones(2, 2) for i in range(144)}, tmp_path / "adapter_model.safetensors")
    with raises("weights.adapter", keys=144) as error:
        load_model("lora", **{given: tmp_path / "adapter_model.safetensors"})
    assert len(str(error.value)) < 800


def test_lists_of_keys_are_cut(state: State, tmp_path: Path) -> None:
    torch.save(state | {f"visual.more.{i}{'x' * 5000}": torch.ones(1) for i in range(200)}, tmp_path / "w.pt")
    with pytest.raises(UsageError) as error:
        load_weights_and_build(tmp_path / "w.pt")
    assert len(str(error.value)) < 800


def load_weights_and_build(path: Path) -> None:
    load_model("zero_shot", weights=path, **QUICK)


def test_hostile_nesting_ends(tmp_path: Path, state: State) -> None:
    loop: dict[str, Any] = {"state_dict": state}
    for name in "abcdefgh":
        loop[name] = loop
    torch.save(loop, tmp_path / "w.pt")
    assert same(load_weights(tmp_path / "w.pt", **QUICK).state, state)


def sharded(folder: Path, state: State, suffix: str) -> Path:
    """Three shards and their index, as transformers writes them."""
    keys = sorted(state)
    names = {"safetensors": "model", "bin": "pytorch_model"}
    where = {}
    for part in range(3):
        name = f"{names[suffix]}-{part + 1:05d}-of-00003.{suffix}"
        own = {key: state[key] for key in keys[part::3]}
        save_file(own, folder / name) if suffix == "safetensors" else torch.save(own, folder / name)
        where |= dict.fromkeys(own, name)
    index = folder / f"{names[suffix]}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_folder_of_shards_is_read_whole(suffix: str, state: State, tmp_path: Path) -> None:
    index = sharded(tmp_path, state, suffix)
    by_folder, by_index = load_weights(tmp_path, **QUICK), load_weights(index, **QUICK)
    assert same(by_folder.state, state)
    assert by_folder.sha256 == by_index.sha256
    shard = next(tmp_path.glob("*-00002-*"))
    with raises("weights.shard", index=index.name):
        load_weights(shard, **QUICK)
    shard.rename(tmp_path / "aside.bin")
    with raises("weights.index", file=index.name):
        load_weights(tmp_path, **QUICK)


@pytest.mark.parametrize(
    "weight_map",
    [
        {"a": "../outside.safetensors"},
        {"a": "/etc/passwd"},
        {"a": "sub/inside.safetensors"},
        {"a": "..\\outside.safetensors"},
        {"a": "model.safetensors.index.json"},
        {"a": ""},
        {"a": 3},
        {},
        [],
        None,
    ],
)
def test_a_hostile_index_is_refused(weight_map: Any, state: State, tmp_path: Path) -> None:
    folder = tmp_path / "w"
    folder.mkdir()
    save_file(state, tmp_path / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with raises("weights.index"):
        load_weights(folder, **QUICK)


def test_shards_that_do_not_fit_their_index_are_refused(state: State, tmp_path: Path) -> None:
    index = sharded(tmp_path, state, "safetensors")
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    save_file(load_file(first) | dict(list(load_file(second).items())[:1]), first)
    with raises("weights.index", file=index.name):
        load_weights(tmp_path, **QUICK)
    index.unlink()
    with raises("weights.shard"):
        load_weights(tmp_path, **QUICK)


def test_a_single_shard_of_one_is_a_whole_file(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "model-00001-of-00001.safetensors")
    assert same(load_weights(tmp_path, **QUICK).state, state)


def test_control_characters_of_a_file_reach_no_terminal(state: State, tmp_path: Path) -> None:
    torch.save(state | {"visual.\x1b[31m\nred": torch.ones(1)}, tmp_path / "w.pt")
    with raises("weights.keys") as error:
        load_model("zero_shot", weights=tmp_path / "w.pt", **QUICK)
    _is_short(str(error.value))
