"""Everything a protocol needs before its first run: data opened and checked, weights and tokenizer loaded."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tvrbench.harness.config.known_weights import shipped_weights
from tvrbench.harness.config.protocol import Activation, Protocol
from tvrbench.harness.config.recipe import Recipe
from tvrbench.harness.core.distributed import all_gather_object, dist_info
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.progress import Bar
from tvrbench.harness.data.cache import open_cache, whole_videos
from tvrbench.harness.data.frame_captions import FrameCaptions
from tvrbench.harness.data.frame_loader import FrameLoader, frames_fingerprint
from tvrbench.harness.data.open import open_dataset
from tvrbench.harness.data.pair_loader import PairLoader
from tvrbench.harness.data.types import FrameSpec, RetrievalDataset, Split, VideoFault, VideoFiles
from tvrbench.harness.evaluation.evaluate import Evaluation, evaluate
from tvrbench.harness.models.backbone.tokenizer import BYTE_PAIRS, CLIP_VOCABULARY, Tokenizer, tokenizer_for
from tvrbench.harness.models.backbone.weights import CLIP_NORMALIZATION, Weights, load_weights
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.records.reading import USUAL_ACTIVATION
from tvrbench.harness.runs.eval_checkpoint import EvalCheckpoint

MISSING_LISTED = 20  # absent videos that a message names one by one


@dataclass(frozen=True, kw_only=True)
class Plain:
    """The plain encoder of a context's weights: its score of the test split, and its costs per video."""

    evaluation: Evaluation
    gmacs_video: float
    output_tokens: int


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """A protocol's data and weights, ready to run.

    Attributes:
        train, test: the splits, without skipped videos; ``train`` is empty where nothing is trained.
        skipped: videos left out because they cannot be decoded (``--skip-bad-videos``).
        declared: the whole splits by name, where videos are left out.
        weights: what every method starts from, or the CLIP inside a checkpoint that is scored.
        weights_spec: what to give ``load_model`` as ``weights``; None if a checkpoint holds them.
        tokenizer: of the weights.
        loaders: one frame loader per FrameSpec in use, shared so that pixels are decoded once.
        blueprints: models without values, built once per method and options.
        plain: what runs are held against where the protocol asks for it, by the frames that it takes.
    """

    protocol: Protocol
    dataset: RetrievalDataset
    train: Split
    test: Split
    skipped: tuple[str, ...]
    weights: Weights
    weights_spec: str | None
    tokenizer: Tokenizer
    declared: Mapping[str, Split] = field(default_factory=dict)
    loaders: dict[FrameSpec, FrameLoader] = field(default_factory=dict)
    fingerprints: dict[FrameSpec, str] = field(default_factory=dict)
    blueprints: dict[str, RetrievalModel] = field(default_factory=dict)
    plain: dict[FrameSpec, Plain] = field(default_factory=dict)

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

    def pairs(self, split: Split, recipe: Recipe, seed: int, frame_captions: FrameCaptions | None = None) -> PairLoader:
        """The training batches of a split under a recipe, with captions of the frames where they are given."""
        return PairLoader(
            split,
            self.loader(self.spec(recipe.train_sampler or recipe.sampler, recipe.augment)),
            self.tokenizer,
            self.protocol.words,
            batch_size=recipe.batch_size,
            seed=seed,
            pair_scenes=recipe.pair_scenes,
            frame_captions=frame_captions,
        )

    def evaluate(
        self,
        model: RetrievalModel,
        split: Split,
        sampler: str,
        on_batch: Callable[[int], None],
        scratch: Path | None = None,
    ) -> Evaluation:
        """Score a model on a split; arguments and errors as ``evaluate``."""
        loader, words = self.loader(self.spec(sampler)), self.protocol.words
        return evaluate(model, split, loader, self.tokenizer, words, on_batch=on_batch, scratch=scratch)


def weights_of(protocol: Protocol) -> str:
    """The weights option of the protocol; ``dataset`` becomes the file that the data set ships.

    Raises:
        UsageError: the data set ships none.
    """
    if protocol.weights != "dataset":
        return protocol.located_weights
    path = shipped_weights(protocol.dataset)
    if path is None:
        raise UsageError(
            f"protocol {protocol.name}: data set {protocol.dataset} ships no weights; give --weights",
            code="weights.not-shipped",
            dataset=protocol.dataset,
        )
    return str(path)


@dataclass(frozen=True, kw_only=True)
class OpenedWeights:
    """Weights, and what follows from them.

    Attributes:
        protocol: on these weights.
        spec: what to give ``load_model`` as ``weights``; None if a checkpoint holds them.
        weights: the weights.
        tokenizer: of the weights.
    """

    protocol: Protocol
    spec: str | None
    weights: Weights
    tokenizer: Tokenizer


LoadWeights = Callable[[str, str | None, Activation | None], Weights]


def open_context(
    protocol: Protocol,
    root: Path | None,
    weights_spec: str | None,
    *,
    activation: Activation | None = None,
    scored: EvalCheckpoint | None = None,
    load: LoadWeights = load_weights,
) -> RunContext:
    """Open the test data and load the weights; no video is decoded yet, see ``check_videos``.

    Args:
        protocol: to run.
        root: the data folder instead of the protocol's own, or None.
        weights_spec: weights instead of the protocol's own, or None.
        activation: of the weights, over what their sources state.
        scored: a checkpoint to score; no weights are opened if it holds its own.
        load: loads weights; a plan takes ``shapes_or_weights``, which downloads nothing.

    Raises:
        UsageError: a file is missing or broken.
    """
    dataset = open_dataset(protocol.dataset, root or protocol.data, protocol.data_options)
    train = Split(name=protocol.train_split, video_ids=(), captions=(), caption_video=())
    test = dataset.split(protocol.test_split)
    opened = open_weights(protocol, weights_spec, activation, scored, load)
    return RunContext(
        protocol=opened.protocol,
        dataset=dataset,
        train=train,
        test=test,
        skipped=(),
        weights=opened.weights,
        weights_spec=opened.spec,
        tokenizer=opened.tokenizer,
    )


def open_weights(
    protocol: Protocol,
    given: str | None,
    activation: Activation | None,
    scored: EvalCheckpoint | None,
    load: LoadWeights,
) -> OpenedWeights:
    """The weights that a protocol's runs use; arguments and errors as ``open_context``."""
    if scored and scored.base:
        spec, weights = None, scored.base
    else:
        spec = given or weights_of(protocol)
        weights = load(spec, protocol.backbone, activation)
    tokenizer = _tokenizer(protocol, weights)
    if protocol.words > weights.arch.context_length:
        raise UsageError(
            f"protocol {protocol.name} reads {protocol.words} words per caption, and the context of {weights.source} "
            f"holds {weights.arch.context_length}: give other weights",
            code="weights.context",
            words=protocol.words,
            context=weights.arch.context_length,
        )
    by_path = bool(given) or (spec is not None and protocol.weights != "dataset" and weights.folder is not None)
    read_as = _read_as(protocol, weights, tokenizer, given=by_path)
    return OpenedWeights(protocol=read_as, spec=spec, weights=weights, tokenizer=tokenizer)


def _read_as(protocol: Protocol, weights: Weights, tokenizer: Tokenizer, *, given: bool) -> Protocol:
    """The protocol on these weights; how they are read is part of it where that is not the protocol's own way.

    One file read with another activation gives other numbers, so such runs share no table and no saved state.
    ``given`` weights are those that a user gives, by an option or as a path in a protocol of their own: what lies there
    can change, so their content is part of the protocol too.
    """
    own = USUAL_ACTIVATION if given else weights.stated_activation
    config: dict[str, Any] = {} if weights.arch.activation == own else {"activation": weights.arch.activation}
    if not given:
        return replace(protocol, weights_config=config) if config else protocol
    if (weights.arch.mean, weights.arch.std) != CLIP_NORMALIZATION:
        config |= {"mean": weights.arch.mean, "std": weights.arch.std}
    if tokenizer.name != BYTE_PAIRS:
        config["tokenizer"] = tokenizer.name
    return protocol.with_weights(weights.sha256, config)


def with_training_data(context: RunContext) -> RunContext:
    """The context with the training split, which is opened once.

    Raises:
        UsageError: an annotation file is missing or broken.
    """
    if context.train.captions:
        return context
    return replace(context, train=context.dataset.split(context.protocol.train_split))


def _tokenizer(protocol: Protocol, weights: Weights) -> Tokenizer:
    """The tokenizer of the weights; a checkpoint has no word list, so it takes that of the data set's CLIP."""
    beside = weights.folder is not None and (weights.folder / "vocab.txt").is_file()
    if not beside and weights.arch.vocab_size != CLIP_VOCABULARY and protocol.weights == "dataset":
        weights = replace(weights, folder=Path(weights_of(protocol)).parent)
    return tokenizer_for(weights)


def check_videos(context: RunContext, *, skip_bad: bool, log: Callable[[str], None], decode: bool = True) -> RunContext:
    """Decode every video that will be used, except those that a frame cache was filled from unchanged.

    Args:
        context: of the runs.
        skip_bad: leave out videos that cannot be used instead of stopping.
        log: receives what was left out.
        decode: False only looks for the files, as a plan does.

    Raises:
        UsageError: a video is missing or broken; every bad one is named, and nothing has been run yet.
    """
    train, test = context.train, context.test
    faults = [fault for part in all_gather_object(_faults(context, log, decode)) for fault in part]
    if faults and not skip_bad:
        raise UsageError(
            bad_videos_message(faults), code="video.unusable", videos=sorted(fault.video_id for fault in faults)
        )
    skipped = tuple(fault.video_id for fault in faults)
    if skipped:
        log(f"leaving out videos that cannot be used ({len(skipped)}): {first_of(skipped, MISSING_LISTED)}")
        context = replace(
            context,
            train=train.without(skipped),
            test=test.without(skipped),
            skipped=skipped,
            declared={split.name: split for split in (train, test)},
        )
    if not context.test.captions or (train.captions and not context.train.captions):
        used = f"{train.name} or {test.name}" if train.captions else test.name
        raise UsageError(
            f"protocol {context.protocol.name}: {used} has no usable video left: repair the "
            "videos (tvrbench data verify names them)",
            code="split.no-video-left",
        )
    return context


def _faults(context: RunContext, log: Callable[[str], None], decode: bool) -> list[VideoFault]:
    """The faults of this process's share of the videos."""
    dataset = context.dataset
    used = list(dict.fromkeys((*context.train.video_ids, *context.test.video_ids)))
    own = used[dist_info().share(len(used))]
    if not decode:
        return missing_videos(dataset, own)
    whole = whole_videos(dataset, own)
    unknown = [video_id for video_id in own if video_id not in whole]
    if whole:
        log(f"{len(whole)} of {len(own)} videos were whole when the frame cache was filled, and have not changed")
    elif isinstance(dataset, VideoFiles) and not dataset.generated:
        command = f"tvrbench data cache {dataset.name} --root {shlex.quote(str(dataset.root))}"
        log(f"videos are decoded now to check them, and again whenever they are used; to decode them once: {command}")
    if not unknown:
        return []
    with Bar() as bar:
        bar.begin(f"decoding {len(unknown)} videos to check them:")
        return dataset.check_videos(unknown, progress=bar.reach)


def first_of(names: Sequence[str], listed: int) -> str:
    """The first names in one line, and how many more there are."""
    more = f" and {len(names) - listed:,} more" if len(names) > listed else ""
    return ", ".join(names[:listed]) + more


def missing_videos(dataset: RetrievalDataset, video_ids: Sequence[str]) -> list[VideoFault]:
    """The videos without a file, or with two; none is opened."""
    if not isinstance(dataset, VideoFiles):
        return []
    faults = []
    for video_id in video_ids:
        try:
            dataset.video_path(video_id)
        except UsageError as error:
            faults.append(VideoFault.of(video_id, Path(f"{video_id}.mp4"), error))
    return faults


def bad_videos_message(faults: Sequence[VideoFault]) -> str:
    """One line per bad video (of missing ones the first few), below a sentence with the remedy."""
    missing = [fault for fault in faults if fault.kind == "missing"]
    listed = [*(fault for fault in faults if fault.kind != "missing"), *missing[:MISSING_LISTED]]
    lines = [f"  {fault.path.name}: {fault.kind} ({fault.detail})" for fault in listed]
    head = f"{len(faults)} videos cannot be used: repair them, or leave them out with --skip-bad-videos:"
    left = len(faults) - len(listed)
    more = [f"  and {left} more are missing; tvrbench data verify lists them all"] if left else []
    return "\n".join([head, *lines, *more])
