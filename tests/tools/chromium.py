"""Pages in headless Chromium, for the tests of pages: nothing may be fetched, and nothing may complain."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

Open = Callable[..., Any]
"""(width, height, fragment of the address, **options of a browser's context) -> page."""


@contextmanager
def launched() -> Iterator[Any]:
    """A browser; the test is skipped where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as driver:  # with a user-data-dir of its own
        found = driver.chromium.launch(executable_path=path, headless=True, args=flags)
        yield found
        found.close()


@contextmanager
def watched(browser: Any, file: Path) -> Iterator[Open]:
    """Opens the page; at the end nothing but the file may have been fetched, and nothing said."""
    contexts, asked, said = [], [], []

    def open_page(width: int = 1280, height: int = 900, at: str = "", **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append("dialog"))
        page.goto(file.as_uri() + at)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert {url.partition("#")[0] for url in asked if not url.startswith("data:")} == {file.as_uri()}
    assert said == []


def column(page: Any, key: str, table: str = "main") -> list[str]:
    """The texts of a table's column, top to bottom, of rows that are shown."""
    place = page.locator(f"#table-{table} thead th").evaluate_all(
        "(heads, key) => heads.findIndex(head => head.dataset.key === key)", key
    )
    rows = page.locator(f"#table-{table} tbody tr:not(.group):not([hidden])")
    return list(rows.locator(f":scope > :nth-child({place + 1})").all_text_contents())


def press(page: Any, key: str, table: str = "main") -> None:
    """Press the header of a column."""
    page.locator(f'#table-{table} th[data-key="{key}"] button').click()


def labels(page: Any) -> list[str]:
    """What is said of each point of the chart."""
    return [anchor.get_attribute("aria-label") or "" for anchor in page.locator("#plot a").all()]


def assert_names_apart(page: Any, fewest: Callable[[int], int]) -> None:
    """No name in the chart covers a point or another name; ``fewest`` of so many points are named."""
    boxes = page.locator("#plot text.name").evaluate_all(
        "all => all.map(t => t.getBBox()).map(b => [b.x, b.y + 3, b.x + b.width, b.y + b.height - 3])"
    )
    marks = page.locator("#plot a .hit").evaluate_all(
        "all => all.map(c => [1, 2].map(i => Number(c.getAttribute(i === 1 ? 'cx' : 'cy'))))"
    )
    points = [[x - 5, y - 5, x + 5, y + 5] for x, y in marks]
    shared = [(a, b) for i, a in enumerate(boxes) for b in [*boxes[:i], *points] if _overlap(a, b) > 12]
    assert shared == []
    assert len(boxes) >= fewest(len(points))


def color_of(page: Any, selector: str, which: str) -> list[float]:
    """A color of the first such element, red, green and blue."""
    return numbers(page.locator(selector).first.evaluate(f"element => getComputedStyle(element).{which}"))


def numbers(color: str) -> list[float]:
    """Of ``rgb(1, 2, 3)``."""
    return [float(part) for part in re.findall(r"[\d.]+", color)[:3]]


def luminance(color: list[float]) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one: list[float], other: list[float]) -> float:
    """Contrast ratio (WCAG 2.2)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _overlap(a: list[float], b: list[float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
