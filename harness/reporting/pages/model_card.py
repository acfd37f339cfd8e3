"""The model card of an exported checkpoint, from its record: front matter for the Hugging Face Hub, and text."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from tvrbench.harness.config.protocol import shipped_protocol
from tvrbench.harness.core import registry
from tvrbench.harness.records.record import OVER_VIDEOS, Record
from tvrbench.harness.records.runs import StoredRecord
from tvrbench.harness.reporting.catalogue import DIRECTIONS, between, metric, printed_backbone, retrieval
from tvrbench.harness.reporting.data.context import ReportContext
from tvrbench.harness.reporting.data.rows import MethodRow
from tvrbench.harness.reporting.tables.markdown import Markdown, one_line, templates
from tvrbench.harness.reporting.tables.table import MISSING

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
    def backbone(self) -> str:
        """The backbone as papers print it."""
        return printed_backbone(str(self.options["backbone"]))

    @property
    def row(self) -> MethodRow:
        """The record as the row of a table."""
        return MethodRow(label="", runs=(StoredRecord(record=self.record, path=Path()),))

    @property
    def context(self) -> ReportContext:
        """Protocol and data set."""
        return ReportContext(protocol=self.record["protocol"]["name"], dataset=self.dataset, folder=Path())

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
    def title(self) -> str:
        """Method, backbone, frames and data set, in one line."""
        name, frames = self.record["method"]["name"], self.options["frames"]
        return one_line(f"{name}, {self.backbone}, {frames} frames, trained on {self.dataset}")


def model_card(exported: ExportedCheckpoint) -> str:
    """Return the text of the card, front matter included; the same record gives the same text."""
    record, name = exported.record, exported.record["method"]["name"]
    own = {k: v for k, v in exported.options.items() if k not in ("backbone", "frames", "tuning")}
    versions = record["environment"]["versions"]
    body = (
        templates()
        .get_template("model_card.md.j2")
        .render(
            card=exported,
            record=record,
            about=registry.lookup(name, "methods", "baselines").card,
            arguments=Markdown(shlex.join([*exported.context.arguments, *_weights(exported)])),
            options=", ".join(f"{key}={value}" for key, value in own.items()),
            trained_on=_split(record["data"], "train", "pairs"),
            tested_on=_split(record["data"], "test", "captions"),
            results=list(_results(exported.row)),
            costs=list(_costs(exported.row)),
            versions=", ".join(f"{name} {version}" for name in _VERSIONS if (version := versions.get(name))),
        )
    )
    return f"---\n{_front_matter(exported).to_yaml()}\n---\n\n{body}"


def _weights(exported: ExportedCheckpoint) -> list[str]:
    """Return the option of the base weights, where they have a name and are not those of the protocol."""
    protocol = shipped_protocol(exported.record["protocol"]["name"])
    if not exported.tuned_only or exported.base is None or (protocol and protocol.weights == exported.base):
        return []
    return ["--weights", exported.base]


def _front_matter(exported: ExportedCheckpoint) -> ModelCardData:
    record, backbone = exported.record, str(exported.options["backbone"])
    names = [record["method"]["name"], str(record["tuning"]), exported.dataset]
    return ModelCardData(
        license=exported.license or ("apache-2.0" if exported.generated else "unknown"),
        library_name="tvrbench",
        pipeline_tag="feature-extraction",  # the hub has no task of text-video retrieval
        tags=["text-video-retrieval", "video-retrieval", "clip", *map(one_line, names)],
        datasets=[one_line(exported.dataset)] if exported.published else None,
        metrics=["recall"],
        base_model=_OPENAI.get(backbone) if exported.base == "openai" else None,
        model_name=exported.title,
        eval_results=list(_eval_results(exported)) or None,
    )


def _eval_results(exported: ExportedCheckpoint) -> Iterator[EvalResult]:
    record = exported.record
    notice = exported.context.notice
    note = f" ({notice.rstrip('.')})" if notice else ""
    for direction, name in DIRECTIONS.items():
        for shown in retrieval(direction):
            if (value := exported.row.metric(*shown.path)) is not None:
                yield EvalResult(
                    task_type="text-video-retrieval",
                    task_name=f"Text-video retrieval, {name}",
                    dataset_type=one_line(exported.dataset),
                    dataset_name=one_line(f"{exported.dataset}{note}"),
                    dataset_config=one_line(record["protocol"]["name"]),
                    dataset_split=one_line(record["data"].get("test_split", "test")),
                    metric_type=shown.name,
                    metric_name=shown.short,
                    metric_value=round(value, 4),
                )


def _results(row: MethodRow) -> Iterator[tuple[str, list[str]]]:
    """Each metric, and per direction its value with the recorded interval."""
    for metrics in zip(*map(retrieval, DIRECTIONS), strict=True):
        cells = []
        for shown in metrics:
            value, ends = row.metric(*shown.path), row.interval(*shown.path)
            interval = "" if ends is None else f" ({between(*map(shown.text, ends))})"
            cells.append(MISSING if value is None else f"{shown.text(value)}{interval}")
        if set(cells) != {MISSING}:
            yield metrics[0].short.split()[-1], cells


def _costs(row: MethodRow) -> Iterator[tuple[str, str, str]]:
    """Label, value and what it depends on of the costs that belong on a card."""
    for name in _COSTS:
        cost = next((m for m in row.measurements if m["name"] == name and m["value"] is not None), None)
        if cost is not None and cost["value"] is not None:
            shown, conditions = metric(name, unit=cost["unit"]), cost["conditions"]
            excluded = f"; excluded: {conditions['invalid']}" if conditions.get("invalid") else ""
            precision = f", {conditions['precision']}" if conditions.get("precision") else ""
            device = f"{row.record['environment']['device']}{precision}{excluded}"
            yield shown.label, shown.text(cost["value"]), "any machine" if shown.kind == "count" else device


def _split(data: Mapping[str, Any], kind: str, texts: str) -> str:
    videos, pairs = (data.get(f"{kind}_{what}") for what in ("videos", texts))
    counted = "" if videos is None or pairs is None else f": {videos:,} videos, {pairs:,} captions"
    return f"{data.get(f'{kind}_split') or 'unknown'}{counted}"
