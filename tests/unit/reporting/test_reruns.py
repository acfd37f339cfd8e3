"""Independent re-runs: read strictly, each with a source, and shown beside the number whose recipe they ran."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from errors import raises
from records import csv_rows
from report_records import msrvtt_record, report

from tvrbench.harness.records.record import Record
from tvrbench.harness.records.runs import StoredRecord
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.pages.html import inline as html_inline
from tvrbench.harness.reporting.papers.published import PublishedNumber, load_configurations, load_published
from tvrbench.harness.reporting.papers.reruns import Rerun, address, load_reruns, named, read_reruns
from tvrbench.harness.reporting.papers.verdicts import match_rows
from tvrbench.harness.reporting.tables.latex import fragment
from tvrbench.harness.reporting.tables.markdown import inline
from tvrbench.harness.reporting.tables.published import reruns_cell
from tvrbench.harness.reporting.tables.table import Column, link_column, make_table, text_column

pytestmark = pytest.mark.unit

HEADER = "recipe,dataset,train_split,backbone,metric,value,unit,source,differs,read_from\n"
LINE = "R,msrvtt,train-9k,ViT-B/32,t2v_r1,43.2,percent,ArrowLuo/CLIP4Clip#25,2 GPUs,the thread\n"
PUBLISHED = "msrvtt-1ka-9k/published"


def number(config: str, metric: str = "t2v_R1", backbone: str = "ViT-B-32", dataset: str = "msrvtt") -> PublishedNumber:
    """CLIP4Clip's number in CenterCLIP's tables."""
    where = (f"{config} (as published by CLIP4Clip)", metric, backbone, dataset)
    return next(n for n in load_published() if (n.config, n.metric, n.backbone, n.dataset) == where)


def place(one: Rerun) -> tuple[str | None, ...]:
    return one.recipe, one.dataset, one.train_split, one.backbone, one.source


def of(published: PublishedNumber) -> dict[str, str]:
    return {f"{one.source}: {one.differs}": one.printed for one in load_reruns().of(published)}


class TestFiles:
    def test_every_re_run_is_of_a_recipe_whose_numbers_are_published(self) -> None:
        recipes, reruns = load_reruns()
        published = {(n.paper, n.method, n.config) for n in load_published()}
        assert {(r.paper, r.method, r.config) for r in recipes} <= published
        beside = {place(one) for n in load_published() for one in load_reruns().of(n)}
        assert {place(one) for one in reruns if "(" not in one.source} <= beside

    def test_every_source_has_an_address_and_every_recipe_an_author(self) -> None:
        recipes, reruns = load_reruns()
        assert all(address(one.source).startswith("https://") for one in reruns)
        assert all(one.read_from for one in reruns)
        assert {r.recipe for r in recipes} == {r.recipe for r in recipes if r.source is None}

    def test_a_line_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "reruns.csv").write_text(HEADER + LINE)
        (one,) = read_reruns(tmp_path / "reruns.csv")
        assert (one.metric, one.printed, one.backbone, one.differs) == ("t2v_R1", "43.2", "ViT-B-32", "2 GPUs")

    @pytest.mark.parametrize(
        ("old", "new", "column"),
        [
            ("43.2", "about 43", "value"),
            ("43.2", "nan", "value"),
            ("43.2", "9" * 400, "value"),
            ("43.2", "", "value"),
            ("t2v_r1", "recall", "metric"),
            ("percent", "points", "metric"),
            ("ArrowLuo/CLIP4Clip#25", "", "source"),
            ("ArrowLuo/CLIP4Clip#25", "memory", "source"),
            ("ArrowLuo/CLIP4Clip#25", "javascript:alert(1)//x#1", "source"),
            ("ArrowLuo/CLIP4Clip#25", "a/b#25?<script>", "source"),
            ("ArrowLuo/CLIP4Clip#25", "P (arXiv 12)", "source"),
            ("the thread", " ", "read_from"),
            ("R,msrvtt", ",msrvtt", "recipe"),
        ],
    )
    def test_a_broken_line_is_refused_by_line_and_column(self, tmp_path: Path, old: str, new: str, column: str) -> None:
        (tmp_path / "reruns.csv").write_text(HEADER + LINE.replace(old, new))
        with raises("published.value", file="reruns.csv", line=2, column=column):
            read_reruns(tmp_path / "reruns.csv")

    def test_a_repeated_line_and_one_of_another_length_are_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "reruns.csv"
        file.write_text(HEADER + LINE + LINE)
        with raises("published.duplicate", file="reruns.csv", line=3):
            read_reruns(file)
        file.write_text(HEADER + LINE.replace(",2 GPUs", ""))
        with raises("published.fields", file="reruns.csv", line=2):
            read_reruns(file)

    @pytest.mark.parametrize("data", [b"\xff\xfe", ("x" * 200_000).encode()])
    def test_a_file_that_is_no_csv_is_refused(self, tmp_path: Path, data: bytes) -> None:
        (tmp_path / "reruns.csv").write_bytes(HEADER.encode() + data)
        with raises("published.fields", file="reruns.csv"):
            read_reruns(tmp_path / "reruns.csv")

    @pytest.mark.parametrize("source", ["../..", "../..#1", ".git/x", "javascript:alert(1)", "o/r#1 x", "http://x"])
    def test_a_source_is_a_repository_a_thread_or_a_paper(self, source: str) -> None:
        with pytest.raises(ValueError, match="repository"):
            address(source)


class TestMatching:
    def test_threads_repositories_and_papers_stand_beside_the_number(self) -> None:
        found = {source.partition(": ")[0]: value for source, value in of(number("meanP")).items()}
        assert found["open-mmlab/mmaction2"] == "43.1"
        assert found["DRL (arXiv 2203.07111)"] == "42.9"
        assert found["CenterCLIP (arXiv 2205.00823)"] == "43.0"
        other = {source.partition(": ")[0]: value for source, value in of(number("seqTransf")).items()}
        assert other["ArrowLuo/CLIP4Clip#25"] == "43.2"
        assert "open-mmlab/mmaction2" not in other

    def test_other_data_backbones_metrics_and_recipes_do_not(self) -> None:
        seq = number("seqTransf")
        assert of(seq)
        assert not of(replace(seq, backbone="ViT-B-16"))
        assert {one.train_split for one in load_reruns().of(replace(seq, train_split="train-7k"))} <= {None}
        assert not of(replace(seq, config="tightTransf"))
        assert "43.9" not in of(number("seqTransf", "t2v_R5")).values()
        assert set(of(number("meanP", dataset="msvd")).values()) == {"45.9"}

    def test_a_re_run_is_not_beside_itself_and_is_known_as_one(self) -> None:
        numbers = load_published()
        again = next(n for n in numbers if n.config.startswith("DP+None") and n.metric == "t2v_R1")
        sources = {one.source for one in load_reruns().of(again)}
        assert sources
        assert "DRL (arXiv 2203.07111)" not in sources
        assert load_reruns().repeats(again, numbers)
        assert not load_reruns().repeats(number("meanP"), numbers)
        assert not load_reruns().repeats(again, [again])

    def test_a_head_is_part_of_a_configuration(self) -> None:
        """A run with seqTransf is not held against the numbers of meanP."""
        record = msrvtt_record("clip4clip", 43.2)
        for head in ("meanP", "seqTransf"):
            record["method"]["options"] = {"backbone": "ViT-B-32", "frames": 12, "tuning": "full", "head": head}
            row = MethodRow(label="clip4clip", runs=(StoredRecord(record=Record(**record), path=Path("r.json")),))
            for config in ("meanP", "seqTransf"):
                matched = match_rows(number(config), load_configurations(), [row])
                assert bool(matched.rows) == (head == config)

    def test_every_configuration_of_clip4clip_names_its_head(self) -> None:
        options = [c.options for c in load_configurations() if c.method == "clip4clip"]
        assert options
        assert all("head" in one for one in options)


class TestCell:
    ONE = Rerun(
        recipe="R",
        dataset="msrvtt",
        train_split="train-9k",
        backbone="ViT-B-32",
        metric="t2v_R1",
        value=43.2,
        unit="percent",
        decimals=1,
        source="ArrowLuo/CLIP4Clip#25",
        differs="2 GPUs",
        read_from="the thread",
    )

    def test_threads_of_one_repository_are_named_once_and_linked(self) -> None:
        others = [replace(self.ONE, value=v, source=s) for v, s in ((43.4, "ArrowLuo/CLIP4Clip#63"), (43.1, "o/r"))]
        cell = reruns_cell([self.ONE, *others])
        assert cell.text == "43.2 (CLIP4Clip#25), 43.4 (#63), 43.1 (r)"
        assert [link for _, link in cell.links] == [address(one.source) for one in (self.ONE, *others)]
        assert "2 GPUs" in str(cell.value)

    def test_a_web_address_is_linked_as_it_is_and_a_path_is_quoted(self) -> None:
        (thread,) = reruns_cell([self.ONE]).links
        assert "(https://github.com/ArrowLuo/CLIP4Clip/issues/25)" in inline([thread])
        assert 'href="https://github.com/ArrowLuo/CLIP4Clip/issues/25"' in html_inline([thread])
        hostile = ("record", "https://evil.example/x#y")
        assert "https://" not in inline([hostile])
        assert 'href="https://' not in html_inline([hostile])

    def test_a_paper_prints_them_and_leaves_links_to_records_out(self) -> None:
        columns = [
            text_column("method", "Method", str),
            Column("reruns", "Re-runs", lambda _: reruns_cell([self.ONE]), left=True),
            link_column("records", "Records", lambda _: [("seed 0", "records/a.json")]),
        ]
        text = fragment(make_table("t", "T", (), columns, ["tempme"]))
        assert "43.2 (CLIP4Clip" in text
        assert "seed 0" not in text

    def test_without_re_runs_the_cell_is_a_dash(self) -> None:
        assert (reruns_cell([]).value, reruns_cell([]).links) == (None, ())


def test_the_first_page_of_a_published_protocol_starts_with_them(store: RecordStore, tmp_path: Path) -> None:
    record = msrvtt_record("clip4clip", 43.0)
    record["method"]["options"] |= {"tuning": "full", "head": "meanP"}
    store.save(record)
    folder = report(store, tmp_path, PUBLISHED)
    text = (folder / "README.md").read_text(encoding="utf-8")
    first = text.partition("\n## ")[2]
    assert "CLIP4Clip/issues/102" in first.partition("\n## ")[0]
    lines = csv_rows(folder, "published")
    (recall,) = [row for row in lines if row["measure"] == "T→V R@1"]
    assert (recall["published"], recall["measured"], recall["verdict"]) == ("43.1", "43.0", "reproduced")
    assert "its log is a picture" in recall["reruns"]
    assert named(number("meanP"), load_reruns().recipes) is not None
    others = {(row["measure"], row["paper_configuration"]) for row in csv_rows(folder, "published-other")}
    assert ("T→V R@1", "meanP (CenterCLIP authors' rerun)") in others
