"""Costs in two readings, ours and the released code's, and numbers that no released code can check, in the reports."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_records import CPU, GPU, column, counts, found, ratio, save
from report_records import msrvtt_record

from tvrbench.harness.config.known_weights import OPENAI_WEIGHTS
from tvrbench.harness.config.protocol import load_protocol
from tvrbench.harness.records.record import Measurement, Record
from tvrbench.harness.records.runs import StoredRecord
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.data.bench_rows import figure, value_of
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.pages.efficiency import write_efficiency
from tvrbench.harness.reporting.papers.published import Claim, load_claims, load_configurations, load_published
from tvrbench.harness.reporting.papers.reruns import load_reruns
from tvrbench.harness.reporting.papers.verdicts import (
    PaperComparison,
    PaperData,
    bench_command,
    compare,
    judge,
    judge_accuracy,
)
from tvrbench.harness.reporting.tables.claims import claims_headline, claims_table
from tvrbench.harness.reporting.tables.efficiency import cost_rows, cost_table
from tvrbench.harness.reporting.tables.published import paper_scale_table, verdict_tables

pytestmark = pytest.mark.unit

PAPERS = PaperData(numbers=load_published(), configurations=load_configurations())
EFFICIENCY = ReportContext(protocol="efficiency", dataset="none", folder=Path("reports/efficiency"))
PUBLISHED = ReportContext(protocol="msrvtt-1ka-9k/published", dataset="msrvtt", folder=Path("reports"))
VOP = {"visual_prompts": 8, "prefix": 4, "suffix": 4, "read": "end"}
DGL = {"text_prompts": 8, "frame_prompts": 4, "global_prompts": 4, "feature": "global_prompt0"}


def released(gmacs: float, tokens: int, text: float = 2.985) -> list[Measurement]:
    """What a record holds of released code that does more."""
    return [
        Measurement("gmacs_video_as_released", gmacs, "GMACs"),
        Measurement("gmacs_text_as_released", text, "GMACs"),
        Measurement("output_tokens_as_released", tokens, "tokens"),
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """ViT-B/16 at 12 frames: TempMe, VoP and two variants, DGL in both spaces."""
    save(tmp_path, "tempme", [*counts(121.42, 127, 507_648), Measurement("params_total", 150_128_385, "parameters")])
    own: dict[str, Any] = {"tuning": "own"} | VOP
    save(tmp_path, "vop", [*counts(211.51, 2364, 122_880), *released(219.86, 2460)], **own, variant="")
    save(tmp_path, "vop", [*counts(242.98, 2364), *released(248.84, 2372)], **own, variant="F")
    save(tmp_path, "vop", [*counts(245.59, 2364), *released(250.2, 2372)], **own, variant="F+C")
    linear = [*counts(211.94, 2368, 827_392), *released(251.9, 2416), Measurement("params_total", 150_448_129, "p")]
    save(tmp_path, "dgl", linear, tuning="own", space="linear", **DGL)
    save(tmp_path, "dgl", [*counts(212.88, 2368), *released(251.9, 2416)], tuning="own", space="transformer", **DGL)
    return tmp_path


def judged(root: Path, text: str, measure: str, against: str, config: str) -> PaperComparison:
    wanted = (text, against, config, measure, "ViT-B-16")
    claims = [
        c for c in load_claims() if (c.text, c.against, c.against_config, c.number.metric, c.number.backbone) == wanted
    ]
    (only,) = judge(claims, found(root), PAPERS)
    return only


GFLOPS, TOKENS = ("GFLOPs -51 %", "gmacs_video"), ("output tokens -95 %", "output_tokens")


@pytest.mark.parametrize(
    ("claimed", "against", "config", "exact", "as_released", "words"),
    [
        (GFLOPS, "vop", "", 245.59, 250.2, ("reproduced", "reproduced")),
        (GFLOPS, "vop", "VoP", 211.51, 219.86, ("not reproduced", "not reproduced")),
        (GFLOPS, "vop", "VoP^F", 242.98, 248.84, ("not reproduced", "reproduced")),
        (GFLOPS, "dgl", "", 212.88, 251.9, ("not reproduced", "reproduced")),
        (TOKENS, "vop", "", 2364, 2372, ("reproduced", "reproduced")),
        (TOKENS, "vop", "VoP", 2364, 2460, ("reproduced", "reproduced")),
        (TOKENS, "dgl", "", 2368, 2416, ("reproduced", "reproduced")),
    ],
)
def test_each_reading_of_the_headline_reads_its_own_row(
    root: Path,
    claimed: tuple[str, str],
    against: str,
    config: str,
    exact: float,
    as_released: float,
    words: tuple[str, str],
) -> None:
    text, measure = claimed
    ours = 121.42 if measure == "gmacs_video" else 127
    for name, baseline, word in zip((measure, f"{measure}_as_released"), (exact, as_released), words, strict=True):
        one = judged(root, text, name, against, config)
        assert one.measured == pytest.approx(100 * (1 - ours / baseline))
        assert (one.verdict, [row.method for row in one.rows]) == (word, ["tempme", against])


def test_a_baseline_without_released_code_is_named_so(root: Path) -> None:
    for config in ("", "VoP^F"):
        assert "no code of this variant was released" in (judged(root, *GFLOPS, "vop", config).reason or "")
    assert "no code" not in (judged(root, *GFLOPS, "vop", "VoP").reason or "")


def test_a_speed_up_over_another_variant_is_not_this_ones(root: Path) -> None:
    over = {"against": "vop", "against_options": {"tuning": "own", "variant": "F+C"} | VOP}
    paired = [replace(m, conditions=dict(m.conditions) | over) for m in ratio(1.5, 1.7)]
    save(root, "tempme", [*counts(121.42, 127), *paired])
    for config, value in (("", 1.5), ("VoP", None)):
        claims = [
            c
            for c in load_claims()
            if (c.text, c.against, c.against_config, c.number.backbone) == ("1.8x speed-up", "vop", config, "ViT-B-16")
        ]
        (one,) = judge(claims, found(root), PAPERS)
        assert one.measured == (None if value is None else pytest.approx(value))


def own_claims(method: str) -> list[Claim]:
    return [c for c in load_claims() if c.number.method == method and not c.against]


def test_trainable_parameters_in_millions_and_as_a_share(root: Path) -> None:
    results = judge(own_claims("dgl"), found(root), PAPERS)
    by_text = {(r.claim.text, r.number.backbone, r.number.config): r for r in results if r.claim}
    assert by_text["0.83 M trainable parameters", "ViT-B-16", "linear"].verdict == "reproduced"
    share = 100 * 827_392 / 150_448_129
    moved = [replace(c, number=replace(c.number, backbone="ViT-B-16")) for c in own_claims("dgl") if "%" in c.text]
    (one,) = judge(moved, found(root), PAPERS)
    assert (one.measured, one.verdict) == (pytest.approx(share), "not reproduced")
    plain = [replace(c, number=replace(c.number, backbone="ViT-B-16")) for c in own_claims("vop")]
    words = {one.number.unit: one.verdict for one in judge(plain, found(root), PAPERS)}
    assert words == {"M": "reproduced", "% of 119.8 M": "reproduced", "% of all": "not measured"}


def test_a_claim_on_accuracy_is_not_read_from_costs_and_names_both_runs(root: Path) -> None:
    claims = [c for c in load_claims() if c.text == "R-Sum +4.4"]
    assert len(claims) >= 3
    for one in judge(claims, found(root), PAPERS):
        assert (one.verdict, one.measured) == ("not measured", None)
        assert one.command is not None
        first, second = one.command.split(" && ")
        assert all(line.startswith("tvrbench run msrvtt-1ka-9k/published --methods ") for line in (first, second))
        assert "--methods tempme" in first
        assert "--backbone ViT-B-16" in second
    assert "variant=F+C" in bench_command(claims[0], PAPERS)


def run(method: str, r_sum: float, **options: Any) -> MethodRow:
    record = msrvtt_record(method, 50.0)
    record["method"]["options"] = {"backbone": "ViT-B-16", "frames": 12} | options
    record["metrics"]["t2v"] |= {"RSum": r_sum}
    record["metrics"]["intervals"] = {"confidence": 0.95, "t2v": {"RSum": [r_sum - 3, r_sum + 3]}}
    record["weights_sha256"] = next(sha for sha, backbone in OPENAI_WEIGHTS.items() if backbone == "ViT-B-16")
    protocol = load_protocol("msrvtt-1ka-9k/published").on("ViT-B-16")
    record["protocol"] = {"name": protocol.name, "hash": protocol.hash}
    return MethodRow(label=method, runs=(StoredRecord(record=Record(**record), path=Path("r.json")),))


@pytest.mark.parametrize(
    ("baseline", "word"),
    [(202.3, "reproduced"), (201.0, "reproduced"), (199.0, "within noise"), (190.0, "not reproduced")],
)
def test_the_report_of_the_protocol_judges_the_claim_on_accuracy(baseline: float, word: str) -> None:
    (configuration,) = [c for c in PAPERS.configurations if (c.config, c.backbone) == ("LoRA", "ViT-B-16")]
    tempme = run("tempme", 206.7, **configuration.options)
    vop = run("vop", baseline, tuning="own", variant="F+C", **VOP)
    results = judge_accuracy(load_claims(), [tempme, vop], PAPERS, PUBLISHED)
    by_baseline = {(r.claim.against, r.claim.against_config): r for r in results if r.claim}
    one = by_baseline["vop", "VoP^F+C"]
    assert (one.verdict, one.measured) == (word, pytest.approx(206.7 - baseline))
    assert "no code of this variant was released" in (one.reason or "")
    assert {one.verdict for key, one in by_baseline.items() if key != ("vop", "VoP^F+C")} == {"not measured"}
    assert judge_accuracy(load_claims(), [vop], PAPERS, PUBLISHED) == []
    elsewhere = replace(PUBLISHED, protocol="msrvtt-1ka-9k/uniform")
    assert judge_accuracy(load_claims(), [tempme, vop], PAPERS, elsewhere) == []


class TestTables:
    def test_the_second_reading_has_columns_where_any_row_differs(self, root: Path) -> None:
        (bench,) = found(root)
        table = cost_table(bench, cost_rows(bench, "ViT-B-16"), "stem", EFFICIENCY)
        keys = [column.key for column in table.columns]
        assert keys.index("gmacs_video_as_released") == keys.index("gmacs_video") + 1
        assert "output_tokens_as_released" in {c.key for c in table.csv_columns} - {c.key for c in table.columns}
        cells = column(table, "gmacs_video_as_released")
        assert cells["vop: VoP^F+C, from the paper"].value == 250.2
        assert (cells["tempme"].text, cells["tempme"].value) == ("", 121.42)
        assert any(remark.startswith("As released") for remark in table.remarks)

    def test_without_a_difference_nothing_is_added(self, tmp_path: Path) -> None:
        save(tmp_path, "tempme", counts(121.42, 127))
        (bench,) = found(tmp_path)
        table = cost_table(bench, cost_rows(bench, "ViT-B-16"), "stem", EFFICIENCY)
        assert not [column.key for column in table.csv_columns if column.key.endswith("_as_released")]
        assert not any("eleased" in remark for remark in table.remarks)

    def test_an_old_record_reads_as_exact(self, tmp_path: Path) -> None:
        save(tmp_path, "tempme", counts(121.42, 127))
        (row,) = found(tmp_path)[0].rows
        assert value_of(figure(row, "gmacs_video_as_released")) == 121.42
        cost = row.cost("output_tokens_as_released")
        assert cost is not None
        assert cost.value == 127

    def test_claims_name_the_baselines_row(self, root: Path) -> None:
        results = judge([c for c in load_claims() if c.text == "GFLOPs -51 %"], found(root), PAPERS)
        table = claims_table(results, "claims", "Claims", EFFICIENCY)
        text = table.to_csv()
        assert "VoP^F+C, from the paper *" in text
        assert "another reading, as released" in text

    def test_the_headline_judges_a_claim_against_both_readings(self, root: Path) -> None:
        results = judge([c for c in load_claims() if c.text == "GFLOPs -51 %"], found(root), PAPERS)
        table = claims_headline(results, EFFICIENCY)
        keys = [column.key for column in table.columns]
        assert len(keys) <= 8
        lines = {row[keys.index("against")].text: dict(zip(keys, row, strict=True)) for row in table.rows}
        both = next(line for name, line in lines.items() if name.startswith("dgl") and "linear" not in name)
        assert both["measured"].value == pytest.approx(100 * (1 - 121.42 / 212.88))
        assert both["measured_as_released"].value == pytest.approx(100 * (1 - 121.42 / 251.9))
        assert both["verdict"].text == "exact: not reproduced; as released: reproduced"
        assert lines["vop: VoP^F+C, from the paper *"]["verdict"].text == "reproduced"
        assert {row[keys.index("device")].text for row in table.rows} == {"counted"}
        assert sum(map(int, re.findall(r"(\d+) [a-z]", table.caption.partition(".")[0]))) == len(table.rows)
        assert all("ViT-B/32" not in row[keys.index("method")].text for row in table.rows)

    def test_a_claim_about_itself_is_not_judged_by_another_configuration(self, tmp_path: Path) -> None:
        save(
            tmp_path,
            "dgl",
            counts(212.88, 2368, 9_575_168),
            tuning="own",
            space="transformer",
            backbone="ViT-B-32",
            **DGL,
        )
        table = claims_headline(
            judge([c for c in load_claims() if "0.83 M" in c.text], found(tmp_path), PAPERS), EFFICIENCY
        )
        assert table.rows == ()
        assert "dgl: linear, ViT-B/32" in table.to_csv()
        assert "transformer" not in table.to_csv()

    def test_a_claim_that_was_measured_on_a_gpu_has_that_line(self, tmp_path: Path) -> None:
        for device, value in ((CPU, 1.5), (GPU, 1.8)):
            kind = "cuda" if device == GPU else "cpu"
            save(tmp_path, "tempme", [*counts(121.42, 127), *ratio(value, 2.0, device=kind)], device=device)
        claims = [c for c in load_claims() if c.text == "1.8x speed-up"]
        results = judge(claims, found(tmp_path), PAPERS)
        table = claims_headline(results, EFFICIENCY)
        ours = [row for row in table.rows if row[2].text == "lora, no merging"]
        assert [row[-1].text.partition(",")[0] for row in ours] == [GPU]

    def test_the_page_is_written(self, root: Path) -> None:
        files = write_efficiency(RecordStore(root), root / "reports")
        assert any("as released" in file.read_text(encoding="utf-8") for file in files if file.suffix == ".md")


class TestPublishedNumbers:
    """A paper prints the cost of its own code."""

    @staticmethod
    def full_size(method: str, cost: list[Measurement], **options: Any) -> MethodRow:
        record = msrvtt_record(method, 50.0, metrics={}, cost=[m.to_json() for m in cost])
        record["method"]["options"] = {"backbone": "ViT-B-16", "frames": 12} | options
        return MethodRow(label=method, runs=(StoredRecord(record=Record(**record), path=Path("r.json")),))

    def test_it_is_held_against_the_released_codes_cost(self) -> None:
        cost = [*counts(212.88, 2368), *released(251.896, 2416)]
        row = self.full_size("dgl", cost, tuning="own", space="transformer", **DGL)
        results = compare(PAPERS, [], [row], PUBLISHED)
        (gmacs,) = [r for r in results if r.number.value == 251.2]
        assert (gmacs.verdict, gmacs.measured) == ("reproduced", 251.896)
        table, *_ = verdict_tables(results, load_reruns(), PUBLISHED)
        assert "GMACs as released" in table.to_csv()
        scale = paper_scale_table([row], results, PAPERS.numbers, PAPERS.configurations, PUBLISHED).to_csv()
        line = dict(zip(*(text.split(",") for text in scale.splitlines()[:2]), strict=False))
        assert line["gmacs_video_as_released"] == "251.896"
        assert line["gmacs_video"] == "212.88"

    def test_what_was_never_released_is_held_against_the_exact_count(self) -> None:
        cost = [*counts(245.59, 2364), *released(250.2, 2372)]
        row = self.full_size("vop", cost, tuning="own", variant="F+C", **VOP)
        (gmacs,) = [r for r in compare(PAPERS, [], [row], PUBLISHED) if r.number.value == 246.2]
        assert (gmacs.verdict, gmacs.measured, gmacs.codes) == ("not comparable", 245.59, ("no-released-code",))

    @pytest.mark.parametrize(("variant", "checkable"), [("", True), ("P", False), ("F+C", False)])
    def test_a_variant_without_code_gets_its_reason_in_place_of_a_verdict(self, variant: str, checkable: bool) -> None:
        cost = counts(245.59, 2364, 122_880)
        row = self.full_size("vop", cost, tuning="own", variant=variant, **VOP)
        record = row.record
        record["method"]["options"] |= {"backbone": "ViT-B-32"}  # type: ignore[operator]
        mine = [r for r in compare(PAPERS, [], [row], PUBLISHED) if r.row is row and r.number.unit == "M"]
        assert mine
        for one in mine:
            assert one.measured == pytest.approx(0.12288)
            assert (one.codes == ("no-released-code",)) == (one.verdict == "not comparable") == (not checkable)
            assert checkable or "released" in (one.reason or "")
        (table,) = verdict_tables(mine, load_reruns(), PUBLISHED)
        assert len(table.rows) == len(mine)
        assert ("not comparable" in table.to_csv()) == (not checkable)

    def test_another_backbone_is_never_set_beside(self) -> None:
        results = self.mv_adapter("ViT-B-32", biases=True)
        assert {r.verdict for r in results} == {"not comparable"}

    @pytest.mark.parametrize("biases", [False, True])
    def test_a_training_without_the_biases_is_not_judged(self, biases: bool) -> None:
        ours = [r for r in self.mv_adapter("ViT-B-16", biases=biases) if r.number.dataset == "msrvtt"]
        assert any(r.row is not None for r in ours) == biases
        asked = any(r.reason == "not run with the paper's options: biases=True" for r in ours)
        assert asked != biases

    @staticmethod
    def mv_adapter(backbone: str, *, biases: bool) -> list[PaperComparison]:
        record = msrvtt_record("mv_adapter", 46.2)
        options = {"tuning": "mv-adapter", "width": 64, "heads": 2, "factor": 32, "biases": biases}
        tied = {"tied_vision": [10, 11], "tied_text": [10, 11]}
        record["method"]["options"] = {"backbone": backbone, "frames": 12} | options | tied
        row = MethodRow(label="mv_adapter", runs=(StoredRecord(record=Record(**record), path=Path("r.json")),))
        results = [r for r in compare(PAPERS, [row], [], PUBLISHED) if r.number.method == "mv_adapter"]
        assert results
        return results
