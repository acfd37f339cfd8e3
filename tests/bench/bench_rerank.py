"""What the last stage costs, scored three ways: a script that prints a table, not a test.

    python tests/bench/bench_rerank.py [--videos 300] [--depth 15] [--frames 12] [--patches 49] [--width 512]

Random sides of EERCF at ViT-B/32's size lie in one file, as in an evaluation. Each round times all three ways, one
after the other, on the same lists: video by video (each video's fine side read once, with just the texts that list
it), query by query (the fine sides of its list gathered for each text), and all pairs. Their scores must agree. Ratios
are of the same round; the table has their median and their range.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from tvrbench.harness.evaluation.last_stage import LastStage, exact_scorer
from tvrbench.harness.evaluation.metrics import Exact, grid_rows
from tvrbench.harness.evaluation.shortlists import Pairs, Shortlists
from tvrbench.harness.evaluation.side_store import SideStore, store_sides
from tvrbench.harness.models.scorer import Scorer, Side, TextFeatures, VideoFeatures
from tvrbench.methods.eercf import CoarseToFine, EERCFOptions


def sides(scorer: Scorer, arguments: argparse.Namespace, folder: Path) -> tuple[SideStore, SideStore]:
    """As many texts as videos, each near its own video's frames."""
    noise, width, frames = torch.Generator().manual_seed(0), arguments.width, arguments.frames
    own = torch.randn(arguments.videos, width, generator=noise)
    text = scorer.text_side(TextFeatures(end=own, words=None, mask=torch.ones(len(own), 1, dtype=torch.bool)))

    def video(number: int) -> Side:
        def near(count: int) -> torch.Tensor:
            return own[number] + 2 * torch.randn(1, count, width, generator=noise)

        features = VideoFeatures(
            frames=(of_frames := near(frames)),
            related=near(frames),
            pooled=of_frames.mean(dim=1),
            mask=torch.ones(1, frames),
            patches=near(frames * arguments.patches),
            patch_mask=torch.ones(1, frames * arguments.patches, dtype=torch.bool),
        )
        return scorer.video_side(features)

    stored = store_sides(folder / "video.safetensors", len(own), ((v, video(v)) for v in range(len(own))), "float32")
    return SideStore(coarse=text.coarse), stored


def shortlists(stage: LastStage, depth: int) -> Pairs:
    """Each text's best by the coarse score."""
    text, video = (side.coarse.double() for side in (stage.text, stage.video))
    text_TE, video_VE = grid_rows(stage.scorer.coarse_text(text), stage.scorer.coarse_video(video))
    lists = Shortlists(depth, len(text), len(video))
    lists.add(*lists.cut(text_TE @ video_VE.T))
    return lists.pairs()


def video_by_video(stage: LastStage, lists: Pairs) -> Exact:
    """The scores of the lists as an evaluation computes them."""
    stage.fill([lists])
    return lists.fine_P


def query_by_query(stage: LastStage, lists: Pairs) -> Exact:
    """The same scores, from the fine sides of each text's list."""
    scores_P = np.empty(len(lists.text_P))
    order_P = np.argsort(lists.text_P, kind="stable")
    for rows in np.split(order_P, np.flatnonzero(np.diff(lists.text_P[order_P])) + 1):
        text = stage.text.part(slice(lists.text_P[rows[0]], lists.text_P[rows[0]] + 1)).to(torch.float64)
        video = stage.video.part(torch.from_numpy(lists.video_P[rows].astype(np.int64))).to(torch.float64)
        scores_P[rows] = stage.scorer.score(text, video)[0].numpy()
    return scores_P


def all_pairs(stage: LastStage, lists: Pairs) -> Exact:
    """The same scores, among those of all pairs."""
    texts_T, blocks = np.arange(len(stage.text)), stage.blocks(np.arange(len(stage.video)))
    scores_VT = np.concatenate([stage.scores(texts_T, numbers, block) for numbers, block in blocks])
    return scores_VT[lists.video_P, lists.text_P]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=300)
    parser.add_argument("--depth", type=int, default=15)
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--patches", type=int, default=49)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    scorer = CoarseToFine(EERCFOptions(tuning="frozen"), arguments.width, arguments.frames)
    ways: dict[str, Callable[[LastStage, Pairs], Exact]] = {
        "video by video": video_by_video,
        "query by query": query_by_query,
        "all pairs": all_pairs,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        text, video = sides(scorer, arguments, Path(folder))
        stage = LastStage(exact_scorer(scorer, "cpu"), text, video, "cpu")
        lists = shortlists(stage, arguments.depth)
        for number in range(1 + arguments.rounds):
            scores = {}
            for name, way in ways.items():
                start = time.perf_counter()
                scores[name] = way(stage, lists)
                seconds[name] += [time.perf_counter() - start] if number else []  # the first round warms up
            for found in scores.values():
                np.testing.assert_allclose(found, scores["all pairs"], atol=1e-7)
    print(f"{arguments.videos} videos, lists of {arguments.depth}, {torch.get_num_threads()} threads")
    print(f"{'':>16}  {'s':>8}  {'beside video by video':>22}")
    for name, samples in seconds.items():
        ratios = [sample / base for sample, base in zip(samples, seconds["video by video"], strict=True)]
        print(f"{name:>16}  {median(samples):>8.2f}  {median(ratios):>6.1f} ({min(ratios):.1f} to {max(ratios):.1f})")


if __name__ == "__main__":
    main()
