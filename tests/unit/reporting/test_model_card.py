"""The model card by what it is of: real data or the stand-in, tuned parameters or a whole model, whose license."""

from __future__ import annotations

import re
from html import escape
from typing import Any

import pytest
from huggingface_hub import ModelCard
from records import html, make_record
from report_records import method_record, msrvtt_record

from tvrbench.harness.records.record import normalized
from tvrbench.harness.reporting.pages.model_card import ExportedCheckpoint, model_card

pytestmark = pytest.mark.unit


def card(record: dict[str, Any], **facts: Any) -> ModelCard:
    usual = {"image_size": 224, "embed_dim": 512, "tuned_only": True, "base": "openai", "license": None}
    usual |= {"checked": True, "files": {"model.safetensors": "the weights"}}
    return ModelCard(model_card(ExportedCheckpoint(record=normalized(record, "record"), **(usual | facts))))


def test_of_real_data_and_openais_weights() -> None:
    made = card(msrvtt_record("tempme", 45.0))
    data = made.data
    assert (data.license, data.datasets, data.base_model) == ("unknown", ["msrvtt"], "openai/clip-vit-base-patch32")
    assert data.eval_results is not None
    assert {(each.dataset_type, each.dataset_name) for each in data.eval_results} == {("msrvtt", "msrvtt")}
    assert [each.metric_value for each in data.eval_results if each.metric_type == "t2v_R1"] == [45.0]
    for text in (
        "tempme, ViT-B/32, 12 frames",
        "arXiv",
        "msrvtt-1ka-9k/published --data DIR --eval-only",
        "MIT License",
    ):
        assert text in made.text
    assert "stand-in" not in made.text


@pytest.mark.parametrize(
    ("base", "tuned_only", "option"),
    [("openai", True, ""), ("standin", True, " --weights standin"), ("standin", False, "")],
)
def test_the_command_names_weights_that_are_not_the_protocols(base: str, tuned_only: bool, option: str) -> None:
    text = card(msrvtt_record("tempme", 45.0), base=base, tuned_only=tuned_only).text
    assert f"msrvtt-1ka-9k/published --data DIR{option} --eval-only" in text


def test_of_the_standin_is_marked_in_text_and_metadata() -> None:
    made = card(make_record("tempme", 70.0), base="standin")
    assert made.data.license == "apache-2.0"
    assert made.data.datasets is None
    assert made.data.eval_results
    assert all("not MSR-VTT" in each.dataset_name for each in made.data.eval_results)
    assert "generated shapes" in made.text


def test_a_checkpoint_chosen_on_the_test_set_says_so() -> None:
    record = msrvtt_record("tempme", 45.0)
    assert "chosen on the test set" not in card(record).text
    record["metrics"]["selection"] = "best-on-test"
    assert "chosen on the test set" in card(record).text


@pytest.mark.parametrize(
    ("facts", "needs_file"),
    [({"base": None}, True), ({"base": None, "tuned_only": False}, False), ({"base": "laion2b_e16"}, False)],
)
def test_the_loading_code_asks_for_weights_that_nobody_else_can_find(facts: dict[str, Any], needs_file: bool) -> None:
    text = card(method_record(), **facts).text
    assert ('weights="FILE"' in text, "--weights FILE" in text) == (needs_file, needs_file)


@pytest.mark.parametrize("text", ["![i](http://x/y.png) <img src=x> | z", "a | [l](javascript:x) | `b` |", "``|`"])
def test_names_of_others_are_text_in_every_cell(text: str) -> None:
    record = msrvtt_record("tempme", 46.1, command=text)
    record["data"] |= {"dataset": text, "test_split": text, "train_split": text}
    record["environment"]["device"] = record["method"]["options"]["of mine|"] = text
    shown = html(card(record).text)
    assert not re.findall(r"<(?:img|a|script)\b", shown)
    assert f"<td><code>{escape(text, quote=False)}</code></td>".replace("&lt;", "<") in shown.replace("&lt;", "<")


def test_a_record_without_figures_or_costs_has_a_card() -> None:
    record = msrvtt_record("lora", 40.0, cost=[])
    record["data"].pop("train_videos")
    record["environment"]["versions"] = {}
    assert "None were recorded." in card(record, license="mit").text
