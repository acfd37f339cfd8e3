"""Runs on weights that are read in another way are other runs: their record, hash, file name and saved state say so."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from errors import raises

from tvrbench.datasets.standin.dataset import StandIn
from tvrbench.harness.config.protocol import Activation, Protocol, load_protocol
from tvrbench.harness.data.types import Split
from tvrbench.harness.records.store import run_name
from tvrbench.harness.reporting.tables.provenance import _FACTS
from tvrbench.harness.runs import context as contexts
from tvrbench.harness.runs.config import RunConfig, RunKey
from tvrbench.harness.runs.context import RunContext, open_context
from tvrbench.harness.training.state_file import StateFile

pytestmark = pytest.mark.unit
PROTOCOL = load_protocol("standin/uniform")
CONFIG = RunConfig(method="zero_shot", seed=0)


@pytest.fixture(autouse=True)
def _no_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    split = Split(name="test", video_ids=("v",), captions=("a",), caption_video=(0,))
    monkeypatch.setattr(contexts, "open_dataset", lambda *_: SimpleNamespace(name="standin", split=lambda _: split))


def opened(
    weights: Path | None = None, activation: Activation | None = None, protocol: Protocol = PROTOCOL
) -> RunContext:
    return open_context(protocol, None, None if weights is None else str(weights), activation=activation)


def weights_in(folder: Path, **changes: Any) -> Path:
    """The stand-in's weights in a folder; ``changes`` of their config's sections, None for no config at all."""
    for name in ("clip.safetensors", "vocab.txt", "open_clip_config.json"):
        folder.mkdir(exist_ok=True)
        shutil.copy(StandIn.weights_path.with_name(name), folder / name)
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    for section, values in changes.items():
        config[section] |= values or {}
        if values is None:
            path.unlink()
            return folder / "clip.safetensors"
    path.write_text(json.dumps(config))
    return folder / "clip.safetensors"


def identities(context: RunContext) -> set[str]:
    """Everything that keeps two runs apart."""
    key = RunKey.of(context, CONFIG)
    return {context.protocol.hash, key.name, json.dumps(key.identity, sort_keys=True, default=str)}


def test_the_protocols_own_weights_leave_its_hash() -> None:
    assert opened().protocol == PROTOCOL
    assert opened(activation="quick_gelu").protocol == PROTOCOL  # what they are anyway


def test_another_activation_is_another_run(tmp_path: Path) -> None:
    quick, gelu = weights_in(tmp_path / "a"), weights_in(tmp_path / "b", model_cfg={"quick_gelu": False})
    assert quick.read_bytes() == gelu.read_bytes()
    contexts = [opened(), opened(activation="gelu"), opened(quick), opened(gelu)]
    found = [identities(context) for context in contexts]
    assert all(not one & other for i, one in enumerate(found) for other in found[:i])
    assert opened(quick, "gelu").protocol.hash == contexts[3].protocol.hash
    assert opened(weights_in(tmp_path / "c", model_cfg=None), "quick_gelu").protocol.hash == contexts[2].protocol.hash


def test_another_normalization_or_word_list_is_another_run(tmp_path: Path) -> None:
    usual, half = weights_in(tmp_path / "a"), weights_in(tmp_path / "b", preprocess_cfg={"mean": [0.5] * 3})
    words = weights_in(tmp_path / "c")
    listed = words.with_name("vocab.txt").read_text().split()
    words.with_name("vocab.txt").write_text("\n".join(reversed(listed)))
    found = [identities(opened(path)) for path in (usual, half, words)]
    assert all(not one & other for i, one in enumerate(found) for other in found[:i])


OTHER_READINGS = {
    "activation": {"model_cfg": {"quick_gelu": False}},
    "mean": {"preprocess_cfg": {"mean": [0.5] * 3}},
    "std": {"preprocess_cfg": {"std": [0.5] * 3}},
}


@pytest.mark.parametrize("name", OTHER_READINGS)
@pytest.mark.parametrize("shares_hash", [False, True])
def test_weights_that_an_own_protocol_names_by_path_are_read_as_part_of_it(
    name: str, shares_hash: bool, tmp_path: Path
) -> None:
    own = replace(PROTOCOL, name="own/mine", weights=str(weights_in(tmp_path)))
    usual = opened(protocol=own)
    weights_in(tmp_path, **OTHER_READINGS[name])
    other = opened(protocol=own)
    if shares_hash:  # name and state tell them apart by themselves
        other = replace(other, protocol=usual.protocol)
    keys = [RunKey.of(context, CONFIG) for context in (usual, other)]
    assert usual.protocol.weights_sha256 == usual.weights.sha256
    assert (usual.protocol.hash == other.protocol.hash) is shares_hash
    assert keys[0].name != keys[1].name
    assert keys[0].lr_search_identity(0) != keys[1].lr_search_identity(0)
    for one, saved in (keys, keys[::-1]):
        with raises("state.other-run"):
            StateFile(tmp_path / "state", one.identity).check_identity(dict(saved.identity), tmp_path / "state")


def test_weights_that_say_nothing_are_refused_before_any_video(tmp_path: Path) -> None:
    with raises("weights.activation"):
        opened(weights_in(tmp_path, model_cfg=None))


def test_captions_must_fit_the_context(tmp_path: Path) -> None:
    with raises("weights.context", words=64, context=32):
        opened(protocol=replace(PROTOCOL, words=64))


def test_the_record_names_weights_and_its_file_the_activation(tmp_path: Path) -> None:
    head = RunKey.of(opened(activation="gelu"), CONFIG).head
    assert head["weights"]["activation_source"] == "--activation, over quick_gelu of open_clip_config.json"
    assert head["weights"]["sha256"] == head["weights_sha256"]
    assert head["weights"]["tokenizer"].startswith("33 words")
    without = {key: value for key, value in head.items() if key != "weights"}
    assert run_name(head) != run_name(without)
    quick = RunKey.of(opened(), CONFIG).head
    assert run_name(quick) == run_name({key: value for key, value in quick.items() if key != "weights"})


def test_reports_show_how_weights_were_read() -> None:
    head: Any = RunKey.of(opened(), CONFIG).head
    assert "quick_gelu (open_clip_config.json)" in str(_FACTS["weights, read as"](head))
    assert _FACTS["weights, read as"]({key: value for key, value in head.items() if key != "weights"}) is None  # type: ignore[arg-type]
