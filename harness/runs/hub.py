"""An exported checkpoint to the Hugging Face Hub, or to what ``HF_ENDPOINT`` names in its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.text import printable


def check_repository(repository: str) -> None:
    """UsageError unless ``repository`` can be the name of a repository on the hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError:
        problem = f"--push-to-hub {printable(repository)!r}: write it as OWNER/NAME, in letters, digits and . _ -"
        raise UsageError(problem, code="hub.name", repository=repository) from None


def push_folder(folder: Path, files: Sequence[str], repository: str, *, private: bool) -> str:
    """Upload the files of a folder as one commit; the repository is made where there is none.

    Returns:
        The address of the commit.

    Raises:
        UsageError: nobody is logged in, the hub refuses, or it cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(library_name="tvrbench")
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(files),
            commit_message="Upload a checkpoint with tvrbench export",
        )
    except Exception as error:  # noqa: BLE001 - whatever the hub's client raises means the same to the user
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        cause = f"it answers {status}" if status else type(error).__name__
        remedy = "log in with hf auth login" if status in (401, 403) else "check the network and HF_ENDPOINT"
        raise UsageError(
            f"{folder} is written, and the hub did not take it as {repository} ({cause}): {remedy}, then repeat the "
            "command with --force",
            code="hub.refused" if status else "hub.unreachable",
            repository=repository,
            status=status,
        ) from None
    return str(commit.commit_url)
