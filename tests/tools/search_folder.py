"""A folder of clips that the stand-in's CLIP knows, and an index of it, for the tests of searching."""

from __future__ import annotations

import shutil
from pathlib import Path

from tvrbench.harness.search.embed import EmbedReport, embed_folder
from tvrbench.harness.search.encoder import Encoder, ModelSettings, ModelSource, load_encoder
from tvrbench.harness.search.files import open_folder
from tvrbench.harness.search.index import IndexEntry, VideoIndex, find_index, index_base, open_index

SOURCE = ModelSource(weights="standin")
SETTINGS = ModelSettings(options={}, sampler="tempme", decoder="pyav")


def make_encoder(source: ModelSource = SOURCE, settings: ModelSettings = SETTINGS) -> Encoder:
    """Load the stand-in's CLIP, or another model."""
    return load_encoder(source, settings, "cpu")


def copy_clips(demo: Path, folder: Path, count: int) -> list[str]:
    """Copy the first clips into a folder; returns their names."""
    names = sorted(path.name for path in demo.glob("*.mp4"))[:count]
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(demo / name, folder / name)
    return names


def embed(root: Path, encoder: Encoder, source: ModelSource = SOURCE, *, index: Path | None = None) -> EmbedReport:
    """Bring the index of a folder up to date, four videos at a time."""
    base = index_base(root, index)
    return embed_folder(open_folder(root), base, encoder, source, batch=4, progress=lambda done, total: None)


def counts(report: EmbedReport) -> tuple[int, int, int, int]:
    """Encoded, reused, kept and removed."""
    return report.encoded, report.reused, report.kept, report.removed


def opened(root: Path) -> VideoIndex:
    """Open the newest index of a folder."""
    return open_index(find_index(root, None))


def row_of(index: VideoIndex, file: str) -> int:
    """The row of a file's feature."""
    entry: IndexEntry = index.entries[file]
    assert entry.row is not None
    return entry.row
