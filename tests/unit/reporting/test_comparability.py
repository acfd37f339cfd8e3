"""What may be set beside a paper's number and what rows beside each other: every reason has a code, and no verdict."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from records import csv_rows, make_record, weights_section
from report_records import STANDIN, method_record, msrvtt_record, page, report, table

from tvrbench.datasets.msrvtt import MSRVTT
from tvrbench.harness.config.known_weights import OPENAI_WEIGHTS
from tvrbench.harness.config.protocol import load_protocol
from tvrbench.harness.evaluation.comparability import reasons_between, set_apart, shortfalls
from tvrbench.harness.records.record import Measurement, Record, WeightsRef
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.pages.report import write_report
from tvrbench.harness.reporting.papers.published import PublishedNumber, load_configurations, load_published
from tvrbench.harness.reporting.papers.verdicts import comparability

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("no_pictures")]

PUBLISHED, UNIFORM = "msrvtt-1ka-9k/published", "msrvtt-1ka-9k/uniform"
NUMBER = next(n for n in load_published() if (n.method, n.metric, n.frames) == ("lora", "t2v_R1", 12))
OPTIONS = next(c for c in load_configurations() if c.method == "lora").options
RANKS = np.where(np.arange(1000) % 2, 1.0, 7.0)
Edit = Callable[[dict[str, Any]], object]


def run(edit: Edit = lambda _: None, **changes: Any) -> dict[str, Any]:
    """A run of lora that compares with the paper's, edited."""
    record = msrvtt_record("lora", 43.7, **changes)
    record["method"]["options"] = {"backbone": "ViT-B-32", "frames": 12} | dict(OPTIONS)
    edit(record)
    return record


def data(**changes: Any) -> Edit:
    return lambda record: record["data"].update(changes)


def options(**changes: Any) -> Edit:
    return lambda record: record["method"]["options"].update(changes)


def top(**changes: Any) -> Edit:
    return lambda record: record.update(changes)


WHOLE = {"test_videos_declared": 1000, "test_fingerprint_declared": MSRVTT.expected_fingerprints["test-1ka"]}
SKIPPED = [f"video{i}" for i in range(40)]
# By code: edits of a record that is otherwise the paper's run. Records without the newer fields are judged too.
EDITS: list[tuple[str, Edit]] = [
    ("test-videos-missing", data(test_videos=960, skipped=SKIPPED)),
    ("test-videos-missing", data(test_videos=960)),
    ("test-videos-missing", data(test_videos=960, split_fingerprint="e" * 64, **WHOLE)),
    ("training-videos-missing", data(skipped=SKIPPED)),
    ("training-videos-missing", data(train_videos=8999, train_videos_declared=9000)),
    ("split", data(split_fingerprint="e" * 64)),
    ("split", data(test_split="test-full")),
    ("split", data(test_split_published=False)),
    ("split", data(test_videos=1001, split_fingerprint="e" * 64)),
    ("split", data(test_videos_declared=900, test_videos=900, test_split_published=None)),
    ("split", data(split_fingerprint=None)),
    ("split", lambda record: record["data"].pop("test_videos")),
    ("split", lambda record: [record["data"].update(split_fingerprint=None), record["data"].pop("test_videos")]),
    ("test-captions-missing", data(test_captions=990, test_captions_declared=1000)),
    ("training-captions-missing", data(train_pairs=179_999, train_pairs_declared=180_000)),
    ("train-split", data(train_fingerprint=None)),
    ("train-split", lambda record: record["data"].pop("train_fingerprint")),
    ("train-split", data(train_fingerprint="e" * 64)),
    ("train-split", data(train_split="train-7k")),
    ("weights-random", top(weights_sha256=None)),
    ("weights-unknown", top(weights_sha256="e" * 64)),
    ("weights-unknown", top(weights_sha256=next(s for s, b in OPENAI_WEIGHTS.items() if b == "ViT-B-16"))),
    ("weights-activation", top(weights={"activation": "gelu"})),
    ("weights-normalization", top(weights={"mean": [0.5] * 3})),
    ("weights-normalization", top(weights={"std": [0.5] * 3})),
    ("weights-tokenizer", top(weights={"tokenizer": "33 words"})),
    ("backbone", options(backbone="ViT-B-16")),
    ("frames", options(frames=8)),
    ("protocol-hash", lambda record: record["protocol"].update(hash="0" * 16)),
    ("protocol-unknown", lambda record: record["protocol"].update(name="mine/published")),
    ("failed", top(status="failed", failure="out of memory")),
]

# In no table, another report, no whole section.
UNREPORTED = ("failed", "protocol-unknown", "weights-activation", "weights-normalization", "weights-tokenizer")


@pytest.mark.parametrize(("code", "edit"), EDITS)
def test_each_reason_has_its_code(code: str, edit: Edit) -> None:
    assert comparability([cast(Record, run())], NUMBER) == []
    found = comparability([cast(Record, run()), cast(Record, run(edit))], NUMBER)
    assert code in {reason.code for reason in found}
    assert all(reason.text for reason in found)


@pytest.mark.parametrize("sha256", [sha256 for sha256, backbone in OPENAI_WEIGHTS.items() if backbone == "ViT-B-32"])
def test_openai_s_weights_from_a_file_are_the_published_ones(sha256: str) -> None:
    protocol = load_protocol(PUBLISHED)
    given = {"name": PUBLISHED, "hash": replace(protocol, weights_sha256=sha256).hash}
    assert comparability([cast(Record, run(weights_sha256=sha256, protocol=given))], NUMBER) == []


@pytest.mark.parametrize("spelling", ["ViT-B-16", "ViT-B/16"])
def test_another_backbone_of_the_protocol_compares_with_that_backbone_s_numbers(spelling: str) -> None:
    protocol = load_protocol(PUBLISHED).on(spelling)
    weights = next(s for s, b in OPENAI_WEIGHTS.items() if b == "ViT-B-16")
    made = run(options(backbone="ViT-B-16"), protocol={"name": protocol.name, "hash": protocol.hash})
    record = cast(Record, made | {"weights_sha256": weights})
    assert comparability([record], replace_number(backbone="ViT-B-16")) == []
    assert [reason.code for reason in comparability([record], NUMBER)] == ["backbone"]


def replace_number(**changes: Any) -> PublishedNumber:
    return replace(NUMBER, **changes)


def test_a_checkpoint_chosen_on_test_does_not_stand_for_a_paper_s_last_one() -> None:
    chosen = run()
    chosen["metrics"]["selection"] = "best-on-test"
    assert comparability([cast(Record, chosen)], NUMBER) == []  # papers choose so too
    (reason,) = comparability([cast(Record, chosen)], replace_number(selection="last"))
    assert reason.code == "selection"


def test_missing_training_videos_do_not_matter_to_what_is_not_trained() -> None:
    record = run(data(skipped=["video1"]), tuning="frozen")
    assert shortfalls(cast(Record, record)) == []


@pytest.mark.parametrize(
    ("codes", "edit"),
    [
        ([], top(seed=1)),
        (["weights"], top(weights_sha256="e" * 64)),
        (["weights-random"], top(weights_sha256=None)),
        (["selection"], lambda record: record["metrics"].update(selection="best-on-test")),
        (["split"], data(split_fingerprint=None)),
        (["weights", "frame-count"], lambda record: [top(weights_sha256="e" * 64)(record), options(frames=8)(record)]),
    ],
)
def test_two_runs_are_told_all_that_they_do_not_share(codes: list[str], edit: Edit) -> None:
    for one, other in ((run(), run(edit)), (run(edit), run())):
        assert [reason.code for reason in reasons_between(cast(Record, one), cast(Record, other))] == codes


class TestPapers:
    def test_a_whole_run_is_judged(self, store: RecordStore, tmp_path: Path) -> None:
        store.save(run())
        folder = report(store, tmp_path, PUBLISHED)
        lines = [row for row in csv_rows(folder, "published") if row["measure"] == "T→V R@1"]
        assert [(row["verdict"], row["reason"]) for row in lines] == [("reproduced", "1 of 3 seeds: no claim")]
        assert "Not comparable." not in page(folder)

    @pytest.mark.parametrize(("code", "edit"), [(code, edit) for code, edit in EDITS if code not in UNREPORTED])
    def test_a_run_that_does_not_compare_gets_no_verdict_and_is_named_at_the_top(
        self, store: RecordStore, tmp_path: Path, code: str, edit: Edit
    ) -> None:
        logged: list[str] = []
        store.save(run(edit))
        folder = write_report(PUBLISHED, store, tmp_path / "reports", log=logged.append)[0].parent
        assert not (folder / "published.csv").exists()
        codes = {one for row in csv_rows(folder, "not-comparable") for one in row["code"].split(", ")}
        assert code in codes
        assert "> **Not comparable.**" in page(folder)[:1500]
        assert "<strong>Not comparable.</strong>" in (folder / "page.html").read_text()
        assert all("no published number" in row["note"] for row in csv_rows(folder))
        assert logged

    def test_the_banner_counts(self, store: RecordStore, tmp_path: Path) -> None:
        for seed in range(3):
            store.save(run(data(test_videos=960, skipped=SKIPPED), seed=seed))
        store.save(msrvtt_record("tempme", 46.0))
        text = page(report(store, tmp_path, PUBLISHED))
        assert "> **Not comparable.** 40 of 1,000 test videos are missing in 3 of 3 lora runs.\n" in text

    def test_on_data_of_one_s_own_only_what_flatters_is_told(self, store: RecordStore, tmp_path: Path) -> None:
        mine = {"name": "mine", "hash": "e" * 16}
        for seed, weights in enumerate(("e" * 64, None)):
            record = make_record(seed=seed, weights_sha256=weights) | {"protocol": mine}
            record["data"] |= {"dataset": "clips", "test_videos": 9, "test_videos_declared": 10, "skipped": ["a"]}
            store.save(record)
        told = re.findall(r"> \*\*Not comparable\.\*\* (.*)", page(report(store, tmp_path, "mine")))
        assert told == [
            "1 of 10 test videos are missing in all 2 runs.",
            "Weights are random in 1 of 2 tempme runs.",
        ]


class TestRows:
    """Of the rows of a uniform protocol, those that differ from most have no letter, no test and no best value."""

    @pytest.mark.parametrize(
        ("code", "edit"),
        [
            ("split", data(split_fingerprint="e" * 64)),
            ("split", data(test_videos=960, skipped=SKIPPED)),
            ("weights", top(weights_sha256="e" * 64)),
            ("weights-random", top(weights_sha256=None)),
            ("weights-activation", top(weights=weights_section(activation="gelu"))),
            ("weights-normalization", top(weights=weights_section(std=[0.5] * 3))),
            ("weights-tokenizer", top(weights=weights_section(tokenizer="33 words"))),
            ("backbone", options(backbone="ViT-B-16")),
            ("frame-count", options(frames=8)),
            ("training-videos", data(train_fingerprint="e" * 64)),
            ("frames", data(frames_fingerprint="e" * 64)),
            ("selection", lambda record: record["metrics"].update(selection="best-on-test")),
        ],
    )
    def test_a_row_unlike_the_others_has_a_dash_and_a_reason(
        self, store: RecordStore, tmp_path: Path, code: str, edit: Edit
    ) -> None:
        for method in ("adapter", "bias"):
            store.save(msrvtt_record(method, 50.0, kind="uniform"), {"t2v": RANKS, "v2t": RANKS})
        best = msrvtt_record("lora", 99.0, kind="uniform")
        best["cost"] = [Measurement("gmacs_video", 1.0, "GMACs").to_json()]
        edit(best)
        all_first = np.ones(1000)
        store.save(best, {"t2v": all_first, "v2t": all_first})
        folder = report(store, tmp_path, UNIFORM)
        rows = {row["method"]: row for row in csv_rows(folder)}
        (name,) = [name for name in rows if name.startswith("lora")]
        assert (rows[name]["letters"], rows["adapter"]["letters"]) == ("", "a")
        assert {row[side] for row in csv_rows(folder, "pairs") for side in ("a", "b")} == {"adapter", "bias"}
        (shown,) = [cells for label, cells in table(folder).items() if label.startswith("lora")]
        assert "**" not in str(shown)
        assert f"({code})." in rows[name]["reasons"]
        drawn = re.search(r'id="chart-data">(.*?)</script>', (folder / "page.html").read_text())
        assert drawn is not None
        methods = {method["label"] for group in json.loads(drawn[1])["groups"] for method in group["methods"]}
        assert methods == {"adapter", "bias"}

    def test_rows_that_lack_the_same_videos_compare_with_each_other_and_no_paper(
        self, store: RecordStore, tmp_path: Path
    ) -> None:
        for method, r1 in (("adapter", 50.0), ("bias", 40.0)):
            record = msrvtt_record(method, r1, kind="uniform")
            record["data"] |= {"test_videos": 960, "skipped": SKIPPED, "split_fingerprint": "e" * 64}
            store.save(record, {"t2v": RANKS, "v2t": RANKS})
        folder = report(store, tmp_path, UNIFORM)
        assert [row["letters"] for row in csv_rows(folder)[1:]] == ["a", "a"]
        assert table(folder)["adapter"]["T→V R@1 ↑"].startswith("**50.0")
        assert "40 of 1,000 test videos are missing in all 2 runs" in page(folder)

    def test_random_weights_conclude_nothing(self, store: RecordStore, tmp_path: Path) -> None:
        for method, r1 in (("tempme", 50.0), ("lora", 40.0)):
            store.save(make_record(method, r1, weights_sha256=None), {"t2v": RANKS, "v2t": RANKS})
        folder = report(store, tmp_path)
        assert not (folder / "pairs.csv").exists()
        assert "**" not in "".join("".join(row.values()) for row in table(folder).values())
        assert "Weights are random in all 2 runs" in page(folder)
        assert "frontier" not in page(folder)

    def test_seeds_that_are_not_alike_make_no_row_to_compare(self, store: RecordStore, tmp_path: Path) -> None:
        odd = method_record("lora", seed=1)
        odd["data"]["frames_fingerprint"] = "e" * 64
        for record in (method_record("tempme"), method_record("adapter"), method_record("lora"), odd):
            store.save(record)
        assert "not all of its seeds are alike" in page(report(store, tmp_path))

    def test_another_activation_is_not_called_other_weights(self) -> None:
        rows = [[cast(Record, msrvtt_record(method, 50.0))] for method in ("adapter", "bias", "lora")]
        rows[2][0]["weights"] = cast(WeightsRef, weights_section(activation="gelu"))
        (reason,) = [found for found in set_apart(rows) if found]
        assert "with another activation" in reason.text

    def test_a_word_list_is_not_held_against_records_that_name_none(self) -> None:
        rows = [[cast(Record, make_record(method))] for method in ("tempme", "adapter", "lora")]
        rows[2][0]["weights"] = cast(WeightsRef, weights_section(tokenizer="33 words"))
        assert set_apart(rows) == [None, None, None]

    def test_seeds_that_were_fed_in_another_way_are_no_seeds_of_one_row(
        self, store: RecordStore, tmp_path: Path
    ) -> None:
        for seed in range(3):
            store.save(run(top(weights=weights_section(std=[0.5] * 3)) if seed == 1 else top(), seed=seed))
        rows = csv_rows(report(store, tmp_path, PUBLISHED))
        assert sorted(row["seeds"] for row in rows if row["seeds"]) == ["1", "2"]

    def test_what_is_not_known_excludes_nobody(self) -> None:
        unknown = make_record("lora")
        unknown["data"]["frames_fingerprint"] = None
        rows = [[cast(Record, record)] for record in (make_record("tempme"), unknown, make_record("adapter"))]
        assert set_apart(rows) == [None, None, None]

    def test_the_unknown_does_not_join_what_differs(self) -> None:
        unknown, other = make_record("lora"), make_record("adapter")
        unknown["data"]["frames_fingerprint"], other["data"]["frames_fingerprint"] = None, "e" * 64
        rows = [[cast(Record, record)] for record in (make_record("tempme"), unknown, other)]
        assert sum(reason is not None for reason in set_apart(rows)) == 1

    def test_ranks_of_other_queries_under_one_fingerprint_are_left_out(
        self, store: RecordStore, tmp_path: Path
    ) -> None:
        for method, ranks in (("tempme", RANKS), ("adapter", RANKS), ("lora", RANKS[:300])):
            store.save(make_record(method, 50.0), {"t2v": ranks, "v2t": ranks})
        folder = report(store, tmp_path, STANDIN)
        assert len(csv_rows(folder, "pairs")) == 1
