"""Names in code spans of documents (fields, options, functions) exist in the sources."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
SOURCES = ("harness", "methods", "baselines", "datasets", "tests", "results/published")
KINDS = {".py", ".toml", ".csv", ".json", ".j2"}
# Names of other programs, and parts of names of files.
OTHERS = {
    *("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "PYTORCH_CUDA_ALLOC_CONF", "expandable_segments"),
    *("data_filter", "mmap_mode", "efficiency__counted"),
}
NAME = re.compile(r"[A-Za-z]\w*_\w+")


def names(text: str) -> set[str]:
    """Return the names with an underscore in code spans, without those of files."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```", "", text))
    return {name for span in spans if not re.search(r"/\w+\.\w+$", span) for name in NAME.findall(span)}


@cache
def sources() -> str:
    files = [file for folder in SOURCES for file in (ROOT / folder).rglob("*") if file.suffix in KINDS]
    return "\n".join(file.read_text(encoding="utf-8") for file in files if file != Path(__file__))


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/**/*.md")), ids=lambda path: str(path.relative_to(ROOT)))
def test_names_in_documents_exist(path: Path) -> None:
    found = names(path.read_text(encoding="utf-8")) - OTHERS
    assert sorted(name for name in found if name not in sources()) == []


def test_names_are_those_with_an_underscore_in_code() -> None:
    text = "a_b `c_d` and `e_f(g_h=1)`, `harness/x_y.py`\n```\ni_j\n```\n"
    assert names(text) == {"c_d", "e_f", "g_h"}
