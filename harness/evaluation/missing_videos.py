"""How far missing test videos move R@1, text to video, from one ranking of a split.

Missing videos take their captions with them. That moves R@1 in two ways: the other captions have fewer candidates,
which raises it, and they are a sample of all captions, which spreads it. If k of N videos are missing at random, a
caption that stays and has b better candidates comes first exactly if all b are among the k, drawn from the other N - 1:

    p(b, k) = C(N-1-b, k-b) / C(N-1, k) = k! (N-1-b)! / ((k-b)! (N-1)!),   0 if b > k

Every caption stays with the same chance, so the expected R@1 is the mean of p over all captions. This is exact if every
video has equally many captions; else it is the ratio of two expectations, off by the order of 1/N.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln
from scipy.stats import foldnorm

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import RetrievalDataset, Split
from tvrbench.harness.evaluation.embeddings import load_embeddings, read_run, rescore
from tvrbench.harness.evaluation.metrics import cosine_rank_counts
from tvrbench.harness.records.record import Record
from tvrbench.harness.records.store import RecordStore

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The captions of a split, ranked by one run.

    Attributes:
        split: the name of the split.
        run: words for the run: method, seed, protocol.
        path: the file that it was read from.
        better_Q, caption_video, videos: as in ``missing_effect``.
        complete: False if the run was scored without some videos of the split.
    """

    split: str
    run: str
    path: Path
    better_Q: Counts
    caption_video: Sequence[int]
    videos: int
    complete: bool


@dataclass(frozen=True, kw_only=True)
class MissingEffect:
    """What k missing videos do to R@1; in percent and points.

    Attributes:
        videos, queries: of the whole split.
        r1: with all videos.
        standard_error: of ``r1``, from drawing other videos with their captions; for one caption per video, that of
            a share, sqrt(p (1 - p) / Q).
        missing: k.
        expected_r1: the mean of R@1 over all choices of the k videos.
        spread: its standard deviation over these choices.
        expected_change: the mean of |R@1 - r1| over these choices, of a normal distribution with this mean and spread.
        limit: the smallest k whose expected change exceeds one standard error; None if none does.
    """

    videos: int
    queries: int
    r1: float
    standard_error: float
    missing: int
    expected_r1: float
    spread: float
    expected_change: float
    limit: int | None


def missing_effect(better_Q: Counts, caption_video: Sequence[int], videos: int, missing: int) -> MissingEffect:
    """Compute the effect of ``missing`` videos, drawn at random.

    Args:
        better_Q: for each caption, how many videos score at least as high as its own [Q]; of ranks, ``better_of``.
        caption_video: for each caption, the index of its video [Q].
        videos: N, the number of candidates.
        missing: k.

    Raises:
        ValueError: no caption, or ``missing`` not from 0 to N - 1.
    """
    if not len(better_Q) or not 0 <= missing < videos:
        raise ValueError(f"{missing} of {videos} videos with {len(better_Q)} captions: some must be left")
    r1, error = expected_r1(better_Q, videos, 0), standard_error(better_Q, caption_video)

    def moments(k: int) -> tuple[float, float, float]:
        mean, spread = expected_r1(better_Q, videos, k), _spread(better_Q, error, videos, k)
        shift = abs(mean - r1)
        return mean, spread, float(foldnorm.mean(shift / spread, scale=spread)) if spread else shift

    # Both the shift and the spread grow with k, and so does the change.
    limit = bisect.bisect_right(range(1, videos), error, key=lambda k: moments(k)[2]) + 1
    mean, spread, change = moments(missing)
    return MissingEffect(
        videos=videos,
        queries=len(better_Q),
        r1=r1,
        standard_error=error,
        missing=missing,
        expected_r1=mean,
        spread=spread,
        expected_change=change,
        limit=limit if limit < videos else None,
    )


def better_of(ranks_Q: npt.NDArray[Any]) -> Counts:
    """How many other candidates a rank stands for; a video that ties must be missing too."""
    return np.asarray(np.ceil(ranks_Q - 1), dtype=np.int64)


def expected_r1(better_Q: Counts, videos: int, missing: int) -> float:
    """Expected R@1 in percent with ``missing`` videos removed at random; see the head of this module."""
    return 100.0 * float(_first_probability(better_Q, videos, missing).mean())


def standard_error(better_Q: Counts, caption_video: Sequence[int]) -> float:
    """Standard error of R@1 in points from drawing other videos: captions of one video are one draw, not many."""
    hit_Q = (better_Q == 0).astype(np.float64)
    sums_V = np.bincount(np.asarray(caption_video), weights=hit_Q - hit_Q.mean())
    return 100.0 * math.sqrt(float((sums_V**2).sum())) / len(hit_Q)


def ranking_of_embeddings(path: Path, dataset: RetrievalDataset) -> Ranking:
    """Rank the features of ``tvrbench run --save-embeddings`` on a split of the data set.

    Raises:
        UsageError: the file cannot be read, is of other data, or its features cannot be ranked.
    """
    saved = load_embeddings(path)
    data = _data(saved.run)
    if data.get("dataset") != dataset.name or data.get("test_split") not in dataset.split_names:
        found = f"{data.get('dataset')} {data.get('test_split')}"
        message = f"{path} holds embeddings of {found}, which is no split of {dataset.name}; give another file"
        raise UsageError(message, code="embeddings.other-data", path=str(path), dataset=data.get("dataset"))
    split = dataset.split(data["test_split"])
    if saved.scorer is not None:
        better_Q = better_of(rescore(saved, path).ranks["t2v"])
    else:
        try:
            counts, _ = cosine_rank_counts(saved.text, saved.video, saved.caption_video)
        except ValueError as error:
            message = f"{path}: these embeddings cannot be ranked: {error}"
            raise UsageError(message, code="embeddings.unrankable", path=str(path)) from None
        better_Q = counts.higher_Q + counts.tied_Q
    return Ranking(
        split=split.name,
        run=_words(saved.run),
        path=path,
        better_Q=better_Q,
        caption_video=saved.caption_video,
        videos=len(saved.video),
        complete=data.get("split_fingerprint") == split.fingerprint,
    )


def newest_ranking(results: Path, dataset: RetrievalDataset, split_name: str) -> Ranking | None:
    """Return the newest ranking of a split below a folder of results, one of the whole split first; None for none.

    Embeddings go before records, whose ranks do not tell a tie from half a rank.

    Raises:
        UsageError: a file there is damaged.
    """
    split = dataset.split(split_name)
    whole, wanted = split.fingerprint, (dataset.name, split_name)
    choices: list[tuple[bool, Callable[[], Ranking]]] = []
    files = sorted((results / "embeddings").glob("*/*.safetensors"), key=lambda path: -path.stat().st_mtime_ns)
    for path in files:
        data = _data(read_run(path))
        if (data.get("dataset"), data.get("test_split")) == wanted:
            choices.append((data.get("split_fingerprint") == whole, partial(ranking_of_embeddings, path, dataset)))
    store = RecordStore(results)
    for record in sorted(store.load_all(), key=lambda record: record["started"], reverse=True):
        data = record["data"]
        if (data["dataset"], data.get("test_split")) == wanted and record["per_query_ranks_path"] is not None:
            complete = data["split_fingerprint"] == whole
            part = split if complete else split.without(data["skipped"])
            if complete or part.fingerprint == data["split_fingerprint"]:
                choices.append((complete, partial(_ranking_of_record, store, record, part, complete)))
    return max(choices, key=lambda choice: choice[0])[1]() if choices else None  # the first of equals


def _ranking_of_record(store: RecordStore, record: Record, part: Split, complete: bool) -> Ranking:
    path = store.folder(record["protocol"]["name"]) / str(record["per_query_ranks_path"])
    ranks_Q = store.load_ranks(record)["t2v"]
    if len(ranks_Q) != len(part.captions):
        message = f"{path} has {len(ranks_Q)} ranks, and the split {len(part.captions)} captions; run it again"
        raise UsageError(message, code="ranks.read", path=str(path))
    return Ranking(
        split=part.name,
        run=_words(record),
        path=path,
        better_Q=better_of(ranks_Q),
        caption_video=part.caption_video,
        videos=len(part.video_ids),
        complete=complete,
    )


def _data(run: Mapping[str, Any]) -> Mapping[str, Any]:
    data = run.get("data")
    return data if isinstance(data, Mapping) else {}


def _words(run: Mapping[str, Any]) -> str:
    return f"{run['method']['name']}, seed {run['seed']}, {run['protocol']['name']}"


def _first_probability(better_Q: Counts, videos: int, missing: int) -> npt.NDArray[np.float64]:
    """p(b, k) of each caption [Q]."""
    b, where_Q = np.unique(better_Q, return_inverse=True)
    p = np.zeros(len(b))
    low, others = b[b <= missing], videos - 1  # b is sorted
    p[: len(low)] = np.exp(
        gammaln(missing + 1) - gammaln(missing - low + 1) + gammaln(others - low + 1) - gammaln(others + 1)
    )
    return np.asarray(p[where_Q])


def _spread(better_Q: Counts, error: float, videos: int, missing: int) -> float:
    """Standard deviation of R@1 over the choices of missing videos, in points.

    Two parts: which captions stay (a mean over videos drawn without replacement), and which of the candidates that were
    better go, taken as independent from caption to caption.
    """
    stay = 1 - missing / videos
    sampled = error**2 * missing / ((videos - 1) * stay) if missing else 0.0
    p_Q = _first_probability(better_Q, videos, missing)
    promoted = 100.0**2 * float((p_Q * (1 - p_Q)).sum()) / (len(p_Q) ** 2 * stay)
    return math.sqrt(sampled + promoted)
