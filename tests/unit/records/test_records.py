"""Records: the schema, what it refuses, and how the store keeps them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from errors import raises
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tvrbench.harness.core.io import atomic_write
from tvrbench.harness.records.record import Measurement, Record, dumps, normalized, plain, read_record
from tvrbench.harness.records.store import RecordStore

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]

DIRECTION = {"R1": 46.1, "R5": 71.8, "R10": 80.7, "MdR": 2.0, "MnR": 14.8, "RSum": 198.6}
RANKS = {"t2v": np.array([1.0, 1.5, 12.0]), "v2t": np.array([2.0, 1.0])}
KEYS = [
    *("schema_version", "protocol", "method", "tuning", "seed", "data", "weights_sha256", "metrics"),
    *("per_query_ranks_path", "cost", "environment", "command", "started", "duration_s", "status", "failure"),
]


def make_record(**changes: Any) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "protocol": {"name": "standin/uniform", "hash": "0123456789abcdef"},
        "method": {"name": "tempme", "options": {"r": 1, "merge_blocks": (8, 9, 10), "clip_ratio": 0.3}},
        "tuning": "lora",
        "seed": 0,
        "data": {
            "dataset": "standin",
            "split_fingerprint": "a" * 64,
            "frames_fingerprint": None,
            "skipped": ["video7"],
            "train_split": "train-9k",
        },
        "weights_sha256": "b" * 64,
        "metrics": {
            "t2v": DIRECTION,
            "v2t": DIRECTION,
            "RSum": 198.6,
            "subsets": {"order-only": {"t2v": DIRECTION, "pair_accuracy": 98.0}},
            "pair_accuracy": None,
            "selection": "last",
            "intervals": {"confidence": 0.95, "t2v": {"R1": [43.0, 49.2]}},
            "learning_rate_grid": {"6e-4": {"R1": 44.0}},
        },
        "per_query_ranks_path": None,
        "cost": [
            Measurement("video_gmacs", 34.76, "GMACs").to_json(),
            Measurement.missing("peak_memory", "MiB", "no GPU", instrument="NVML").to_json(),
        ],
        "environment": {
            "device": "a CPU",
            "cpu_count": 2,
            "driver": None,
            "versions": {"python": "3.11.7", "fvcore": None},
            "git_sha": "c" * 40,
            "dirty": False,
        },
        "command": "tvrbench run standin/uniform",
        "started": "2025-01-02T03:04:05Z",
        "duration_s": 12.5,
        "status": "completed",
        "failure": None,
        **changes,
    }


def failed_record(**changes: Any) -> dict[str, Any]:
    return make_record(status="failed", failure="out of memory", metrics={}, **changes)


def with_change(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    record = copy.deepcopy(make_record())
    change(record)
    return record


def folder_content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestSchema:
    def test_the_exported_schema_has_the_contracts_keys(self) -> None:
        schema = TypeAdapter(Record).json_schema()
        assert list(schema["properties"]) == list(Record.__annotations__)
        assert schema["required"] == KEYS
        assert set(schema["properties"]) - set(KEYS) == {"checkpoint"}  # only where one was scored
        assert schema["additionalProperties"] is False

    @pytest.mark.parametrize("path", sorted(ROOT.glob("results/records/*/*.json")), ids=lambda path: path.stem)
    def test_every_shipped_record_reads_and_is_written_again_byte_for_byte(self, path: Path) -> None:
        assert dumps(read_record(path)).encode() == path.read_bytes()

    @pytest.mark.parametrize("record", [make_record(), failed_record()])
    def test_a_record_goes_to_disk_and_back(self, tmp_path: Path, record: dict[str, Any]) -> None:
        path = tmp_path / "record.json"
        path.write_text(dumps(record), encoding="utf-8")
        assert read_record(path) == json.loads(json.dumps(record))
        assert dumps(read_record(path)) == dumps(record)

    @pytest.mark.parametrize("key", KEYS)
    def test_every_key_is_needed(self, key: str) -> None:
        with raises("record.invalid", at=f"$.{key}"):
            normalized(with_change(lambda record: record.pop(key)), "x.json")

    @pytest.mark.parametrize(
        ("change", "path"),
        [
            (lambda r: r.update(note="hi"), "$.note"),
            (lambda r: r.update({"\x1b" * 99: 1}), "$['" + r"\x1b" * 60 + "']"),
            (lambda r: r.update(schema_version=2), "$.schema_version"),
            (lambda r: r.update(schema_version=True), "$.schema_version"),
            (lambda r: r["protocol"].update(hash="xyz"), "$.protocol.hash"),
            (lambda r: r["method"].update(version=1), "$.method.version"),
            (
                lambda r: r.update(checkpoint={"file": "a/b", "sha256": "a" * 64, "format": "released"}),
                "$.checkpoint.file",
            ),
            (lambda r: r.update(seed=-1), "$.seed"),
            (lambda r: r.update(seed=0.5), "$.seed"),
            (lambda r: r.update(seed="0"), "$.seed"),
            (lambda r: r["data"].pop("skipped"), "$.data.skipped"),
            (lambda r: r["data"].update(skipped=["a", "a"]), "$.data.skipped"),
            (lambda r: r.update(weights_sha256="b" * 63), "$.weights_sha256"),
            (lambda r: r["metrics"].update(t2v=DIRECTION | {"R1": 100.5}), "$.metrics.t2v.R1"),
            (lambda r: r["metrics"].update(t2v=DIRECTION | {"MdR": 0.5}), "$.metrics.t2v.MdR"),
            (lambda r: r["metrics"].update(t2v=DIRECTION | {"ranks": [1.0]}), "$.metrics.t2v.ranks"),
            (lambda r: r["metrics"].update(Rsum=198.6), "$.metrics.Rsum"),
            (lambda r: r["metrics"].pop("v2t"), "$.metrics.v2t"),
            (lambda r: r["metrics"].pop("selection"), "$.metrics.selection"),
            (lambda r: r["metrics"].update(selection="best"), "$.metrics.selection"),
            (lambda r: r["metrics"]["subsets"].update(all={}), "$.metrics.subsets.all"),
            (lambda r: r["metrics"]["subsets"]["order-only"].update(R1=1.0), "$.metrics.subsets['order-only'].R1"),
            (lambda r: r["metrics"]["intervals"].pop("confidence"), "$.metrics.intervals.confidence"),
            (lambda r: r["metrics"]["intervals"]["t2v"].update(R1=[1.0]), "$.metrics.intervals.t2v.R1"),
            (lambda r: r.update(per_query_ranks_path="/tmp/x.npz"), "$.per_query_ranks_path"),
            (lambda r: r.update(per_query_ranks_path="../x.npz"), "$.per_query_ranks_path"),
            (lambda r: r["cost"][0].update(value=None), "$.cost[0].conditions.reason"),
            (lambda r: r["cost"][1]["conditions"].update(reason=""), "$.cost[1].conditions.reason"),
            (lambda r: r["cost"][0].update(value="34.8"), "$.cost[0].value"),
            (lambda r: r["cost"][0].update(value=True), "$.cost[0].value"),
            (lambda r: r["environment"].update(host="a"), "$.environment.host"),
            (lambda r: r.update(started="yesterday"), "$.started"),
            (lambda r: r.update(duration_s=-1), "$.duration_s"),
            (lambda r: r.update(status="done"), "$.status"),
            (lambda r: r.update(status="failed"), "$.failure"),
            (lambda r: r.update(failure="why"), "$.failure"),
        ],
    )
    def test_a_broken_record_is_refused_by_its_path(self, change: Callable[..., Any], path: str) -> None:
        with raises("record.invalid", where="x.json", at=path) as caught:
            normalized(with_change(change), "x.json")
        assert str(caught.value).startswith("x.json: ")
        assert path in str(caught.value)

    def test_a_long_value_does_not_flood_the_message(self) -> None:
        with raises("record.invalid") as caught:
            normalized(make_record(tuning=["x" * 5000]), "x.json")
        assert len(str(caught.value)) < 400

    @pytest.mark.parametrize("value", [math.nan, -math.inf, {1: 2}, Path("x")])
    def test_what_json_cannot_hold_is_named(self, value: Any) -> None:
        record = with_change(lambda r: r["method"]["options"].update(deep=[0, value]))
        with raises("json.type", where="r", at="$.method.options.deep[1]"):
            dumps(record, "r")

    @settings(max_examples=30, deadline=None)
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
            lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
            max_leaves=8,
        )
    )
    def test_plain_is_what_json_gives_back(self, value: Any) -> None:
        assert plain(value, "v") == json.loads(json.dumps(value))

    def test_plain_takes_numpy_numbers(self) -> None:
        assert json.dumps(plain([np.float32(0.5), np.int64(3), np.bool_(True)], "v")) == "[0.5, 3, true]"


class TestReading:
    @pytest.mark.parametrize(
        ("text", "code"),
        [
            (b"", "record.json"),
            (b"\xff\xfe", "record.json"),
            (b"{", "record.json"),
            (b'{"seed": NaN}', "record.json"),
            (b'{"seed": 1e999}', "json.type"),
            (b"[" * 100_000, "record.json"),
            (b'{"a":' * 400 + b"1" + b"}" * 400, "record.invalid"),
            (b"[]", "record.invalid"),
        ],
    )
    def test_a_broken_file_is_named(self, tmp_path: Path, text: bytes, code: str) -> None:
        path = tmp_path / "record.json"
        path.write_bytes(text)
        with raises(code) as caught:
            read_record(path)
        assert str(path) in str(caught.value)

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with raises("record.read", path=str(tmp_path / "gone.json")):
            read_record(tmp_path / "gone.json")


class TestMeasurement:
    def test_goes_to_json_and_back(self) -> None:
        measurement = Measurement("latency", 1.5, "ms", (1.4, 1.6), {"batch": 4})
        assert Measurement.from_json(measurement.to_json()) == measurement

    def test_missing_is_not_zero(self) -> None:
        missing = Measurement.missing("energy", "J", "no counter", device="CPU")
        assert missing.value is None
        assert missing.to_json()["conditions"] == {"device": "CPU", "reason": "no counter"}

    def test_missing_needs_a_reason(self) -> None:
        with pytest.raises(ValueError, match="reason"):
            Measurement("energy", None, "J")

    @pytest.mark.parametrize("numbers", [(math.nan, ()), (1.0, (1.0, math.inf))])
    def test_numbers_are_finite(self, numbers: tuple[float, tuple[float, ...]]) -> None:
        with pytest.raises(ValueError, match="finite"):
            Measurement("latency", numbers[0], "ms", numbers[1])


class TestStore:
    def test_saves_a_record_with_its_ranks_beside_it(self, tmp_path: Path) -> None:
        store = RecordStore(tmp_path)
        path = store.save(make_record(), RANKS)
        assert path.parent == tmp_path / "records" / "standin__uniform"
        assert path.name.startswith("tempme-lora-seed0-")
        record = read_record(path)
        assert sorted(folder_content(path.parent)) == sorted([path.name, str(record["per_query_ranks_path"])])
        ranks = store.load_ranks(record)
        for direction, values in RANKS.items():
            assert ranks[direction].dtype == np.float32
            np.testing.assert_array_equal(ranks[direction], values)

    def test_the_same_run_again_replaces_the_record_and_its_ranks(self, tmp_path: Path) -> None:
        store = RecordStore(tmp_path)
        store.save(make_record(), RANKS)
        path = store.save(make_record(duration_s=1.0), {**RANKS, "v2t": np.array([1.0, 1.0])})
        assert len(folder_content(path.parent)) == 2
        (record,) = store.load_all()
        assert record["duration_s"] == 1.0
        assert store.load_ranks(record)["v2t"].tolist() == [1.0, 1.0]

    def test_the_same_run_gives_the_same_files(self, tmp_path: Path) -> None:
        one, two = (RecordStore(tmp_path / name).save(make_record(), RANKS) for name in ("one", "two"))
        assert folder_content(one.parent) == folder_content(two.parent)

    @pytest.mark.parametrize(
        "change",
        [
            {"seed": 1},
            {"tuning": "full"},
            {"tuning": None},
            {"method": {"name": "tempme", "options": {"r": 2}}},
            {"method": {"name": "lora", "options": make_record()["method"]["options"]}},
            {"protocol": {"name": "standin/uniform", "hash": "f" * 16}},
            {"protocol": {"name": "standin/published", "hash": "0123456789abcdef"}},
            {"weights_sha256": None},
            {"data": make_record()["data"] | {"split_fingerprint": "d" * 64}},
        ],
    )
    def test_another_run_has_another_file(self, tmp_path: Path, change: dict[str, Any]) -> None:
        store = RecordStore(tmp_path)
        assert store.save(make_record(), RANKS) != store.save(make_record(**change), RANKS)
        assert len(store.load_all()) == 2

    def test_a_failed_run_never_replaces_a_completed_one(self, tmp_path: Path) -> None:
        store = RecordStore(tmp_path)
        completed = store.save(make_record(), RANKS)
        before = folder_content(completed.parent)
        failed = store.save(failed_record())
        assert folder_content(completed.parent) == before | {failed.name: failed.read_bytes()}
        store.save(make_record(), RANKS)
        assert folder_content(completed.parent) == before

    def test_finds_by_what_is_given(self, tmp_path: Path) -> None:
        store = RecordStore(tmp_path)
        store.save(make_record(), RANKS)
        store.save(make_record(seed=1), RANKS)
        store.save(make_record(tuning="full"), RANKS)
        store.save(failed_record(seed=2))
        store.save(make_record(protocol={"name": "other", "hash": "0" * 16}), RANKS)
        assert len(store.load_all()) == 5
        assert len(store.load_all("standin/uniform")) == 4
        assert [r["seed"] for r in store.find("standin/uniform", tuning="lora")] == [0, 1, 2]
        assert [r["seed"] for r in store.find("standin/uniform", tuning="lora", status="completed")] == [0, 1]
        assert [r["tuning"] for r in store.find(method="tempme", seed=0, protocol="standin/uniform")] == [
            "full",
            "lora",
        ]
        assert store.find(method="centerclip") == []

    def test_is_empty_where_nothing_was_run(self, tmp_path: Path) -> None:
        assert RecordStore(tmp_path / "none").load_all() == []
        assert RecordStore(tmp_path / "none").load_all("standin/uniform") == []

    def test_a_stray_file_is_named(self, tmp_path: Path) -> None:
        store = RecordStore(tmp_path)
        stray = store.save(make_record(), RANKS).with_name("stray.json")
        stray.write_text("{}", encoding="utf-8")
        with raises("record.invalid", where=str(stray)):
            store.load_all()

    @pytest.mark.parametrize(
        "name", ["../evil", "a/../b", "/abs", "a__b", "", "a//b", ".hidden", "a\\b", "a\nb", "a b"]
    )
    def test_a_name_that_leaves_the_folder_is_refused(self, tmp_path: Path, name: str) -> None:
        with raises("record.invalid" if name == "" else "name.unsafe"):
            RecordStore(tmp_path).save(make_record(protocol={"name": name, "hash": "0" * 16}), RANKS)
        for key in ("method", "tuning"):
            if name != "":
                change = {"method": {"name": name, "options": {}}} if key == "method" else {"tuning": name}
                with raises("name.unsafe", name=name, what=key):
                    RecordStore(tmp_path).save(make_record(**change), RANKS)
        assert list(tmp_path.iterdir()) == []

    def test_an_invalid_record_changes_nothing(self, tmp_path: Path) -> None:
        store = RecordStore(tmp_path)
        path = store.save(make_record(), RANKS)
        before = folder_content(path.parent)
        with raises("record.invalid", at="$.seed"):
            store.save(make_record(seed="0"), {**RANKS, "t2v": np.ones(5)})
        with pytest.raises(ValueError, match="no rank"):
            store.save(make_record(), {**RANKS, "t2v": np.array([0.0])})
        assert folder_content(path.parent) == before

    @pytest.mark.parametrize("writes_before_it_fails", [0, 1])
    def test_a_full_disk_harms_no_earlier_record(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes_before_it_fails: int
    ) -> None:
        store = RecordStore(tmp_path)
        path = store.save(make_record(), RANKS)
        before = folder_content(path.parent)
        left = [None] * writes_before_it_fails

        def fsync(_: int) -> None:
            if not left:
                raise OSError(28, "No space left on device")
            left.pop()

        monkeypatch.setattr("os.fsync", fsync)
        with raises("io.write"):
            store.save(make_record(duration_s=9.0), {**RANKS, "t2v": np.array([3.0, 3.0, 3.0])})
        after = folder_content(path.parent)
        assert {name: after[name] for name in before} == before
        assert not [name for name in after if name.endswith(".tmp")]
        (record,) = store.load_all()
        np.testing.assert_array_equal(store.load_ranks(record)["t2v"], RANKS["t2v"])

    def test_an_unwritable_folder_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "records").write_text("a file where a folder should be", encoding="utf-8")
        store = RecordStore(tmp_path)
        with raises("io.write"):
            store.save(make_record(), RANKS)
        with raises("io.write"):
            store.check_writable("standin/uniform")

    def test_checking_leaves_nothing_behind(self, tmp_path: Path) -> None:
        RecordStore(tmp_path).check_writable("standin/uniform")
        assert list((tmp_path / "records" / "standin__uniform").iterdir()) == []

    def test_a_record_without_ranks_says_so(self, tmp_path: Path) -> None:
        store = RecordStore(tmp_path)
        record = read_record(store.save(failed_record()))
        with raises("ranks.missing", method="tempme", seed=0):
            store.load_ranks(record)

    @pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut", b"\x80\x04pickle"])
    def test_broken_ranks_are_named(self, tmp_path: Path, content: bytes | None) -> None:
        store = RecordStore(tmp_path)
        path = store.save(make_record(), RANKS)
        record = read_record(path)
        ranks_path = path.with_name(str(record["per_query_ranks_path"]))
        ranks_path.unlink()
        if content is not None:
            ranks_path.write_bytes(content)
        with raises("ranks.read", path=str(ranks_path)):
            store.load_ranks(record)

    @pytest.mark.parametrize("arrays", [{"t2v": [1.0]}, {"t2v": [1.0], "v2t": [0.5]}, {"t2v": [1.0], "v2t": [None]}])
    def test_ranks_that_are_none_are_named(self, tmp_path: Path, arrays: dict[str, Any]) -> None:
        store = RecordStore(tmp_path)
        path = store.save(make_record(), RANKS)
        record = read_record(path)
        ranks_path = path.with_name(str(record["per_query_ranks_path"]))
        np.savez(ranks_path, **{name: np.array(values) for name, values in arrays.items()})
        with raises("ranks.read", path=str(ranks_path)):
            store.load_ranks(record)


def test_atomic_write_replaces_whole_files_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    atomic_write(path, b"old")
    atomic_write(path, b"new")
    assert folder_content(path.parent) == {"b.txt": b"new"}
