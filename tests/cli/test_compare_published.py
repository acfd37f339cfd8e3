"""``tvrbench compare RUN published:NAME``: paired on the same queries in the same order, and refused otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from errors import raises
from records import make_record
from report_records import msrvtt_record

from tvrbench.datasets.msrvtt import MSRVTT
from tvrbench.harness.cli import app as cli
from tvrbench.harness.cli.compare import find_record
from tvrbench.harness.core import registry
from tvrbench.harness.data.types import Split
from tvrbench.harness.evaluation.statistics import RANK_STATISTICS
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.analysis.compare_published import compare_with_published
from tvrbench.harness.reporting.papers.published import load_published
from tvrbench.harness.reporting.papers.ranks import (
    PREFIX,
    load_published_ranks,
    published_ranks,
    read_published_ranks,
)

pytestmark = pytest.mark.cli

DGL = load_published_ranks("dgl-vit-b-16")
T2V, V2T = DGL.of_direction("t2v"), DGL.of_direction("v2t")


def run(**data: Any) -> dict[str, Any]:
    """Return the record of a run on the published split, with ``data`` changed."""
    made = msrvtt_record("lora", 40.0)
    made["data"] |= data
    return made


def save(folder: Path, made: Mapping[str, Any], ranks: Mapping[str, Any] | None = None) -> Path:
    return RecordStore(folder).save(made, {"t2v": T2V, "v2t": V2T} if ranks is None else ranks)


def compared(*arguments: object, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert cli.main(["compare", *map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("name", published_ranks())
def test_published_ranks_give_the_published_figures(name: str) -> None:
    published = load_published_ranks(name)
    assert published.dataset in registry.names("datasets")
    for direction in published.ranks:
        for metric, figure in published.metrics[direction].items():
            of_ranks = float(RANK_STATISTICS[metric](published.of_direction(direction)))
            exact = direction == "t2v" or published.ties is None
            assert of_ranks == pytest.approx(figure, abs=1e-9 if exact else 0.4001)  # ties: in the result's favor
    splits = registry.declared(published.dataset, "expected_fingerprints")
    assert published.split_fingerprint == splits[published.test_split]


@pytest.mark.parametrize("name", published_ranks())
def test_tables_of_published_numbers_print_the_same_figures(name: str) -> None:
    published = load_published_ranks(name)
    mine = (published.dataset, published.backbone, published.method, published.frames)
    figures = {f"{d}_{metric}": value for d, of in published.metrics.items() for metric, value in of.items()}
    figures |= {f"{d}_RSum": sum(of[f"R{k}"] for k in (1, 5, 10)) for d, of in published.metrics.items()}
    printed = [n for n in load_published() if (n.dataset, n.backbone, n.method, n.frames) == mine]
    ranking = [n for n in printed if n.metric in figures]
    assert ranking
    assert [n.value for n in ranking] == [round(figures[n.metric], n.decimals) for n in ranking]


def test_the_headline_is_dgls() -> None:
    assert DGL.metrics["t2v"] == {"R1": 48.0, "R5": 71.3, "R10": 81.4, "MnR": 13.649}
    assert (DGL.method, DGL.backbone, DGL.selection) == ("dgl", "ViT-B-16", "best-on-test")
    assert "CC BY-NC" in DGL.license


def test_the_rows_are_those_of_the_annotation(shared: Path) -> None:
    split = MSRVTT(shared / "annotations" / "msrvtt").split(DGL.test_split)
    assert split.fingerprint == DGL.split_fingerprint
    assert split.order_fingerprint == DGL.order_fingerprint
    reference = json.loads((shared / "reference" / "dgl_b16_released_ranks.json").read_text())
    assert (DGL.ranks["t2v"], DGL.ranks["v2t"]) == (reference["ranks_t2v"], reference["ranks_v2t"])


def test_order_is_what_the_fingerprint_is_blind_to() -> None:
    one = Split(name="test", video_ids=("a", "b"), captions=("x", "y"), caption_video=(0, 1))
    other = Split(name="test", video_ids=("b", "a"), captions=("y", "x"), caption_video=(0, 1))
    swapped = Split(name="test", video_ids=("a", "b"), captions=("y", "x"), caption_video=(1, 0))
    assert one.fingerprint == other.fingerprint == swapped.fingerprint
    assert len({each.order_fingerprint for each in (one, other, swapped)}) == 3


def test_queries_are_paired_in_both_directions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    t2v, v2t = T2V.copy(), V2T.copy()
    t2v[np.flatnonzero(T2V == 1)[:30]] = 7.0  # found by the published model alone
    v2t[np.flatnonzero(V2T > 1)[:50]] = 1.0  # found by the run alone
    path = save(tmp_path, run(order_fingerprint=DGL.order_fingerprint), {"t2v": t2v, "v2t": v2t})
    found = compared(path, "published:dgl", capsys=capsys)
    metrics = {line["metric"]: line for line in found["metrics"]}
    assert metrics["t2v R1"]["b"] == 48.0
    assert metrics["t2v R1"]["paired"]["difference"] == pytest.approx(3.0)
    assert metrics["v2t R1"]["paired"]["difference"] == pytest.approx(-5.0)
    for name in ("t2v R1", "v2t R1"):
        paired = metrics[name]["paired"]
        assert paired["low"] <= paired["difference"] <= paired["high"]
        assert (paired["queries"], paired["p_value"] < 0.01) == (1000, True)
    assert found["mcnemar"]["R1"] == {"only_a": 0, "only_b": 30, "p_value": pytest.approx(2**-29)}
    assert found["why_not_paired"] is None
    reverse = compared(f"{PREFIX}{DGL.name}", path, capsys=capsys)
    assert reverse["metrics"][0]["difference"] == -found["metrics"][0]["difference"]
    assert reverse["mcnemar"]["R1"]["only_a"] == 30
    assert (reverse["a"], reverse["b"]) == (found["b"], found["a"])


@pytest.mark.parametrize("backbone", ["ViT-B-32", "ViT-B-16"])
@pytest.mark.parametrize("selection", ["last", "best-on-test"])
def test_selection_and_backbone_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], backbone: str, selection: str
) -> None:
    made = run()
    made["method"]["options"]["backbone"] = backbone
    made["metrics"]["selection"] = selection
    path = save(tmp_path, made)
    found = compared(path, "published:dgl", capsys=capsys)
    facts = {fact["what"]: (fact["a"], fact["b"]) for fact in found["facts"]}
    assert facts.get("option backbone", (backbone, backbone)) == (backbone, "ViT-B-16")
    assert facts.get("selection", (selection, selection)) == (selection, "best-on-test")
    assert (found["b"]["selection"], found["b"]["backbone"]) == ("best-on-test", "ViT-B-16")
    assert "test set" in found["caveat"]
    assert ("another backbone" in found["caveat"]) == (backbone != "ViT-B-16")
    assert cli.main(["compare", str(path), "published:dgl"]) == 0
    assert found["caveat"][1:] in capsys.readouterr().out


def test_an_old_record_without_order_is_compared_with_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = run(order_fingerprint=DGL.order_fingerprint)
    caveats = [
        compared(save(tmp_path / name, made), "published:dgl", capsys=capsys)["caveat"]
        for name, made in (("old", run()), ("new", known))
    ]
    assert ["order" in caveat for caveat in caveats] == [True, False]


def test_what_keeps_a_run_from_papers_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path, run() | {"weights_sha256": None})
    assert "weights are random" in compared(path, "published:dgl", capsys=capsys)["caveat"]


SKIPPED = ["video9770", "video7020"]
REFUSED: list[tuple[str, Callable[[dict[str, Any]], object], int]] = [
    ("dataset", lambda made: made["data"].update(dataset="standin"), 1000),
    ("dataset", lambda made: made["data"].update(dataset="msvd"), 1000),
    ("split", lambda made: made["data"].update(split_fingerprint="e" * 64, test_split="test-full"), 1000),
    ("split", lambda made: made["data"].update(split_fingerprint=None), 1000),
    ("order", lambda made: made["data"].update(order_fingerprint="e" * 64), 1000),
    (
        "videos-missing",
        lambda made: made["data"].update(
            skipped=SKIPPED, test_videos=998, test_videos_declared=1000, split_fingerprint="e" * 64
        ),
        998,
    ),
    ("videos-missing", lambda made: made["data"].update(skipped=SKIPPED, test_videos=998), 998),
    ("queries", lambda made: None, 999),
]


@pytest.mark.parametrize(("why", "edit", "queries"), REFUSED)
def test_other_queries_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], why: str, edit: Callable[[Any], object], queries: int
) -> None:
    made = run()
    edit(made)
    path = save(tmp_path, made, {"t2v": T2V[:queries], "v2t": V2T[:queries]})
    with raises("published.not-paired", why=why, published=DGL.name):
        compare_with_published(find_record(str(path), tmp_path), DGL, published_first=False)
    for pair in ((path, "published:dgl"), ("published:dgl", path)):
        assert cli.main(["compare", *map(str, pair)]) == 2
        out = capsys.readouterr()
        assert (out.out, out.err.count("\n")) == ("", 1)


def test_the_stand_in_and_runs_without_ranks_are_refused(tmp_path: Path) -> None:
    standin = RecordStore(tmp_path).save(make_record())
    bare = RecordStore(tmp_path).save(run())
    cost = RecordStore(tmp_path).save(run() | {"metrics": {}, "seed": 1})
    for path, why in ((standin, "dataset"), (bare, "no-ranks"), (cost, "no-metrics")):
        with raises("published.not-paired", why=why):
            compare_with_published(find_record(str(path), tmp_path), DGL, published_first=False)


def test_names_that_are_not_known_are_answered_with_those_that_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("nothing", ""):
        with raises("published.ranks-unknown", name=name):
            load_published_ranks(name)
    assert cli.main(["compare", "published:nothing", str(save(tmp_path, run()))]) == 2
    assert f"{PREFIX}{DGL.name}" in capsys.readouterr().err
    assert cli.main(["compare", "published:dgl", "published:dgl"]) == 2
    assert "[published.both]" in capsys.readouterr().err


def test_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "published", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == [PREFIX + name for name in published_ranks()]


@pytest.mark.parametrize(
    "change", [{"ranks": {"t2v": [0], "v2t": [1]}}, {"source_sha256": "9"}, {"colour": 1}, {"selection": "best"}]
)
def test_a_broken_file_is_named(tmp_path: Path, change: dict[str, Any]) -> None:
    file = tmp_path / "mine.json"
    good = {key: value for key, value in DGL.about().items() if key != "name"} | {"ranks": DGL.ranks}
    file.write_text(json.dumps(good))
    assert read_published_ranks(file).ranks == DGL.ranks
    file.write_text(json.dumps(good | change))
    with raises("published.ranks-file", file="mine.json"):
        read_published_ranks(file)


def test_records_of_captions_in_another_order_are_not_paired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other = run(order_fingerprint="a" * 64), run(order_fingerprint="b" * 64) | {"seed": 1}
    old = run() | {"seed": 2}
    a, b, c = (save(tmp_path, made) for made in (one, other, old))
    found = compared(a, b, capsys=capsys)
    assert "another order" in found["why_not_paired"]
    assert compared(a, c, capsys=capsys)["why_not_paired"] is None
