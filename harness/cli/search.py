"""``tvrbench search``: find videos of a folder by words, a picture or a video. Imports no torch by itself."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from tvrbench.harness.core.console import print_json, say
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.io import atomic_write
from tvrbench.harness.core.options import Device, Json, pick_device
from tvrbench.harness.core.text import printable

if TYPE_CHECKING:  # these import torch, for which --help must not wait
    from tvrbench.harness.search.encoder import Encoder
    from tvrbench.harness.search.files import VideoFolder
    from tvrbench.harness.search.query import Query


@dataclass(frozen=True, kw_only=True)
class Search:
    """Find the videos of a folder that are closest to words, a picture or a video. Run tvrbench embed on it first.

    Scores are cosines, or a method's own coarse scores: they rank the videos of one index, and mean nothing across
    models. Of a method that scores the best videos again, the coarse stage alone ranks.

    Attributes:
        folder: Folder that tvrbench embed was run on.
        words: What the video shows, in a few words.
        image: Search by a picture instead: it is encoded as a video that shows nothing else.
        video: Search by a video file instead.
        index: The index, or a folder of indexes of which the newest is taken; .tvrbench in the folder by default.
        top: Number of videos to list.
        html: Write the answer to this file too: a page with frames of each video, which fetches nothing.
        weights: The weights that the index was made with, if they have moved.
        checkpoint: The checkpoint that the index was made with, if it has moved.
        device: Where to run; auto uses a GPU if there is one.
    """

    folder: Annotated[Positional[Path], arg(metavar="DIR")]
    words: Annotated[Positional[tuple[str, ...]], arg(metavar="QUERY", name="query")] = ()
    image: Path | None = None
    video: Path | None = None
    index: Path | None = None
    top: int = 5
    html: Path | None = None
    weights: str | None = None
    checkpoint: Path | None = None
    device: Device = "auto"
    as_json: Json = False

    @property
    def query(self) -> str:
        """The words as one text, quoted or not."""
        return " ".join(self.words)

    def run(self) -> None:
        """Print the closest videos."""
        self._check()
        from tvrbench.harness.core.numerics import set_numerics
        from tvrbench.harness.search.encoder import COARSE_ONLY, ModelSource
        from tvrbench.harness.search.files import find_changes, open_folder
        from tvrbench.harness.search.index import check_root, find_index, open_index
        from tvrbench.harness.search.query import hit_json, load_index_encoder, search, shown_frames
        from tvrbench.harness.search.text import clock, encodable

        set_numerics()
        dataset, index = open_folder(self.folder), open_index(find_index(self.folder, self.index))
        check_root(index, self.folder)
        checkpoint = None if self.checkpoint is None else str(self.checkpoint)
        moved = ModelSource(weights=self.weights, checkpoint=checkpoint)
        encoder = load_index_encoder(index, pick_device(self.device), moved)
        query = self._encode(encoder, dataset)
        scorer = encoder.model.scorer if query.kind == "text" else None
        hits, changes = search(index, query.feature, self.top, scorer), find_changes(dataset, index)
        notes = [COARSE_ONLY.format(encoder.identity.method) + "."] if encoder.model.scorer.two_stage else []
        if query.cut:
            notes.append("The query is longer than the model reads: words at its end were left out.")
        if changes:
            counts = f"new files: {len(changes.new)}, changed: {len(changes.changed)}, gone: {len(changes.gone)}"
            notes.append(f"The index is not up to date ({counts}): tvrbench embed updates it.")
        for note in notes:
            say(note)
        model = encoder.identity
        about = (
            f"{model.method} on {model.backbone} ({printable(index.header.source.name)}), {model.frames} frames: "
            f"{len(index.encoded)} videos"
        )
        if self.html is not None:
            from tvrbench.harness.search.page import search_page  # the reports' templates take a second to import

            folder = os.path.relpath(dataset.root.resolve(), self.html.parent.resolve())
            page = search_page(
                query, hits, lambda hit: shown_frames(dataset, encoder.spec, hit.entry), about, notes, folder
            )
            atomic_write(self.html, page.encode())
        if self.as_json:
            print_json(
                {
                    "query": {"kind": query.kind, "text": encodable(query.text), "cut": query.cut},
                    "index": encodable(str(index.folder)),
                    "model": asdict(model),
                    "videos": len(index.encoded),
                    "changes": {"new": len(changes.new), "changed": len(changes.changed), "gone": len(changes.gone)},
                    "html": None if self.html is None else str(self.html),
                    "hits": [hit_json(hit, self.folder) for hit in hits],
                }
            )
            return
        say(about)
        print(f"rank  {'cosine' if all(hit.cosine for hit in hits) else ' score'}    length  file")
        for hit in hits:
            print(f"{hit.rank:>4}  {hit.score:6.3f}  {clock(hit.entry.seconds):>8}  {printable(hit.entry.file)}")
        if self.html is not None:
            say(f"page: {self.html}")

    def _check(self) -> None:
        queries = {"query": self.words or None, "image": self.image, "video": self.video}
        given = [name for name, value in queries.items() if value is not None]
        if len(given) != 1:
            message = f"give one query, not {len(given)}: words, --image FILE or --video FILE"
            raise UsageError(message, code="query.count", given=given)
        if self.words and not self.query.strip():
            raise UsageError("the query holds no word; describe what the video shows", code="query.empty")
        if self.top < 1:
            raise UsageError(f"--top {self.top} lists nothing; give 1 or more", code="option.range", option="top")
        if self.html is not None and self.html.is_dir():
            raise UsageError(f"--html {self.html}: that is a folder; name a file", code="io.write", path=str(self.html))
        if self.html is not None and not self.html.parent.is_dir():
            message = f"--html {self.html}: there is no folder {self.html.parent}; make it, or name another file"
            raise UsageError(message, code="io.write", path=str(self.html))

    def _encode(self, encoder: Encoder, dataset: VideoFolder) -> Query:
        from tvrbench.harness.search.query import image_query, text_query, video_query

        if self.image is not None:
            return image_query(encoder, dataset, self.image)
        if self.video is not None:
            return video_query(encoder, dataset, self.video)
        return text_query(encoder, self.query)
