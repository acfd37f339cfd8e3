"""``tvrbench rescore``: metrics and ranks again from saved embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from tvrbench.harness.core.console import print_json, print_table, say
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_write
from tvrbench.harness.core.options import Json

_COLUMNS = {"R1": "R@1", "R5": "R@5", "R10": "R@10", "MdR": "median rank", "MnR": "mean rank", "RSum": "R-Sum"}
_DIRECTIONS = {"t2v": "text to video", "v2t": "video to text"}


def rescore(
    file: Annotated[Positional[Path], arg(metavar="FILE")],
    /,
    depth: Annotated[str | None, arg(metavar="K|none")] = None,
    v2t: Literal["own", "transposed"] | None = None,
    storage: Literal["float32", "float16", "int8"] | None = None,
    ranks: Path | None = None,
    as_json: Json = False,
) -> None:
    """Compute metrics again from the embeddings of tvrbench run --save-embeddings; needs no model and no data.

    Args:
        file: runs/embeddings/PROTOCOL/RUN.safetensors.
        depth: Score so many of each query's best again, or all with none, in place of what the run did.
        v2t: Where videos search texts: own scores each video's best texts again, transposed reads the scores of
            the other direction.
        storage: Rank what this type keeps of frames, patches and words; needs a run with float32.
        ranks: Write the rank of every query to this .npz file: t2v of the captions, v2t of the videos.
    """
    from tvrbench.harness.evaluation.embeddings import load_embeddings
    from tvrbench.harness.evaluation.embeddings import rescore as metrics_of
    from tvrbench.harness.records.store import ranks_archive

    if ranks is not None and ranks.suffix != ".npz":
        message = f"--ranks {ranks}: ranks are written as a NumPy archive, so give a file that ends in .npz"
        raise UsageError(message, code="rescore.ranks-suffix", path=str(ranks))
    changed = ({} if depth is None else {"depth": _depth(depth)}) | {
        name: value for name, value in (("v2t", v2t), ("storage", storage)) if value is not None
    }
    saved = load_embeddings(file)
    result = metrics_of(saved, file, changed)
    before = metrics_of(saved, file) if changed else None
    if ranks is not None:
        atomic_write(ranks, ranks_archive({name: each.astype("float32") for name, each in result.ranks.items()}))
        say(f"ranks: {ranks}")
    run, metrics = saved.run, result.metrics
    if as_json:
        of_run = {} if before is None else {"changed": changed, "metrics_of_run": before.metrics}
        print_json({"run": run, "metrics": metrics} | of_run)
        return
    method, protocol = run["method"]["name"], run["protocol"]["name"]
    print(f"{method} seed {run['seed']} under {protocol}, checkpoint: {metrics['selection']}")
    print(f"{len(saved.text):,} captions, {len(saved.video):,} videos, {saved.text.shape[1]} wide")
    shown = [result] if before is None else [before, result]
    rows = [
        [
            title,
            *([_stage(each.metrics)] if saved.scorer else []),
            *(f"{each.metrics[name][key]:.1f}" for key in _COLUMNS),
        ]
        for name, title in _DIRECTIONS.items()
        for each in shown
    ]
    print_table(rows, ["", *(["ranked by"] if saved.scorer else []), *_COLUMNS.values()])


def _depth(text: str) -> int | None:
    """The number of candidates that are scored again; None for all."""
    if text == "none":
        return None
    if not text.isascii() or not text.isdigit():
        message = f"--depth {text}: give a whole number from 0 on, or none to score all pairs"
        raise UsageError(message, code="rescore.depth", depth=text)
    return int(text)


def _stage(metrics: dict[str, Any]) -> str:
    """How ranks came about, in a few words."""
    if (two := metrics.get("two_stage")) is None:
        return "coarse scores"
    depth = "all pairs" if two["depth"] is None else f"best {two['depth']:,}"
    return f"{depth}, v2t {two['v2t']}, {two['storage']}"
