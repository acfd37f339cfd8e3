"""Records: the schema, what it refuses, and measurements."""

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
from full_record import DIRECTION, failed_record, make_record
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tvrbench.harness.records.record import Measurement, Record, dumps, normalized, plain, read_record

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]

KEYS = [
    *("schema_version", "protocol", "method", "tuning", "seed", "data", "weights_sha256", "metrics"),
    *("per_query_ranks_path", "cost", "environment", "command", "started", "duration_s", "status", "failure"),
]


def with_change(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    record = copy.deepcopy(make_record())
    change(record)
    return record


class TestSchema:
    def test_the_exported_schema_has_the_contracts_keys(self) -> None:
        schema = TypeAdapter(Record).json_schema()
        assert list(schema["properties"]) == list(Record.__annotations__)
        assert schema["required"] == KEYS
        assert set(schema["properties"]) - set(KEYS) == {"checkpoint", "weights"}  # not in every record
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

    @settings(max_examples=15, deadline=None)
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
    def test_is_plain_data_in_a_record(self) -> None:
        document = Measurement("latency", 1.5, "ms", (1.4, 1.6), {"batch": 4}).to_json()
        same = {"name": "latency", "value": 1.5, "unit": "ms", "samples": [1.4, 1.6], "conditions": {"batch": 4}}
        assert document == same

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
