"""Documents made from data: ``python docs/_build/generate.py`` writes them, ``--check`` compares.

Checked as well: the reports that are committed, each made again from the committed records.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from methods_page import methods_page
from tvrbench.harness.core.console import say
from readme_table import with_results
from tvrbench.harness.cli.report import written
from deviations import DEVIATIONS, Deviation
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.reporting.pages.report import BESIDE
from tvrbench.harness.records.store import RecordStore

MADE_BY = "python docs/_build/generate.py"
_PICTURE_TOLERANCE = 1.0  # mean absolute difference of 8-bit pixels: another build of a font renderer, not other data
_EMBEDDED = re.compile(rb"data:image/png;base64,[A-Za-z0-9+/=]*")


def deviations_page() -> str:
    """``docs/deviations.md``."""
    areas = dict.fromkeys(deviation.area for deviation in DEVIATIONS)
    parts = [
        "# Where released code and ours differ\n",
        f"Made from `docs/_build/deviations.py` by `{MADE_BY}`; edit it there.\n",
        "Each entry says what released code does that ours does not by default, and what restores it. "
        "Where nothing is said of an effect, it was not measured.\n",
    ]
    for area in areas:
        parts.append(f"## {area}\n")
        parts += [_entry(deviation) for deviation in DEVIATIONS if deviation.area == area]
    return "\n".join(parts)


def documents() -> dict[Path, str]:
    """Every document that is generated whole, by its path in the repository."""
    return {Path("docs/deviations.md"): deviations_page(), Path("docs/methods.md"): methods_page(MADE_BY)}


def _all_documents(root: Path) -> dict[Path, str]:
    """The same, and README.md with the table of results that the records at ``root`` give."""
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8") if readme.is_file() else None
    return documents() | ({} if text is None else {Path("README.md"): with_results(text, root / "results")})


def stale(root: Path) -> Iterator[str]:
    """What in the repository at ``root`` is not what its data gives, one line a file."""
    for path, text in _all_documents(root).items():
        if not (root / path).is_file() or (root / path).read_text(encoding="utf-8") != text:
            yield f"{path} is stale: {MADE_BY} writes it anew"
    for page in sorted((root / "reports").glob("**/README.md")):
        yield from _stale_report(root, page.parent.relative_to(root / "reports").as_posix())


def _stale_report(root: Path, protocol: str) -> Iterator[str]:
    folder = root / "reports" / protocol
    # Beside the committed folder, so that links to records, which are relative, come out the same.
    beside = [name for name in BESIDE if (folder / name).is_file()]  # of tvrbench visualize: models made these
    with tempfile.TemporaryDirectory(prefix=".docs-check-", dir=root) as made:
        for name in beside:  # so that the report tells of them again
            (Path(made) / protocol).mkdir(parents=True, exist_ok=True)
            (Path(made) / protocol / name).touch()
        try:
            files = written(protocol, RecordStore(root / "results"), Path(made))
        except UsageError as error:
            yield f"reports/{protocol} cannot be made again from results/records: {error}"
            return
        names = {path.relative_to(files[0].parent).as_posix(): path for path in files}
        kept = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        kept = {name: path for name, path in kept.items() if name not in beside}
        remedy = f"tvrbench report {protocol} writes it anew"
        for name in sorted(names.keys() | kept.keys()):
            if name not in kept or name not in names:
                yield f"reports/{protocol}/{name} is {'missing' if name not in kept else 'left over'}: {remedy}"
            elif not _same(names[name], kept[name]):
                yield f"reports/{protocol}/{name} is stale: {remedy}"


def _same(made: Path, kept: Path) -> bool:
    one, other = made.read_bytes(), kept.read_bytes()
    if made.suffix == ".html":  # a picture in a page is compared as the file that it also is
        one, other = (_EMBEDDED.sub(b"", data) for data in (one, other))
    if one == other or made.suffix != ".png":
        return one == other
    pictures = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.int16) for data in (one, other)]
    same_size = pictures[0].shape == pictures[1].shape
    return same_size and float(np.abs(pictures[0] - pictures[1]).mean()) < _PICTURE_TOLERANCE


def _entry(deviation: Deviation) -> str:
    switch = "none" if deviation.switch is None else str(deviation.switch)
    because = f"{'; ' if deviation.switch else ', because '}{deviation.because}" if deviation.because else ""
    lines = [
        f"- **{deviation.whose}** {deviation.theirs}.",
        f"  - Ours: {deviation.ours}.",
        f"  - Switch: {switch}{because}.",
        *([f"  - Measured effect: {deviation.effect}."] if deviation.effect else []),
        f"  - Source: {deviation.source}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the documents, or with ``--check`` name those that are stale; exit code 1 where there are any."""
    parser = argparse.ArgumentParser(prog=MADE_BY, description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, exit with 1 where anything is stale")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository; the working directory by default")
    arguments = parser.parse_args()
    if arguments.check:
        found = list(stale(arguments.root))
        for line in found:
            say(line)
        say(f"generated documents: {len(found)} stale" if found else "generated documents are what their data gives")
        return 1 if found else 0
    for path, text in _all_documents(arguments.root).items():
        (arguments.root / path).write_text(text, encoding="utf-8")
        say(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
