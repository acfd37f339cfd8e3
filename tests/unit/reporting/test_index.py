"""The index of all reports: a line per protocol with its headline, and nobody else's README.md overwritten."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from bench_records import counts, ratio
from bench_records import save as save_bench
from records import html, make_record, save
from report_records import STANDIN, method_record, msrvtt_record, report

from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.pages.efficiency import write_efficiency
from tvrbench.harness.reporting.pages.index import MADE, write_index

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("no_pictures")]

UNIFORM = "msrvtt-1ka-9k/uniform"
PUBLISHED = "msrvtt-1ka-9k/published"


def index(tmp_path: Path) -> dict[str, dict[str, str]]:
    """Read the index by protocol; cells as Markdown."""
    lines = [line for line in (tmp_path / "reports" / "README.md").read_text().splitlines() if line.startswith("|")]
    header, _, *body = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0]: dict(zip(header, row, strict=True)) for row in body}


def test_every_protocol_with_records_and_a_report_has_a_line(store: RecordStore, tmp_path: Path) -> None:
    save(store, method_record("tempme", 50.0), method_record("lora", 60.0), method_record("lora", 62.0, seed=1))
    save(store, msrvtt_record("tempme", 46.0, kind="uniform"))
    report(store, tmp_path)
    assert set(index(tmp_path)) == {STANDIN}
    report(store, tmp_path, UNIFORM)
    lines = index(tmp_path)
    assert list(lines) == [UNIFORM, STANDIN]
    one = lines[STANDIN]
    assert one["Headline"].startswith("lora: R@1 61.0")
    assert (one["Methods"], one["Seeds"], one["Device"]) == ("2", "2", "a CPU")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", one["Newest record"])
    assert (one["Data"], lines[UNIFORM]["Data"]) == ("Embedded stand-in, not MSR-VTT", "MSR-VTT")
    targets = re.findall(r"\]\((.*?)\)", one["Pages"])
    assert len(targets) == 3
    assert all((tmp_path / "reports" / target).is_file() for target in targets)


def test_a_row_that_does_not_compare_is_no_headline(store: RecordStore, tmp_path: Path) -> None:
    chosen = method_record("lora", 90.0)
    chosen["metrics"]["selection"] = "best-on-test"
    save(store, method_record("tempme", 50.0), method_record("adapter", 40.0), chosen)
    report(store, tmp_path)
    assert index(tmp_path)[STANDIN]["Headline"].startswith("tempme: R@1 50.0 (45.0–55.0)")


def test_own_recipes_have_the_verdicts_on_published_numbers(store: RecordStore, tmp_path: Path) -> None:
    save(store, msrvtt_record("tempme", 46.1))
    report(store, tmp_path, PUBLISHED)
    assert re.fullmatch(r"Papers' R@1: (\d+ [a-z ]+(, )?)+", index(tmp_path)[PUBLISHED]["Headline"])


def test_reducers_without_training_are_named_at_a_saving(store: RecordStore, tmp_path: Path) -> None:
    def reduced(r: int, gmacs: float, r1: float) -> dict[str, Any]:
        record = method_record("tome", r1, tuning="frozen")
        record["method"]["options"] = {"backbone": "ViT-B-32", "frames": 12, "tuning": "frozen", "r": r}
        record["cost"] = [m.to_json() for m in counts(gmacs, 600)]
        plain = {"gmacs_video": 50.0, "output_tokens": 600, "R1": 48.0}
        cosine = {"mean": 0.9, "quantile_05": 0.8, "min": 0.7}
        record["metrics"]["agreement"] = {"cosine": cosine, "same_top1": 80.0, "plain": plain}
        return record

    save(store, reduced(1, 40.0, 47.0), reduced(2, 37.5, 44.0), reduced(3, 20.0, 30.0))
    report(store, tmp_path)
    headline = index(tmp_path)[STANDIN]["Headline"]
    assert re.fullmatch(r"tome \(r=2\): R@1 44\.0 \(.*\); dense 48\.0", headline)


def test_costs_have_the_range_of_speed_ups_of_token_reduction(store: RecordStore, tmp_path: Path) -> None:
    save_bench(store.root, "lora", counts(52.96, 600), backbone="ViT-B-32")
    save_bench(store.root, "tempme", [*counts(34.76, 96), *ratio(1.4, 1.5)], backbone="ViT-B-32")
    save_bench(store.root, "centerclip", [*counts(40.0, 300), *ratio(1.3, 1.4)], backbone="ViT-B-32")
    save_bench(store.root, "frame_subsample", [*counts(10.0, 300), *ratio(5.0, 6.0)], backbone="ViT-B-32")
    write_efficiency(store, tmp_path / "reports")
    line = index(tmp_path)["efficiency"]
    assert [part in line["Headline"] for part in ("1.30–1.40x", "ViT-B/32", "Some CPU", "5.00")] == [True] * 3 + [False]
    assert line["Methods"] == "4"


def test_broken_records_of_another_protocol_are_named_and_stop_nothing(store: RecordStore, tmp_path: Path) -> None:
    save(store, method_record(), msrvtt_record("tempme", 46.0, kind="uniform"))
    report(store, tmp_path, UNIFORM)
    (broken,) = store.folder(UNIFORM).glob("*.json")
    broken.write_text("{")
    report(store, tmp_path)
    lines = index(tmp_path)
    assert broken.name in lines[UNIFORM]["Headline"]
    assert lines[STANDIN]["Headline"].startswith("tempme")


def test_a_readme_of_the_users_stays(store: RecordStore, tmp_path: Path) -> None:
    readme, logged = tmp_path / "reports" / "README.md", list[str]()
    readme.parent.mkdir()
    readme.write_text("# My project\n")
    save(store, make_record())
    report(store, tmp_path, log=logged.append)
    assert readme.read_text() == "# My project\n"
    assert any(str(readme) in line for line in logged)


def test_the_same_records_give_the_same_bytes(store: RecordStore, tmp_path: Path) -> None:
    save(store, method_record())
    report(store, tmp_path)
    readme = tmp_path / "reports" / "README.md"
    first = readme.read_bytes()
    assert first.startswith(MADE.encode())
    assert write_index(store, tmp_path / "reports") == [readme]
    assert readme.read_bytes() == first


def test_names_from_records_stay_text(store: RecordStore, tmp_path: Path) -> None:
    record = method_record()
    record["environment"]["device"] = "a|b <script>alert(1)</script> [x](javascript:1)"
    save(store, record)
    report(store, tmp_path)
    rendered = html((tmp_path / "reports" / "README.md").read_text())
    assert "<script" not in rendered
    assert 'href="javascript' not in rendered
