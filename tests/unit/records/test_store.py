"""The record store: what it writes, replaces, finds and refuses, and what a crash leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from errors import raises
from full_record import failed_record, make_record

from tvrbench.harness.core.io import atomic_write
from tvrbench.harness.records.reading import USUAL_READING
from tvrbench.harness.records.record import read_record
from tvrbench.harness.records.store import RecordStore, run_digest

pytestmark = pytest.mark.unit

RANKS = {"t2v": np.array([1.0, 1.5, 12.0]), "v2t": np.array([2.0, 1.0])}


def folder_content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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

    def test_ranks_of_a_coarse_stage_are_kept_beside_the_others(self, tmp_path: Path) -> None:
        store, coarse = RecordStore(tmp_path), {"coarse_t2v": np.array([3.0, 1.0]), "coarse_v2t": np.array([2.0, 4.0])}
        store.save(make_record(seed=1), RANKS)
        plain = store.load_all()[0]
        assert set(store.load_ranks(plain)) == set(RANKS)
        path = store.save(make_record(seed=1), RANKS | coarse)
        record = read_record(path)
        assert record["per_query_ranks_path"] != plain["per_query_ranks_path"]
        for name, values in (RANKS | coarse).items():
            np.testing.assert_array_equal(store.load_ranks(record)[name], values)

    def test_the_same_run_again_replaces_the_record_and_its_ranks(self, tmp_path: Path) -> None:
        store = RecordStore(tmp_path)
        store.save(make_record(), RANKS)
        path = store.save(make_record(duration_s=1.0), {**RANKS, "v2t": np.array([1.0, 1.0])})
        assert len(folder_content(path.parent)) == 2
        (record,) = store.load_all()
        assert record["duration_s"] == 1.0
        assert store.load_ranks(record)["v2t"].tolist() == [1.0, 1.0]

    def test_costs_of_another_device_stand_beside_the_first(self, tmp_path: Path) -> None:
        store = RecordStore(tmp_path)
        environment = make_record()["environment"]
        for device in ("Some CPU", "Other (R) CPU", "Some CPU"):
            path = store.save(make_record(metrics={}, environment=environment | {"device": device}))
            assert path.stem.endswith(f"-{run_digest(read_record(path))}")
        assert sorted(record["environment"]["device"] for record in store.load_all()) == ["Other (R) CPU", "Some CPU"]

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

    @pytest.mark.parametrize(
        "reading", [{"activation": "gelu"}, {"mean": [0.5] * 3}, {"std": [0.5] * 3}, {"tokenizer": "9 words"}]
    )
    def test_weights_read_in_another_way_make_another_run(self, reading: dict[str, Any]) -> None:
        old = make_record(data=make_record()["data"] | {"dataset": "msrvtt"})
        usual = old | {"weights": dict(USUAL_READING)}
        assert run_digest(old) == run_digest(usual) != run_digest(old | {"weights": USUAL_READING | reading})

    def test_the_word_list_of_a_data_set_with_weights_is_its_usual_one(self) -> None:
        own = make_record(weights=USUAL_READING | {"tokenizer": "33 words"})
        assert run_digest(own) == run_digest(make_record())
        scored = {"checkpoint": {"sha256": "c" * 64}}
        assert run_digest(own | scored) != run_digest(make_record() | scored)

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
        assert list(tmp_path.iterdir()) == []

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
