"""What holds for every table, figure and link of every kind of report: short captions, few columns, whole links."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from bench_records import GPU, counts, ratio, save_counted, speed
from bench_records import save as save_bench
from links import broken_links
from records import csv_rows, failed_record, save
from report_records import STANDIN, costs, full_size_record, method_record, metrics, msrvtt_record, write_unchecked
from search_records import ranks, search_costs, search_times, staged_record, with_costs

from tvrbench.harness.records.record import Measurement
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.figures.all_figures import Picture
from tvrbench.harness.reporting.pages import efficiency, layout
from tvrbench.harness.reporting.pages import report as protocol_report
from tvrbench.harness.reporting.pages.layout import Report, Section
from tvrbench.harness.reporting.tables.table import Table

pytestmark = pytest.mark.unit

SENTENCES, WORDS = 2, 60
LONG_AGO = "2024-01-01T00:00:00Z"
CHECKPOINT = {"file": "released.pt", "sha256": "d" * 64, "format": "released"}
COLUMNS = {"first": 12, "details": 14}


class Made(NamedTuple):
    """A report as data, its folder, and that of all reports."""

    report: Report
    folder: Path
    reports: Path

    def blocks(self, kind: type[Any]) -> Iterator[tuple[Section, Any]]:
        return ((s, block) for s in self.report.sections for block in s.blocks if isinstance(block, kind))


def everything(store: RecordStore) -> None:
    """Store a stand-in's runs with all that a report can show."""
    drawn = ranks(60.0)
    for seed in (0, 1, 2):
        record = method_record("tempme", 60.0 + seed, seed=seed)
        record["metrics"]["subsets"] = {"order-only": {"t2v": metrics(44.0)}, "order-free": {"t2v": metrics(80.0)}}
        record["metrics"]["pair_accuracy"] = 98.5
        store.save(record, drawn)
    store.save(method_record("zero_shot", 20.0), ranks(20.0))
    store.save(method_record("lora", 50.0, command="tvrbench run standin/uniform --methods lora"), ranks(50.0))
    for keep in (4, 8):
        record = method_record("frame_subsample", 40.0 + keep)
        record["method"]["options"] = record["method"]["options"] | {"keep": keep}
        store.save(record, ranks(40.0 + keep))
    chosen = method_record("adapter", 70.0)
    chosen["metrics"]["selection"] = "best-on-test"
    gap = Measurement.missing("throughput", "videos/s", "the worker died", what="inference")
    save(store, chosen, failed_record(seed=7), method_record("bias", 44.0, cost=costs("bias", throughput=gap)))
    for storage in ("float32", "int8"):
        costs_of_search = (*search_costs(pair=100, storage=storage), *search_times(3.0))
        given = {"storage": storage} if storage != "float32" else {}
        store.save(with_costs(staged_record("eercf", 48.0, 42.0, given=given), *costs_of_search), ranks(48.0, 42.0))
    scores = [{"step": step, "R1": 40.0 + step, "RSum": 200.0 + step} for step in (1, 2)]
    several = method_record("prompts", 42.0)
    several["metrics"]["checkpoints"] = {"scores": scores}
    scored = method_record("lora", 60.0, seed=5) | {"checkpoint": CHECKPOINT, "weights_sha256": CHECKPOINT["sha256"]}
    scored["metrics"]["selection"] = "unknown"
    save(store, several, scored)
    save(store, method_record("clip4clip", protocol={"name": STANDIN, "hash": "f" * 16}, started=LONG_AGO))
    save(store, full_size_record("tempme"), full_size_record("tempme", "ViT-B-16"), full_size_record("lora"))
    old = full_size_record("tempme") | {"started": LONG_AGO}
    save(store, old | {"protocol": {"name": "paper-scale", "hash": "f" * 16}})
    write_unchecked(store, method_record("tempme", 60.0), method_record(started=LONG_AGO))


def published(store: RecordStore) -> None:
    """Store runs with their papers' own recipes."""
    save(store, msrvtt_record("tempme", 46.1), msrvtt_record("lora", 43.7), full_size_record("tempme"))


def training_free(store: RecordStore) -> None:
    """Store runs of reducers that are held against the dense encoder."""
    plain = {"gmacs_video": 52.96, "output_tokens": 600, "R1": 48.0}
    for r, share in ((1, 0.9), (2, 0.7), (4, 0.4)):
        record = method_record("tome", 48.0 * share, tuning="frozen")
        record["method"]["options"] = {"backbone": "ViT-B-32", "frames": 12, "tuning": "frozen", "r": r}
        record["cost"] = [m.to_json() for m in counts(52.96 * share, int(600 * share) // 12 * 12)]
        cosine = {"mean": share, "quantile_05": share - 0.1, "min": share - 0.2}
        record["metrics"]["agreement"] = {"cosine": cosine, "same_top1": 80.0, "plain": plain}
        save(store, record)


def benched(store: RecordStore) -> None:
    """Store costs on two devices and two backbones, and counted ones of long videos."""
    for backbone in ("ViT-B-32", "ViT-B-16"):
        for method, share in (("lora", 1.0), ("tempme", 0.6), ("centerclip", 0.7), ("dgl", 1.2)):
            measured = [*counts(53.0 * share, 600, 491520), speed(5.0 / share), *ratio(1 / share, 1.1 / share)]
            save_bench(store.root, method, [*measured, *search_costs()], backbone=backbone)
            for frames in (12, 32, 64):
                long = counts(53.0 * share * frames / 12, 50 * frames, frames=frames)
                save_counted(store.root, method, long, frames, backbone=backbone)
        for keep in (4, 8):
            fewer = [*counts(53.0 * keep / 12, 50 * keep, 491520), speed(60.0 / keep), *ratio(12 / keep, 12 / keep)]
            save_bench(store.root, "frame_subsample", fewer, backbone=backbone, keep=keep)
    step = Measurement("step_time", 12.0, "ms", [12.0], {"what": "training", "precision": "float32", "batch": 32})
    cost = [*counts(53.0, 600), speed(50.0, device="cuda:0"), step]
    save_bench(store.root, "lora", cost, device=GPU, hash="bbbbbbbb")


KINDS: dict[str, tuple[str, Callable[[RecordStore], None]]] = {
    "uniform": (STANDIN, everything),
    "published": ("msrvtt-1ka-9k/published", published),
    "training-free": (STANDIN, training_free),
    "efficiency": ("efficiency", benched),
}


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Make a report of each kind."""
    protocol, records = KINDS[request.param]
    root, written = tmp_path_factory.mktemp(request.param), list[tuple[Report, Path]]()
    store = RecordStore(root / "results")
    records(store)

    def write(report: Report, folder: Path, formats: Any = ()) -> list[Path]:
        written.append((report, folder))
        return layout.write(report, folder, formats)

    with pytest.MonkeyPatch.context() as patch:
        for module in (protocol_report, efficiency):
            patch.setattr(module, "write", write)
        if protocol == "efficiency":
            efficiency.write_efficiency(store, root / "reports")
        else:
            protocol_report.write_report(protocol, store, root / "reports")
    return Made(*written[0], root / "reports")


SHOWN = {
    "uniform": "main results equal-time scored selection spread pairs subsets two-stage storage-types search "
    "search-time published not-comparable paper-scale provenance",
    "published": "main results published published-other claims not-comparable paper-scale provenance",
    "training-free": "agreement main results provenance",
    "efficiency": "cost encoding training equal-time search long-videos claims claims-tables",
}


def test_the_records_show_every_table(made: Made, request: pytest.FixtureRequest) -> None:
    names = {table.name.partition("/")[0] for _, table in made.blocks(Table)}
    assert names >= set(SHOWN[request.node.callspec.params["made"]].split())


def test_captions_are_two_short_sentences_without_the_notice(made: Made) -> None:
    for _, block in [*made.blocks(Table), *made.blocks(Picture)]:
        caption = block.caption
        assert len(re.findall(r"[.!?](?=\s|$)", caption)) <= SENTENCES, caption
        assert len(caption.split()) <= WORDS, caption
        assert not made.report.notice or made.report.notice not in caption


def test_tables_are_narrow_and_each_has_its_csv(made: Made) -> None:
    tables = list(made.blocks(Table))
    assert tables
    for section, table in tables:
        shown = not (table.folded or table.csv_only)
        assert len(table.columns) <= COLUMNS[section.page] or not shown, table.name
        assert len(csv_rows(made.folder, table.file.removesuffix(".csv"))) >= len(table.rows)
    for names in ([table.file for _, table in tables], [table.anchor for _, table in tables]):
        assert len(set(names)) == len(names)


def test_the_notice_is_once_on_each_page_and_in_every_csv(made: Made) -> None:
    notice = made.report.notice
    if notice is None:
        pytest.skip("real data have no notice")
    for name in ("README.md", "details.md"):
        assert (made.folder / name).read_text(encoding="utf-8").count(notice) == 1
    text = (made.folder / "page.html").read_text(encoding="utf-8")
    assert re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL).count(notice) == 1
    for _, table in made.blocks(Table):
        rows = csv_rows(made.folder, table.file.removesuffix(".csv"))
        assert all(notice in row["note"] for row in rows)


def test_every_link_leads_to_a_file_or_a_heading(made: Made) -> None:
    pages = [made.folder / "README.md", made.folder / "details.md", made.reports / "README.md"]
    assert [broken for page in pages if page.is_file() for broken in broken_links(page)] == []
    text = (made.folder / "page.html").read_text(encoding="utf-8")
    inside = set(re.findall(r'\bid="([^"]*)"', text))
    for target in re.findall(r'\b(?:href|src)="([^"]*)"', text):
        if not re.match(r"(data|https):", target):
            file, _, anchor = target.partition("#")
            assert (made.folder / file).exists(), target
            assert file or anchor in inside, target


def test_every_listed_file_is_linked_or_shown(made: Made) -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in made.folder.glob("*.md"))
    listed = (made.folder / "files.txt").read_text(encoding="utf-8").split()
    assert [name for name in listed if f"]({name})" not in text and name != "README.md"] == []
