"""Options of records that are no numbers, or no reasonable ones, in reports that count with them or name files so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from bench_records import counts, ratio, save_counted, speed
from bench_records import save as save_bench
from records import csv_rows, save
from report_records import STANDIN, method_record, report

from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.pages.efficiency import write_efficiency

pytestmark = pytest.mark.unit

ODD = ["x", "../x", [4], {"a": 1}, None, True, -1, 0, 1.5, 10**30, 10**400, 1e308]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("option", ["keep", "frames"])
@pytest.mark.parametrize("value", ODD, ids=str)
def test_a_protocols_report_has_a_row_for_each(option: str, value: Any, store: RecordStore, tmp_path: Path) -> None:
    for keep in (4, 8):
        record = method_record("frame_subsample", 40.0 + keep)
        record["method"]["options"] |= {"keep": keep, "frames": 12} | ({option: value} if keep == 4 else {})
        save(store, record)
    save(store, method_record("lora", 50.0), method_record("tempme", 51.0))
    rows = csv_rows(report(store, tmp_path, STANDIN))
    assert sum(row["method"].startswith("frame_subsample") for row in rows) == 2


@pytest.mark.parametrize("frames", [1, 10**6, 10**30, 10**400, "x", [4], None])
def test_no_number_of_frames_makes_a_long_file_name(frames: Any, tmp_path: Path) -> None:
    for number in (12, frames):
        save_bench(tmp_path, "lora", [*counts(53.0, 600), speed(5.0), *ratio(1.0, 1.1)], frames=number)
        save_counted(tmp_path, "lora", counts(53.0, 600), number)
    files = write_efficiency(RecordStore(tmp_path), tmp_path / "reports")
    assert max(len(file.name) for file in files) < 120


def test_a_cost_that_overflows_in_its_unit_is_no_point_of_the_chart(tmp_path: Path) -> None:
    for method, rate in (("lora", 5e-324), ("tempme", 5.0)):  # drawn as ms per video
        save_bench(tmp_path, method, [*counts(53.0, 600), *ratio(1.0, 1.1), speed(rate)])
    page = next(
        file for file in write_efficiency(RecordStore(tmp_path), tmp_path / "reports") if file.suffix == ".html"
    )
    (data,) = re.findall(r'id="chart-data">(.*?)</script>', page.read_text(encoding="utf-8"))
    (group,) = json.loads(data)["groups"]
    held = {method["label"]: "throughput_inference" in method["points"] for method in group["methods"]}
    assert held == {"lora": False, "tempme": True}
