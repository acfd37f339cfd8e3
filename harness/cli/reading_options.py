"""The options of ``tvrbench report`` and ``tvrbench rescore``, which read what runs wrote. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

Json = Annotated[bool, arg(name="json")]


def report(
    protocol: Annotated[Positional[str], arg(metavar="PROTOCOL")],
    /,
    results: Path = Path("results"),
    reports: Path = Path("reports"),
    as_json: Json = False,
) -> None:
    """Make the report of a protocol again from its records alone.

    Args:
        protocol: The protocol's name as it stands in the records.
        results: Folder of the records.
        reports: Folder of the reports.
        as_json: Print one JSON document.
    """
    from tvrbench.harness.cli.report import report_protocol

    report_protocol(protocol, results, reports, as_json)


def rescore(
    file: Annotated[Positional[Path], arg(metavar="FILE")],
    /,
    ranks: Path | None = None,
    as_json: Json = False,
) -> None:
    """Metrics again from the embeddings of tvrbench run --save-embeddings; needs no model and no data.

    Args:
        file: results/embeddings/PROTOCOL/RUN.safetensors.
        ranks: Write the rank of every query to this .npz file: t2v of the captions, v2t of the videos.
        as_json: Print one JSON document.
    """
    from tvrbench.harness.cli.rescore import rescore_embeddings

    rescore_embeddings(file, ranks, as_json)
