"""The papers' numbers: complete, cited, unchanged, and matched with options that our methods really have."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
from errors import raises

from tvrbench.harness.core.registry import lookup, names
from tvrbench.harness.models.backbone.architecture import preset
from tvrbench.harness.reporting.papers.published import (
    PublishedNumber,
    load_claims,
    load_configurations,
    load_published,
    read_published,
)

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).parents[3] / "results" / "published"
COPIES = {"published_retrieval.csv": "centerclip.csv", "published_tempme.csv": "tempme.csv"}
KEPT = ("rap", "clip4clip", "adapter", "mv_adapter", "discovla")
LONG = (
    "paper,table,dataset,train_split,backbone,method,config,frames,metric,value,unit,read_from\n"
    "P,Table 1,msrvtt,train-9k,ViT-B/32,tempme,LoRA,12,gflops,34.8,GMACs,the table\n"
)
WIDE = (
    "paper,source,dataset,train_split,backbone,method,config,t2v_r1,t2v_mdr,read_from\n"
    "P,P Table 2,msvd,train,-,clip-zero-shot,,31.2,4,the table\n"
)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def one(**wanted: Any) -> PublishedNumber:
    (found,) = [n for n in load_published() if all(getattr(n, key) == value for key, value in wanted.items())]
    return found


def test_every_printed_cell_is_one_number() -> None:
    measures = ("train_mem_gb", "infer_ms_per_video", "t2v_", "v2t_")
    wide = sum(1 for row in rows_of(FOLDER / "centerclip.csv") for k, v in row.items() if k.startswith(measures) and v)
    assert wide > 400
    long = [path for path in FOLDER.glob("*.csv") if {"paper", "metric", "value"} <= rows_of(path)[0].keys()]
    assert {path.stem for path in long} >= {"tempme", "vop", "dgl", "discovla", "mv_adapter", "rap", "eercf"}
    assert {path.stem for path in long} >= {"clip4clip", "drl", "ts2net", "xpool"}
    assert len(load_published()) == wide + sum(len(rows_of(path)) for path in long)


def test_every_number_is_cited_and_says_how_it_was_read() -> None:
    for number in load_published():
        assert re.fullmatch(r"\S+ \((arXiv \d{4}\.\d{5}|OpenReview \w{10})\)", number.paper)
        assert number.table.startswith("Table ") or number.table in ("Abstract", "README", "score matrix", "a summary")
        assert number.read_from
        assert number.backbone in (None, "ViT-B-32", "ViT-B-16")


def test_numbers_are_as_printed() -> None:
    gmacs = one(method="tempme", backbone="ViT-B-32", config="LoRA", metric="gmacs_video")
    assert (gmacs.value, gmacs.decimals, gmacs.unit, gmacs.table, gmacs.frames) == (34.8, 1, "GMACs", "Table 1", 12)
    recall = one(method="centerclip", config="k-medoids++, B6-4, 160", dataset="msrvtt", metric="t2v_R1")
    assert (recall.value, recall.backbone, recall.train_split, recall.table) == (
        48.4,
        "ViT-B-16",
        "train-9k",
        "Table 3b",
    )
    zero_shot = one(method="zero_shot", dataset="msrvtt", metric="t2v_R1", table="Table 3b")
    assert (zero_shot.value, zero_shot.backbone, zero_shot.frames) == (31.2, None, None)
    params = one(metric="params_trainable", method="tempme")
    assert (params.value, params.decimals, params.unit) == (0.5, 2, "M")
    spread = one(paper="MV-Adapter (arXiv 2301.07868)", method="mv_adapter", table="Table 1", metric="t2v_R1")
    assert (spread.value, spread.spread, spread.decimals, spread.backbone) == (46.2, 0.5, 1, "ViT-B-16")
    assert gmacs.spread is None


@pytest.mark.parametrize(("theirs", "ours"), COPIES.items())
def test_nothing_was_changed_or_lost_from_the_reference(shared: Path, theirs: str, ours: str) -> None:
    reference, copy = rows_of(shared / "reference" / theirs), rows_of(FOLDER / ours)
    assert len(reference) == len(copy)
    for before, after in zip(reference, copy, strict=True):
        assert before.items() <= after.items()


def test_the_later_figures_of_the_reference_are_all_here(shared: Path) -> None:
    """Those of methods that run here; a config that the reference gives a share of parameters has it in read_from."""
    wanted = [r for r in rows_of(shared / "reference" / "published_more.csv") if r["method"] in KEPT]
    kept = {name: rows_of(FOLDER / f"{name}.csv") for name in ("mv_adapter", "rap", "discovla")}
    lines = [row for rows in kept.values() for row in rows]
    assert len(wanted) > 30
    for line in wanted:
        same = [
            r for r in lines if all(r[key] == line[key] for key in ("dataset", "method", "metric", "value", "unit"))
        ]
        assert same, line
        assert any(r["table"] in line["table"] + line["read_from"] or r["table"] == "a summary" for r in same), line


@pytest.mark.parametrize(
    ("config", "metric", "value"),
    [
        ("VoP", "t2v_R1", 39.6),
        ("VoP^F", "t2v_R1", 42.6),
        ("VoP^F+C", "t2v_R10", 80.3),
        ("VoP^F+C", "params_trainable", 14.1),
        ("text prompts only", "t2v_R5", 62.7),
        ("VoP^C, Transformer", "t2v_R1", 40.1),
    ],
)
def test_vops_figures(config: str, metric: str, value: float) -> None:
    assert one(paper="VoP (arXiv 2211.12764)", config=config, metric=metric).value == value


def test_eercfs_figures_are_quoted_by_later_papers() -> None:
    found = {(n.backbone, n.config, n.metric): n.value for n in load_published() if n.method == "eercf"}
    cited, coarse = "as cited by GARE", "released checkpoint, coarse stage alone (VEDJE's run)"
    assert [found["ViT-B-32", cited, f"t2v_R{k}"] for k in (1, 5, 10)] == [47.8, 74.1, 84.1]
    assert [found["ViT-B-32", cited, f"v2t_R{k}"] for k in (1, 5, 10)] == [44.7, 74.2, 83.9]
    assert found["ViT-B-16", "as cited by VEDJE", "t2v_R1"] == 49.9
    assert found["ViT-B-32", coarse, "t2v_R1"] == 42.8


@pytest.mark.parametrize(
    ("method", "backbone", "dataset", "train_split", "value"),
    [
        ("ts2net", "ViT-B-32", "msrvtt", "train-9k", 47.0),
        ("ts2net", "ViT-B-16", "msrvtt", "train-9k", 49.4),
        ("xpool", "ViT-B-32", "msrvtt", "train-9k", 46.9),
        ("xpool", "ViT-B-32", "msrvtt", "train-7k", 43.9),
    ],
)
def test_figures_of_readmes(method: str, backbone: str, dataset: str, train_split: str, value: float) -> None:
    where = {"method": method, "backbone": backbone, "dataset": dataset, "train_split": train_split}
    assert one(**where, metric="t2v_R1").value == value


def test_dgls_released_ranks_are_its_printed_figures() -> None:
    found = {n.metric: n.value for n in load_published() if (n.method, n.table) == ("dgl", "score matrix")}
    assert found["t2v_R1"] + found["t2v_R5"] + found["t2v_R10"] == pytest.approx(found["t2v_RSum"])
    assert found["v2t_R1"] + found["v2t_R5"] + found["v2t_R10"] == pytest.approx(found["v2t_RSum"])


def test_what_no_released_code_defines_is_not_checkable() -> None:
    for configuration in load_configurations():
        variant = configuration.options.get("variant")
        unchecked = configuration.method == "rap" or bool(variant)
        assert bool(configuration.not_checkable) == unchecked, configuration


def test_a_methods_own_word_on_what_cannot_be_checked_is_in_the_configurations() -> None:
    for configuration in load_configurations():
        if configuration.method in names("methods", "baselines"):
            method = lookup(configuration.method, "methods", "baselines")
            says = getattr(method, "not_checkable", lambda _: None)(configuration.options)
            assert configuration.not_checkable or not says, configuration


def test_configurations_are_of_published_rows() -> None:
    published = {(n.paper, n.method, n.config) for n in load_published()}
    published |= {(c.number.paper, c.against, c.against_config) for c in load_claims()}
    assert load_configurations()
    assert {(c.paper, c.method, c.config) for c in load_configurations()} <= published


def test_configurations_are_options_that_the_methods_take() -> None:
    known = names("methods", "baselines")
    for configuration in load_configurations():
        if configuration.method not in known:
            continue
        arch = preset(configuration.backbone or "ViT-B-32")
        method = lookup(configuration.method, "methods", "baselines")
        described = method.configure(configuration.method, arch, 12, dict(configuration.options)).spec("").describe()
        assert configuration.options.keys() <= described.keys()


def test_the_default_presets_are_the_papers_configurations() -> None:
    for backbone in ("ViT-B-32", "ViT-B-16"):
        described = lookup("tempme", "methods").configure("tempme", preset(backbone), 12, {}).spec("").describe()
        (paper,) = [c for c in load_configurations() if (c.config, c.backbone) == ("LoRA", backbone)]
        for key, value in paper.options.items():
            assert described[key] == (tuple(value) if isinstance(value, list) else value)


def test_a_deviation_is_read_beside_its_number(tmp_path: Path) -> None:
    (tmp_path / "long.csv").write_text(LONG.replace("34.8", "34.80 +- 0.05"))
    (number,) = read_published(tmp_path / "long.csv")
    assert (number.value, number.spread, number.decimals) == (34.8, 0.05, 2)


def test_both_layouts_are_read(tmp_path: Path) -> None:
    (tmp_path / "long.csv").write_text(LONG)
    (tmp_path / "wide.csv").write_text(WIDE)
    numbers = read_published(tmp_path / "wide.csv", tmp_path / "long.csv")
    assert [(n.metric, n.value, n.unit, n.table, n.method) for n in numbers] == [
        ("t2v_R1", 31.2, "percent", "Table 2", "zero_shot"),
        ("t2v_MdR", 4.0, "rank", "Table 2", "zero_shot"),
        ("gmacs_video", 34.8, "GMACs", "Table 1", "tempme"),
    ]


@pytest.mark.parametrize(
    ("text", "column"),
    [
        (LONG.replace("34.8", "about 35"), "value"),
        (LONG.replace("34.8", "nan"), "value"),
        (LONG.replace("34.8", "34.8 +- some"), "spread"),
        (LONG.replace("34.8", "34.8+-0.1"), "value"),
        (LONG.replace("34.8", "9" * 400), "value"),
        (LONG.replace("P,Table 1", ",Table 1"), "paper"),
        (LONG.replace("P,Table 1", "P,"), "table"),
        (LONG.replace("the table", ""), "read_from"),
        (LONG.replace("gflops", "flops"), "metric"),
        (LONG.replace(",12,", ",twelve,"), "frames"),
        (WIDE.replace("P Table 2", "somewhere"), "source"),
        (WIDE.replace("31.2", "about 31"), "value"),
    ],
)
def test_a_broken_table_is_refused_by_file_line_and_column(tmp_path: Path, text: str, column: str) -> None:
    (tmp_path / "numbers.csv").write_text(text)
    with raises("published.value", file="numbers.csv", line=2, column=column):
        read_published(tmp_path / "numbers.csv")


def test_a_repeated_number_and_a_line_of_another_length_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "numbers.csv"
    file.write_text(LONG + LONG.splitlines()[1] + "\n")
    with raises("published.duplicate", file="numbers.csv", line=3):
        read_published(file)
    file.write_text(LONG.replace(",the table", ""))
    with raises("published.fields", file="numbers.csv", line=2):
        read_published(file)
