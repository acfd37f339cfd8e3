"""CenterCLIP and its controls against what the released code computed.

Cluster ids are compared exactly where the released code's own ids survive noise, otherwise stage by stage: distances,
start, eigenvectors, cost. The encoder runs end to end on stable inputs, elsewhere with the stored medoids injected.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from errors import raises
from torch import Tensor
from torch.nn import functional as F

from tvrbench.harness import load_model
from tvrbench.harness.training.loss import contrastive_loss
from tvrbench.methods.ops import k_medoids, spectral_cluster
from tvrbench.methods.ops.distances import pairwise_distances

pytestmark = pytest.mark.golden
FIXTURE = torch.load(Path(__file__).parents[1] / "fixtures" / "centerclip.pt", weights_only=True)
TOLERANCE = 1e-4
FLAVOURS: dict[str, dict[str, Any]] = {
    "euclidean_p2": {},
    "euclidean_p1": {"p": 1.0},
    "cosine": {"metric": "cosine"},
    "euclidean_p2_prenorm": {"pre_norm": True},
}
STABLE = [(name, key) for name, case in FIXTURE["cluster_stable"].items() for key in FLAVOURS if key in case]
GRAPHS = {"spectral_KNN": 20, "spectral_HeatKernel": None}


def cost(x: Tensor, assign: Tensor, medoids: Tensor) -> Tensor:
    """Summed distance of the tokens of each item to their medoids."""
    rows = torch.arange(x.shape[1])
    pairs = zip(pairwise_distances(x), assign.long(), medoids.long(), strict=True)
    return torch.stack([distance[rows, ids[clusters]].sum() for distance, clusters, ids in pairs])


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("name", "key"), STABLE)
def test_stable_ids_match_exactly(name: str, key: str, exact: bool) -> None:
    case = FIXTURE["cluster_stable"][name]
    assign, medoids = k_medoids(case["X"], case["K"], exact=exact, **FLAVOURS[key])
    assert torch.equal(assign, case[key]["assign"].long())
    assert torch.equal(medoids, case[key]["medoids"].long())


@pytest.mark.parametrize("name", FIXTURE["cluster"])
def test_every_stage_of_k_medoids(name: str) -> None:
    case = FIXTURE["cluster"][name]
    x, k = case["X"], case["K"]
    distance = pairwise_distances(x)
    # The released matrix is shifted below zero: by its maximum and 1, and by 1 more from a token to itself.
    shifted = distance - distance.max() - 1 - torch.eye(x.shape[1])
    apart = ~torch.eye(x.shape[1], dtype=torch.bool)
    torch.testing.assert_close(shifted[:, apart], case["distance_matrix"][:, apart], rtol=0, atol=1e-5)
    torch.testing.assert_close(shifted[:, ~apart], case["distance_matrix"][:, ~apart], rtol=0, atol=5e-3)
    assert torch.equal(k_medoids(x, k, iterations=0)[1], case["KKZ_init"].long().sort(dim=1).values)
    one = case["kmedoids++_euclidean_p2_iter1"]
    assert torch.equal(k_medoids(x, k, iterations=1)[1], one["medoids"].long())
    for p in (1.0, 2.0):
        stored = case[f"kmedoids++_euclidean_p{p:.0f}_prenorm0"]
        assign, medoids = k_medoids(x, k, p=p)
        assert torch.equal(assign, stored["assign"].long())
        assert torch.equal(medoids, stored["medoids"].long())
    torch.testing.assert_close(cost(x, *k_medoids(x, k)), case["cost_euclidean_p2"], rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", FIXTURE["cluster"])
def test_unit_tokens_cluster_about_as_well(name: str) -> None:
    # Which unit token is the longest was decided by rounding, so only the quality can be compared.
    case = FIXTURE["cluster"][name]
    unit = F.normalize(case["X"], dim=-1)
    stored = case["kmedoids++_euclidean_p2_prenorm1"]
    ours = cost(unit, *k_medoids(case["X"], case["K"], pre_norm=True))
    assert (ours <= 1.15 * cost(unit, stored["assign"], stored["medoids"])).all()


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", FIXTURE["cluster"])
def test_spectral_rows_span_the_same_space(name: str, graph: str) -> None:
    case = FIXTURE["cluster"][name]
    stored, x, k = case[graph], case["X"], case["K"]
    rows = torch.ops.tvrbench.spectral_rows(x, k, "euclidean", 2.0, False, True, stored["sigma"], GRAPHS[graph])
    unit, want = F.normalize(rows, dim=-1), stored["Q"].double()
    torch.testing.assert_close(unit @ unit.mT, want @ want.mT, rtol=0, atol=TOLERANCE)
    assign, medoids = spectral_cluster(x, k, neighbors=GRAPHS[graph])
    theirs = cost(stored["Q"], stored["assign"], stored["medoids"])
    assert (cost(stored["Q"], assign, medoids) <= 1.15 * theirs).all()


def test_spectral_ids_where_no_tie_decides() -> None:
    case = FIXTURE["cluster"]["B3_N48_K7_D32_blobs"]
    assign, medoids = spectral_cluster(case["X"], case["K"], neighbors=20)
    assert torch.equal(assign, case["spectral_KNN"]["assign"].long())
    assert torch.equal(medoids, case["spectral_KNN"]["medoids"].long())


SIXTEEN = {"schedule": ((6, 4, 16),)}
ENCODER: dict[str, tuple[str, dict[str, Any]]] = {
    "no_cluster": ("centerclip", {"schedule": ()}),
    "STABLE_kmedoids_B6-4_4": ("centerclip", {"schedule": ((6, 4, 4),)}),
    "STABLE_kmedoids_B6-3_3": ("centerclip", {"schedule": ((6, 3, 3),)}),
    "kmedoids_B6-4_16": ("centerclip", SIXTEEN),
    "spectral_KNN_B6-4_16": ("centerclip", SIXTEEN | {"clustering": "spectral"}),
    "pooling_B6-4": ("token_sampling", SIXTEEN | {"mode": "pooling"}),
    "sparse_sampling_B6-4_16": ("token_sampling", SIXTEEN | {"mode": "sparse"}),
}


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    data: dict[str, Any] = torch.load(shared / "golden" / "centerclip.pt", weights_only=True)
    return data


@pytest.fixture(scope="module")
def released(golden: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights as CenterCLIP and CLIP4Clip save them from data-parallel training."""
    path = tmp_path_factory.mktemp("released") / "released.bin"
    torch.save({f"module.clip.{key}": tensor for key, tensor in golden["state_dict"].items()}, path)
    return path


def videos_first(rows: Tensor, videos: int) -> Tensor:
    """Stored rows run over the videos of a segment, ours over the segments of a video."""
    return rows.long().view(-1, videos, rows.shape[1]).transpose(0, 1).flatten(0, 1)


@pytest.mark.parametrize("name", ENCODER)
def test_encoder(name: str, golden: dict[str, Any], released: Path) -> None:
    method, options = ENCODER[name]
    want = golden["encoder"][name]
    model = load_model(method, checkpoint=released, segment_mask="last", **options)
    stable = name.startswith("STABLE")
    video = want["video"] if stable else golden["video"]
    B = len(video)
    if want["medoids"] and not stable:
        ids = videos_first(want["assign"][0], B), videos_first(want["medoids"][0], B)
        model.reducer.cluster = lambda _tokens, _stage: ids  # type: ignore[assignment]
    partial = golden["video_mask_partial"][:B].bool()
    with torch.no_grad():
        features = model.clip.visual.class_features(model.video_tokens(video))
        text = model.encode_text(golden["text_ids"][:B], golden["text_mask"][:B].bool())
        similarity = model.similarity(text, model.encode_video(video, golden["video_mask"][:B].bool()))
        similarity_partial = model.similarity(text, model.encode_video(video, partial))
    torch.testing.assert_close(features, want["visual_output"], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(similarity, want["sim_logits"], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(similarity_partial, want["sim_logits_partial_mask"], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(contrastive_loss(similarity), want["loss"], rtol=0, atol=TOLERANCE)
    mask = model.reducer.output_mask(partial) if name != "no_cluster" else partial
    assert torch.equal(mask.long(), want["video_mask_after_cluster_partial"])


@pytest.mark.parametrize("name", ["STABLE_kmedoids_B6-4_4", "STABLE_kmedoids_B6-3_3"])
def test_encoder_ids(name: str, golden: dict[str, Any], released: Path) -> None:
    want = golden["encoder"][name]
    model = load_model("centerclip", checkpoint=released, **ENCODER[name][1])
    seen: list[tuple[Tensor, Tensor]] = []
    cluster = model.reducer.cluster
    model.reducer.cluster = lambda *given: seen.append(cluster(*given)) or seen[-1]  # type: ignore[assignment, func-returns-value, operator]
    with torch.no_grad():
        model.video_tokens(want["video"])
    assert torch.equal(seen[0][0], want["assign"][0].long())
    assert torch.equal(seen[0][1], want["medoids"][0].long())


@pytest.mark.parametrize("name", ["cluster_embedding0", "cluster_embedding1", "cluster_embedding1_mean"])
def test_cluster_embedding(name: str, golden: dict[str, Any], shared: Path, tmp_path: Path) -> None:
    stored = torch.load(shared / "golden" / "cluster_embedding.pt", weights_only=True)
    want = stored[name]
    path = tmp_path / "released.bin"
    torch.save({f"clip.{key}": tensor for key, tensor in golden["state_dict"].items()} | want["params"], path)
    options: dict[str, Any] = {"schedule": ((6, 4, 4),), "aggregate": "mean" if name.endswith("mean") else "medoid"}
    if want["params"]:
        with raises("weights.keys", missing=[]):
            load_model("centerclip", checkpoint=path, **options)
    model = load_model("centerclip", checkpoint=path, cluster_embedding=bool(want["params"]), **options)
    with torch.no_grad():
        features = model.clip.visual.class_features(model.video_tokens(stored["video"]))
    torch.testing.assert_close(features, want["visual_output"], rtol=0, atol=TOLERANCE)
