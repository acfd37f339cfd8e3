"""The report of costs: numbers by hand, invalid and missing measurements, equal time, hostile text."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from bench_records import CPU, GPU, column, counts, found, ratio, save, speed
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
from tvrbench.harness.reporting.tables.efficiency import cost_rows, cost_table, encoding_table, training_table
from tvrbench.harness.reporting.tables.equal_time_cost import equal_time_table
from tvrbench.harness.reporting.tables.table import Table

pytestmark = pytest.mark.unit


def scope(root: Path) -> ReportContext:
    return ReportContext(protocol="efficiency", dataset="none", folder=root / "reports" / "efficiency")


def costs(bench: Bench, root: Path, backbone: str = "ViT-B-16", *, elsewhere: bool = False) -> Table:
    """The table of costs of one backbone."""
    return cost_table(bench, cost_rows(bench, backbone, elsewhere=elsewhere), "stem", scope(root))


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
        table = costs(bench, tmp_path)
        alone = column(table, "throughput_1")
        assert [name for name, cell in alone.items() if cell.bold] == ["tempme"]  # random encodes nothing
        assert column(table, "speedup")["tempme"].text == "1.50 (1.42–1.58)"
        assert [column(table, f"speedup_{end}")["tempme"].value for end in ("low", "high")] == [
            pytest.approx(1.5 * share) for share in (0.95, 1.05)
        ]
        assert column(table, "speedup_allowed")["tempme"].value == 2.0
        assert column(table, "params_trainable")["tempme"].text == "0.508"
        more = encoding_table(bench, cost_rows(bench, "ViT-B-16"), "stem", scope(tmp_path))
        assert column(more, "speedup_reached")["tempme"].text == "75"
        assert column(more, "throughput_4")["tempme"].value == 8.0

    def test_methods_stand_in_their_groups_the_cheapest_first(self, bench: Bench, tmp_path: Path) -> None:
        save(tmp_path, "frame_subsample", [*counts(100.0, 1182), speed(10.0, 1)])
        (bench,) = found(tmp_path)
        table = costs(bench, tmp_path)
        assert [(title, [row[0].text for _, row in rows]) for title, rows in table.grouped] == [
            ("Reference", ["random"]),
            ("Full fine-tuning", ["clip4clip"]),
            ("Parameter-efficient", ["lora"]),
            ("Token reduction", ["tempme"]),
            ("Fewer frames", ["frame_subsample"]),
        ]
        assert not column(table, "throughput_1")["frame_subsample"].bold  # fewer frames are never the best

    def test_what_others_measured_is_counted_here_and_has_no_times(self, bench: Bench, tmp_path: Path) -> None:
        for method in ("evit", "lora"):
            save(tmp_path, method, [*counts(150.0, 864), speed(9.0, 1)], device="Other CPU")
        first, other = found(tmp_path)
        assert [row.label for row in first.counted] == ["evit"]  # lora was measured here
        table = costs(first, tmp_path, elsewhere=True)
        assert column(table, "gmacs_video")["evit"].value == 150.0
        assert column(table, "throughput_1")["evit"].value is None
        assert column(table, "gmacs_video")["lora"].value == 200.0
        assert "evit" not in column(costs(first, tmp_path), "method")
        assert (column(table, "method")["evit"].text, column(table, "throughput_1")["evit"].text) == ("evit *", "")
        assert "throughput_1" in column(table, "reasons")["evit"].text
        assert [row.label for row in other.rows] == ["evit", "lora"]

    def test_an_invalid_figure_is_shown_and_marked_and_never_best(self, bench: Bench, tmp_path: Path) -> None:
        table = encoding_table(bench, cost_rows(bench, "ViT-B-16"), "stem", scope(tmp_path))
        cell = column(table, "throughput_4")["clip4clip"]
        assert (cell.text, cell.value, cell.bold) == ("99.0 !", "99.0 (not valid)", False)
        assert "throughput_4: " in (reason := column(table, "reasons")["clip4clip"].text)
        assert "disturbed: others" in reason

    def test_a_missing_figure_is_a_dash_with_its_reason_in_the_csv(self, bench: Bench, tmp_path: Path) -> None:
        table = costs(bench, tmp_path)
        assert column(table, "speedup")["random"].text == "–"
        assert "speedup_allowed, speedup: random runs no encoder." in column(table, "reasons")["random"].text
        assert f"speedup: {UNMEASURED}." in column(table, "reasons")["clip4clip"].text
        assert sum(remark.startswith("–") for remark in table.remarks) == 1
        assert table.footnotes == ()

    @pytest.mark.parametrize("released", [None, 251.9])
    def test_a_cost_as_released_is_shown_where_it_differs(self, tmp_path: Path, released: float | None) -> None:
        more = [] if released is None else [Measurement("gmacs_video_as_released", released, "GMACs")]
        save(tmp_path, "tempme", [*counts(212.9, 127), *more])
        save(tmp_path, "lora", counts(200.0, 2364))
        table = costs(found(tmp_path)[0], tmp_path)
        keys = [c.key for c in table.columns]
        assert ("gmacs_video_as_released" in keys) == (released is not None)
        if released is not None:
            cells = column(table, "gmacs_video_as_released")
            assert [(cells[name].text, cells[name].value) for name in ("lora", "tempme")] == [
                ("", 200.0),
                ("251.9", 251.9),
            ]

    def test_a_paper_could_print_it(self, bench: Bench, tmp_path: Path) -> None:
        table = costs(bench, tmp_path)
        assert len(table.columns) <= 12
        assert all(fact in table.caption for fact in (CPU, "2 cores", "2025-03-01", "batch 1"))
        assert "ViT-B/16" in table.title

    def test_training_is_a_table_of_its_own_where_it_was_measured(self, bench: Bench, tmp_path: Path) -> None:
        def made(bench: Bench) -> Table | None:
            return training_table(bench, cost_rows(bench, "ViT-B-16"), "stem", scope(tmp_path))

        assert made(bench) is None
        said = {"what": "training", "precision": "float32"}
        steps = [
            Measurement.missing("step_time", "ms", "CUDA out of memory", **said, batch=64),
            Measurement("step_time", 12.0, "ms", [12.0], said | {"batch": 32}),
            Measurement("peak_memory_nvml", 900.0, "MiB", (), said | {"batch": 32, "lower_bound": True}),
        ]
        save(tmp_path, "tempme", [*counts(100.0, 127), *steps])
        (bench,) = found(tmp_path)
        table = made(bench)
        assert table is not None
        assert [row[0].text for row in table.rows] == ["tempme"]
        assert column(table, "step_time_32")["tempme"].value == 12.0
        assert "step_time_64: CUDA out of memory." in column(table, "reasons")["tempme"].text
        assert column(table, "peak_memory_nvml_training")["tempme"].text == "≥ 0.944"  # GB of 900 MiB
        assert column(costs(bench, tmp_path), "peak_memory_nvml_training")["tempme"].value == 900.0

    def test_the_preferred_meter_is_the_memory_of_the_first_page(self, tmp_path: Path) -> None:
        said = {"what": "inference", "batch": 4}
        meters = [Measurement(name, 1000.0, "MiB", (), said) for name in ("peak_process_memory", "peak_memory_nvml")]
        save(tmp_path, "lora", [*counts(200.0, 2364), speed(4.0), *meters])
        (bench,) = found(tmp_path)
        assert [c.key for c in costs(bench, tmp_path).columns if "memory" in c.key] == ["peak_memory_nvml"]
        more = encoding_table(bench, cost_rows(bench, "ViT-B-16"), "stem", scope(tmp_path))
        assert [c.key for c in more.columns if "memory" in c.key] == ["peak_process_memory"]

    def test_memory_stands_at_a_batch_that_all_could_do(self, tmp_path: Path) -> None:
        def peak(value: float, batch: int) -> Measurement:
            return Measurement("peak_memory_nvml", value, "MiB", (), {"what": "inference", "batch": batch})

        save(tmp_path, "lora", [*counts(2.0, 24), peak(10.0, 1), peak(20.0, 8)])
        save(tmp_path, "tempme", [*counts(1.0, 5), peak(9.0, 1), peak(18.0, 8), peak(36.0, 32)])
        rows = found(tmp_path)[0].on("ViT-B-16")
        assert shared_batch(rows, "peak_memory_nvml", "inference") == 8
        table = costs(found(tmp_path)[0], tmp_path)
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
        remarks = [" ".join(costs(bench, tmp_path).remarks) for bench in found(tmp_path)]
        assert ["tensor cores" in remark for remark in remarks] == [False, True, False]

    def test_a_gpu_is_first_then_most_rows_then_the_newest(self, tmp_path: Path) -> None:
        late = "2026-01-01T00:00:00+00:00"
        for device, methods, started in (
            ("Few", ("lora",), late),
            ("Most", ("lora", "tempme"), "2025-01-01T00:00:00+00:00"),
            ("Most, later", ("lora", "tempme"), late),
        ):
            for method in methods:
                save(tmp_path, method, [*counts(1.0, 12), speed(1.0)], device=device, started=started)
        save(tmp_path, "lora", [*counts(1.0, 12), speed(1.0, device="cuda:0")], device=GPU)
        assert [bench.device for bench in found(tmp_path)] == [GPU, "Most, later", "Most", "Few"]

    def test_frames_are_named_where_they_are_not_the_usual_ones(self, tmp_path: Path) -> None:
        for method in ("lora", "tempme"):
            save(tmp_path, method, [*counts(1.0, 12), speed(1.0)])
        save(tmp_path, "lora", [*counts(1.0, 16), speed(1.0)], frames=16, hash="bbbbbbbb")
        assert [(bench.name, bench.slug) for bench in found(tmp_path)] == [
            (f"{CPU}, fp32", "cpu-fp32"),
            (f"{CPU}, fp32, 16 frames", "cpu-fp32-16f"),
        ]

    def test_two_devices_of_one_short_name_keep_their_long_ones(self, tmp_path: Path) -> None:
        clocks = ("Intel(R) Xeon(R) CPU @ 2.00GHz", "Intel(R) Xeon(R) CPU @ 2.20GHz")
        for device in clocks:
            save(tmp_path, "lora", [*counts(1.0, 12), speed(1.0)], device=device)
        assert [bench.name for bench in found(tmp_path)] == [f"{device}, fp32" for device in clocks]
        assert [bench.slug for bench in found(tmp_path)] == ["cpu-intel-xeon-fp32", "cpu-intel-xeon-fp32-2"]

    def test_nothing_recorded(self, tmp_path: Path) -> None:
        with raises("report.no-cost"):
            write_efficiency(RecordStore(tmp_path), tmp_path / "reports")


def test_the_interval_of_a_ratio_is_that_of_its_rounds(tmp_path: Path) -> None:
    measured = replace(ratio(1.5, 2.0)[0], samples=(1.4, 1.5, 1.6))
    save(tmp_path, "tempme", [*counts(1.0, 5), measured])
    table = costs(found(tmp_path)[0], tmp_path)
    low, high = repeats_interval((1.4, 1.5, 1.6))
    assert column(table, "speedup")["tempme"].text == f"1.50 ({low:.2f}–{high:.2f})"
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

    def test_the_table_counts_time_and_work_in_frames(self, root: Path) -> None:
        save(root, "tempme", [*counts(120.0, 127), *ratio(4 / 3, 2.0, spread=0.4)])
        save(root, "clip4clip", [*counts(200.0, 2364), *ratio(1.0, 1.0)])
        save(root, "centerclip", counts(90.0, 200))
        (bench,) = found(root)
        table = equal_time_table(self.compared(root), bench, "stem", scope(root))
        assert len(table.columns) == 7
        assert list(column(table, "method")) == ["tempme"]  # the others save no work, or have no time
        remarks = " ".join(table.remarks)
        assert all(name in remarks for name in ("clip4clip", "centerclip"))
        cells = {c.key: column(table, c.key)["tempme"] for c in table.csv_columns}
        assert cells["time"].text == "0.75 (0.54–1.25)"
        assert cells["work_frames"].value == pytest.approx(7.2)
        assert (cells["frames"].text, cells["frames_low"].text, cells["frames_high"].value) == ("9.0", "6.4", None)
        assert cells["lost"].value == pytest.approx(1.8)
        assert cells["faster"].text == "n.s."

    @pytest.mark.parametrize(
        ("ratio_to_plain", "frames", "faster"), [(0.8, "> 12", "no"), (4.0, "< 6", "yes"), (2.0, "6.0", "yes")]
    )
    def test_beyond_the_line_there_are_no_frames(
        self, root: Path, ratio_to_plain: float, frames: str, faster: str
    ) -> None:
        save(root, "tempme", [*counts(120.0, 127), *ratio(ratio_to_plain, 2.0)])
        (bench,) = found(root)
        table = equal_time_table(self.compared(root), bench, "stem", scope(root))
        assert (column(table, "frames")["tempme"].text, column(table, "faster")["tempme"].text) == (frames, faster)
        assert (column(table, "lost")["tempme"].value is None) == (frames != "6.0")

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
        own = [file for file in files if file != folder.parent / "README.md"]  # the index of reports
        assert {file.relative_to(folder).parts[0] for file in own} <= {
            *("README.md", "details.md", "page.html", "provenance.csv"),
            *("claims.csv", "claims-headline.csv", "claims-tables.csv"),
            *("cost", "encoding", "equal-time", "training"),
        }
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+", file.name) for file in files)
        for file in files:
            if file.suffix == ".md":
                text = file.read_text(encoding="utf-8")
                assert "<script" not in text
                assert not re.search(r"(?<!\\)\[x\]\(javascript", text)
                assert all(line.count("|") >= 3 for line in text.splitlines() if line.startswith("|"))

    def test_the_same_bytes_again_and_what_is_not_its_own_stays(self, root: Path) -> None:
        report("efficiency", root, root / "reports", as_json=True)
        folder = root / "reports" / "efficiency"

        def content() -> dict[str, bytes]:
            return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

        first = content()
        (folder / "mine.txt").write_text("mine", encoding="utf-8")
        report("efficiency", root, root / "reports", as_json=True)
        assert content() == first | {"mine.txt": b"mine"}

    def test_every_link_leads_to_a_file(self, root: Path) -> None:
        folder = root / "reports" / "efficiency"
        write_efficiency(RecordStore(root), root / "reports")
        for name in ("README.md", "details.md"):
            targets = re.findall(r"(?<!\\)\]\(([^)]+)\)", (folder / name).read_text(encoding="utf-8"))
            assert targets
            assert [t for t in targets if not t.startswith("#") and not (folder / t).is_file()] == []
        assert "> **No GPU" in (folder / "README.md").read_text(encoding="utf-8")
