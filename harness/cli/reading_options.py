"""The options of ``tvrbench rank``, which only reads embeddings that runs left. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

Json = Annotated[bool, arg(name="json")]


def rank(
    file: Annotated[Positional[Path], arg(metavar="FILE")],
    /,
    ranks: Path | None = None,
    as_json: Json = False,
) -> None:
    """Metrics again from the embeddings that tvrbench run --save-embeddings kept; needs no model and no data.

    Args:
        file: results/embeddings/PROTOCOL/RUN.safetensors.
        ranks: Write the rank of every query to this .npz file as well: t2v of the captions, v2t of the videos.
        as_json: Print one JSON document.
    """
    from tvrbench.harness.cli.rescore import rank_embeddings

    rank_embeddings(file, ranks, as_json)
