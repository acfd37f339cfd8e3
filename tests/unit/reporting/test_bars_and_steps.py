"""Pictures of tokens, seeds and stages of time: what they show, when there are none, and that they are printable."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.records import stored_records
from tvrbench.harness.reporting.data.rows import MethodRow, method_rows
from tvrbench.harness.reporting.figures.all_figures import pictures
from tvrbench.harness.reporting.figures.axes import accuracy_axes, cost_axes, points, recall_interval
from tvrbench.harness.reporting.figures.bars_and_steps import (
    Curve,
    Spread,
    apart,
    seed_spreads,
    seeds_spread,
    time_breakdown,
    time_stages,
    token_curves,
    tokens_per_layer,
)
from tvrbench.harness.reporting.pages.report import write_report

pytestmark = pytest.mark.unit

FIXTURE = Path(__file__).parents[2] / "fixtures" / "standin_record.json"
STANDIN = "standin/uniform"
NAMES = ("decode_time", "preprocess_time", "encode_time")


def make_record(method: str = "tempme", **changes: Any) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(FIXTURE.read_text(encoding="utf-8"))
    record["method"]["name"] = method
    return record | changes


def with_blocks(method: str, *blocks: list[int]) -> dict[str, Any]:
    record = make_record(method)
    record["cost"] = [m for m in record["cost"] if m["name"] != "output_tokens"]
    conditions = {"leaving_blocks": list(blocks)}
    tokens = {"name": "output_tokens", "value": 1, "unit": "tokens", "samples": [], "conditions": conditions}
    record["cost"].append(tokens)
    return record


def with_stages(method: str, *times: float, names: tuple[str, ...] = NAMES) -> dict[str, Any]:
    record = make_record(method)
    record["cost"] += [
        {"name": name, "value": time, "unit": "ms/video", "samples": [time], "conditions": {}}
        for name, time in zip(names, times, strict=True)
    ]
    return record


def rows_of(store: RecordStore, *records: dict[str, Any], ranks: Any = None) -> list[MethodRow]:
    for record in records:
        store.save(record, ranks)
    return method_rows(stored_records(store, STANDIN))


class TestWhatIsShown:
    def test_methods_with_the_same_tokens_share_a_curve(self, store: RecordStore) -> None:
        rows = rows_of(
            store,
            with_blocks("lora", [12, 17], [12, 17]),
            with_blocks("tempme", [12, 15], [1, 28]),
            make_record("tome"),
        )
        rows = rows_of(store, with_blocks("vidtome", [12, 17], [12, 17]))
        curves = token_curves(rows)
        assert [(set(curve.labels), curve.tokens) for curve in curves] == [
            ({"lora", "vidtome"}, (204, 204)),
            ({"tempme"}, (180, 28)),
        ]

    def test_seeds_are_shown_where_there_are_several(self, store: RecordStore) -> None:
        one, two = make_record("tempme", seed=0), make_record("tempme", seed=1)
        two["metrics"]["t2v"]["R1"] = one["metrics"]["t2v"]["R1"] + 4
        (spread,) = seed_spreads(rows_of(store, one, two, make_record("lora")))
        assert spread.label == "tempme"
        assert spread.seeds[1] - spread.seeds[0] == pytest.approx(4)
        assert spread.mean == pytest.approx(np.mean(spread.seeds))

    def test_time_needs_every_stage(self, store: RecordStore) -> None:
        rows = rows_of(store, with_stages("tempme", 20.0, 1.0, 4.0), with_stages("lora", 20.0, 1.0, names=NAMES[:2]))
        assert time_stages(rows).to_dict("index") == {"tempme": {"decode": 20.0, "preprocess": 1.0, "encode": 4.0}}
        assert time_stages([]).empty

    def test_the_interval_of_several_seeds_comes_from_what_queries_earned(self, store: RecordStore) -> None:
        ranks = np.array([1.0] * 30 + [1.5] * 40 + [3.0] * 30, dtype=np.float32)
        for seed in (0, 1):
            record = make_record("tempme", seed=seed, duration_s=12.5 + seed)
            record["metrics"]["t2v"]["R1"] = 30.0
            record["metrics"]["ties_shared"] = {"t2v": {"R1": 50.0, "R5": 100.0, "R10": 100.0, "R1_interval": [1, 2]}}
            rows = rows_of(store, record, ranks={"t2v": ranks, "v2t": ranks})
        low, high = recall_interval(rows[0]) or (0.0, 0.0)
        assert 40 < low < 50 < high < 60

    def test_axes_are_what_was_measured(self, store: RecordStore) -> None:
        rows = rows_of(store, make_record("tempme"), make_record("lora"))
        keys = [axis.key for axis in cost_axes(rows)]
        assert keys[0] == "gmacs_video_inference"
        assert len(keys) == len(set(keys))
        assert "energy_video_energy" not in keys
        assert [axis.better for axis in accuracy_axes(rows) if axis.key == "t2v_MdR"] == ["min"]
        assert [p.label for p in points(rows, cost_axes(rows)[0])] == ["lora", "tempme"]

    def test_fewer_frames_are_one_line_with_short_names(self, store: RecordStore) -> None:
        records = []
        for keep in (4, 8):
            record = make_record("frame_subsample")
            record["method"]["options"] |= {"keep": keep, "frames": 12}
            records.append(record)
        rows = rows_of(store, *records, make_record("tempme"))
        found = {p.label: p for p in points(rows, cost_axes(rows)[0])}
        assert set(found) == {"4 of 12 frames", "8 of 12 frames", "tempme"}
        assert found["4 of 12 frames"].line == found["8 of 12 frames"].line is not None
        assert found["4 of 12 frames"].style == found["8 of 12 frames"].style != found["tempme"].style


class TestPictures:
    CURVES = (
        Curve(labels=("zero_shot", "clip4clip", "$lora_"), style=0, tokens=(204,) * 12),
        Curve(labels=("tempme",), style=1, tokens=(*range(192, 82, -10), 28)),
        Curve(labels=("tome",), style=2, tokens=(*range(192, 82, -10), 30)),
    )
    SPREADS = (
        Spread(label="tempme", style=0, seeds=(40.0, 41.0, 41.0), mean=40.67, interval=(37.0, 44.0)),
        Spread(label="lora", style=1, seeds=(39.0, 39.5), mean=39.25, interval=None),
    )
    STAGES = pd.DataFrame({"decode": [20.0], "preprocess": [0.1], "encode": [9.0]}, index=["t"])

    def drawn(self, notice: str | None) -> list[bytes]:
        return [
            tokens_per_layer(self.CURVES, title="tokens"),
            seeds_spread(self.SPREADS, title="seeds", notice=notice),
            time_breakdown(self.STAGES, title="time"),
        ]

    def test_they_are_printable_and_the_same_tomorrow(self) -> None:
        first = self.drawn(None)
        assert first == self.drawn(None)
        for data in first:
            file = Image.open(io.BytesIO(data))
            assert file.info["dpi"][0] == pytest.approx(220, abs=1)
            assert file.width >= 7 * 200
            image = np.asarray(file.convert("RGB"))
            assert (image[:, :3] == 255).all()  # nothing is cut off at the sides
            assert (image[:, -3:] == 255).all()

    def test_a_notice_is_in_red(self) -> None:
        for notice, least, most in (("Not a comparison.", 500, 100_000), (None, 0, 0)):
            drawn = seeds_spread(self.SPREADS, title="seeds", notice=notice)
            red = np.asarray(Image.open(io.BytesIO(drawn)).convert("RGB")).astype(int)
            alert = (red[..., 0] > 150) & (red[..., 1] < 60) & (red[..., 2] < 60)
            assert least <= alert.sum() <= most

    @given(
        st.lists(st.tuples(st.floats(0, 200), st.floats(1, 20)), min_size=1, max_size=9),
        st.floats(100, 210),
    )
    @settings(max_examples=60, deadline=None)
    def test_labels_in_a_column_never_overlap(self, items: list[tuple[float, float]], top: float) -> None:
        wanted, heights = [w for w, _ in items], [h for _, h in items]
        places = apart(wanted, heights, top)
        order = sorted(range(len(items)), key=lambda i: places[i])
        for a, b in pairwise(order):
            assert places[b] - places[a] >= (heights[a] + heights[b]) / 2 - 1e-6
        assert all(place - height / 2 >= -1e-6 for place, height in zip(places, heights, strict=True))

    def test_what_the_records_do_not_hold_is_no_picture(self, store: RecordStore, tmp_path: Path) -> None:
        scope = ReportContext(protocol=STANDIN, dataset="standin", folder=tmp_path)
        record = with_blocks("lora", [2, 3])
        record["cost"] = [m for m in record["cost"] if m["name"] in ("gmacs_video", "output_tokens")]
        files = [picture.file for picture in pictures(rows_of(store, record), scope)]
        assert files[0] == "pareto.png"
        assert files[-1] == "tokens-per-layer.png"
        assert {"seeds.png", "time-breakdown.png"} & set(files) == set()

    def test_the_time_of_full_size_models_stands_in(self, store: RecordStore, tmp_path: Path) -> None:
        benched = with_stages("tempme", 20.0, 1.0, 4.0)
        benched |= {"protocol": {"name": "efficiency", "hash": "0123456789abcdef"}, "metrics": {}}
        store.save(make_record("lora"))
        store.save(benched)
        folder = write_report(STANDIN, store, tmp_path / "reports")[0].parent
        assert (folder / "time-breakdown.png").is_file()
        assert "![Time of decoding" in (folder / "details.md").read_text(encoding="utf-8")
