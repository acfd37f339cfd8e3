"""What a GPU would be asked to do, found without one: every tensor is a fake one on cuda:0 that has no values.

A product of a CPU and a CUDA tensor raises here as it would there. Kernels and the places where the host would wait for
the GPU are counted by the product's own counter and compared with the ledger beside this file, which may only fall:
``python tests/tools/fake_cuda.py`` writes it anew. Numbers and times need a GPU: tests/gpu.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from fake_cuda import (
    LEDGER,
    METHODS,
    NAMES,
    STEPS,
    count_encoding,
    count_evaluation,
    count_step,
    fake_gpu,
    faults,
    page_of,
    pairs,
    tiny,
    total,
)
from plugin import NAME, registered_plugin
from torch import Tensor

from tvrbench.harness import load_model
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.tokens import TokenStream
from tvrbench.harness.profiling.counts import kernels
from tvrbench.harness.profiling.counts.flops import by_name
from tvrbench.harness.profiling.counts.kernels import CUDA, KernelCounter, kernels_or_reason, on_fake_cuda

pytestmark = [
    pytest.mark.contract,
    pytest.mark.skipif(kernels.missing() is not None, reason=kernels.missing() or ""),
]
TRAINED = [name for name in METHODS if method_class(name).card.trains] + [NAME]
# The counts of another torch may differ by what its operators are made of.
SAME_TORCH = torch.__version__.split(".")[:2] == json.loads(LEDGER.read_text())["torch"].split(".")


@pytest.fixture(autouse=True)
def _plugin(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    if NAME not in request.node.name:
        yield
        return
    with registered_plugin(tmp_path):
        yield


def compare(found: Any, part: str, name: str, seen: KernelCounter | None = None) -> None:
    """Fail where a number is not that of the ledger."""
    told = "" if seen is None else "\n".join(f"  {count} x {what}" for what, count in seen.waits.most_common())
    bound = page_of(name)
    for key in part.split("/"):
        bound = bound.get(key, {})
    wrong = faults(found, bound, f"{name}, {part}", told)
    if not SAME_TORCH:
        wrong = [fault for fault in wrong if " rose" in fault and "waits" in fault]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_encoding_asks_no_more_than_before_and_waits_for_nothing(name: str) -> None:
    found = count_encoding(name)
    assert found["waits"]["text"] == 0
    compare(found, "encoding", name)


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "float32" else [pytest.mark.slow]) for kind in STEPS]
)
def test_a_training_step_stays_on_the_gpu(name: str, kind: str, tiny_weights: Path) -> None:
    seen = count_step(tiny(name, tiny_weights), *STEPS[kind])
    compare(total(seen), f"step/{kind}", name, seen)


@pytest.mark.parametrize("name", [name for name in METHODS if method_class(name).card.frame_captions])
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind == "float32" else [pytest.mark.slow]) for kind in STEPS]
)
def test_captions_of_frames_make_no_step_wait(name: str, kind: str, tiny_weights: Path) -> None:
    model = tiny(name, tiny_weights)
    plain, given = (count_step(model, *STEPS[kind], frame_captions=captions) for captions in (False, True))
    assert given.waits == plain.waits
    assert given.kernels.total() > plain.kernels.total()


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_stays_on_the_gpu(name: str, tiny_weights: Path) -> None:
    """Batches come from the CPU and features go back to it, and neither is waited for in a batch."""
    for what, seen in count_evaluation(tiny(name, tiny_weights)).items():
        assert not [where for where in seen.waits if where.endswith("a copy from cuda to cpu")]
        compare(total(seen), f"evaluation/{what}", name, seen)


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("centerclip", {"aggregate": "mean", "cluster_embedding": True}),
    ("centerclip", {"metric": "cosine", "pre_norm": True}),
    ("centerclip", {"exact_distance": False}),
    ("token_sampling", {"mode": "pooling"}),
    ("clip4clip", {"head": "seqTransf"}),
    ("testa", {"layout": "space", "score": "mode"}),
    ("testa", {"temporal": True}),
    ("evit", {"fuse": False}),
    ("vop", {"read": "released", "variant": "F+P"}),
    ("vop", {"variant": "C"}),
    *(("rlt", {"scope": scope, "budget": 0.5}) for scope in ("held", "video", "frame")),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_no_option_makes_encoding_wait(name: str, options: dict[str, Any], tiny_weights: Path) -> None:
    seen = _encode(tiny(name, tiny_weights, **options))
    assert not seen.waits
    assert seen.kernels


def test_spectral_clustering_waits_for_its_eigenvectors_alone(tiny_weights: Path) -> None:
    seen = _encode(tiny("centerclip", tiny_weights, clustering="spectral"))
    assert [where.split(": ")[1] for where in seen.waits] == ["a decomposition is checked"]
    assert seen.waits.total() == 1


def test_the_ledger_names_what_is_registered() -> None:
    assert sorted(json.loads(LEDGER.read_text())["methods"]) == sorted(NAMES)


Act = Callable[[TokenStream], TokenStream]
FAULTS: dict[str, Act] = {
    "a value is read": lambda s: s.with_x(s.x * s.x.sum().item()),
    "a size depends on values": lambda s: s.with_x(s.x + (s.x[:, 0, 0] > 0).nonzero().sum()),
    "cpu": lambda s: s.with_x(s.x[:, list(range(s.x.shape[1]))]),  # an index by a list
    "a copy from cpu to cuda": lambda s: s.with_x(s.x + torch.zeros(s.x.shape[1], 1).to(s.x.device)),
    "a copy from cuda to cpu": lambda s: s.with_x(s.x + float(s.x.sum().cpu())),
    "lengths of segments are checked": lambda s: s.with_x(
        s.x + torch.segment_reduce(s.x[0], "sum", lengths=torch.ones(1, dtype=torch.long, device=s.x.device))
    ),
}


@pytest.fixture
def acting(monkeypatch: pytest.MonkeyPatch, tiny_weights: Path) -> Callable[[Act], RetrievalModel]:
    """The plain encoder with a reducer that acts before its first block."""

    def make(act: Act) -> RetrievalModel:
        model = load_model("zero_shot", weights=tiny_weights)
        monkeypatch.setattr(
            type(model.reducer), "before_block", lambda self, stream, index: stream if index else act(stream)
        )
        return model

    return make


def _encode(model: RetrievalModel) -> KernelCounter:
    with fake_gpu(), torch.no_grad(), KernelCounter() as seen:
        twin = on_fake_cuda(model)
        twin.encode_video(*pairs(twin)[:2])
    return seen


@pytest.mark.parametrize("why", FAULTS)
def test_a_seeded_wait_is_counted_where_it_is(why: str, acting: Callable[[Act], RetrievalModel]) -> None:
    clean, seen = _encode(acting(lambda stream: stream)), _encode(acting(FAULTS[why]))
    assert not clean.waits
    place = next(where for where in seen.waits if why in where)
    assert place.split(":")[0] == __name__
    assert seen.kernels.total() > clean.kernels.total()


def test_a_seeded_mixture_of_devices_is_refused(acting: Callable[[Act], RetrievalModel]) -> None:
    with pytest.raises(RuntimeError, match="cpu"):
        _encode(acting(lambda stream: stream.with_x(stream.x + torch.zeros(stream.x.shape[1], 1))))


def test_a_ledger_may_only_fall() -> None:
    page = {"encoding": {"video": {"float32": 10}}}
    assert faults(page, page, "m") == []
    for number, how in ((11, "rose"), (9, "fell")):
        (fault,) = faults({"encoding": {"video": {"float32": number}}}, page, "m")
        assert f"{how}: {number}, ledger 10" in fault
    assert len(faults(page, {}, "m")) == 1


def test_what_cannot_be_counted_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RetrievalModel, "encode_text", lambda self, ids, mask: torch.from_numpy(ids.cpu().numpy()))
    assert by_name(kernels_or_reason, "zero_shot", "ViT-B-32")["reason"]


@pytest.mark.parametrize("name", ["tempme", "frame_subsample"])
def test_what_lies_on_the_cpu_is_moved_or_refused_in_a_sentence(name: str, tiny_weights: Path) -> None:
    model = load_model(name, weights=tiny_weights, **method_class(name).card.tiny)
    with fake_gpu(), torch.no_grad(), KernelCounter():
        twin = on_fake_cuda(model).eval()
        video, video_mask, ids, text_mask = pairs(twin)
        with raises("input.device", part="frames", device="cpu", model="cuda:0"):
            twin.encode_video(video.cpu(), video_mask)
        with raises("input.device", part="ids"):
            twin.encode_text(ids.cpu(), text_mask)
        features = torch.empty(2, twin.clip.arch.embed_dim)
        with raises("input.device", part="text features"):
            twin.similarity(features, features.to(CUDA))
        with raises("input.device", part="video features"):
            twin.similarity(features.to(CUDA), features)
        moved: list[Tensor] = [twin.encode_video(video, video_mask.cpu()), twin.encode_text(ids, text_mask.cpu())]
    assert all(feature.device == CUDA for feature in moved)
