"""The report of costs: numbers by hand, invalid and missing measurements, equal time, hostile text."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from bench_records import CPU, GPU, counts, found, ratio, save, speed
from errors import raises

from tvrbench.harness.cli.report import report
from tvrbench.harness.evaluation.statistics import repeats_interval
from tvrbench.harness.records.record import Measurement
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.analysis.matched_time import MatchedTime, matched_cost
from tvrbench.harness.reporting.data.bench_rows import UNMEASURED, Bench, benches, shared_batch
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.records import stored_records
from tvrbench.harness.reporting.figures.matched_time import matched_time_figure
from tvrbench.harness.reporting.pages.efficiency import write_efficiency
from tvrbench.harness.reporting.tables.efficiency import cost_table, equal_time_table, further_table
from tvrbench.harness.reporting.tables.table import Cell, Table

pytestmark = pytest.mark.unit


def scope(root: Path) -> ReportContext:
    return ReportContext(protocol="efficiency", dataset="none", folder=root / "reports" / "efficiency")


def column(table: Table, key: str) -> dict[str, Cell]:
    """The cells of a column by the method of their row."""
    index = [c.key for c in table.columns].index(key)
    return {row[0].text: row[index] for row in table.rows}


def footnote(table: Table, cell: Cell) -> str:
    """The footnote whose number a cell ends in."""
    return table.footnotes[int(cell.text.rpartition("(")[2].rstrip(")")) - 1]


class TestCostTable:
    @pytest.fixture
    def bench(self, tmp_path: Path) -> Bench:
        save(tmp_path, "lora", [*counts(200.0, 2364, 491520), speed(4.0, 1), speed(5.0), *ratio(1.0, 1.0)])
        save(tmp_path, "tempme", [*counts(100.0, 127, 507648), speed(9.0, 1), speed(8.0), *ratio(1.5, 2.0)])
        disturbed = speed(99.0, invalid="disturbed: others")
        save(tmp_path, "clip4clip", [*counts(200.0, 2364), speed(4.5, 1), disturbed])
        reason = "random runs no encoder"
        save(tmp_path, "random", [*counts(0.0, 0), speed(999.0, 1), Measurement.missing("speedup", "x", reason)])
        return found(tmp_path)[0]

    def test_numbers_and_bests(self, bench: Bench, tmp_path: Path) -> None:
        table = cost_table(bench, "ViT-B-16", scope(tmp_path))
        fastest = column(table, "throughput_4")
        assert (fastest["tempme"].text, fastest["tempme"].bold) == ("8.00", True)
        assert not fastest["lora"].bold
        alone = column(table, "throughput_1")
        assert [name for name, cell in alone.items() if cell.bold] == ["tempme"]  # random encodes nothing
        assert column(table, "speedup")["tempme"].text == "1.50x (1.42 to 1.58)"
        assert column(table, "speedup_allowed")["tempme"].value == 2.0
        assert column(table, "speedup_reached")["tempme"].text == "75"
        assert column(table, "params_trainable")["tempme"].text == "0.508"

    def test_an_invalid_figure_is_shown_and_marked_and_never_best(self, bench: Bench, tmp_path: Path) -> None:
        table = cost_table(bench, "ViT-B-16", scope(tmp_path))
        cell = column(table, "throughput_4")["clip4clip"]
        assert re.fullmatch(r"99\.0 ! \(\d+\)", cell.text)
        assert cell.value == "99.0 (not valid)"
        assert not cell.bold
        assert "disturbed: others" in footnote(table, cell)

    def test_a_missing_figure_is_a_dash_with_its_reason(self, bench: Bench, tmp_path: Path) -> None:
        table = cost_table(bench, "ViT-B-16", scope(tmp_path))
        for key in ("speedup", "speedup_allowed", "speedup_reached"):
            cell = column(table, key)["random"]
            assert cell.value is None
            assert footnote(table, cell) == "random runs no encoder."
        assert footnote(table, column(table, "speedup")["clip4clip"]) == f"{UNMEASURED}."
        assert "random runs no encoder" in table.to_markdown()

    def test_device_and_date_are_said(self, bench: Bench, tmp_path: Path) -> None:
        caption = cost_table(bench, "ViT-B-16", scope(tmp_path)).caption
        assert all(fact in caption for fact in (CPU, "2 cores", "2025-03-01"))

    def test_training_is_a_table_of_its_own_where_it_was_measured(self, bench: Bench, tmp_path: Path) -> None:
        assert further_table(bench, "ViT-B-16", scope(tmp_path)) is None
        said = {"what": "training", "precision": "float32"}
        steps = [
            Measurement.missing("step_time", "ms", "CUDA out of memory", **said, batch=64),
            Measurement("step_time", 12.0, "ms", [12.0], said | {"batch": 32}),
            Measurement("peak_memory_nvml", 900.0, "MiB", (), said | {"batch": 32, "lower_bound": True}),
        ]
        save(tmp_path, "tempme", [*counts(100.0, 127), *steps])
        table = further_table(found(tmp_path)[0], "ViT-B-16", scope(tmp_path))
        assert table is not None
        assert column(table, "step_time_32")["tempme"].value == 12.0
        assert footnote(table, column(table, "step_time_64")["tempme"]) == "CUDA out of memory."
        assert column(table, "peak_memory_nvml_training")["tempme"].text == "≥ 900"

    def test_memory_stands_at_a_batch_that_all_could_do(self, tmp_path: Path) -> None:
        def peak(value: float, batch: int) -> Measurement:
            return Measurement("peak_memory_nvml", value, "MiB", (), {"what": "inference", "batch": batch})

        save(tmp_path, "lora", [*counts(2.0, 24), peak(10.0, 1), peak(20.0, 8)])
        save(tmp_path, "tempme", [*counts(1.0, 5), peak(9.0, 1), peak(18.0, 8), peak(36.0, 32)])
        rows = found(tmp_path)[0].on("ViT-B-16")
        assert shared_batch(rows, "peak_memory_nvml", "inference") == 8
        table = cost_table(found(tmp_path)[0], "ViT-B-16", scope(tmp_path))
        assert [cell.value for cell in column(table, "peak_memory_nvml").values()] == [20.0, 18.0]


class TestRows:
    def test_the_ablations_bear_the_papers_names_and_leave_the_method_its_own(self, tmp_path: Path) -> None:
        save(tmp_path, "tempme", counts(1.0, 1))
        save(tmp_path, "tempme", counts(2.0, 1), r=0, clip_ratio=0.0, intra_ratio=0.0)
        save(tmp_path, "tempme", counts(3.0, 1), merge_blocks=[], merge_frames=[])
        assert [row.label for row in found(tmp_path)[0].rows] == [
            "tempme",
            "tempme: cross-frame attention only",
            "tempme: merging inside frames only",
        ]

    def test_a_quick_trial_does_not_push_a_table_out(self, tmp_path: Path) -> None:
        for method in ("lora", "tempme"):
            save(tmp_path, method, [*counts(1.0, 12), speed(1.0)], hash="11111111")
        trial = save(tmp_path, "lora", [*counts(1.0, 12), speed(2.0)], hash="22222222", started="2026-01-01T00:00:00Z")
        kept, left_out = benches(stored_records(RecordStore(tmp_path), "efficiency"), ())
        assert [bench.hashes for bench in kept] == [("11111111",)]
        assert [run.path for run in left_out] == [trial]
        save(tmp_path, "tempme", [*counts(1.0, 12), speed(2.0)], hash="22222222", started="2026-01-01T00:00:00Z")
        assert [bench.hashes for bench in found(tmp_path)] == [("22222222",)]

    def test_each_backbone_has_its_own_batches(self, tmp_path: Path) -> None:
        for backbone, hash, batch in (("ViT-B-16", "11111111", 1), ("ViT-B-32", "22222222", 4)):
            for method in ("lora", "tempme"):
                save(tmp_path, method, [*counts(1.0, 12), speed(1.0, batch)], hash=hash, backbone=backbone)
        save(tmp_path, "lora", [*counts(1.0, 12), speed(2.0)], hash="33333333", backbone="ViT-B-16")
        kept, left_out = benches(stored_records(RecordStore(tmp_path), "efficiency"), ())
        assert [(bench.hashes, len(bench.rows)) for bench in kept] == [(("11111111", "22222222"), 4)]
        assert [run.record["protocol"]["hash"] for run in left_out] == ["33333333"]

    def test_devices_and_precisions_never_share_a_table(self, tmp_path: Path) -> None:
        save(tmp_path, "lora", [*counts(1.0, 12), speed(1.0)], hash="aaaaaaaa")
        save(tmp_path, "lora", [*counts(1.0, 12), speed(1.0, device="cuda:0")], hash="bbbbbbbb", device=GPU)
        half = speed(1.0, device="cuda:0", precision="bfloat16")
        save(tmp_path, "lora", [*counts(1.0, 12), half], hash="cccccccc", device=GPU)
        assert [(b.device, b.precision, b.on_gpu) for b in found(tmp_path)] == [
            (GPU, "bfloat16", True),
            (GPU, "float32", True),
            (CPU, "float32", False),
        ]
        assert len({bench.slug for bench in found(tmp_path)}) == 3
        remarks = [" ".join(cost_table(bench, "ViT-B-16", scope(tmp_path)).remarks) for bench in found(tmp_path)]
        assert ["tensor cores" in remark for remark in remarks] == [False, True, False]

    def test_nothing_recorded(self, tmp_path: Path) -> None:
        with raises("report.no-cost"):
            write_efficiency(RecordStore(tmp_path), tmp_path / "reports")


def test_the_interval_of_a_ratio_is_that_of_its_rounds(tmp_path: Path) -> None:
    measured = replace(ratio(1.5, 2.0)[0], samples=(1.4, 1.5, 1.6))
    save(tmp_path, "tempme", [*counts(1.0, 5), measured])
    table = cost_table(found(tmp_path)[0], "ViT-B-16", scope(tmp_path))
    low, high = repeats_interval((1.4, 1.5, 1.6))
    assert column(table, "speedup")["tempme"].text.strip("*") == f"1.50x ({low:.2f} to {high:.2f})"
    assert (round(low, 2), round(high, 2)) == (1.27, 1.77)


class TestEqualTime:
    """Plain frames: 6 take half the time of 12, whose ratio to themselves strays by 5 %."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        save(tmp_path, "frame_subsample", [*counts(100.0, 1182), *ratio(2.0, 2.0)])
        save(tmp_path, "lora", [*counts(200.0, 2364), *ratio(1.02, 1.0)])
        return tmp_path

    @staticmethod
    def compared(root: Path) -> MatchedTime:
        (bench,) = found(root)
        equal = matched_cost(bench.on("ViT-B-16"), 12)
        assert equal is not None
        return equal

    def test_interpolated_in_the_time_of_paired_rounds(self, root: Path) -> None:
        save(root, "tempme", [*counts(120.0, 127), *ratio(4 / 3, 2.0, spread=0.1), speed(1.0)])
        equal = self.compared(root)
        assert [(t.frames, t.time) for t in equal.curve] == [(6, 0.5), (12, 1.0)]
        (entry,) = equal.points
        assert entry.budget is not None
        assert (entry.budget.frames, entry.budget.gmacs, entry.budget.tokens) == pytest.approx((9, 150, 1773))
        assert entry.span == pytest.approx((12 * 0.75 / 1.1, 12 * 0.75 / 0.9))
        assert entry.cost_verdict(12) == "takes the time of 9.0 of 12 frames and does 20 % less work in it"

    def test_the_table_gives_time_and_frames_with_their_ranges(self, root: Path) -> None:
        save(root, "tempme", [*counts(120.0, 127), *ratio(4 / 3, 2.0, spread=0.4)])
        (bench,) = found(root)
        table = equal_time_table(self.compared(root), bench, "equal", scope(root))
        assert column(table, "time")["tempme"].text == "0.75 (0.54 to 1.25)"
        assert column(table, "frames")["tempme"].text == "9.0 (6.4 to beyond)"

    @pytest.mark.parametrize(
        ("ratio_to_plain", "words"),
        [
            (0.8, "slower than all 12 frames"),
            (0.96, "takes the time of 12.0 of 12 frames"),  # the ranges overlap
            (4.0, "faster than 6 frames, the fewest recorded"),
        ],
    )
    def test_outside_the_line_nothing_is_made_up(self, root: Path, ratio_to_plain: float, words: str) -> None:
        save(root, "tempme", [*counts(120.0, 127), *ratio(ratio_to_plain, 2.0)])
        equal = self.compared(root)
        (entry,) = equal.points
        assert words in entry.cost_verdict(12)
        assert (entry.budget is None) == (ratio_to_plain != 0.96)
        assert matched_time_figure(equal, "Title $x$").startswith(b"\x89PNG")

    def test_an_invalid_time_does_not_count(self, root: Path) -> None:
        save(root, "tempme", [*counts(120.0, 127), *ratio(1.3, 2.0, invalid="disturbed")])
        equal = self.compared(root)
        assert equal.points[0].cost_verdict(12) == "not compared: not valid: disturbed"
        save(root, "lora", [*counts(200.0, 2364), *ratio(1.0, 1.0, invalid="disturbed")])
        assert matched_cost(found(root)[0].on("ViT-B-16"), 12) is None

    def test_ratios_to_different_encoders_make_no_line(self, root: Path) -> None:
        save(root, "tempme", [*counts(120.0, 127), *ratio(1.3, 2.0, against="clip4clip")])
        assert matched_cost(found(root)[0].on("ViT-B-16"), 12) is None

    def test_a_rival_that_keeps_all_frames_ends_the_line(self, root: Path) -> None:
        save(root, "frame_subsample", [*counts(200.0, 2364), *ratio(0.99, 1.0)], keep=12)
        equal = self.compared(root)
        assert [t.row.method for t in equal.curve] == ["frame_subsample"] * 2
        assert equal.points == ()


class TestFiles:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        hostile = "</b><script>alert(1)</script>|[x](javascript:y)"
        save(tmp_path, "lora", [*counts(200.0, 2364), speed(5.0), *ratio(1.0, 1.0)], device=hostile)
        save(tmp_path, "frame_subsample", [*counts(100.0, 1182), speed(10.0), *ratio(2.0, 2.0)], device=hostile)
        bad = speed(6.0, invalid=hostile)
        missing = Measurement.missing("energy_video", "J/video", hostile)
        save(tmp_path, "tempme", [*counts(120.0, 127), bad, missing], device=hostile, backbone="../../etc/x")
        return tmp_path

    def test_hostile_text_is_text(self, root: Path) -> None:
        files = write_efficiency(RecordStore(root), root / "reports")
        folder = root / "reports" / "efficiency"
        assert {file.parent for file in files} == {folder}
        for file in files:
            if file.suffix == ".md":
                text = file.read_text(encoding="utf-8")
                assert "<script" not in text
                assert not re.search(r"(?<!\\)\[x\]\(javascript", text)
                assert all(line.count("|") >= 3 for line in text.splitlines() if line.startswith("|"))
        assert r"\textless{}script" in next(f for f in files if f.suffix == ".tex").read_text(encoding="utf-8")

    def test_the_same_bytes_again_and_nothing_of_before_stays(self, root: Path) -> None:
        report("efficiency", root, root / "reports", as_json=True)
        folder = root / "reports" / "efficiency"
        first = {path.name: path.read_bytes() for path in folder.iterdir()}
        (folder / "cost-old.md").write_text("old", encoding="utf-8")
        (folder / "mine.txt").write_text("mine", encoding="utf-8")
        report("efficiency", root, root / "reports", as_json=True)
        again = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert again == first | {"mine.txt": b"mine"}

    def test_every_link_of_the_page_leads_to_a_file(self, root: Path) -> None:
        folder = root / "reports" / "efficiency"
        write_efficiency(RecordStore(root), root / "reports")
        page = (folder / "README.md").read_text(encoding="utf-8")
        targets = re.findall(r"(?<!\\)\]\(([^)]+)\)", page)
        assert any("records" in target for target in targets)
        assert [target for target in targets if not (folder / target).is_file()] == []
        assert "> **No GPU" in page
