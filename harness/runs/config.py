"""One run and all that follows from it: its key, files, recipe, model and amount of work."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from tvrbench.harness.config.grid import grid_text
from tvrbench.harness.config.protocol import Protocol
from tvrbench.harness.config.recipe import Recipe
from tvrbench.harness.core.distributed import dist_info
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.frame_captions import FrameCaptions
from tvrbench.harness.data.open import origin_of
from tvrbench.harness.data.types import Split
from tvrbench.harness.models.backbone.architecture import vision_name
from tvrbench.harness.models.backbone.weights import Weights
from tvrbench.harness.models.factory import build, load_model, method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.records.reading import frame_captions_of, unusual_reading
from tvrbench.harness.records.record import SCHEMA_VERSION, plain
from tvrbench.harness.records.store import LAST, RecordStore, run_name
from tvrbench.harness.runs.checkpoint_selection import eval_steps
from tvrbench.harness.runs.context import RunContext
from tvrbench.harness.runs.eval_checkpoint import EvalCheckpoint
from tvrbench.harness.training.loop import TRAIN_WORK
from tvrbench.harness.training.state_file import SUFFIX, Identity

COST_WORK = 1500  # about what the cost measurements of one run take, in videos of a small data set encoded once


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, reproducible from these values and the protocol.

    Attributes:
        options: of the method, as given.
        point: those of them that are a combination of a grid.
        checkpoint: scored instead of training a model.
        selection: the checkpoint of the training to report, ``last`` or ``best-on-test``.
        timing: measure time and memory.
        deterministic: its process takes deterministic algorithms alone.
        frozen: no parameter of its model is to be trained, see ``settle``.
        frame_captions: that its method trains on; None where it takes none, or none were given.
    """

    method: str
    seed: int
    device: str = "cpu"
    options: dict[str, Any] = field(default_factory=dict)
    point: dict[str, Any] = field(default_factory=dict)
    checkpoint: EvalCheckpoint | None = None
    selection: str = LAST
    timing: bool = True
    deterministic: bool = False
    frozen: bool = False
    frame_captions: FrameCaptions | None = field(default=None, repr=False)

    @property
    def trains(self) -> bool:
        """True if a model is trained, so that training data is needed."""
        return self.checkpoint is None and not self.frozen and method_class(self.method).card.trains

    @property
    def variant(self) -> str:
        """Method and options: what runs that differ in their seed alone share."""
        return f"{self.method} {sorted(self.options.items())}"

    @property
    def label(self) -> str:
        """The method, and its place in a grid."""
        return f"{self.method} {grid_text(self.point)}".rstrip()

    @property
    def title(self) -> str:
        """The run in a few words."""
        source = f"checkpoint {self.checkpoint.path.name}" if self.checkpoint else f"seed {self.seed}"
        return f"{self.label} ({source})"


@dataclass(frozen=True, kw_only=True)
class RunKey:
    """The identity of a run.

    Attributes:
        head: the part of its record that says which run it is.
        device: ``cpu`` or ``cuda``; a training is resumed on the kind of device that it started on.
        deterministic: as in ``RunConfig``; a training is resumed as it started.
    """

    head: dict[str, Any]
    device: str
    deterministic: bool = False

    @classmethod
    def of(cls, context: RunContext, config: RunConfig) -> RunKey:
        """The key of a run; errors as ``blueprint``."""
        description = describe(blueprint_of(context, config))
        head = {
            "schema_version": SCHEMA_VERSION,
            "protocol": context.protocol.reference,
            "method": {"name": config.method, "options": description["options"], "given": dict(config.options)},
            "tuning": description["tuning"],
            "seed": config.seed,
            "data": _data(context, config),
            "weights_sha256": context.weights.sha256,
            "weights": context.weights.to_json(context.tokenizer.name),
            "metrics": {} if config.selection == LAST else {"selection": config.selection},
        } | ({"checkpoint": config.checkpoint.to_json()} if config.checkpoint else {})
        return cls(head=head, device=config.device.partition(":")[0], deterministic=config.deterministic)

    @property
    def name(self) -> str:
        """The stem of the run's files."""
        return run_name(self.head)

    @property
    def identity(self) -> Identity:
        """The facts that a saved state of this run holds."""
        head = self.head
        return {
            "protocol": head["protocol"]["name"],
            "protocol hash": head["protocol"]["hash"],
            "method": head["method"]["name"],
            "options": options_text(head["method"]["options"]),
            "tuning": head["tuning"],
            "seed": head["seed"],
            "selection": head["metrics"].get("selection", LAST),
            "weights": head["weights_sha256"],
            "training split": head["data"].get("train_fingerprint"),
            "test split": head["data"]["split_fingerprint"],
            "device": self.device,
            **{key: str(value) for key, value in unusual_reading(head).items()},
            **({"deterministic": True} if self.deterministic else {}),  # states saved before have no such fact
            **({"frame captions": frame_captions} if (frame_captions := frame_captions_of(head)) else {}),
        }

    def lr_search_identity(self, seed: int) -> Identity:
        """The facts that decide which learning rate a search with this seed chooses."""
        unrelated = ("seed", "selection", "test split")
        return {name: fact for name, fact in self.identity.items() if name not in unrelated} | {"search seed": seed}


class RunFiles:
    """Every path of one run, in the folder of results.

    Attributes:
        record: of the completed run.
        checkpoint: the trained model.
        state: of the interrupted run.
        log: of the steps.
        embeddings: the features of the test split that the run was scored by.
        sides: folder of what is compared while the run is scored; gone when the run ends.

    Args:
        store: of the records.
        protocol: its name.
        name: of the run, see ``RunKey``.
    """

    def __init__(self, store: RecordStore, protocol: str, name: str) -> None:
        records = store.folder(protocol)
        checkpoints, logs, embeddings = (
            store.root / kind / records.name for kind in ("checkpoints", "logs", "embeddings")
        )
        self.store = store
        self.record = records / f"{name}.json"
        self.checkpoint = checkpoints / f"{name}.safetensors"
        self.state = checkpoints / f"{name}{SUFFIX}"
        self.log = logs / f"{name}.jsonl"
        self.embeddings = embeddings / f"{name}.safetensors"
        self.sides = records / f".{name}.sides"

    def lr_choice(self, identity: Identity) -> Path:
        """The learning rate that a search of this identity chose; runs that differ in their seed share it."""
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
        return self.state.with_name(f"{identity['method']}-{identity['tuning']}-{digest}.lr")

    def other_states(self) -> list[Path]:
        """The states of other interrupted runs of the protocol."""
        return [path for path in sorted(self.state.parent.glob(f"*{SUFFIX}")) if path != self.state]


def options_text(options: dict[str, Any]) -> str:
    """A method's options in one line, the same for tuples and the lists that JSON makes of them."""
    return ", ".join(f"{key}={value}" for key, value in sorted(plain(options, "options").items()))


def describe(model: RetrievalModel) -> dict[str, Any]:
    """The method's options as a record holds them (backbone and frames included), and its tuning."""
    shape = {"backbone": vision_name(model.clip.arch), "frames": model.frames}
    return {"options": shape | model.spec.describe(), "tuning": model.spec.options.tuning}


def settle(protocol: Protocol, weights: Weights, configs: Sequence[RunConfig]) -> list[RunConfig]:
    """Mark the runs whose tuning leaves nothing to train, as the shapes of the models tell, or that a protocol freezes.

    Such a run has no seeds, so only those of the first seed stay.

    Raises:
        UsageError: an option that does not fit.
    """

    def learns(config: RunConfig) -> bool:
        if not protocol.trains:
            return False
        options = {"tuning": method_class(config.method).card.tuning} | options_of(protocol, config)
        return options["tuning"] != "frozen" or bool(blueprint(protocol, weights, config).trainable())

    marked = [c if not c.trains or learns(c) else replace(c, frozen=True, selection=LAST) for c in configs]
    return [config for config in marked if not config.frozen or config.seed == configs[0].seed]


def _data(context: RunContext, config: RunConfig) -> dict[str, Any]:
    """The record's account of the data: each split as used, and as declared before videos were skipped."""
    train, test, origin = context.train, context.test, origin_of(context.dataset)
    trained_on: dict[str, Any] = {
        "train_split": train.name,
        "train_videos": len(train.video_ids),
        "train_pairs": len(train.captions),
        "train_fingerprint": train.fingerprint,
        **_declared(context, "train", "pairs", train),
    }
    if method_class(config.method).card.frame_captions:
        trained_on["frame_captions"] = None if config.frame_captions is None else config.frame_captions.to_json()
    if not config.trains:  # of a checkpoint, the training data is not known
        trained_on = {} if config.checkpoint else {"train_split": None, "train_videos": 0, "train_pairs": 0}
    return {
        "dataset": context.dataset.name,
        "test_split": test.name,
        "test_videos": len(test.video_ids),
        "test_captions": len(test.captions),
        "split_fingerprint": test.fingerprint,
        "order_fingerprint": test.order_fingerprint,
        "frames_fingerprint": None,
        "skipped": list(context.skipped),
        **_declared(context, "test", "captions", test),
        **({"split_origin": asdict(origin)} if origin else {}),
        **trained_on,
    }


def _declared(context: RunContext, kind: str, texts: str, used: Split) -> dict[str, Any]:
    """The whole of a split; ``published`` is None where the data set knows no fingerprint of it."""
    split = context.declared.get(used.name, used)
    expected = getattr(context.dataset, "expected_fingerprints", {}).get(split.name)
    fingerprint = split.fingerprint
    return {
        f"{kind}_videos_declared": len(split.video_ids),
        f"{kind}_{texts}_declared": len(split.captions),
        f"{kind}_fingerprint_declared": fingerprint,
        f"{kind}_split_published": None if expected is None else fingerprint == expected,
    }


def recipe_of(protocol: Protocol, config: RunConfig) -> Recipe:
    """The recipe of this method under the protocol."""
    return protocol.recipe_for(method_class(config.method).card.recipe)


def training_steps(protocol: Protocol, config: RunConfig, pairs: int) -> int:
    """Optimizer steps of one training of this run on ``pairs`` training pairs; 0 if nothing is trained."""
    if not config.trains:
        return 0
    return recipe_of(protocol, config).total_steps(pairs)


def check_shares(batch_size: int) -> None:
    """Check that the processes can have equal shares of a batch.

    Raises:
        UsageError: they cannot.
    """
    size = dist_info().size
    if batch_size % size:
        raise UsageError(
            f"{size} processes cannot share a batch of {batch_size} pairs equally: start torchrun with a number of "
            f"processes that divides {batch_size}",
            code="batch.shares",
            batch_size=batch_size,
            processes=size,
        )


def options_of(protocol: Protocol, config: RunConfig) -> dict[str, Any]:
    """The options of a run: those given, over a checkpoint's own, or over the protocol's and those for small models.

    A method with a position for every word has as many ``words`` as the protocol.
    """
    scored, cls = config.checkpoint, method_class(config.method)
    small = protocol.small and (scored is None or scored.needs_small_options)
    own = scored.options if scored else dict(protocol.options)
    words = {"words": protocol.words} if any(option.name == "words" for option in fields(cls.Options)) else {}
    return words | (cls.card.tiny if small else {}) | own | config.options


def new_model(context: RunContext, config: RunConfig) -> RetrievalModel:
    """Build the run's model: untrained on the context's weights, or from the run's checkpoint.

    Raises:
        UsageError: an option that does not fit, or a checkpoint that is not this method's.
    """
    if config.checkpoint is not None:
        return _scored_model(context, config, config.checkpoint)
    return _untrained(context.protocol, context.weights, config).to(config.device).eval()


def blueprint(protocol: Protocol, weights: Weights, config: RunConfig) -> RetrievalModel:
    """The run's model on the meta device, without values: every option is checked in milliseconds.

    Raises:
        UsageError: an option that does not fit, captions that are too long, or weights that are not a CLIP's.
    """
    shapes = {name: tensor.to("meta") for name, tensor in weights.state.items()}
    with torch.device("meta"):
        model = _untrained(protocol, replace(weights, state=shapes), config)
    if protocol.words > (most := model.clip.max_words):
        raise UsageError(
            f"{config.method}: captions of protocol {protocol.name} have up to {protocol.words} ids, and this model "
            f"takes {most}: choose a protocol with shorter captions, another tuning, or a larger option words",
            code="protocol.words",
            method=config.method,
            words=most,
        )
    return model


def blueprint_of(context: RunContext, config: RunConfig) -> RetrievalModel:
    """``blueprint`` in a context, built once per method and options."""
    if config.variant not in context.blueprints:
        context.blueprints[config.variant] = blueprint(context.protocol, context.weights, config)
    return context.blueprints[config.variant]


def _untrained(protocol: Protocol, weights: Weights, config: RunConfig) -> RetrievalModel:
    options, frames = options_of(protocol, config), protocol.frames
    method = method_class(config.method).configure(config.method, weights.arch, frames, options)
    return build(config.method, method, weights, config.seed)


def _scored_model(context: RunContext, config: RunConfig, scored: EvalCheckpoint) -> RetrievalModel:
    protocol, weights = context.protocol, context.weights
    try:
        return load_model(
            config.method,
            weights=weights,
            checkpoint=scored.path,
            activation=weights.arch.activation if scored.base else None,
            frames=protocol.frames,
            device=config.device,
            seed=config.seed,
            **options_of(protocol, config),
        )
    except UsageError as error:
        reason = str(error).removeprefix(f"{scored.path.name}: ")
        raise UsageError(
            f"--checkpoint {scored.path.name} cannot be scored as {config.method}: {reason}",
            code="checkpoint.not-this-method",
            cause=error.code,
        ) from None


def planned_work(context: RunContext, config: RunConfig, *, searches: bool) -> int:
    """The work of a run, in videos encoded once; with the search of a learning rate if it does that."""
    protocol, recipe = context.protocol, recipe_of(context.protocol, config)
    steps = training_steps(protocol, config, len(context.train.captions))
    evals = 1 + len(eval_steps(config.selection, recipe, steps // recipe.epochs, steps) if steps else [])
    work = TRAIN_WORK * steps * recipe.batch_size + evals * len(context.test.video_ids) + COST_WORK
    if searches:
        tried = TRAIN_WORK * protocol.lr_search_steps(steps) * recipe.batch_size + protocol.held_out
        work += len(protocol.lr_factors) * tried
    return work
