"""The model card of an exported checkpoint, from its record: front matter for the Hugging Face Hub, and text."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from tvrbench.harness.core import registry
from tvrbench.harness.records.record import OVER_VIDEOS, MeasurementDoc, Record
from tvrbench.harness.reporting import catalogue
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.tables.markdown import Code, Inline, Markdown, one_line, templates

UNKNOWN = "unknown"
_OPENAI = {
    "ViT-B-32": "openai/clip-vit-base-patch32",
    "ViT-B-16": "openai/clip-vit-base-patch16",
    "ViT-L-14": "openai/clip-vit-large-patch14",
}
_COSTS = (
    *("params_total", "params_trainable", "gmacs_video", f"gmacs_video{OVER_VIDEOS}", "gmacs_text", "output_tokens"),
    *("storage_video", "speedup", "throughput"),
)
_VERSIONS = ("tvrbench", "python", "torch")


@dataclass(frozen=True, kw_only=True)
class ExportedCheckpoint:
    """What a card says of the files beside it.

    Attributes:
        record: of the run.
        image_size: of the frames, in pixels.
        embed_dim: E, of the features.
        tuned_only: the file holds only what training changed.
        base: the spec that ``load_model`` finds the base weights by; None for a file of the author's.
        license: of the weights, as their author states it; None where nobody has.
        checked: the record holds the hash of this very model.
        files: name and content of each file, in words.
    """

    record: Record
    image_size: int
    embed_dim: int
    tuned_only: bool
    base: str | None
    license: str | None
    checked: bool
    files: Mapping[str, str]

    @property
    def dataset(self) -> str:
        """The data set's name."""
        return str(self.record["data"]["dataset"])

    @property
    def options(self) -> Mapping[str, Any]:
        """Backbone, frames and every option of the method."""
        return self.record["method"]["options"]

    @property
    def notice(self) -> str | None:
        """The notice of a data set whose results carry over to no other one."""
        notice: str | None = registry.declared(self.dataset, "notice")
        return notice

    @property
    def generated(self) -> bool:
        """True if nothing in it is of others: generated clips, and weights that ship with the data set."""
        ships = registry.declared(self.dataset, "weights_path") is not None
        return bool(registry.declared(self.dataset, "generated")) and ships and self.base == self.dataset

    @property
    def published(self) -> bool:
        """True for a data set that others know by this name: neither generated nor a folder of the author's."""
        return not registry.declared(self.dataset, "generated") and "split_origin" not in self.record["data"]

    @property
    def needs_file(self) -> bool:
        """True if the base weights are a file that must be given."""
        return self.tuned_only and self.base is None

    @property
    def two_stage(self) -> bool:
        """True if the best of the cosine are scored again."""
        return "two_stage" in self.record["metrics"]

    @property
    def title(self) -> str:
        """Method, backbone, frames and data set, in one line."""
        backbone = catalogue.printed_backbone(str(self.options["backbone"]))
        return one_line(
            f"{self.record['method']['name']}, {backbone}, {self.options['frames']} frames, trained on {self.dataset}"
        )


def model_card(exported: ExportedCheckpoint) -> str:
    """Return the text of the card, front matter included; the same record gives the same text."""
    record = exported.record
    context = ReportContext(protocol=record["protocol"]["name"], dataset=exported.dataset, folder=Path())
    body = (
        templates()
        .get_template("model_card.md.j2")
        .render(
            card=exported,
            arguments=Markdown(shlex.join(context.arguments)),
            facts=list(_facts(exported)),
            results=list(_results(record)),
            costs=list(_costs(record)),
            license=_license(exported),
            warnings=list(_warnings(exported)),
            made=_made(record),
        )
    )
    return f"---\n{_front_matter(exported).to_yaml()}\n---\n\n{body}"


def _front_matter(exported: ExportedCheckpoint) -> ModelCardData:
    record, options = exported.record, exported.options
    names = [record["method"]["name"], str(record["tuning"]), exported.dataset]
    own = exported.base == "openai" and str(options["backbone"]) in _OPENAI
    return ModelCardData(
        license=_license_name(exported),
        library_name="tvrbench",
        pipeline_tag="feature-extraction",  # the hub has no task of text-video retrieval
        tags=["text-video-retrieval", "video-retrieval", "clip", *(one_line(name) for name in names)],
        datasets=[one_line(exported.dataset)] if exported.published else None,
        metrics=["recall"],
        base_model=_OPENAI[str(options["backbone"])] if own else None,
        model_name=exported.title,
        eval_results=list(_eval_results(exported)) or None,
    )


def _license_name(exported: ExportedCheckpoint) -> str:
    return exported.license or ("apache-2.0" if exported.generated else UNKNOWN)


def _eval_results(exported: ExportedCheckpoint) -> Iterator[EvalResult]:
    record = exported.record
    note = f" ({exported.notice.rstrip('.')})" if exported.notice else ""
    for direction, name in catalogue.DIRECTIONS.items():
        for metric in catalogue.retrieval(direction):
            if (value := _at(record, metric.path)) is not None:
                yield EvalResult(
                    task_type="text-video-retrieval",
                    task_name=f"Text-video retrieval, {name}",
                    dataset_type=one_line(exported.dataset),
                    dataset_name=one_line(f"{exported.dataset}{note}"),
                    dataset_config=one_line(record["protocol"]["name"]),
                    dataset_split=one_line(record["data"].get("test_split", "test")),
                    metric_type=metric.name,
                    metric_name=metric.short,
                    metric_value=round(value, 4),
                )


def _at(record: Record, path: tuple[str, ...]) -> float | None:
    value: Any = record["metrics"]
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return None if value is None else float(value)


def _results(record: Record) -> Iterator[tuple[str, list[str]]]:
    """Each metric, and per direction its value with the recorded interval."""
    intervals = record["metrics"].get("intervals", {})
    for metrics in zip(*(catalogue.retrieval(direction) for direction in catalogue.DIRECTIONS), strict=True):
        cells = []
        for metric in metrics:
            value, ends = _at(record, metric.path), intervals.get(metric.path[0], {}).get(metric.path[1])
            interval = "" if ends is None else f" ({catalogue.between(*map(metric.text, ends))})"
            cells.append("–" if value is None else f"{metric.text(value)}{interval}")
        if any(cell != "–" for cell in cells):
            yield metrics[0].short.split()[-1], cells


def _costs(record: Record) -> Iterator[tuple[str, str, str]]:
    """Label, value and what it depends on of the costs that belong on a card."""
    for name in _COSTS:
        cost = next((m for m in record["cost"] if m["name"] == name), None)
        if cost is None or cost["value"] is None:
            continue
        metric = catalogue.metric(name, unit=cost["unit"])
        yield (
            metric.label,
            metric.text(cost["value"]),
            "any machine" if metric.kind == "count" else _conditions(record, cost),
        )


def _conditions(record: Record, cost: MeasurementDoc) -> str:
    invalid = cost["conditions"].get("invalid")
    excluded = f"; excluded: {invalid}" if invalid else ""
    precision = cost["conditions"].get("precision")
    return f"{record['environment']['device']}{f', {precision}' if precision else ''}{excluded}"


def _facts(exported: ExportedCheckpoint) -> Iterator[tuple[str, tuple[Inline, ...]]]:
    record, options, data = exported.record, exported.options, exported.record["data"]
    name = record["method"]["name"]
    card = registry.lookup(name, "methods", "baselines").card
    yield "Method", (Code(name), f": {card.summary}")
    yield "Paper", (card.paper,)
    yield "Backbone", (catalogue.printed_backbone(str(options["backbone"])),)
    yield "Frames per video", (f"{options['frames']}, of {exported.image_size} pixels",)
    yield "Tuning", (str(record["tuning"]),)
    others = {key: value for key, value in options.items() if key not in ("backbone", "frames", "tuning")}
    yield "Options", (Code(", ".join(f"{key}={value}" for key, value in others.items())) if others else "none",)
    yield "Protocol", (Code(record["protocol"]["name"]), ", hash ", Code(record["protocol"]["hash"]))
    yield "Data set", (Code(exported.dataset),)
    yield "Trained on", (_split(data, "train", "pairs"),)
    yield "Tested on", (_split(data, "test", "captions"),)
    yield "Seed", (f"{record['seed']} (other seeds of the run are other checkpoints)",)
    yield "Checkpoint", (f"{record['metrics'].get('selection', 'last')} of its training",)
    yield "Base weights", tuple(_base(exported))
    yield "In this folder", (_held(exported),)


def _split(data: Mapping[str, Any], kind: str, texts: str) -> str:
    videos, pairs = (data.get(f"{kind}_{what}") for what in ("videos", texts))
    counted = "" if videos is None or pairs is None else f": {videos:,} videos, {pairs:,} captions"
    return f"{data.get(f'{kind}_split') or UNKNOWN}{counted}"


def _base(exported: ExportedCheckpoint) -> Iterator[Inline]:
    weights, sha256 = exported.record.get("weights"), exported.record["weights_sha256"]
    yield Code(weights["source"] if weights else UNKNOWN)
    if sha256:
        yield from (", SHA-256 ", Code(sha256))
    if not exported.tuned_only:
        yield ". They are not needed to load this checkpoint."
    elif exported.base is None:
        yield ". This file is needed to load the checkpoint and is not in this folder: give it with weights."
    else:
        yield from (
            ". They are needed and not in this folder; tvrbench finds them by itself, as weights ",
            Code(exported.base),
        )
        yield "."


def _held(exported: ExportedCheckpoint) -> str:
    held = "what training changed and nothing else" if exported.tuned_only else "the whole model"
    same = "the record holds the hash of this model" if exported.checked else "the record holds no hash of its model"
    return f"{held}, in float32; {same}"


def _license(exported: ExportedCheckpoint) -> tuple[Inline, ...]:
    stated: tuple[Inline, ...]
    if exported.license:
        stated = ("The author of this checkpoint states ", Code(exported.license), " for its weights. ")
    elif exported.generated:
        return ("Weights and training clips come from tvrbench, which ships them under the Apache License 2.0.",)
    else:
        stated = ("Nobody has stated a license for these weights. ",)
    base = "OpenAI's CLIP (MIT License)" if exported.base == "openai" else "their base weights"
    terms = (f"They derive from {base} and from the data set ", Code(exported.dataset), ", whose terms apply too.")
    return (*stated, *terms)


def _warnings(exported: ExportedCheckpoint) -> Iterator[str]:
    record = exported.record
    if registry.declared(exported.dataset, "stands_for"):
        yield "Do not use it on real videos: it has learned generated shapes and a few dozen words, and nothing else."
        yield "Do not compare its figures with published ones: the stand-in only shows that everything works."
    else:
        yield "Do not expect these figures on other data: they hold for this test split under this protocol."
    if record["metrics"].get("selection") == "best-on-test":
        yield "Do not report these figures as test results: the checkpoint was chosen on the test set."
    yield "Do not mix its features with those of another checkpoint: each has a space of its own."
    yield "Do not base decisions about people on it: a retrieval score is no evidence of what a video shows."


def _made(record: Record) -> tuple[Inline, ...]:
    versions = record["environment"]["versions"]
    named = ", ".join(f"{name} {version}" for name in _VERSIONS if (version := versions.get(name)))
    git = record["environment"]["git_sha"]
    commit: tuple[Inline, ...] = (", commit ", Code(git)) if git else ()
    where = f", started {record['started']} on {record['environment']['device']} ({named or 'versions unknown'})"
    return (Code(record["command"]), where, *commit, ".")
