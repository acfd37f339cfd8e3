"""X-Pool, DRL's interaction and TS2-Net's similarity: against their definitions pair by pair, and what they cost."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tvrbench.harness import load_model
from tvrbench.harness.models.heads import MeanPooling, SequenceTransformer
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.scorer import Scorer, TextFeatures, VideoFeatures
from tvrbench.harness.profiling.counts.flops import traced_macs
from tvrbench.harness.profiling.counts.formula import analytic_macs
from tvrbench.methods.drl import TokenInteraction
from tvrbench.methods.ts2net import FrameWeighing
from tvrbench.methods.xpool import TextGuidedPooling

pytestmark = pytest.mark.unit
T, V, L, FRAMES, E = 4, 5, 7, 6, 24
Make = Callable[..., RetrievalModel]
SCORERS: dict[str, Callable[[], Scorer]] = {
    "xpool": lambda: TextGuidedPooling(E),
    "drl": lambda: TokenInteraction(E),
    "ts2net": FrameWeighing,
}


def _random(name: str) -> Scorer:
    torch.manual_seed(0)
    scorer = SCORERS[name]().double()
    for parameter in scorer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return scorer


def _features() -> tuple[TextFeatures, VideoFeatures]:
    """Texts of 2 to 7 words; the second video lacks two frames, the last all."""
    torch.manual_seed(1)
    words, frames = torch.randn(T, L, E).double() + 0.3, torch.randn(V, FRAMES, E).double() + 0.3
    mask = torch.ones(V, FRAMES)
    mask[1, 1] = mask[1, 5] = 0
    mask[-1] = 0
    mask[2, 3] = 2  # a weight
    lengths = torch.tensor([2, 4, 5, 7])
    text = TextFeatures(
        end=words[torch.arange(T), lengths - 1], words=words, mask=torch.arange(L) < lengths.unsqueeze(1)
    )
    pooled = MeanPooling().pooled(frames, mask)
    return text, VideoFeatures(frames=-frames, related=frames, pooled=pooled, mask=mask, patches=None, patch_mask=None)


def _naive_xpool(s: Any, t: Tensor, words: Tensor, frames: Tensor) -> Tensor:
    if not len(frames):
        return F.cosine_similarity(t, s.norm_pooled(_after(s, torch.zeros(E).double())), dim=0)
    q, k, v = s.query(s.norm_inputs(t)), s.key(s.norm_inputs(frames)), s.value(s.norm_inputs(frames))
    weights = (k @ q / math.sqrt(E)).softmax(dim=0)
    return F.cosine_similarity(t, s.norm_pooled(_after(s, s.out(weights @ v))), dim=0)


def _after(s: Any, found: Tensor) -> Tensor:
    y = s.norm_found(found)
    out: Tensor = y + s.linear(y)
    return out


def _naive_drl(s: Any, t: Tensor, words: Tensor, frames: Tensor) -> Tensor:
    if not len(frames):
        return torch.tensor(0.0).double()
    a, b = s.of_words(words)[:, 0].softmax(dim=0), s.of_frames(frames)[:, 0].softmax(dim=0)
    cosine = F.cosine_similarity(words.unsqueeze(1), frames.unsqueeze(0), dim=2)
    return (a @ cosine.amax(dim=1) + b @ cosine.amax(dim=0)) / 2


def _naive_ts2net(s: Any, t: Tensor, words: Tensor, frames: Tensor) -> Tensor:
    a = F.cosine_similarity(t.unsqueeze(0), frames, dim=1)
    return (a * (4 * a / a.norm()).softmax(dim=0)).sum() if len(frames) else torch.tensor(0.0).double()


NAIVE = {"xpool": _naive_xpool, "drl": _naive_drl, "ts2net": _naive_ts2net}


def _by_definition(name: str, scorer: Scorer, text: TextFeatures, video: VideoFeatures) -> Tensor:
    assert text.words is not None
    rows = []
    for t, words, of_words in zip(text.end, text.words, text.mask, strict=True):
        pairs = zip(video.related, video.mask, strict=True)
        rows.append(torch.stack([NAIVE[name](scorer, t, words[of_words], f[m > 0]) for f, m in pairs]))
    return torch.stack(rows)


def _scores(scorer: Scorer, text: TextFeatures, video: VideoFeatures, level: str | None = None) -> Tensor:
    return scorer.score(scorer.text_side(text), scorer.video_side(video), level)


@pytest.mark.parametrize("name", SCORERS)
def test_scores_are_those_of_the_definition(name: str) -> None:
    scorer, (text, video) = _random(name), _features()
    with torch.no_grad():
        want = _by_definition(name, scorer, text, video)
        torch.testing.assert_close(_scores(scorer, text, video), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SCORERS)
def test_padding_is_as_good_as_absent(name: str) -> None:
    scorer, (text, video) = _random(name), _features()
    assert text.words is not None
    with torch.no_grad():
        want = _scores(scorer, text, video)
        text.words[~text.mask] = 50.0
        video.related[video.mask == 0] = -70.0
        torch.testing.assert_close(_scores(scorer, text, video), want, rtol=0, atol=1e-12)


def test_the_levels_of_drl_are_the_two_halves() -> None:
    scorer, (text, video) = _random("drl"), _features()
    with torch.no_grad():
        word, frame, both = (_scores(scorer, text, video, level) for level in ("word", "frame", None))
    torch.testing.assert_close((word + frame) / 2, both)
    assert not torch.allclose(word, frame)


def test_x_pool_starts_as_attention_without_projections() -> None:
    scorer, (text, video) = TextGuidedPooling(E).double(), _features()
    t, frames = text.end[0], video.related[0]
    q, k = F.layer_norm(t, (E,)), F.layer_norm(frames, (E,))
    y = F.layer_norm((k @ q / math.sqrt(E)).softmax(dim=0) @ k, (E,))
    want = F.cosine_similarity(t, F.layer_norm(2 * y, (E,)), dim=0)
    torch.testing.assert_close(_scores(scorer, text, video)[0, 0], want)


@pytest.mark.parametrize("name", SCORERS)
def test_a_wrong_reading_gives_other_scores(name: str) -> None:
    """Weights of raw frames, no masks, a softmax over words of all pads: each moves some score by much."""
    scorer, (text, video) = _random(name), _features()
    assert text.words is not None
    with torch.no_grad():
        right = _scores(scorer, text, video)
        everything = VideoFeatures(**{**vars(video), "mask": torch.ones_like(video.mask)})
        raw = VideoFeatures(**{**vars(video), "related": video.frames})
        all_words = TextFeatures(end=text.end, words=text.words, mask=torch.ones_like(text.mask))
        readings = {"frame mask": (text, everything), "raw frames": (text, raw)}
        if "words" in scorer.wants:
            readings["word mask"] = (all_words, video)
        for what, (texts, videos) in readings.items():
            assert (_scores(scorer, texts, videos) - right).abs().max() > 1e-3, what


@pytest.mark.parametrize("name", ["xpool", "drl"])
def test_gradients_are_those_of_the_definition(name: str) -> None:
    scorer, (text, video) = _random(name), _features()
    twin = copy.deepcopy(scorer)
    video = VideoFeatures(**{key: None if t is None else t[:-1] for key, t in vars(video).items()})  # 0 / 0 in a norm
    weights = torch.randn(T, V - 1).double()
    (_scores(scorer, text, video) * weights).sum().backward()  # type: ignore[no-untyped-call]
    (_by_definition(name, twin, text, video) * weights).sum().backward()  # type: ignore[no-untyped-call]
    for (key, one), other in zip(scorer.named_parameters(), twin.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert one.grad.abs().sum() > 0, key
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-10, msg=key)


class _Largest(TorchDispatchMode):
    """Notes the most numbers that a tensor holds."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(t.numel() for t in tree_leaves(out) if isinstance(t, Tensor))])
        return out


@pytest.mark.parametrize("name", SCORERS)
def test_blocks_bound_the_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, (text, video) = _random(name), _features()
    block, largest = 2**16, _Largest()
    with torch.no_grad():
        texts = scorer.text_side(text).part(torch.arange(200) % T)
        videos = scorer.video_side(video).part(torch.arange(150) % V)
        want = scorer.score(texts, videos)
        monkeypatch.setattr("tvrbench.harness.models.scorer.BLOCK", block)
        with largest:
            found = scorer.score(texts, videos)
    torch.testing.assert_close(found, want, rtol=0, atol=1e-12)
    assert largest.numbers <= block < 200 * 150 * FRAMES


@pytest.mark.parametrize("frames", [8, 12])
@pytest.mark.parametrize("backbone", ["ViT-B-32", "ViT-B-16"])
@pytest.mark.parametrize("name", SCORERS)
def test_costs_are_those_of_the_definition(name: str, backbone: str, frames: int) -> None:
    width, words = 512, 32
    model = load_model(name, backbone=backbone, weights="random:0", device="meta", frames=frames)
    ids = torch.zeros(1, words, dtype=torch.long, device="meta")
    side = model.clip.arch.image_size
    with torch.no_grad():
        text = model.text_side(ids, torch.ones_like(ids, dtype=torch.bool))
        video = model.video_side(*(torch.zeros(1, frames, *shape, device="meta") for shape in ((3, side, side), ())))
    pair = {
        "xpool": width**2 + 2 * frames * width + width,
        "drl": words * frames * width,
        "ts2net": frames * width,
    }[name]
    if frames == 12:
        assert pair == {"xpool": 274_944, "drl": 196_608, "ts2net": 6_144}[name]
    assert model.scorer.fine_macs(text, video) == pair
    stored = {"xpool": 2 * frames * width, "drl": frames * width + frames, "ts2net": frames * width}[name]
    assert video.floats == width + stored + frames  # with the mask
    new = {"xpool": 5 * width**2 + 4 * width + 6 * width, "drl": 2 * (width**2 + 2 * width), "ts2net": 0}[name]
    assert sum(p.numel() for p in model.scorer.parameters()) == new
    assert isinstance(model.head, MeanPooling if name == "xpool" else SequenceTransformer)
    lora = load_model("lora", backbone=backbone, weights="random:0", device="meta", frames=frames)
    more = sum(p.numel() for p in model.trainable().values()) - sum(p.numel() for p in lora.trainable().values())
    assert more == new + (0 if name == "xpool" else 12_648_960)


@pytest.mark.parametrize("name", SCORERS)
def test_the_work_of_sides_is_traced_as_it_is_counted(name: str) -> None:
    model = load_model(name, backbone="ViT-B-32", weights="random:0", device="meta")
    assert traced_macs(model) == pytest.approx(analytic_macs(model), rel=5e-4)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("head", ["meanP", "seqTransf"])
def test_a_released_file_of_drl_loads(
    prefix: str, head: str, tiny_model: Make, tiny_batch: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model("drl", head=head, tuning="full-all")
    theirs = {
        "scorer.of_words.": "text_weight_fc.",
        "scorer.of_frames.": "video_weight_fc.",
        "head.frame_positions": "frame_position_embeddings.weight",
        "head.transformer.": "transformerClip.",
    }
    state = {f"{name}.2.bias": torch.randn(1) for name in ("text_weight_fc", "video_weight_fc")}
    for key, tensor in model.state_dict().items():
        ours = next((start for start in theirs if key.startswith(start)), "")
        state[theirs[ours] + key.removeprefix(ours) if ours else key] = tensor
    save_file({prefix + key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "released.safetensors")
    again = load_model("drl", checkpoint=tmp_path / "released.safetensors", activation="quick_gelu")
    assert again.spec.describe()["head"] == head
    batch = [tiny_batch[key] for key in ("frames", "mask", "ids", "text_mask")]
    with torch.no_grad():
        for one, other in zip(again(*batch), model(*batch), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", ["meanP", "seqTransf"])
def test_a_file_of_clip4clip_loads_as_ts2net(
    head: str, tiny_model: Make, tiny_batch: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny_model("ts2net", head=head, tuning="full")
    names = {"head.frame_positions": "frame_position_embeddings.weight", "head.transformer.": "transformerClip."}
    state = {}
    for key, tensor in model.state_dict().items():
        ours = next((start for start in names if key.startswith(start)), "")
        state["module." + (names[ours] + key.removeprefix(ours) if ours else key)] = tensor.contiguous()
    save_file(state, tmp_path / "released.safetensors")
    again = load_model("ts2net", checkpoint=tmp_path / "released.safetensors", activation="quick_gelu")
    assert (again.spec.describe()["head"], again.spec.describe()["tuning"]) == (head, "full")
    batch = [tiny_batch[key] for key in ("frames", "mask", "ids", "text_mask")]
    with torch.no_grad():
        for one, other in zip(again(*batch), model(*batch), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["drl", "ts2net"])
def test_plain_tensors_of_a_tuned_scorer_load(name: str, tiny_model: Make, tmp_path: Path) -> None:
    save_file({key: t.contiguous() for key, t in tiny_model(name).state_dict().items()}, tmp_path / "plain.safetensors")
    again = load_model(name, checkpoint=tmp_path / "plain.safetensors", activation="quick_gelu")
    assert again.spec.describe()["tuning"] == "lora"


@pytest.mark.parametrize("name", SCORERS)
def test_options_that_fit_nothing_are_refused(name: str, tiny_model: Make) -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("reducer", {"reducer": "random"}),
        ("reducer", {"reducer": "discovla"}),
        ("reducer", {"reducer": name}),
        *((own, {"reducer": "tempme", "reducer_options": {own: 1}}) for own in ("tuning", "rank", "head")),
    ]
    for option, given in wrong:
        with raises("option.value", option=option):
            tiny_model(name, **given)
    with raises("option.invalid"):
        tiny_model(name, head="nonsense")
    with raises("option.unknown"):
        tiny_model(name, reducer="tempme", reducer_options={"nonsense": 1})


def test_the_head_of_an_encoder_is_kept_where_no_other_is_asked_for(
    tiny_model: Make, tiny_batch: dict[str, Any]
) -> None:
    model, plain = (tiny_model(name, tuning="own", **o) for name, o in (("xpool", {"reducer": "dgl"}), ("dgl", {})))
    plain.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        assert torch.equal(*(each.encode_video(tiny_batch["frames"], tiny_batch["mask"]) for each in (model, plain)))
    assert model.spec.card.dead == (r"head\.frame_positions in part", *plain.spec.card.dead)
    related = tiny_model("xpool", reducer="dgl", head="seqTransf")
    assert isinstance(related.head, SequenceTransformer)


def test_masked_training_scores_the_patches_that_stay(tiny_batch: dict[str, Any], tiny_model: Make) -> None:
    model = tiny_model("eercf", reducer="masked", reducer_options={"ratio": 0.5})
    video = tiny_batch["frames"], tiny_batch["mask"]
    with torch.no_grad():
        evaluated, trained = model.video_side(*video), model.train().video_side(*video)
    assert evaluated.fine["patches"].shape[1] == 2 * trained.fine["patches"].shape[1] == 12 * 16
    assert trained.fine["patch_mask"].bool().all()


@pytest.mark.parametrize("name", SCORERS)
def test_other_frames_and_heads_work(name: str, tiny_weights: Path) -> None:
    for frames, head in ((1, "seqTransf"), (5, "meanP"), (32, "seqTransf")):
        model = load_model(name, weights=tiny_weights, frames=frames, head=head)
        with torch.no_grad():
            side = model.video_side(torch.randn(2, frames, 3, 64, 64), torch.ones(2, frames).bool())
        assert side.fine["mask"].shape == (2, frames)
        assert all(tensor.isfinite().all() for tensor in side.tensors)
    with raises("head.frames"):
        load_model(name, weights=tiny_weights, frames=33, head="seqTransf")
