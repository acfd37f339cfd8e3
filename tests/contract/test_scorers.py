"""What every registered method promises whose scorer compares more than a vector of each side, plug-ins included."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from every_kind import share_of
from plugin import SCORER, documented, registered
from torch import Tensor

from tvrbench.harness import load_model
from tvrbench.harness.core import registry
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models import scorer as scorer_module
from tvrbench.harness.models.checkpoint import save_checkpoint
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.scorer import COARSE, Side, VideoFeatures
from tvrbench.harness.models.tuning import TUNINGS
from tvrbench.harness.regression.signature import TINY, same_randomness, save_tiny_weights
from tvrbench.harness.training.trainer import Pairs, Trainer

pytestmark = pytest.mark.contract
PLUGIN = "every_kind"
CODE = """
from every_kind import EveryKind
from tvrbench.harness.models.scored import ScoredMethod, ScorerOptions
from tvrbench.harness.models.spec import MethodCard

class Kind(ScoredMethod):
    card = MethodCard(summary="all", paper="none", group="retrieval stage", recipe="uniform", tuning="lora")
    Options = ScorerOptions

    def new_scorer(self):
        return EveryKind(self.arch.embed_dim)
"""
SCORERS = [n for n in registry.names("methods", "baselines") if method_class(n).build_scorer is not Method.build_scorer]
NAMES = [*SCORERS, PLUGIN, SCORER]
REDUCERS = [n for n in registry.names("methods", "baselines") if n not in SCORERS]
Make = Callable[..., RetrievalModel]
GRID = 2**25  # scores are compared as ranks compare them


@pytest.fixture(autouse=True)
def _plugin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    for name, code, kind in ((PLUGIN, CODE, "Kind"), (SCORER, documented(SCORER), "BestFramesMethod")):
        if name in request.node.name:
            with registered(tmp_path_factory.mktemp("plugin"), name, code, kind):
                yield
            return
    yield


@pytest.fixture(scope="module")
def batch(tiny_batch: dict[str, Any]) -> dict[str, Tensor]:
    """Three pairs; the first video stands still in the end, the second ends in padding, the third is padding alone."""
    frames, mask = tiny_batch["frames"].clone(), tiny_batch["mask"].clone()
    frames[0, 7:] = frames[0, 6:7]
    mask[1, 9:] = False
    mask[2] = False
    texts = {key: tiny_batch[key] for key in ("ids", "text_mask")}
    return {"video": frames * mask[:, :, None, None, None], "video_mask": mask, **texts}


@torch.no_grad()
def _sides(model: RetrievalModel, batch: dict[str, Tensor]) -> tuple[Side, Side]:
    return model.text_side(batch["ids"], batch["text_mask"]), model.video_side(batch["video"], batch["video_mask"])


def _exact(model: RetrievalModel, batch: dict[str, Tensor]) -> tuple[Any, Side, Side]:
    """Scorer and sides in float64, as an evaluation has them; each item three times, in an order of its own."""
    text, video = (side.to(torch.float64) for side in _sides(model, batch))
    order = torch.tensor([2, 0, 1, 1, 2, 0, 0, 1, 2, 0])
    return copy.deepcopy(model.scorer).double(), text.part(order), video.part(order.flip(0))


def _same(one: Side, other: Side, atol: float = 0.0) -> None:
    assert one.fine.keys() == other.fine.keys()
    for a, b in zip(one.tensors, other.tensors, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("name", NAMES)
def test_sides_hold_what_is_declared(name: str, tiny_model: Make, batch: dict[str, Tensor]) -> None:
    model = tiny_model(name)
    text, video = _sides(model, batch)
    assert model.scorer.video_names
    assert sorted(text.fine) == sorted(model.scorer.text_names)
    assert sorted(video.fine) == sorted(model.scorer.video_names)
    assert model.scorer.levels[0] == COARSE
    for side in (text, video):
        assert len(side) == 3
        assert all(tensor.is_floating_point() and tensor.isfinite().all() for tensor in side.tensors)
        for key, tensor in side.fine.items():
            assert not key.endswith("mask") or set(tensor.unique().tolist()) <= {0.0, 1.0}
    trained = model.sides(*model(batch["video"], batch["video_mask"], batch["ids"], batch["text_mask"]))
    for one, other in zip(trained, (text, video), strict=True):
        _same(one, other, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_an_item_alone_gives_what_it_gives_in_a_batch(name: str, tiny_model: Make, batch: dict[str, Tensor]) -> None:
    model = tiny_model(name)
    text, video = _sides(model, batch)
    alone = [_sides(model, {key: tensor[i : i + 1] for key, tensor in batch.items()}) for i in range(3)]
    _same(Side.cat([each for each, _ in alone]), text, atol=1e-5)
    _same(Side.cat([each for _, each in alone]), video, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_padding_of_captions_changes_no_score(name: str, tiny_model: Make, batch: dict[str, Tensor]) -> None:
    model = tiny_model(name)
    text, video = _sides(model, batch)
    short = Side.cat([_sides(model, share_of(batch, slice(i, i + 1)))[0] for i in range(3)])
    declared = batch | {"text_mask": torch.ones_like(batch["text_mask"])}  # what follows the end token is no word
    for other in (short, _sides(model, declared)[0]):
        torch.testing.assert_close(model.scorer.score(other, video), model.scorer.score(text, video), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_score_depends_on_its_pair_alone(
    name: str, tiny_model: Make, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, text, video = _exact(tiny_model(name), batch)
    texts, videos = torch.randperm(10), torch.randperm(10)
    with torch.no_grad():
        for level in (None, *scorer.levels):
            whole = scorer.score(text, video, level)
            assert whole.shape == (10, 10)
            moved = scorer.score(text.part(texts), video.part(videos), level)
            parts = [video.part(slice(first, first + 4)) for first in range(0, 10, 4)]
            rows = [text.part(slice(first, first + 3)) for first in range(0, 10, 3)]
            blocks = [torch.cat([scorer.score(row, part, level) for part in parts], dim=1) for row in rows]
            with monkeypatch.context() as patch:
                for module in {scorer_module, sys.modules[type(scorer).__module__]}:
                    patch.setattr(module, "BLOCK", 1500, raising=False)
                small = scorer.score(text, video, level)
            for other, want in ((moved, whole[texts][:, videos]), (torch.cat(blocks), whole), (small, whole)):
                assert torch.equal((other * GRID).round(), (want * GRID).round())


@pytest.mark.parametrize("name", NAMES)
def test_the_coarse_level_is_the_similarity_of_features(name: str, tiny_model: Make, batch: dict[str, Tensor]) -> None:
    model = tiny_model(name)
    text, video = _sides(model, batch)
    with torch.no_grad():
        of_text = model.encode_text(batch["ids"], batch["text_mask"])
        of_video = model.encode_video(batch["video"], batch["video_mask"])
        torch.testing.assert_close(text.coarse, of_text, rtol=0, atol=1e-5)
        torch.testing.assert_close(video.coarse, of_video, rtol=0, atol=1e-5)
        want = model.similarity(of_text, of_video)
        torch.testing.assert_close(model.score(text, video, level=COARSE), want, rtol=0, atol=1e-4)
        with pytest.raises(UsageError) as raised:
            model.score(text, video, level="nonsense")
    assert raised.value.code == "scorer.level"


@pytest.mark.parametrize("name", NAMES)
def test_every_level_is_finite_and_so_are_its_gradients(name: str, tiny_model: Make, batch: dict[str, Tensor]) -> None:
    model = tiny_model(name).train()
    for level in (None, *model.scorer.levels):
        sides = model.sides(*model(batch["video"], batch["video_mask"], batch["ids"], batch["text_mask"]))
        scores = model.score(*sides, level)
        assert scores.isfinite().all()
        model.zero_grad()
        scores.square().sum().backward()  # type: ignore[no-untyped-call]
        assert all(p.grad.isfinite().all() for p in model.trainable().values() if p.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_sides_come_apart_and_together_again(name: str, tiny_model: Make, batch: dict[str, Tensor]) -> None:
    for side in _sides(tiny_model(name), batch):
        _same(Side.of(side.tensors, list(side.fine)), side)
        _same(Side.cat([side.part(slice(0, 1)), side.part(torch.tensor([1, 2]))]), side)
        assert {tensor.dtype for tensor in side.to(torch.float16).tensors} == {torch.float16}
        assert {tensor.device.type for tensor in side.to(torch.device("meta")).tensors} == {"meta"}
        assert side.floats == sum(tensor[0].numel() for tensor in side.tensors)


@pytest.mark.parametrize("name", NAMES)
def test_columns_of_some_videos_are_those_of_all(name: str, tiny_model: Make, batch: dict[str, Tensor]) -> None:
    model = tiny_model(name)
    text, video = _sides(model, batch)
    with torch.no_grad():
        whole = model.scorer.columns(text, video, 0)
        parts = [model.scorer.columns(text, video.part(slice(i, i + 1)), i) for i in range(3)]
        joined = {key: torch.cat([part[key] for part in parts]) for key in whole}
        loss, again = (model.scorer.loss(text, columns, torch.tensor(20.0)) for columns in (whole, joined))
    assert all(column.shape in ((3, 3), (3, 64)) for column in whole.values())  # processes exchange no frames
    assert loss.isfinite()
    torch.testing.assert_close(again, loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_give_the_gradient_of_the_whole(name: str, tiny_model: Make, batch: dict[str, Tensor]) -> None:
    found = []
    for size in (None, 2):
        trainer = Trainer(tiny_model(name), "uniform", 4, micro_batch_size=size)
        found.append((trainer.backward(Pairs(**batch)), {k: p.grad for k, p in trainer.model.trainable().items()}))
    (loss, gradients), (again, cached) = found
    assert again == pytest.approx(loss, rel=1e-5)
    assert cached.keys() == gradients.keys()
    for key, gradient in gradients.items():
        assert gradient is not None
        torch.testing.assert_close(cached[key], gradient, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_sides_in_bfloat16_are_finite_and_nearly_the_same(
    name: str, tiny_model: Make, batch: dict[str, Tensor]
) -> None:
    model = tiny_model(name)
    exact = _sides(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = [side.to(torch.float32) for side in _sides(model, batch)]
    for one, other in zip(half, exact, strict=True):
        for a, b in zip(one.tensors, other.tensors, strict=True):
            assert a.isfinite().all()
            assert (a - b).norm() <= 0.1 * b.norm()


@pytest.mark.parametrize("name", NAMES)
def test_sides_and_scores_need_no_values(name: str, tiny_model: Make, batch: dict[str, Tensor]) -> None:
    model = tiny_model(name).to("meta")
    text, video = _sides(model, {key: tensor.to("meta") for key, tensor in batch.items()})
    assert {level: model.score(text, video, level).shape for level in model.scorer.levels} == dict.fromkeys(
        model.scorer.levels, (3, 3)
    )
    counted = model.scorer.fine_macs(text.part(slice(0, 1)), video.part(slice(0, 1)))
    assert counted == tiny_model(name).scorer.fine_macs(*(side.part(slice(0, 1)) for side in (text, video)))
    assert counted > 0 or name == PLUGIN


@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_hold_the_scorer(name: str, tiny_model: Make, batch: dict[str, Tensor], tmp_path: Path) -> None:
    model = tiny_model(name)
    with torch.no_grad():
        for parameter in model.scorer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_checkpoint(model, tmp_path / "model.safetensors")
    again = load_model(name, checkpoint=tmp_path / "model.safetensors")
    for one, other in zip(_sides(again, batch), _sides(model, batch), strict=True):
        _same(one, other)
    assert (again.scorer.depth, again.scorer.v2t) == (model.scorer.depth, model.scorer.v2t)
    with torch.no_grad():
        sides = _sides(model, batch)
        assert torch.equal(again.score(*sides), model.score(*sides))


@pytest.mark.parametrize("name", NAMES)
def test_encoding_sides_is_one_graph(name: str, batch: dict[str, Tensor], tmp_path: Path) -> None:
    with same_randomness():
        save_tiny_weights(tmp_path / "weights.safetensors", replace(TINY, vision_layers=2, text_layers=1))
    model = load_model(name, weights=tmp_path / "weights.safetensors")
    inputs = {model.video_tensors: ("video", "video_mask"), model.text_tensors: ("ids", "text_mask")}
    for encode, names in inputs.items():
        torch.compiler.reset()
        compiled, given = torch.compile(encode, backend="eager", fullgraph=True), [batch[key] for key in names]
        with torch.no_grad():
            for one, other in zip(compiled(*given), encode(*given), strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("name", NAMES)
def test_every_tuning_gives_finite_scores(name: str, tuning: str, tiny_model: Make, batch: dict[str, Tensor]) -> None:
    model = tiny_model(name, tuning=tuning)
    with torch.no_grad():
        assert model.score(*_sides(model, batch)).isfinite().all()


def _composed(make: Make, name: str, reducer: str, **options: Any) -> RetrievalModel:
    """The scorer over another method's encoder; skips where that is refused, as it must not be for one that reduces
    tokens of the plain model."""
    try:
        return make(name, reducer=reducer, **options)
    except UsageError as error:
        refused = error
    cls = method_class(reducer)
    assert refused.code == "option.value"
    assert cls.Model is not RetrievalModel or not cls.card.encodes
    pytest.skip(str(refused))


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("vidtome", {"mode": "persistent"}),
    ("vidtome", {"mode": "persistent", "chunk": 2, "target_stride": 2, "blocks": (3,), "ratio": 0.5}),
    ("vidtome", {"global_ratio": 0.8}),
    ("rlt", {"scope": "video", "budget": 0.5}),
    ("rlt", {"scope": "frame"}),
    ("testa", {"layout": "space"}),
    ("testa", {"frames_r": (2, 1, 1, *[0] * 9), "patches_r": 0}),
    ("centerclip", {"aggregate": "mean", "schedule": ((3, 6, 10), (6, 3, 12))}),
    ("token_sampling", {"mode": "pooling"}),
    ("evit", {"fuse": False}),
    ("tempme", {"frame_positions": False}),
    ("frame_subsample", {"keep": 5}),
    ("vop", {"variant": "F+P"}),
    ("vop", {"read": "released"}),
    ("dgl", {"mask": "released"}),
    ("dgl", {"feature": "average_frame_cls_token"}),
]
EVERY = [(name, reducer, {}) for name in (*SCORERS, PLUGIN) for reducer in REDUCERS] + [
    (PLUGIN, *variant) for variant in VARIANTS
]


@pytest.mark.parametrize(("name", "reducer", "options"), EVERY)
def test_any_encoder_may_stand_before_a_scorer(
    name: str,
    reducer: str,
    options: dict[str, Any],
    tiny_model: Make,
    batch: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = _composed(tiny_model, name, reducer, reducer_options=options)
    seen: list[VideoFeatures] = []
    keep = model.scorer.video_side
    monkeypatch.setattr(model.scorer, "video_side", lambda features: (seen.append(features), keep(features))[1])
    text, video = _sides(model, batch)
    for level in (None, *model.scorer.levels):
        assert model.score(text, video, level).isfinite().all()
    (features,) = seen
    last = model.reducer.plan()[-1]
    classes = last.leaving[0] * last.classes
    assert features.frames.shape == features.related.shape == (3, classes, 64)
    if features.patches is not None:
        places = last.packed * model.clip.arch.patches if last.packed else last.leaving[0] * last.leaving[1] - classes
        assert features.patches.shape == (3, places, 64)
        _check_patch_mask(model, batch, features)


def _check_patch_mask(model: RetrievalModel, batch: dict[str, Tensor], features: VideoFeatures) -> None:
    """A patch is left out exactly where no frame that is no padding has a source patch in it."""
    with torch.no_grad():
        _, trace = model.encode_video(batch["video"], batch["video_mask"], trace=True)
    stream = model.video_tokens(batch["video"], batch["video_mask"])
    first, N = stream.num_prefix_tokens, trace.tokens
    assert features.patch_mask is not None
    for video in range(3):
        tokens = [sequence * N + place for sequence in range(trace.sequences) for place in range(first, N)]
        valid = batch["video_mask"][video].tolist()
        held = [any(valid[frame] for frame, _ in trace.patches(video, token)) for token in tokens]
        assert features.patch_mask[video].tolist() == held
