"""The papers' numbers: complete, cited, unchanged, and matched with options that our methods really have."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from errors import raises

from tvrbench.harness.core.registry import lookup, names
from tvrbench.harness.models.backbone.architecture import preset
from tvrbench.harness.reporting.papers.published import (
    PublishedNumber,
    load_configurations,
    load_published,
    read_published,
)

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).parents[3] / "results" / "published"
COPIES = {"published_retrieval.csv": "centerclip.csv", "published_tempme.csv": "tempme.csv"}
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
    assert len(load_published()) == wide + len(rows_of(FOLDER / "tempme.csv"))


def test_every_number_is_cited_and_says_how_it_was_read() -> None:
    for number in load_published():
        assert number.paper in ("CenterCLIP (arXiv 2205.00823)", "TempMe (arXiv 2409.01156)")
        assert number.table.startswith("Table ") or number.table == "Abstract"
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
    zero_shot = one(method="zero_shot", dataset="msrvtt", metric="t2v_R1")
    assert (zero_shot.value, zero_shot.backbone, zero_shot.frames) == (31.2, None, None)
    params = one(metric="params_trainable")
    assert (params.value, params.decimals, params.unit) == (0.5, 2, "M")


@pytest.mark.parametrize(("theirs", "ours"), COPIES.items())
def test_nothing_was_changed_or_lost_from_the_reference(shared: Path, theirs: str, ours: str) -> None:
    reference, copy = rows_of(shared / "reference" / theirs), rows_of(FOLDER / ours)
    assert len(reference) == len(copy)
    for before, after in zip(reference, copy, strict=True):
        assert before.items() <= after.items()


def test_configurations_are_of_published_rows() -> None:
    published = {(n.paper, n.method, n.config) for n in load_published()}
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
