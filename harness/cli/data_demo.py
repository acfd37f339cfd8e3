"""``tvrbench data demo``: clips to try ``tvrbench embed`` and ``tvrbench search`` on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from tvrbench.harness.core import registry


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Write 60 generated clips into a folder, each named by what it shows, to try tvrbench embed and search on.

    Attributes:
        folder: An empty or new folder.
    """

    folder: Annotated[Positional[Path], arg(metavar="DIR")]

    def run(self) -> None:
        """Write the clips that are not there yet."""
        source = registry.lookup(registry.matching("datasets", generated=True)[0], "datasets")
        print(f"{self.folder}: {source.write_demo(self.folder)} clips")
