"""``tvrbench compare``: the differences of two records, then their numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from tvrbench.harness.core.console import print_json, say
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.options import RESULTS, Json

if TYPE_CHECKING:  # these import torch, for which --help must not wait
    from tvrbench.harness.records.runs import StoredRecord
    from tvrbench.harness.reporting.analysis.compare_records import RecordComparison
    from tvrbench.harness.reporting.papers.ranks import PublishedRanks

_NAMED = 5


def compare(
    a: Annotated[Positional[str], arg(metavar="A")],
    b: Annotated[Positional[str], arg(metavar="B")],
    /,
    results: Path = RESULTS,
    as_json: Json = False,
) -> None:
    """Explain what differs between two records, then compare their numbers, with intervals where queries are shared.

    One of them may be a paper's result whose ranks of single queries ship here: published:NAME.

    Args:
        a: A record's file, or its name (or the beginning of it) below the results folder; or published:NAME (or the
            beginning of it), one of tvrbench list published.
        b: The other one; differences are B minus A, ratios B over A.
        results: Folder of records.
    """
    one, other = (_find(name, results) for name in (a, b))
    comparison = _compare(one, other)
    if as_json:
        print_json({"a": _identity(one), "b": _identity(other)} | asdict(comparison))
        return
    for letter, side in (("A", one), ("B", other)):
        print(f"{letter}: {_title(side)}")
    for side in (one, other):
        _print_source(side)
    if comparison.same_run is not None:
        print(f"A and B are two records of one run, which count as one seed: B is {comparison.same_run}.")
    print()
    _print_facts(comparison)
    _print_metrics(comparison)
    _print_costs(comparison)


def _find(name: str, results: Path) -> StoredRecord | PublishedRanks:
    from tvrbench.harness.reporting.papers.ranks import PREFIX, load_published_ranks

    return load_published_ranks(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else find_record(name, results)


def _compare(a: StoredRecord | PublishedRanks, b: StoredRecord | PublishedRanks) -> RecordComparison:
    from tvrbench.harness.records.runs import StoredRecord
    from tvrbench.harness.reporting.analysis.compare_published import compare_with_published
    from tvrbench.harness.reporting.analysis.compare_records import compare_records

    if isinstance(a, StoredRecord):
        if isinstance(b, StoredRecord):
            return compare_records(a, b)
        return compare_with_published(a, b, published_first=False)
    if isinstance(b, StoredRecord):
        return compare_with_published(b, a, published_first=True)
    raise UsageError(
        "both are published results, which differ in more than their method: give a run for one of them",
        code="published.both",
    )


def find_record(name: str, results: Path) -> StoredRecord:
    """The record of a file, or the one below ``results`` whose file name is, or begins with, ``name``.

    Raises:
        UsageError: there is none, there are several, or it is no valid record.
    """
    from tvrbench.harness.records.record import read_record
    from tvrbench.harness.records.runs import StoredRecord
    from tvrbench.harness.records.store import RecordStore

    path = Path(name)
    if not path.is_file():
        stem = path.name.removesuffix(".json")
        records = sorted((results / "records").glob("*/*.json"))
        under = [f for f in records if path.parent.name in ("", f.parent.name) and stem and f.stem.startswith(stem)]
        matches = [file for file in under if file.stem == stem] or under
        if not matches:
            where = RecordStore(results).searched()
            raise UsageError(
                f"no record {name!r}: give a record's file or the start of its name below {where}",
                code="record.missing",
                record=name,
            )
        if len(matches) > 1:
            shown = ", ".join(f"{file.parent.name}/{file.stem}" for file in matches[:_NAMED])
            more = f" and {len(matches) - _NAMED} more" if len(matches) > _NAMED else ""
            raise UsageError(
                f"{name!r} matches {len(matches)} records ({shown}{more}); give more of the name",
                code="record.ambiguous",
                record=name,
                matches=len(matches),
            )
        path = matches[0]
    return StoredRecord(record=read_record(path), path=path.resolve())


def _title(side: StoredRecord | PublishedRanks) -> str:
    from tvrbench.harness.records.runs import StoredRecord
    from tvrbench.harness.reporting.papers.ranks import PREFIX
    from tvrbench.harness.reporting.tables.markdown import one_line

    if isinstance(side, StoredRecord):
        return f"{one_line(side.name)} ({one_line(side.path.parent.name)}/{one_line(side.path.stem)})"
    return f"{side.title} ({PREFIX}{side.name})"


def _print_source(side: StoredRecord | PublishedRanks) -> None:
    from tvrbench.harness.records.runs import StoredRecord

    if not isinstance(side, StoredRecord):
        print(f"\n{side.paper}. Ranks: {side.counted}. From {side.source}; {side.license}.")


def _identity(side: StoredRecord | PublishedRanks) -> dict[str, Any]:
    from tvrbench.harness.records.runs import StoredRecord

    if not isinstance(side, StoredRecord):
        return side.about()
    run, record = side, side.record
    names = {"protocol": record["protocol"]["name"], "method": record["method"]["name"]}
    return {"record": run.path.name, **names, "seed": record["seed"]}


def _print_facts(comparison: RecordComparison) -> None:
    if not comparison.facts:
        print("The records differ in nothing but their numbers.\n")
        return
    print("Differences")
    rows = [[f["what"], _short(f["a"]), _short(f["b"]), f["meaning"] or ""] for f in comparison.facts]
    _print_table(rows, ["", "A", "B", "so"])
    print()


def _print_metrics(comparison: RecordComparison) -> None:
    from tvrbench.harness.reporting.tables.markdown import one_line

    if not comparison.metrics:
        print(f"No metrics to compare: {comparison.why_not_paired}\n")
        return
    print("Retrieval (difference: B - A)")
    rows = []
    for line in comparison.metrics:
        p = line["paired"]
        tested = [f"{p.low:+.2f} to {p.high:+.2f}", _p(p.p_value)] if p is not None else [None, None]
        rows.append([line["metric"], f"{line['a']:.2f}", f"{line['b']:.2f}", f"{line['difference']:+.2f}", *tested])
    _print_table(rows, ["", "A", "B", "difference", "95 % interval", "p"])
    if comparison.why_not_paired is not None:
        print(f"No interval for the differences: {one_line(comparison.why_not_paired)}.")
    for name, test in comparison.mcnemar.items():
        only = f"only A finds {test.only_a} queries, only B finds {test.only_b}"
        print(f"McNemar, t2v {name}: {only}; p {_p(test.p_value)}")
    if comparison.caveat is not None:
        print(f"{comparison.caveat[0].upper()}{comparison.caveat[1:]}.")
    if comparison.mcnemar:
        say("intervals and p-values are over queries, for these two trained models, and not corrected for other pairs")
    print()


def _print_costs(comparison: RecordComparison) -> None:
    from tvrbench.harness.reporting.catalogue import significant
    from tvrbench.harness.reporting.tables.markdown import brief

    if not comparison.costs:
        print("No costs to compare.")
        return
    print("Cost (ratio: B / A)")
    show = significant(4)
    rows = []
    for line in comparison.costs:
        values = [None if line[side] is None else show(line[side]) for side in ("a", "b")]
        ratio = None if line["ratio"] is None else f"{line['ratio']:.3f}"
        rows.append([f"{line['name']} ({line['unit']})", *values, ratio, brief(line["reason"] or "", 100)])
    _print_table(rows, ["", "A", "B", "ratio", "no ratio because"])


def _print_table(rows: Sequence[Sequence[str | None]], headers: Sequence[str]) -> None:
    """Print a plain table whose numbers stay as they were written."""
    from tabulate import tabulate

    align = ["left" if header in ("", "so", "no ratio because") else "right" for header in headers]
    print(tabulate(rows, headers, tablefmt="simple", missingval="–", disable_numparse=True, colalign=align))


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "< 0.0001"


def _short(value: str | None) -> str | None:
    """A value for a column: hashes by their beginning, as git shows them."""
    from tvrbench.harness.reporting.tables.markdown import brief

    if value is None:
        return None
    return value[:12] if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", value) else brief(value, 48)
