"""The files of a report on disk: each written whole, and those of an earlier report removed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

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
        UsageError: the folder cannot be written to.
    """
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
    return path.is_file() and not path.is_symlink() and path.resolve().is_relative_to(folder.resolve())


def _remove(path: Path) -> None:
    """Remove a file, and its folder if that is empty then."""
    path.unlink(missing_ok=True)
    if not any(path.parent.iterdir()):
        path.parent.rmdir()
