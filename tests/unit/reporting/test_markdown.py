"""Text of others stays text in Markdown, and numbers print with the digits that they are given."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tvrbench.harness.reporting.catalogue import significant, with_interval
from tvrbench.harness.reporting.tables.markdown import Code, Markdown, brief, escaped, inline, one_line, templates

pytestmark = pytest.mark.unit


PIECES = [
    "|",
    "*",
    "**",
    "_",
    "`",
    "``",
    "<b>",
    "&lt;",
    "&#42;",
    "http://a.b",
    "www.a.b",
    "- ",
    "1. ",
    "# ",
    "\\",
    "~~",
]
PIECES += ["![x](y)", "[a]: b", "\n", "\n\n", "$x$", "---", "> ", "=", "    ", "<!--", "a", "b c", "+", ":-", "1)"]
HOSTILE = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=8).map("".join)


def html(markdown: str) -> str:
    return str(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown))


def plain(cell: str) -> str:
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        cell = cell.replace(entity, character)
    return cell.strip()


@given(HOSTILE)
@settings(max_examples=200, deadline=None)
def test_escaped_text_shows_as_it_is(text: str) -> None:
    places = (("- {}\n", "li", ""), ("| h |\n|---|\n| x {} |\n", "td", "x "), ("{}\n", "p", ""), ("# {}\n", "h1", ""))
    for around, inside, before in places:
        rendered = html(around.format(escaped(text)))
        cell = "".join(re.findall(rf"<{inside}[^>]*>(.*?)</{inside}>", rendered, re.DOTALL))
        assert "<" not in cell
        assert plain(cell) == f"{before}{one_line(text)}".strip()


@given(st.text(alphabet="`a b\n", max_size=12))
@settings(max_examples=100, deadline=None)
def test_code_keeps_its_backticks(text: str) -> None:
    if one_line(text):
        assert f"<code>{one_line(text)}</code>" in html(inline([Code(text)]))


def test_a_template_escapes_what_is_not_markdown() -> None:
    template = templates().from_string("{{ a }} {{ b }}")
    assert template.render(a="*<i>*", b=Markdown("*b*")) == r"\*&lt;i&gt;\* *b*"


def test_long_text_is_cut_where_it_is_foreign() -> None:
    assert len(brief("x" * 1000)) == 300
    assert brief("a\u202eb\x00\ud800c") == "a b c"


@pytest.mark.parametrize(
    ("value", "text"),
    [(34.758, "34.76"), (121.42, "121.4"), (0.05312, "0.05312"), (12381.0, "12,381"), (9.99996, "10.00"), (0.0, "0")],
)
def test_significant_digits(value: float, text: str) -> None:
    assert significant(4)(value) == text


def test_addresses_are_no_links() -> None:
    """GitHub turns bare addresses into links; these are broken for it and shown whole."""
    text = escaped("see http://a.example and www.b.example")
    assert "://" not in text
    assert "www." not in text
    assert "see http://a.example and www.b.example" in html(text)


@pytest.mark.parametrize(
    ("numbers", "printed"),
    [(("51.2", "46.1", "56.3"), "51.2 (46.1–56.3)"), (("+3.0", "-2.3", "+8.4"), "+3.0 (-2.3 to +8.4)")],
)
def test_an_interval_needs_no_escapes_and_its_dash_is_no_sign(numbers: tuple[str, str, str], printed: str) -> None:
    assert with_interval(*numbers) == printed
    assert escaped(printed) == printed
