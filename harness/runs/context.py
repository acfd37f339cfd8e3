"""Everything a protocol needs before its first run: data checked, splits cut, weights and tokenizer at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tvrbench.harness.config.protocol import Protocol
from tvrbench.harness.core import registry
from tvrbench.harness.core.distributed import all_gather_object, dist_info
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.progress import Bar
from tvrbench.harness.data.cache import open_cache, whole_videos
from tvrbench.harness.data.frame_loader import FrameLoader, frames_fingerprint
from tvrbench.harness.data.types import FrameSpec, RetrievalDataset, Split, VideoFault, VideoFiles
from tvrbench.harness.models.backbone.tokenizer import CLIP_VOCABULARY, Tokenizer, tokenizer_for
from tvrbench.harness.models.backbone.weights import Weights, load_weights
from tvrbench.harness.runs.eval_checkpoint import EvalCheckpoint

SHOWN = 20  # absent videos that are named one by one


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """A protocol's data and weights, ready to run.

    Attributes:
        train, test: the splits, without skipped videos; where a checkpoint is scored, nothing is in ``train``.
        skipped: videos left out because they cannot be decoded (``--skip-bad-videos``).
        weights: what every method starts from, or what a checkpoint that is scored holds in their place.
        weights_spec: what to give ``load_model`` as ``weights``; None where a checkpoint holds them.
        loaders: one frame loader for each FrameSpec in use; shared so that pixels are decoded once.
    """

    protocol: Protocol
    dataset: RetrievalDataset
    train: Split
    test: Split
    skipped: tuple[str, ...]
    weights: Weights
    weights_spec: str | None
    tokenizer: Tokenizer
    loaders: dict[FrameSpec, FrameLoader] = field(default_factory=dict)
    fingerprints: dict[FrameSpec, str] = field(default_factory=dict)

    def spec(self, sampler: str, augment: str = "none") -> FrameSpec:
        """The frames to load under a recipe's sampler and augmentation."""
        return FrameSpec(
            sampler=sampler, frames=self.protocol.frames, size=self.weights.arch.image_size, augment=augment
        )

    def loader(self, spec: FrameSpec) -> FrameLoader:
        """The one loader for this FrameSpec."""
        if spec not in self.loaders:
            videos = len(self.train.video_ids) + len(self.test.video_ids)
            self.loaders[spec] = FrameLoader(self.dataset, spec, videos, cached=open_cache(self.dataset, spec))
        return self.loaders[spec]

    def frames_fingerprint(self, spec: FrameSpec) -> str:
        """SHA-256 over the decoded test frames and masks, in the order of the split: two sites can compare it."""
        if spec not in self.fingerprints:
            self.fingerprints[spec] = frames_fingerprint(self.loader(spec), self.test.video_ids)
        return self.fingerprints[spec]


def open_dataset(name: str, root: Path | None) -> RetrievalDataset:
    """The registered data set in ``root``; one that generates itself needs none.

    Raises:
        UsageError: an unknown name, no folder given, or not the data set's folder.
    """
    cls = registry.lookup(name, "datasets")
    if root is None and not cls.generated:
        raise UsageError(f"data set {name} needs its folder (--data DIR, or --root DIR for data verify): {cls.wanted}")
    dataset: RetrievalDataset = cls(root)
    return dataset


def weights_of(protocol: Protocol) -> str:
    """The weights option of the protocol, with ``dataset`` resolved to what the data set ships."""
    if protocol.weights != "dataset":
        return protocol.weights
    path: Path | None = getattr(registry.lookup(protocol.dataset, "datasets"), "weights_path", None)
    if path is None:
        raise UsageError(f"protocol {protocol.name}: data set {protocol.dataset} ships no weights; give --weights")
    return str(path)


def prepare(
    protocol: Protocol, root: Path | None, given_weights: str | None, *, scored: EvalCheckpoint | None = None
) -> RunContext:
    """Open the data and load the weights; no video has been looked at yet, see ``with_checked_videos``.

    Args:
        protocol: what will be run.
        root: the data folder, or None for a data set that makes itself.
        given_weights: in place of the protocol's own.
        scored: a checkpoint to be scored; no training data is opened then, nor weights where it holds its own.

    Raises:
        UsageError: a file is missing or broken.
    """
    dataset = open_dataset(protocol.dataset, root)
    nothing = Split(name=protocol.train_split, video_ids=(), captions=(), caption_video=())
    train = nothing if scored else dataset.split(protocol.train_split)
    test = dataset.split(protocol.test_split)
    spec: str | None = None
    if scored and scored.base:
        weights = scored.base
    else:
        spec = given_weights or weights_of(protocol)
        weights = load_weights(spec, protocol.backbone)
    if given_weights:
        protocol = protocol.with_weights(weights.sha256)
    return RunContext(
        protocol=protocol,
        dataset=dataset,
        train=train,
        test=test,
        skipped=(),
        weights=weights,
        weights_spec=spec,
        tokenizer=_tokenizer(protocol, weights),
    )


def _tokenizer(protocol: Protocol, weights: Weights) -> Tokenizer:
    """The tokenizer of the weights; a checkpoint comes without a word list, so it takes that of the data set's CLIP."""
    beside = weights.folder is not None and (weights.folder / "vocab.txt").is_file()
    if not beside and weights.arch.vocab_size != CLIP_VOCABULARY and protocol.weights == "dataset":
        weights = replace(weights, folder=Path(weights_of(protocol)).parent)
    return tokenizer_for(weights)


def with_checked_videos(prepared: RunContext, *, skip_bad: bool, say: Callable[[str], None]) -> RunContext:
    """Decode-check every video that will be used, but for those that a frame cache was filled from unchanged.

    Args:
        prepared: what will be run.
        skip_bad: leave out videos that cannot be used instead of stopping.
        say: hears what was left out.

    Raises:
        UsageError: a video is missing or broken; every bad one is named and nothing has been run yet.
    """
    train, test = prepared.train, prepared.test
    faults = [fault for part in all_gather_object(_faults(prepared, say)) for fault in part]
    if faults and not skip_bad:
        raise UsageError(bad_videos_message(faults))
    skipped = tuple(fault.video_id for fault in faults)
    if skipped:
        say(f"leaving out {len(skipped)} videos that cannot be used: {', '.join(skipped[:20])}")
        prepared = replace(prepared, train=train.without(skipped), test=test.without(skipped), skipped=skipped)
    if not prepared.test.captions or (train.captions and not prepared.train.captions):
        name = prepared.protocol.name
        raise UsageError(f"protocol {name}: no usable video is left in {train.name} or {test.name}")
    return prepared


def _faults(prepared: RunContext, say: Callable[[str], None]) -> list[VideoFault]:
    """The faults of this process's share of the videos."""
    dataset = prepared.dataset
    used = list(dict.fromkeys((*prepared.train.video_ids, *prepared.test.video_ids)))
    own = used[dist_info().share(len(used))]
    whole = whole_videos(dataset, own)
    unknown = [video_id for video_id in own if video_id not in whole]
    if whole:
        say(f"{len(whole)} of {len(own)} videos were found whole when the frame cache was filled, and are unchanged")
    elif isinstance(dataset, VideoFiles) and not dataset.generated:
        say(f"videos are decoded to check them, and again when used; tvrbench data cache {dataset.name} keeps frames")
    if not unknown:
        return []
    with Bar() as bar:
        bar.begin(f"decoding {len(unknown)} videos to check them:")
        return dataset.check_videos(unknown, progress=bar.reach)


def bad_videos_message(faults: Sequence[VideoFault]) -> str:
    """One line for each bad video, of absent ones the first few, under a sentence that says what to do."""
    absent = [fault for fault in faults if fault.kind == "missing"]
    said = [*(fault for fault in faults if fault.kind != "missing"), *absent[:SHOWN]]
    lines = [f"  {fault.path.name}: {fault.kind} ({fault.detail})" for fault in said]
    head = f"{len(faults)} videos cannot be used; mend them, or leave them out with --skip-bad-videos:"
    left = len(faults) - len(said)
    more = [f"  and {left} more are missing; tvrbench data verify lists them all"] if left else []
    return "\n".join([head, *lines, *more])


def split_holdout(split: Split, videos: int, seed: int = 0) -> tuple[Split, Split]:
    """(rest, held out): ``videos`` videos, whole scenes together, drawn by ``seed``; one caption each is kept.

    The held-out slice keeps the first caption of each video, as the test split has one.
    """
    scenes = split.scenes or tuple(range(len(split.video_ids)))
    order = np.random.default_rng(seed).permutation(np.unique(scenes))
    members: dict[int, list[str]] = {}
    for video, scene in zip(split.video_ids, scenes, strict=True):
        members.setdefault(scene, []).append(video)
    held: list[str] = []
    for scene in order:
        if len(held) >= videos:
            break
        held += members[int(scene)]
    if len(held) >= len(split.video_ids):
        raise UsageError(f"split {split.name}: {len(split.video_ids)} videos leave nothing beside {videos} held out")
    rest = split.without(held)
    kept = set(held)
    slice_ = split.without([v for v in split.video_ids if v not in kept])
    first = {video: caption for caption, video in reversed(list(enumerate(slice_.caption_video)))}
    rows = sorted(first.values())
    return rest, Split(
        name=f"{split.name}-held-out",
        video_ids=slice_.video_ids,
        captions=tuple(slice_.captions[i] for i in rows),
        caption_video=tuple(slice_.caption_video[i] for i in rows),
        scenes=slice_.scenes if split.scenes is not None else None,
    )
