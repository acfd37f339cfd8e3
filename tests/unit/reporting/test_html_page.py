"""``page.html`` as a file: fetches nothing, escapes everything, holds the numbers of the tables, names its script."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from records import csv_rows, make_record
from report_records import STANDIN, msrvtt_record, report, write_unchecked

from tvrbench.datasets.standin.dataset import StandIn
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.figures.all_figures import Picture
from tvrbench.harness.reporting.pages.html import sort_value
from tvrbench.harness.reporting.pages.report import write_report
from tvrbench.harness.reporting.tables.table import Cell

pytestmark = pytest.mark.unit

HOSTILE = "a</script><script>alert(1)</script><img src=x onerror=alert(1)> \u202e\"'{{ 7 * 7 }} & b"
STILL = Picture(file="pareto.png", data=b"png", alternative="<i>R@1</i>", caption="said", kind="pareto")


class Page(HTMLParser):
    """Elements in order, the text of each script, and every address."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] or "" for _, attributes in self.tags if attribute in attributes]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordStore:
    monkeypatch.setattr("tvrbench.harness.reporting.pages.report.pictures", lambda rows, *_: [STILL] if rows else [])
    return RecordStore(tmp_path / "results")


def write(store: RecordStore, tmp_path: Path, *records: dict[str, Any]) -> Path:
    write_unchecked(store, *records)
    return report(store, tmp_path, records[0]["protocol"]["name"])


def text_of(folder: Path) -> str:
    return (folder / "page.html").read_text(encoding="utf-8")


def methods_of(page: Page) -> list[dict[str, Any]]:
    """The methods of a chart of one group."""
    (group,) = json.loads(page.scripts[0])["groups"]
    found: list[dict[str, Any]] = group["methods"]
    return found


class TestSelfContained:
    def test_no_address_leaves_the_folder(self, store: RecordStore, tmp_path: Path) -> None:
        page = Page(text_of(write(store, tmp_path, make_record(), make_record("lora"))))
        sources, links = page.values("src"), page.values("href")
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        assert sources
        assert not [link for link in links if re.match(r"[a-z]+:|//", link) and link != "data:,"]
        assert [link for link in links if link.endswith(".json")]
        assert "@import" not in text_of(tmp_path / "reports" / "standin" / "uniform")

    def test_the_policy_names_the_hash_of_the_only_script(self, store: RecordStore, tmp_path: Path) -> None:
        page = Page(text_of(write(store, tmp_path, make_record())))
        data, script = page.scripts
        policy = next(a["content"] or "" for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in policy
        assert policy.startswith("default-src 'none';")
        assert "unsafe" not in policy
        assert json.loads(data)["groups"][0]["methods"]

    def test_the_same_records_give_the_same_bytes(self, store: RecordStore, tmp_path: Path) -> None:
        folder = write(store, tmp_path, make_record(), make_record("lora"))
        first = text_of(folder)
        write_report(STANDIN, store, tmp_path / "reports")
        assert text_of(folder) == first


class TestHostileText:
    def test_names_of_others_stay_text(self, store: RecordStore, tmp_path: Path) -> None:
        record = make_record(HOSTILE, command=f"tvrbench {HOSTILE}")
        record["data"] |= {"skipped": [HOSTILE], "test_split": HOSTILE}
        record["environment"]["device"] = HOSTILE
        record["metrics"]["subsets"] = {HOSTILE: {"t2v": record["metrics"]["t2v"]}}
        failed = make_record(seed=3, status="failed", metrics={}, failure=HOSTILE)
        text = text_of(write(store, tmp_path, record, failed))
        page = Page(text)
        assert len(page.scripts) == 2
        assert "img" not in {tag for tag, attributes in page.tags if "onerror" in attributes}
        assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
        assert "\u202e" not in text
        (method,) = methods_of(page)
        assert "49" not in method["label"]
        assert method["label"].startswith("a</script><script>alert(1)")
        assert "&lt;/script&gt;" in text
        assert "<i>" not in text


class TestNumbers:
    def test_cells_are_those_of_the_tables(self, store: RecordStore, tmp_path: Path) -> None:
        folder = write(store, tmp_path, make_record("tempme", 61.23456), make_record("lora", 12.0))
        rows = {row["method"]: row for row in csv_rows(folder, "results")}
        text = text_of(folder)
        for method in ("tempme", "lora"):
            line = next(part for part in text.split("<tr") if f">{method}</th>" in part)
            values = re.findall(r'data-v="([^"]*)"', line)
            texts = re.findall(r"<td>([^<]*)", line)
            assert f"{float(rows[method]['t2v_R1']):.9g}" in [*values, *texts]
        assert {m["label"]: m["points"]["t2v_R1"][0] for m in methods_of(Page(text))} == {
            "tempme": 61.23456,
            "lora": 12.0,
        }

    def test_points_lead_to_their_rows(self, store: RecordStore, tmp_path: Path) -> None:
        text = text_of(write(store, tmp_path, make_record("tempme", 61.0), make_record("lora", 70.0)))
        for method in methods_of(Page(text)):
            line = next(part for part in text.split("<tr") if f'id="{method["row"]}"' in part)
            assert f">{method['label']}</th>" in line

    @pytest.mark.parametrize(
        ("cell", "wanted"),
        [
            (Cell(text="≥ 1,234", value=1234.5), "1234.5"),
            (Cell(text="–", value=None), ""),
            (Cell(text="-3.0 to 2.5", value="-3.04 to 2.51"), "-3.0"),
            (Cell(text="tempme 2", value="tempme 2"), ""),
            (Cell(text="0.33", value=1 / 3), "0.333333333"),
            (Cell(text="600", value=600), "600"),
        ],
    )
    def test_what_cells_sort_by(self, cell: Cell, wanted: str) -> None:
        assert sort_value(cell) == wanted

    def test_what_was_not_measured_is_no_point(self, store: RecordStore, tmp_path: Path) -> None:
        record = make_record()
        for m in record["cost"]:
            if m["name"] == "throughput":
                m |= {"value": None, "samples": [], "conditions": {"reason": "no clock"}}
        (method,) = methods_of(Page(text_of(write(store, tmp_path, record))))
        assert "throughput_inference" not in method["points"]
        assert "gmacs_video_inference" in method["points"]


class TestNotice:
    def test_the_stand_in_is_named_once_and_in_the_title(self, store: RecordStore, tmp_path: Path) -> None:
        text = text_of(write(store, tmp_path, make_record(), make_record("lora")))
        assert f"<title>{STANDIN}: embedded stand-in, not MSR-VTT</title>" in text
        assert text.count(StandIn.notice) == 1
        assert f'<aside class="notice" aria-label="Notice">{StandIn.notice}</aside>' in text

    def test_real_data_has_no_such_notice(self, store: RecordStore, tmp_path: Path) -> None:
        text = text_of(write(store, tmp_path, msrvtt_record("tempme", 46.0)))
        assert "stand-in" not in text
        data = json.loads(Page(text).scripts[0])
        assert data["frontier"] is False
        assert data["words"]["warning"]
