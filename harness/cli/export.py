"""``tvrbench export``: a trained checkpoint as a folder to hand on. Imports no torch by itself."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from tvrbench.harness.core.console import print_json, say
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.options import RESULTS, Json
from tvrbench.harness.core.text import printable


def export(
    run: Annotated[Positional[str], arg(metavar="RUN")],
    /,
    to: Path,
    results: Path = RESULTS,
    license: str | None = None,
    push_to_hub: Annotated[str | None, arg(metavar="OWNER/NAME")] = None,
    private: bool = False,
    force: bool = False,
    as_json: Json = False,
) -> None:
    """Write a run's trained checkpoint, its model card and its record into a folder in the layout of Hugging Face.

    Where training changed only a part of the model (LoRA, adapters, prompts), the folder holds that part alone. Every
    --checkpoint takes the folder, and so does load_model(checkpoint=DIR).

    Args:
        run: A record's file, or its name (or the beginning of it) below the results folder.
        to: Folder to write, new or empty.
        results: Folder of records and checkpoints.
        license: License of the weights for the card, as the hub names it (mit, cc-by-4.0, other); unknown by default.
        push_to_hub: Also upload the folder as this model of the Hugging Face Hub, as the user of hf auth login.
        private: Make the repository private, where it is new.
        force: Replace the files of an earlier export.
    """
    from tvrbench.harness.cli.compare import find_record
    from tvrbench.harness.runs.export import export_run
    from tvrbench.harness.runs.hub import check_repository, push_folder

    if private and push_to_hub is None:
        message = "--private is of a repository on the hub: give its name with --push-to-hub OWNER/NAME"
        raise UsageError(message, code="export.private")
    if push_to_hub is not None:
        check_repository(push_to_hub)
    stored = find_record(run, results)
    made = export_run(stored, to, results, license=license, force=force)
    commit = None if push_to_hub is None else push_folder(to, made.files, push_to_hub, private=private)
    if as_json:
        print_json(asdict(made) | {"folder": str(made.folder), "commit": commit})
        return
    held = "the whole model" if made.base is None else f"only what training changed in {printable(made.base.source)}"
    print(f"{printable(str(to))}: {held}")
    if commit is not None:
        print(commit)
    say(f"how to load it, and the command that scores it again: {printable(str(to / made.files[0]))}")
