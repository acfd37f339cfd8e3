"""``tvrbench rank``: metrics and ranks again from saved embeddings."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from tvrbench.harness.core.console import print_json, print_table, say
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_write
from tvrbench.harness.evaluation.embeddings import load_embeddings, score_again

_COLUMNS = {"R1": "R@1", "R5": "R@5", "R10": "R@10", "MdR": "median rank", "MnR": "mean rank", "RSum": "R-Sum"}
_DIRECTIONS = {"t2v": "text to video", "v2t": "video to text"}


def rank_embeddings(file: Path, ranks: Path | None, as_json: bool) -> None:
    """Print the metrics, and write the rank of every query where that is asked for.

    Raises:
        UsageError: the file is not one of saved embeddings, or ``ranks`` cannot be written.
    """
    if ranks is not None and ranks.suffix != ".npz":
        raise UsageError(f"--ranks {ranks}: ranks are written as a NumPy archive, so give a file that ends in .npz")
    saved = load_embeddings(file)
    found = score_again(saved, file)
    if ranks is not None:
        archive = io.BytesIO()
        t2v, v2t = (found.ranks[name].astype(np.float32) for name in _DIRECTIONS)
        np.savez_compressed(archive, t2v=t2v, v2t=v2t)
        atomic_write(ranks, archive.getvalue())
        say(f"ranks: {ranks}")
    if as_json:
        print_json({"run": saved.run, "metrics": found.metrics})
        return
    run, metrics = saved.run, found.metrics
    method, protocol = run["method"]["name"], run["protocol"]["name"]
    print(f"{method} seed {run['seed']} under {protocol}, checkpoint: {metrics['selection']}")
    print(f"{len(saved.text):,} captions, {len(saved.video):,} videos, {saved.text.shape[1]} wide")
    rows = [[said, *(f"{metrics[name][key]:.1f}" for key in _COLUMNS)] for name, said in _DIRECTIONS.items()]
    print_table(rows, ["", *_COLUMNS.values()])
