"""An exported checkpoint to the Hugging Face Hub, or to what ``HF_ENDPOINT`` names in its place."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.text import printable

_NAME = re.compile(r"(?=.{3,96}$)[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")

_RIGHTS = "check its name and your rights there"
_CARD = "check --license, which must be one that the hub knows"  # of a card's metadata, the user states nothing else
_REMEDIES = {400: _CARD, 401: "log in with hf auth login", 403: _RIGHTS, 404: _RIGHTS}  # by HTTP status


def check_repository(repository: str) -> None:
    """UsageError unless ``repository`` can be the name of a repository on the hub."""
    if not _NAME.fullmatch(repository):
        problem = f"--push-to-hub {printable(repository)!r}: write it as OWNER/NAME, in letters, digits and . _ -"
        raise UsageError(problem, code="hub.name", repository=repository)


def push_folder(folder: Path, files: Sequence[str], repository: str, *, private: bool) -> str:
    """Upload the files of a folder as one commit; the repository is made where there is none.

    Returns:
        The address of the commit, as the hub gives it.

    Raises:
        UsageError: nobody is logged in, the hub refuses, or it cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(library_name="tvrbench")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in files]
        commit = api.create_commit(repository, added, commit_message="Upload a checkpoint with tvrbench export")
    except Exception as error:  # noqa: BLE001 - whatever the hub's client raises means the same to the user
        again = f"{printable(str(folder))} is written; repeat the command with --force after that"
        refusal = error if isinstance(error, HfHubHTTPError) else error.__cause__  # of a card's metadata it is a cause
        if not isinstance(refusal, HfHubHTTPError):
            problem = f"the hub cannot be reached ({type(error).__name__}): check the network and HF_ENDPOINT. {again}"
            raise UsageError(problem, code="hub.unreachable", repository=repository) from None
        status = refusal.response.status_code
        remedy = _REMEDIES.get(status, "try again later")
        problem = f"the hub does not take {repository} (HTTP status {status}): {remedy}. {again}"
        raise UsageError(problem, code="hub.refused", repository=repository, status=status) from None
    return printable(str(commit.commit_url))
