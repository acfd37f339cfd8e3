"""A run beside a published result with the rank of every query: only on the same queries in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.evaluation.comparability import shortfalls
from tvrbench.harness.evaluation.statistics import RANK_STATISTICS, mcnemar, paired_statistic
from tvrbench.harness.records.record import Record
from tvrbench.harness.records.runs import StoredRecord
from tvrbench.harness.records.store import LAST
from tvrbench.harness.reporting.analysis.compare_records import MEANING, RecordComparison
from tvrbench.harness.reporting.data.rows import Values
from tvrbench.harness.reporting.papers.ranks import PublishedRanks

Directions = Mapping[Literal["t2v", "v2t"], Values]

_MISSING = ("test-videos-missing", "test-captions-missing")
_SAID = ("backbone", "frames", "failed", *_MISSING)  # shortfalls that are a fact here, or a refusal


def compare_with_published(run: StoredRecord, published: PublishedRanks, *, published_first: bool) -> RecordComparison:
    """Compare a run with a published result, paired, in both directions; differences are B minus A.

    Args:
        run: a run on the published split.
        published: the result.
        published_first: it is A.

    Raises:
        UsageError: the run was not tested on these queries in this order, or holds no ranks.
    """
    pair = (_ranks_on(run, published), {d: published.of_direction(d) for d in published.ranks})
    a, b = reversed(pair) if published_first else pair
    facts = (_of_run(run.record), _of_published(published))
    one, other = reversed(facts) if published_first else facts
    return RecordComparison(
        same_run=None,
        facts=[
            {"what": what, "a": one[what], "b": other[what], "meaning": MEANING.get(what)}
            for what in one
            if one[what] != other[what]
        ],
        metrics=[
            {"metric": f"{d} {name}", "a": x, "b": y, "difference": y - x, "paired": paired_statistic(b[d], a[d], of)}
            for d in a
            for name, of in RANK_STATISTICS.items()
            for x, y in [(float(of(a[d])), float(of(b[d])))]
        ],
        mcnemar={f"R{k}": mcnemar(a["t2v"], b["t2v"], k=k) for k in (1, 5, 10)},
        why_not_paired=None,
        caveat="; ".join(_caveats(run.record, published)),
        costs=[],
    )


def _ranks_on(run: StoredRecord, published: PublishedRanks) -> Directions:
    """The run's ranks, where row i is the query of row i of the published ones."""
    why, reason = _other_queries(run.record, published) or (None, None)
    ranks = run.ranks() if why is None else None
    if why is None and ranks is None:
        why, reason = "no-ranks", "it holds no ranks of single queries"
    elif ranks is not None and any(len(ranks[d]) != len(published.ranks[d]) for d in published.ranks):
        why, reason = "queries", f"it holds ranks of {len(ranks['t2v']):,} captions and {len(ranks['v2t']):,} videos"
    if why is not None or ranks is None:
        raise UsageError(
            f"{run.path.name} cannot be compared with published:{published.name}: {reason}; the published ranks are of "
            f"{published.dataset} {published.test_split}, query by query",
            code="published.not-paired",
            why=why,
            record=run.path.name,
            published=published.name,
        )
    return {d: np.asarray(ranks[d], dtype=np.float64) for d in published.ranks}


def _other_queries(record: Record, published: PublishedRanks) -> tuple[str, str] | None:
    """Why a run was not tested on the published queries in their order, in a word and in a sentence."""
    data = record["data"]
    if not record["metrics"]:
        return "no-metrics", "it has no retrieval metrics"
    if data["dataset"] != published.dataset:
        return "dataset", f"it was tested on {data['dataset']}"
    if missing := [reason for reason in shortfalls(record) if reason.code in _MISSING]:
        return "videos-missing", missing[0].text
    if data["split_fingerprint"] != published.split_fingerprint:
        return "split", f"its test split ({data.get('test_split', 'unnamed')}) has another fingerprint"
    if data.get("order_fingerprint", published.order_fingerprint) != published.order_fingerprint:
        return "order", "its annotation lists the same captions in another order"
    return None


def _of_run(record: Record) -> dict[str, str | None]:
    options = record["method"]["options"]
    known = {
        "method": record["method"]["name"],
        "option backbone": options.get("backbone"),
        "option frames": options.get("frames"),
        "data: train_split": record["data"].get("train_split"),
        "selection": record["metrics"].get("selection", LAST),
    }
    return {what: None if value is None else str(value) for what, value in known.items()}


def _of_published(published: PublishedRanks) -> dict[str, str | None]:
    return {
        "method": published.method,
        "option backbone": published.backbone,
        "option frames": str(published.frames),
        "data: train_split": published.train_split,
        "selection": published.selection,
    }


def _caveats(record: Record, published: PublishedRanks) -> Iterator[str]:
    """What the tests do not say."""
    yield "the two were trained under other rules and by other code, so that no test of them is a verdict on a method"
    own = record["metrics"].get("selection", LAST)
    if published.selection != LAST:
        how = {"best-on-test": "chosen on the test set, which flatters it", "unknown": "chosen nobody knows how"}
        also = ", and so is the run's" if own == published.selection else ""
        yield f"the published ranks are of a checkpoint {how[published.selection]}{also}"
    if own not in (LAST, published.selection):
        yield f"the run's checkpoint: {own}"
    backbone = record["method"]["options"].get("backbone")
    if backbone != published.backbone:
        yield f"the published ranks are of {published.backbone}, the run of {backbone}: another backbone"
    if "order_fingerprint" not in record["data"]:
        yield "the record does not tell the order of its captions, taken to be that of the published annotation"
    if published.ties is not None:
        yield published.ties
    yield from (f"the run compares with no paper: {r.text}" for r in shortfalls(record) if r.code not in _SAID)
