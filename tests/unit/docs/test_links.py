"""Every relative link in the documents leads to a file, and every anchor to a heading."""

from __future__ import annotations

from pathlib import Path

import pytest
from links import anchors, broken_links, links

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/**/*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_documents_lead_somewhere(path: Path) -> None:
    assert broken_links(path) == []


def test_every_document_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / link).resolve() for link in links(index.read_text(encoding="utf-8"))}
    assert [str(path) for path in sorted(ROOT.glob("docs/**/*.md")) if path != index and path not in listed] == []


TEXT = """# One `code` & two
## Twice
[a](b.md) ![p](<p.png> "t") <img src="q.png"> [w](https://x.y/z) [m](mailto:a@b.c)
## Twice
```
[in a block](no.md)
# no heading
```
`[in code](no.md)` and ``[`](no.md)`` [self](#twice-1) [under](c/d_e.md#x-y)
## A [link](l.md), and R@1
<a id="named"></a>
"""


def test_links_are_found_outside_of_code() -> None:
    assert list(links(TEXT)) == ["b.md", "p.png", "q.png", "#twice-1", "c/d_e.md#x-y", "l.md"]


def test_anchors_are_those_of_github() -> None:
    assert anchors(TEXT) == {"one-code--two", "twice", "twice-1", "a-link-and-r1", "named"}


@pytest.mark.parametrize(
    ("link", "leads"),
    [
        ("#twice-1", True),
        ("#twice-2", False),
        ("other.md", True),
        ("other.md#here", True),
        ("other.md#there", False),
        ("missing.md", False),
        ("folder", True),
        ("folder/a%20b.md", True),
        ("data.csv#row", True),
    ],
)
def test_a_link_leads_to_a_file_and_a_heading(link: str, leads: bool, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a b.md").write_text("")
    (tmp_path / "other.md").write_text("# Here\n")
    (tmp_path / "data.csv").write_text("")
    page = tmp_path / "page.md"
    page.write_text(f"# Twice\n# Twice\n[x]({link})\n")
    assert broken_links(page) == ([] if leads else [link])
