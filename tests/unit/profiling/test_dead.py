"""Dead parameters: made-up tensors that are dead, dead in part, hidden or idle, and the counts of methods."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from errors import raises
from torch import nn

from tvrbench.harness import load_model
from tvrbench.harness.core.errors import CheckFailed
from tvrbench.harness.models.attending import AttentionOut
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.spec import MethodCard, MethodOptions
from tvrbench.harness.models.tokens import TokenReducer, TokenStream
from tvrbench.harness.profiling.counts import dead
from tvrbench.harness.profiling.counts.dead import IN_PART, dead_or_reason, dead_parameters
from tvrbench.harness.profiling.counts.flops import profile
from tvrbench.harness.profiling.measure import count_costs
from tvrbench.harness.regression.signature import TINY

pytestmark = pytest.mark.unit
WIDE = replace(TINY, image_size=96, patch_size=32, vision_width=192, text_width=128, embed_dim=128, vision_layers=2)


@dataclass(frozen=True, kw_only=True)
class Options(MethodOptions):
    """Which made-up tensors there are."""

    kind: str = ""


class MadeUp(TokenReducer):
    """Adds to the tokens what a tensor of some kind makes of them."""

    def __init__(self, kind: str, arch: Architecture, frames: int) -> None:
        super().__init__(arch, frames)
        D, self.kind = arch.vision_width, kind
        if kind == "unused":
            self.tensor = nn.Parameter(torch.zeros(5, D))
        elif kind == "half used":
            self.tensor = nn.Parameter(torch.zeros(4, 3, D))
        elif kind == "a third of a projection":
            self.tensor = nn.Parameter(torch.zeros(3 * D, D))
        elif kind == "times zero":
            self.A, self.B = nn.Parameter(torch.ones(D, 2)), nn.Parameter(torch.zeros(2, D))
        elif kind == "silent unit":
            self.down, self.up = nn.Linear(D, 16), nn.Linear(16, D)
        elif kind == "patches that leave":
            self.tensor = nn.Parameter(torch.zeros(1 + arch.patches, D))
        elif kind == "a tensor a channel":
            self.each = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in range(D))

    def after_attention(self, stream: TokenStream, attention: AttentionOut, index: int) -> TokenStream:
        x, D = stream.x, self.arch.vision_width
        last = index == self.arch.vision_layers - 1
        more = {
            "half used": lambda: x * self.tensor[::2].sum((0, 1)),
            "a third of a projection": lambda: x @ self.tensor[D : 2 * D],
            "times zero": lambda: x @ self.A @ self.B,
            "silent unit": lambda: self.up(self.down(x).relu()),
            "patches that leave": lambda: self.tensor if last else torch.zeros(()),
            "a tensor a channel": lambda: torch.cat(list(self.each)),
        }.get(self.kind)
        return stream if more is None else stream.with_x(x + more())


class MadeUpMethod(Method[Options]):
    """A method that learns one tensor."""

    card = MethodCard(summary="made up", paper="none", group="reference", recipe="uniform", tuning="own")
    Options = Options

    def build_reducer(self) -> TokenReducer:
        return MadeUp(self.options.kind, self.arch, self.frames)


def made_up(monkeypatch: pytest.MonkeyPatch, kind: str, tuning: str = "own") -> RetrievalModel:
    monkeypatch.setattr(dead, "method_class", lambda _name: MadeUpMethod)
    method = MadeUpMethod(Options(tuning=tuning, kind=kind), WIDE, 3)
    return dead._random_model("made-up", method)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("unused", {"reducer.tensor": 5 * 192}),
        ("half used", {"reducer.tensor" + IN_PART: 2 * 3 * 192}),
        ("a third of a projection", {"reducer.tensor" + IN_PART: 2 * 192 * 192}),
        ("times zero", {}),
        ("silent unit", {}),
        ("patches that leave", {"reducer.tensor" + IN_PART: 9 * 192}),
    ],
)
def test_what_the_loss_never_reaches(monkeypatch: pytest.MonkeyPatch, kind: str, expected: dict[str, int]) -> None:
    assert dead_parameters(made_up(monkeypatch, kind)) == expected


def test_no_word_counts_as_dead_but_places_behind_the_caption_do(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made_up(monkeypatch, "", tuning="full-all")
    assert dead_parameters(model) == {}
    assert dead_parameters(model, words=20) == {"clip.positional_embedding" + IN_PART: 12 * 128}


def test_a_method_that_a_narrow_model_does_not_stand_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made_up(monkeypatch, "a tensor a channel")
    with raises("dead.twin", CheckFailed):
        dead_parameters(model)
    found = profile(model)
    assert found["params"]["dead"] is None
    missing = next(m for m in count_costs(found) if m.name == "params_dead")
    assert missing.value is None
    assert missing.conditions["reason"] == found["dead"]["reason"]


def test_the_model_and_the_random_state_are_left_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made_up(monkeypatch, "half used").eval()
    before, state = {key: t.clone() for key, t in model.state_dict().items()}, torch.get_rng_state()
    with torch.no_grad():
        assert dead_parameters(model)
    assert all(torch.equal(before[key], t) for key, t in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert not model.training


def _text_positions(blocks: int) -> list[str]:
    return [f"clip.transformer.resblocks.{block}.adapter.positions{IN_PART}" for block in range(blocks)]


# Numbers on ViT-B/32 with 12 frames.
KNOWN: list[tuple[str, dict[str, Any], dict[str, int]]] = [
    (
        "dgl",
        {"space": "linear"},
        {"reducer.generator.postfix.weight": 768 * 512, "reducer.generator.postfix.bias": 512},
    ),
    ("dgl", {}, {}),
    ("vop", {}, {"text_path.prompts" + IN_PART: 12 * 4 * 512}),
    ("vop", {"suffix": 0}, {}),
    ("vop", {"prefix": 0}, {"text_path.prompts": 12 * 4 * 512}),
    ("vop", {"visual_prompts": 0}, {"text_path.prompts" + IN_PART: 12 * 4 * 512}),
    ("mv_adapter", {}, {}),
    ("mv_adapter", {"words": 20}, {}),
    ("mv_adapter", {"words": 64}, {}),
    ("mv_adapter", {"words": 77}, {}),
    # Of the last block only class tokens are used.
    ("rap", {}, {f"reducer.{each}.11.B{IN_PART}": 49 * 768 for each in ("scales", "shifts")}),
    ("rap", {"axis": "frame"}, {}),
    # 77 places are learned for 12 frames.
    ("clip4clip", {"head": "seqTransf"}, {f"head.frame_positions{IN_PART}": 65 * 512}),
    ("clip4clip", {}, {}),
    ("tempme", {}, {}),
    ("adapter", {}, {}),
    ("lora", {"tuning": "full-all"}, {f"clip.positional_embedding{IN_PART}": 45 * 512}),
    ("zero_shot", {}, {}),
    ("random", {}, {}),
]


def test_captions_of_frames_reach_what_no_other_caption_does() -> None:
    model = load_model("discovla", backbone="ViT-B-32", weights="random:0", device="meta")
    dead_without = dead_parameters(model)
    assert sum(dead_without.values()) == 2 * (2 * 512 * 8 + 8 + 512)
    assert all(name.startswith("text_path.bottlenecks.") for name in dead_without)
    assert dead_parameters(model, frame_captions=True) == {}


@pytest.mark.parametrize(
    ("name", "options", "words", "expected"),
    [
        ("mv_adapter", {"words": 64}, 64, {}),
        ("mv_adapter", {"words": 64}, 32, dict.fromkeys(_text_positions(12), 32 * 64)),
        ("mv_adapter", {"words": 20}, 32, {}),  # no caption is longer than the model takes
        ("vop", {}, 64, {"text_path.prompts" + IN_PART: 12 * 4 * 512}),
        ("lora", {"tuning": "full-all"}, 64, {f"clip.positional_embedding{IN_PART}": 13 * 512}),
        ("lora", {"tuning": "full-all"}, 77, {}),
    ],
)
def test_captions_as_long_as_a_protocol_s(
    name: str, options: dict[str, Any], words: int, expected: dict[str, int]
) -> None:
    model = load_model(name, backbone="ViT-B-32", weights="random:0", device="meta", **options)
    assert dead_or_reason(model, words=words) == expected


def test_a_profile_takes_captions_as_long_as_a_protocol_s() -> None:
    model = load_model("lora", backbone="ViT-B-32", weights="random:0", device="meta", tuning="full-all")
    assert profile(model, words=64)["params"]["dead"] == 13 * 512


@pytest.mark.parametrize(("name", "options", "expected"), KNOWN)
def test_known_methods(name: str, options: dict[str, Any], expected: dict[str, int]) -> None:
    model = load_model(name, backbone="ViT-B-32", weights="random:0", device="meta", **options)
    assert dead_or_reason(model) == expected
