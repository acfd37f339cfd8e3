"""Letters of significance: two rows share one unless they differ, and no letter says what another one says."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tvrbench.harness.reporting.analysis.letters import letter_display

pytestmark = pytest.mark.unit


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, set[tuple[int, int]]]:
    """A number of rows, and the pairs of them that differ, in any order and either way round."""
    count = draw(st.integers(0, 9))
    pairs = list(combinations(range(count), 2))
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return count, {pair if draw(st.booleans()) else pair[::-1] for pair in chosen}


@settings(max_examples=300, deadline=None)
@given(graphs())
def test_rows_share_a_letter_exactly_if_they_do_not_differ(graph: tuple[int, set[tuple[int, int]]]) -> None:
    count, different = graph
    letters = [set(shown) for shown in letter_display(count, different)]
    assert len(letters) == count
    assert all(letters)
    for a, b in combinations(range(count), 2):
        assert bool(letters[a] & letters[b]) == (not {(a, b), (b, a)} & different)
    rows = {letter: {i for i, own in enumerate(letters) if letter in own} for own in letters for letter in own}
    assert not any(own <= other for own, other in combinations(rows.values(), 2))
    assert not any(other <= own for own, other in combinations(rows.values(), 2))
    assert count == 0 or "a" in letters[0]
    assert sorted(rows) == [chr(ord("a") + i) for i in range(len(rows))]


@pytest.mark.parametrize(
    ("count", "different", "letters"),
    [
        (0, [], []),
        (1, [], ["a"]),
        (3, [], ["a", "a", "a"]),
        (3, [(0, 1), (0, 2), (1, 2)], ["a", "b", "c"]),
        (3, [(0, 2)], ["a", "ab", "b"]),
        (4, [(0, 2), (0, 3), (1, 3)], ["a", "ab", "bc", "c"]),
        (3, [(1, 2)], ["ab", "a", "b"]),
    ],
)
def test_displays_by_hand(count: int, different: list[tuple[int, int]], letters: list[str]) -> None:
    assert letter_display(count, different) == letters


@pytest.mark.parametrize(("count", "last"), [(26, "z"), (27, "aa"), (28, "ab"), (53, "ba")])
def test_names_go_on_after_z(count: int, last: str) -> None:
    assert letter_display(count, combinations(range(count), 2))[-1] == last


def test_letters_of_two_characters_are_separated() -> None:
    far = [(i, j) for i, j in combinations(range(28), 2) if j - i > 1]
    assert letter_display(28, far)[-2:] == ["z,aa", "aa"]
