"""``tvrbench rescore``: metrics and ranks again from saved embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from tvrbench.harness.core.console import print_json, print_table, say
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_write
from tvrbench.harness.core.options import Json

_COLUMNS = {"R1": "R@1", "R5": "R@5", "R10": "R@10", "MdR": "median rank", "MnR": "mean rank", "RSum": "R-Sum"}
_DIRECTIONS = {"t2v": "text to video", "v2t": "video to text"}


def rescore(
    file: Annotated[Positional[Path], arg(metavar="FILE")], /, ranks: Path | None = None, as_json: Json = False
) -> None:
    """Compute metrics again from the embeddings of tvrbench run --save-embeddings; needs no model and no data.

    Args:
        file: runs/embeddings/PROTOCOL/RUN.safetensors.
        ranks: Write the rank of every query to this .npz file: t2v of the captions, v2t of the videos.
    """
    from tvrbench.harness.evaluation.embeddings import load_embeddings
    from tvrbench.harness.evaluation.embeddings import rescore as metrics_of
    from tvrbench.harness.records.store import ranks_archive

    if ranks is not None and ranks.suffix != ".npz":
        message = f"--ranks {ranks}: ranks are written as a NumPy archive, so give a file that ends in .npz"
        raise UsageError(message, code="rescore.ranks-suffix", path=str(ranks))
    saved = load_embeddings(file)
    result = metrics_of(saved, file)
    if ranks is not None:
        atomic_write(ranks, ranks_archive({name: each.astype("float32") for name, each in result.ranks.items()}))
        say(f"ranks: {ranks}")
    run, metrics = saved.run, result.metrics
    if as_json:
        print_json({"run": run, "metrics": metrics})
        return
    method, protocol = run["method"]["name"], run["protocol"]["name"]
    print(f"{method} seed {run['seed']} under {protocol}, checkpoint: {metrics['selection']}")
    print(f"{len(saved.text):,} captions, {len(saved.video):,} videos, {saved.text.shape[1]} wide")
    rows = [[title, *(f"{metrics[name][key]:.1f}" for key in _COLUMNS)] for name, title in _DIRECTIONS.items()]
    print_table(rows, ["", *_COLUMNS.values()])
