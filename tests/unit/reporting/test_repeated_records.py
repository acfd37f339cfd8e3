"""A record is one run: copies, conflict copies and repetitions make no further seed, row or sample, and are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from errors import raises
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from records import csv_rows, failed_record
from report_records import STANDIN, details, full_size_record, method_record, page, report

from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.data.records import protocol_runs
from tvrbench.harness.reporting.pages.report import write_report

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("no_pictures")]

Edit = Callable[[dict[str, Any]], object]
NAMES = (
    "{} (copy)",
    "{} 2",
    "{}.sync-conflict-20260101-120000-ABCDEFG",
    "{} (laptop's conflicted copy 2026-01-01)",
    "Copy of {}",
    "a",
    "zzz",
)


def copy(path: Path, name: str, edit: Edit = lambda _: None) -> Path:
    """Copy a record under another name, edited."""
    record = json.loads(path.read_text(encoding="utf-8"))
    edit(record)
    target = path.with_name(f"{name.format(path.stem)}.json")
    target.write_text(json.dumps(record), encoding="utf-8")
    return target


def elsewhere(record: dict[str, Any]) -> None:
    """Make it the record of another machine, a day later and with another result."""
    record["environment"]["device"] = "another CPU"
    record["started"] = "2030-01-01T00:00:00Z"
    record["metrics"]["t2v"]["R1"] += 1.5


class TestReport:
    @pytest.mark.parametrize("name", NAMES)
    def test_a_copy_is_the_same_seed(self, store: RecordStore, tmp_path: Path, name: str) -> None:
        path = store.save(method_record())
        copied, logged = copy(path, name), list[str]()
        folder = write_report(STANDIN, store, tmp_path / "reports", log=logged.append)[0].parent
        (row,) = csv_rows(folder, "results")[1:]
        assert (row["seeds"], Path(row["records"]).name) == ("1", path.name)
        assert "Fewer than 3 seeds" in page(folder)
        (found,) = protocol_runs(store, STANDIN)[1]
        assert (found.code, found.run.path) == ("copy", copied)
        assert [line for line in logged if copied.name in line and path.name in line]
        assert "### Records set aside" in details(folder)

    def test_of_two_results_for_one_seed_the_newest_counts_and_both_are_told(self, store: RecordStore) -> None:
        path = store.save(method_record(r1=50.0))
        newer = copy(path, "from another machine", elsewhere)
        (kept,), (found,) = protocol_runs(store, STANDIN)
        assert (kept.path, found.run.path, found.code) == (newer, path, "repeated")
        assert "1.50 points lower" in found.reason

    def test_other_seeds_methods_options_and_selections_are_other_runs(self, store: RecordStore) -> None:
        path = store.save(method_record())
        copy(path, "seed", lambda record: record.update(seed=1, duration_s=77.0))
        copy(path, "method", lambda record: record["method"].update(name="other"))
        copy(path, "options", lambda record: record["method"]["options"].update(r=3))
        copy(path, "selection", lambda record: record["metrics"].update(selection="best-on-test"))
        copy(path, "weights", lambda record: record.update(weights_sha256="e" * 64))
        copy(path, "hash", lambda record: record["protocol"].update(hash="e" * 16))
        runs, aside = protocol_runs(store, STANDIN)
        assert (len(runs), aside) == (7, [])

    @pytest.mark.parametrize(
        "edit",
        [lambda record: None, lambda record: record.update(started="2030-01-01T00:00:00Z", command="tvrbench run x")],
    )
    def test_a_copy_under_another_seed_is_no_further_seed(self, store: RecordStore, tmp_path: Path, edit: Edit) -> None:
        path = store.save(method_record())
        for seed in (1, 2):
            copy(path, f"copy{seed}", lambda record: (edit(record), record.update(seed=seed)))  # noqa: B023
        (kept,), aside = protocol_runs(store, STANDIN)
        assert kept.path == path
        assert [found.code for found in aside] == ["copy", "copy"]
        assert all("another seed" in found.reason for found in aside)
        assert csv_rows(report(store, tmp_path))[1]["seeds"] == "1"

    def test_what_is_not_trained_is_one_run_whatever_its_seed(self, store: RecordStore, tmp_path: Path) -> None:
        for seed in range(3):
            store.save(method_record("zero_shot", 30.0, seed=seed, started=f"2030-01-0{seed + 1}T00:00:00Z"))
        (kept,), aside = protocol_runs(store, STANDIN)
        assert kept.record["seed"] == 0
        assert [found.code for found in aside] == ["repeated", "repeated"]
        assert csv_rows(report(store, tmp_path))[1]["seeds"] == "1"

    def test_seeds_of_a_method_that_draws_at_random_are_runs(self, store: RecordStore) -> None:
        for seed in range(3):
            store.save(method_record("random", 10.0 + seed, seed=seed, tuning="frozen"))
        assert (len(protocol_runs(store, STANDIN)[0]), protocol_runs(store, STANDIN)[1]) == (3, [])

    @pytest.mark.parametrize(
        ("code", "edit"),
        [
            ("other-protocol", lambda record: record["protocol"].update(name="standin/other")),
            ("other-dataset", lambda record: record["data"].update(dataset="msrvtt")),
        ],
    )
    def test_a_record_in_the_wrong_folder_is_set_aside(self, store: RecordStore, code: str, edit: Edit) -> None:
        path = store.save(method_record())
        strange = copy(path, "strange", lambda record: (record.update(seed=1), edit(record)))
        (kept,), (found,) = protocol_runs(store, STANDIN)
        assert (kept.path, found.run.path, found.code) == (path, strange, code)

    def test_where_nothing_is_left_the_reasons_are_said(self, store: RecordStore, tmp_path: Path) -> None:
        path = store.save(method_record())
        copy(path, "moved", lambda record: record["protocol"].update(name="standin/other"))
        path.unlink()
        logged: list[str] = []
        with raises("report.no-run"):
            write_report(STANDIN, store, tmp_path / "reports", log=logged.append)
        assert "moved.json" in logged[0]

    def test_under_a_protocol_of_one_s_own_the_data_set_of_most_runs_counts(self, store: RecordStore) -> None:
        for seed, dataset in enumerate(("clips", "clips", "others")):
            record = method_record(seed=seed, protocol={"name": "mine", "hash": "e" * 16})
            record["data"]["dataset"] = dataset
            store.save(record)
        runs, (found,) = protocol_runs(store, "mine")
        assert (len(runs), found.code, found.run.record["seed"]) == (2, "other-dataset", 2)

    def test_failures_and_full_size_costs_count_once(self, store: RecordStore, tmp_path: Path) -> None:
        store.save(method_record())
        for path in (store.save(failed_record(seed=1)), store.save(full_size_record())):
            copy(path, "{} (copy)")
        folder = report(store, tmp_path)
        assert len(csv_rows(folder, "paper-scale")) == 1
        text = details(folder)
        assert text.partition("### Runs that failed")[2].partition("###")[0].count("\n- ") == 1
        assert text.partition("### Records set aside")[2].count("(copy)") >= 2


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(copied=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(NAMES)), max_size=8, unique=True))
def test_copies_of_any_records_change_no_table(tmp_path: Path, copied: list[tuple[int, str]]) -> None:
    shutil.rmtree(tmp_path, ignore_errors=True)
    store = RecordStore(tmp_path / "results")
    methods = [("tempme", 0), ("tempme", 1), ("lora", 0), ("zero_shot", 0), ("adapter", 2)]
    paths = [store.save(method_record(method, 50.0 + seed, seed=seed)) for method, seed in methods]
    paths.append(store.save(full_size_record()))
    before = tables(report(store, tmp_path))
    for number, name in copied:
        copy(paths[number], f"{name}{number}" if "{}" not in name else name)
    assert tables(report(store, tmp_path)) == before


def tables(folder: Path) -> dict[str, bytes]:
    """Every file of a report that holds tables alone."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".csv"}


def measured() -> dict[str, Any]:
    """Return a record of ``tvrbench bench``."""
    return full_size_record() | {"protocol": {"name": "efficiency", "hash": "e" * 16}}


class TestEfficiency:
    def test_a_device_counts_once_and_another_device_is_another_run(self, store: RecordStore) -> None:
        path = store.save(measured())
        copy(path, "{} (copy)")
        copy(path, "other", lambda record: record["environment"].update(device="another CPU"))
        runs, (found,) = protocol_runs(store, "efficiency")
        assert ({run.path.name for run in runs}, found.code) == ({path.name, "other.json"}, "copy")

    def test_measured_again_the_newest_counts(self, store: RecordStore) -> None:
        path = store.save(measured())
        newer = copy(path, "again", lambda record: record.update(started="2030-01-01T00:00:00Z"))
        (kept,), (found,) = protocol_runs(store, "efficiency")
        assert (kept.path, found.code) == (newer, "repeated")
