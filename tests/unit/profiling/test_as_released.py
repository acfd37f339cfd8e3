"""The two readings of a cost: ours, and that of released code which drops a part of its work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import pytest
from plugin import registered

from tvrbench.harness import load_model
from tvrbench.harness.cli.app import main
from tvrbench.harness.profiling.counts.flops import profile, profile_by_name
from tvrbench.harness.profiling.counts.formula import (
    analytic_macs,
    released_basis,
    released_macs,
    released_tokens,
)
from tvrbench.harness.profiling.measure import count_costs
from tvrbench.harness.records.record import AS_RELEASED

pytestmark = pytest.mark.unit

# Its released code carries two more tokens a frame through every block, and projects everything that leaves.
METHOD = """
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.spec import MethodCard
from tvrbench.harness.models.text import TextPath
from tvrbench.harness.models.tokens import TokenReducer
from tvrbench.harness.models.work import BlockTokens, Work


class WastefulReducer(TokenReducer):
    def work_as_released(self):
        tokens = (self.frames, self.arch.patches + 3)
        blocks = [BlockTokens(attention=tokens, leaving=tokens)] * self.arch.vision_layers
        return Work(blocks=blocks, projected=tokens[0] * tokens[1])


class WastefulText(TextPath):
    def work_as_released(self, length):
        return Work(blocks=self.plan(length), projected=length)


class Wasteful(Method):
    card = MethodCard(
        summary="drops work", paper="none", group="token reduction", recipe="uniform", tuning="frozen", identity={}
    )

    def build_reducer(self):
        return WastefulReducer(self.arch, self.frames)

    def build_text_path(self, reducer):
        return WastefulText(self.arch)
"""


@pytest.fixture(autouse=True)
def _wasteful(tmp_path: Path) -> Iterator[None]:
    with registered(tmp_path, "wasteful", METHOD, "Wasteful"):
        yield


def block(sequences: int, tokens: int, width: int) -> int:
    """Multiply-adds of one block by hand: two norms, attention, MLP."""
    return sequences * (tokens * (10 * width + 12 * width**2) + 2 * tokens**2 * width)


@pytest.mark.parametrize(("backbone", "patches", "layers"), [("ViT-B-32", 49, 12), ("ViT-B-16", 196, 12)])
@pytest.mark.parametrize("frames", [12, 3])
def test_the_dropped_work_is_counted_by_hand(backbone: str, patches: int, layers: int, frames: int) -> None:
    found, D, E = profile_by_name("wasteful", backbone, frames), 768, 512
    more = layers * (block(frames, patches + 3, D) - block(frames, patches + 1, D))
    more += (frames * (patches + 3) - frames) * D * (5 + E)
    gmacs = found["gmacs"]
    assert gmacs["as_released"]["video"] - gmacs["video"] == pytest.approx(more / 1e9)
    assert gmacs["as_released"]["text"] - gmacs["text"] == pytest.approx(31 * 512 * (5 + 512) / 1e9)
    assert (found["output_tokens"], found["output_tokens_as_released"]) == (
        frames * (patches + 1),
        frames * (patches + 3),
    )


@pytest.mark.parametrize("variant", ["", "P", "C", "F", "F+P", "F+C"])
def test_no_code_is_said_to_be_released_that_never_was(variant: str) -> None:
    model = load_model("vop", backbone="ViT-B-32", weights="random:0", device="meta", variant=variant)
    assert (released_basis(model) == "the released code") == (not variant)


@pytest.mark.parametrize("name", ["zero_shot", "lora", "tempme", "centerclip", "frame_subsample", "random"])
def test_where_nothing_is_dropped_both_readings_are_the_same_number(name: str) -> None:
    model = load_model(name, backbone="ViT-B-32", weights="random:0", device="meta")
    assert released_macs(model) == analytic_macs(model)
    assert released_tokens(model) == (prod(model.tokens[-1]) if model.tokens else 0)


@pytest.mark.parametrize("name", ["tempme", "random"])
def test_a_record_says_nothing_of_the_released_code_where_nothing_is_dropped(name: str) -> None:
    found = profile_by_name(name, "ViT-B-32")
    assert found["gmacs"]["as_released"] == {encoder: found["gmacs"][encoder] for encoder in ("video", "text")}
    assert found["output_tokens_as_released"] == found["output_tokens"]
    assert not [m for m in count_costs(found) if m.name.endswith(AS_RELEASED)]


def test_a_record_holds_what_differs(tiny_weights: Path) -> None:
    model = load_model("wasteful", weights=tiny_weights)
    released, counted = released_macs(model), analytic_macs(model)
    assert all(released[name] > counted[name] for name in counted)
    costs = {m.name: m.value for m in count_costs(profile(model))}
    assert costs["gmacs_video_as_released"] == pytest.approx(released["video"] / 1e9)
    assert costs["gmacs_text_as_released"] == pytest.approx(released["text"] / 1e9)
    assert costs["output_tokens_as_released"] == 12 * (16 + 3)
    same = profile(model)
    same["gmacs"]["as_released"]["video"] = same["gmacs"]["video"]
    assert "gmacs_video_as_released" not in {m.name for m in count_costs(same)}


def test_prompts_of_a_tuning_travel_through_both(tiny_weights: Path) -> None:
    plain, prompted = (load_model("wasteful", weights=tiny_weights, tuning=tuning) for tuning in ("frozen", "prompts"))
    for name, macs in released_macs(plain).items():
        assert released_macs(prompted)[name] - macs > 0
        assert analytic_macs(prompted)[name] > analytic_macs(plain)[name]


def test_profile_says_it_in_one_more_line_where_it_differs(capsys: pytest.CaptureFixture[str]) -> None:
    lines: dict[str, list[str]] = {}
    for name in ("wasteful", "zero_shot"):
        assert main(["profile", name]) == 0
        lines[name] = capsys.readouterr().out.splitlines()
    assert len(lines["wasteful"]) == len(lines["zero_shot"]) + 1
    assert any("released" in line and "624" in line for line in lines["wasteful"])
    assert main(["profile", "wasteful", "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["gmacs"]["as_released"]["video"] > document["gmacs"]["video"]
    assert document["output_tokens_as_released"] == 624
    assert any(document["as_released_basis"] in line for line in lines["wasteful"])
