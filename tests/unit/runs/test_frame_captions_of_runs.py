"""Runs with captions of frames: what they train, what tells them from runs without, and what is refused before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from errors import raises
from tiny_run import ActAt, assert_same, only, record_of, run_in, stop_run
from tiny_run import tiny_context as context_of

from tvrbench.harness.data.frame_captions import FrameCaptions, read_frame_captions
from tvrbench.harness.evaluation.comparability import shortfalls
from tvrbench.harness.profiling.counts.step import count_step
from tvrbench.harness.records.record import read_record
from tvrbench.harness.records.runs import StoredRecord
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.data.rows import method_rows
from tvrbench.harness.runs.config import RunConfig, RunKey, blueprint
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.runs.preflight import prepare
from tvrbench.harness.runs.settings import RunSettings
from tvrbench.harness.runs.suite import Suite, _frame_captions_line

pytestmark = pytest.mark.unit
CONFIG = RunConfig(method="discovla", seed=0, timing=False, options={"vision_blocks": 2, "text_blocks": 1})


@pytest.fixture
def context(small_weights: Path) -> RunContext:
    made: RunContext = context_of(small_weights, steps=3)
    return made


def written(folder: Path, context: RunContext, *, leave_out: Sequence[int] = (), shift: int = 0) -> Path:
    """A file of captions for the training pairs of a context, without some of them."""
    split, path = context.train, folder / f"captions-{shift}.json"
    pairs = [
        f"{split.video_ids[video]}_{text}" for text, video in zip(split.captions, split.caption_video, strict=True)
    ]
    frames = context.protocol.frames
    entries = {
        pair: [f"frame {(shift + 7 * i + t) % 900}" for t in range(frames)]
        for i, pair in enumerate(pairs)
        if i not in leave_out
    }
    path.write_text(json.dumps(entries))
    return path


@pytest.fixture
def captions(context: RunContext, tmp_path: Path) -> FrameCaptions:
    return read_frame_captions(written(tmp_path, context))


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in only(folder, "*.jsonl").read_text().splitlines()]


def test_a_run_trains_on_them_and_says_so(context: RunContext, captions: FrameCaptions, tmp_path: Path) -> None:
    run_in(tmp_path / "without", context, CONFIG)
    run_in(tmp_path / "with", context, replace(CONFIG, frame_captions=captions))
    without, given = losses(tmp_path / "without"), losses(tmp_path / "with")
    assert all(one + 0.5 < other for one, other in zip(without, given, strict=True))
    one, other = record_of(tmp_path / "without"), record_of(tmp_path / "with")
    assert one["data"]["frame_captions"] is None
    assert other["data"]["frame_captions"] == {"file": "captions-0.json", "sha256": captions.sha256}
    codes = [
        [reason.code for reason in shortfalls(read_record(only(tmp_path / f, "*.json")))] for f in ("with", "without")
    ]
    assert ["frame-captions" in found for found in codes] == [False, True]


def test_a_stopped_run_ends_as_an_undisturbed_one(context: RunContext, captions: FrameCaptions, tmp_path: Path) -> None:
    config, whole, broken = replace(CONFIG, frame_captions=captions), tmp_path / "whole", tmp_path / "broken"
    run_in(whole, context, config)
    stop_run(broken, context, config, 1)
    progress = ActAt()
    run_in(broken, context, config, progress, resume=True)
    assert progress.steps == ["2/3", "3/3"]
    assert_same(whole, broken)


def test_other_captions_make_another_run(context: RunContext, captions: FrameCaptions, tmp_path: Path) -> None:
    other = read_frame_captions(written(tmp_path, context, shift=1))
    keys = [RunKey.of(context, replace(CONFIG, frame_captions=given)) for given in (None, captions, other)]
    assert len({key.name for key in keys}) == 3
    assert [key.identity.get("frame captions") for key in keys] == [None, captions.sha256, other.sha256]
    assert len({json.dumps(key.lr_search_identity(0)) for key in keys}) == 3


def test_a_method_that_takes_none_has_no_such_fact(context: RunContext) -> None:
    key = RunKey.of(context, RunConfig(method="lora", seed=0))
    assert "frame_captions" not in key.head["data"]
    assert "frame captions" not in key.identity


def test_runs_with_and_without_are_two_rows(context: RunContext, captions: FrameCaptions, tmp_path: Path) -> None:
    run_in(tmp_path, context, CONFIG)
    run_in(tmp_path, context, replace(CONFIG, frame_captions=captions))
    files = sorted((tmp_path / "records").rglob("*.json"))
    rows = method_rows([StoredRecord(record=read_record(path), path=path) for path in files])
    assert sorted(row.label for row in rows) == ["discovla", f"discovla (frame_captions={captions.sha256[:8]})"]


def test_a_training_pair_without_captions_is_named_before_a_video_is_decoded(
    context: RunContext, tmp_path: Path
) -> None:
    some = read_frame_captions(written(tmp_path, context, leave_out=(5, 9)))
    configs, store = [replace(CONFIG, frame_captions=some)], RecordStore(tmp_path / "results")

    def decode(_: RunContext) -> RunContext:
        pytest.fail("videos were decoded first")

    with raises("frame-captions.missing", pair=f"{context.train.video_ids[2]}_{context.train.captions[5]}"):
        prepare(context, configs, store, skip=False, refuse=False, check=decode)
    prepare(context, [CONFIG], store, skip=False, refuse=False, check=None)


def suite(path: Path | None, methods: tuple[str, ...], **settings: Any) -> Suite:
    return Suite.of(RunSettings(protocol="standin/uniform", methods=methods, frame_captions=path, **settings))


def test_only_methods_that_take_them_get_them(context: RunContext, tmp_path: Path) -> None:
    path = written(tmp_path, context)
    configs = suite(path, ("lora", "discovla"), seeds=(0, 1)).configs
    assert {(c.method, c.frame_captions is None) for c in configs} == {("lora", True), ("discovla", False)}
    line = _frame_captions_line(configs, path) or ""
    assert "discovla" in line
    assert "lora" not in line


@pytest.mark.parametrize(
    ("methods", "given", "said"),
    [
        (("lora", "discovla"), False, "--frame-captions"),
        (("lora",), False, None),
        (("lora",), True, "WARNING"),  # the first steps of a plan name single methods, with all options of the command
    ],
)
def test_a_line_says_what_is_missing_or_unused(
    methods: tuple[str, ...], given: bool, said: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "missing.json" if given else None
    line = _frame_captions_line(suite(path, methods).configs, path)
    assert line is None if said is None else said in (line or "")


def test_a_file_that_is_not_there_and_scoring_alone_are_refused(tmp_path: Path) -> None:
    with raises("frame-captions.read"):
        suite(tmp_path / "missing.json", ("discovla",))
    with raises("eval-only.frame-captions"):
        suite(tmp_path / "c.json", ("discovla",), checkpoint=tmp_path / "c.pt", eval_only=True)


def test_a_plan_counts_them(context: RunContext) -> None:
    model = blueprint(context.protocol, context.weights, CONFIG)
    plain, given = count_step(model), count_step(model, frame_captions=True)
    assert given.step_macs > given.forward_macs > plain.forward_macs
    assert given.step_macs > plain.step_macs
