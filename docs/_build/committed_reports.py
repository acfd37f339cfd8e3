"""Tests that each committed report is what the committed records give: ``pytest docs/_build/committed_reports.py``."""

from __future__ import annotations

import io
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from links import broken_links
from PIL import Image

from tvrbench.harness.cli.app import main
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.pages.index import write_index
from tvrbench.harness.reporting.pages.report import BESIDE

ROOT = Path(__file__).parents[2]
REPORTS = ROOT / "reports"
PICTURE_TOLERANCE = 1.0  # mean absolute difference of 8-bit pixels: another font renderer, but not other data
_EMBEDDED = re.compile(rb"data:image/png;base64,[A-Za-z0-9+/=]*")


@pytest.fixture
def remade() -> Iterator[Path]:
    """Make a folder beside ``reports``, so that the relative links to records come out the same."""
    with tempfile.TemporaryDirectory(prefix=".docs-check-", dir=ROOT) as folder:
        yield Path(folder)


PROTOCOLS = sorted(str(p.parent.relative_to(REPORTS)) for p in REPORTS.glob("*/**/README.md"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_report_is_current(protocol: str, remade: Path) -> None:
    (remade / protocol).mkdir(parents=True)
    for name in BESIDE:  # made from models and videos; the report mentions those that exist
        if (REPORTS / protocol / name).is_file():
            shutil.copy(REPORTS / protocol / name, remade / protocol)
    assert main(["report", protocol, "--results", str(ROOT / "results"), "--reports", str(remade)]) == 0
    assert [f"{page.name}: {link}" for page in (remade / protocol).glob("*.md") for link in broken_links(page)] == []
    command = f"tvrbench report {protocol} --results results --reports reports"
    assert different_files(remade / protocol, REPORTS / protocol) == [], f"run: {command}"


def test_index_is_current(remade: Path) -> None:
    for protocol in PROTOCOLS:  # the index links the pages that exist
        shutil.copytree(REPORTS / protocol, remade / protocol, ignore=shutil.ignore_patterns("*.png", "*.csv"))
    (made,) = write_index(RecordStore(ROOT / "results"), remade)
    assert broken_links(made) == []
    command = f"tvrbench report {PROTOCOLS[0]} --results results --reports reports"
    assert made.read_bytes() == (REPORTS / made.name).read_bytes(), f"run: {command}"


def different_files(made: Path, kept: Path) -> list[str]:
    """List the files that only one of two reports has, or that differ."""
    names = {str(path.relative_to(folder)) for folder in (made, kept) for path in folder.rglob("*") if path.is_file()}
    return sorted(name for name in names if not _same(made / name, kept / name))


def _same(made: Path, kept: Path) -> bool:
    if not (made.is_file() and kept.is_file()):
        return False
    one, other = made.read_bytes(), kept.read_bytes()
    if made.suffix == ".html":  # the pictures of a page are also files, and compared as such
        one, other = (_EMBEDDED.sub(b"", data) for data in (one, other))
    if one == other or made.suffix != ".png":
        return one == other
    pictures = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.int16) for data in (one, other)]
    same_size = pictures[0].shape == pictures[1].shape
    return same_size and float(np.abs(pictures[0] - pictures[1]).mean()) < PICTURE_TOLERANCE
