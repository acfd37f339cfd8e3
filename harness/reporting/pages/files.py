"""The files of a report on disk: each written whole, and those of an earlier report removed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_write

LISTED = "files.txt"
"""Names the files of a report, so that the next one removes those that it does not write, and no other."""
_KINDS = (".csv", ".html", ".md", ".png", ".tex")


def replace_files(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    """Write a report's files, and remove what an earlier report listed and this one lacks; other files stay.

    Args:
        folder: the report's.
        files: content by path below the folder.

    Raises:
        UsageError: the folder cannot be written to, or a link in it leads out of it.
    """
    for name in files:
        if not (folder / name).parent.resolve().is_relative_to(folder.resolve()):
            message = f"{folder / name}: its folder is a link that leads out of the report: remove that link"
            raise UsageError(message, code="report.link", path=str(folder / name))
    stale = _listed(folder) - files.keys()
    listing = "".join(f"{name}\n" for name in sorted(files))
    for name, content in {**files, LISTED: listing.encode()}.items():
        atomic_write(folder / name, content)
    for name in stale:
        _remove(folder / name)
    return [folder / name for name in files]


def _listed(folder: Path) -> set[str]:
    """Return the names in the folder's list that a report may have written: below the folder, and of its kinds."""
    listing = folder / LISTED
    names = listing.read_text(encoding="utf-8", errors="replace").splitlines() if listing.is_file() else []
    return {name for name in names if PurePosixPath(name).suffix in _KINDS and _is_below(folder / name, folder)}


def _is_below(path: Path, folder: Path) -> bool:
    try:
        return path.is_file() and not path.is_symlink() and path.resolve().is_relative_to(folder.resolve())
    except OSError:  # a name that no file can have, for example a long one
        return False


def _remove(path: Path) -> None:
    """Remove a file, and its folder if that is empty then; UsageError where that is not allowed."""
    try:
        path.unlink(missing_ok=True)
        if not any(path.parent.iterdir()):
            path.parent.rmdir()
    except OSError as error:
        message = f"cannot remove {path}, of an earlier report ({error.strerror}): remove it yourself"
        raise UsageError(message, code="io.write", path=str(path)) from None
