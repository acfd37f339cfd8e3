"""Costs of one method: counted on the model or timed in fresh processes, and stored as a record without metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tvrbench.harness.core.errors import CheckFailed
from tvrbench.harness.core.io import without_folders
from tvrbench.harness.core.memory import names_out_of_memory
from tvrbench.harness.models.backbone.architecture import vision_name
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.formula import text_length
from tvrbench.harness.profiling.counts.memory import weigh_step
from tvrbench.harness.profiling.counts.search import GALLERIES
from tvrbench.harness.profiling.counts.step import count_step
from tvrbench.harness.profiling.launcher.isolated import measure
from tvrbench.harness.profiling.plan import Job, Precision, Scenario, dense_encoder
from tvrbench.harness.records.provenance import environment
from tvrbench.harness.records.record import AS_RELEASED, SCHEMA_VERSION, Measurement, ProtocolRef, WeightsRef
from tvrbench.harness.records.store import RecordStore

RUN_REPEATS = 3  # of the speed-up that each run measures
RUN_GALLERIES = (1_000,)  # that each run times a search in
TRAINING = "gmacs_training_video"
_VALUES = "its control flow reads values of tensors, which a count on shapes does not have"

# The measurement that is missing where a whole scenario fails.
_MAIN: Mapping[Scenario, tuple[str, str]] = {
    "inference": ("throughput", "videos/s"),
    "training": ("step_time", "ms"),
    "comparison": ("speedup", "x"),
    "training-comparison": ("training_speedup", "x"),
    "end-to-end": ("end_to_end_throughput", "videos/s"),
    "search": ("search_latency_median", "ms"),
    "energy": ("energy_video", "J/video"),
}


def count_costs(profile: Mapping[str, Any]) -> list[Measurement]:
    """Multiply-adds, parameters, tokens and what a search takes, from ``profile``, the same on every machine.

    Those of the released code, and of the forward pass of a training step, are there only where they differ.
    """
    most = {"upper_bound": True} if profile["at_most"] else {}  # of what depends on the pixels of a video
    frames, words = {"frames": profile["frames"], **most}, {"words": profile["text_length"]}
    reduction = profile["reduction_gmacs"]
    gmacs, tokens = profile["gmacs"], {"leaving_blocks": profile["tokens"], **most}
    released = [
        Measurement(f"gmacs_video{AS_RELEASED}", gmacs["as_released"]["video"], "GMACs", conditions=frames),
        Measurement(f"gmacs_text{AS_RELEASED}", gmacs["as_released"]["text"], "GMACs"),
        Measurement(f"output_tokens{AS_RELEASED}", profile["output_tokens_as_released"], "tokens", conditions=frames),
    ]
    exact = [
        Measurement("gmacs_video", gmacs["video"], "GMACs", conditions=frames),
        Measurement("gmacs_text", gmacs["text"], "GMACs", conditions=words),
        Measurement(
            "gmacs_reduction", reduction, "GMACs", conditions=frames if reduction else {"frames": profile["frames"]}
        ),
        Measurement("output_tokens", profile["output_tokens"], "tokens", conditions=tokens),
        Measurement("params_total", profile["params"]["total"], "parameters"),
        Measurement("params_trainable", profile["params"]["trainable"], "parameters"),
        _dead(profile),
    ]
    values = {f"{m.name}{AS_RELEASED}": m.value for m in exact}
    training = [Measurement(TRAINING, gmacs["training"]["video"], "GMACs", conditions={**frames, "what": "training"})]
    differing = [m for m in training if m.value != gmacs["video"]]
    return exact + [m for m in released if m.value != values[m.name]] + differing + _search(profile)


def _search(profile: Mapping[str, Any]) -> list[Measurement]:
    """Multiply-adds and bytes of one query at each size of the gallery, and what is stored of a video."""
    search = profile["search"]
    how = {name: search[name] for name in ("depth", "storage")} | {"frames": profile["frames"]}
    how |= {"upper_bound": True} if profile["at_most"] and search["of_patches"] else {}
    pair = {"macs_per_pair": search["macs_per_pair"], "macs_per_query": search["macs_per_query"]}
    floats = {"floats": search["floats_per_video"], "vector_bytes": search["vector_bytes"]}
    return [
        *(
            Measurement(
                f"search_macs_{name}", macs / 1e6, "MMACs", conditions=how | pair | {"gallery": GALLERIES[name]}
            )
            for name, macs in search["macs"].items()
        ),
        Measurement("storage_video", search["bytes_per_video"], "B", conditions=how | floats),
        *(
            Measurement(f"search_read_{name}", read / 1e6, "MB", conditions=how | {"gallery": GALLERIES[name]})
            for name, read in search["read_bytes"].items()
        ),
    ]


def count_training(model: RetrievalModel, precision: Precision, batches: Sequence[int]) -> list[Measurement]:
    """Multiply-adds per pair and memory of a training step, counted on shapes; missing with the reason otherwise.

    Args:
        model: on any device; a copy without values is counted.
        precision: of the products, by autocast.
        batches: pairs per step, each a measurement of memory.
    """
    model, tuning = deepcopy(model).to("meta"), model.spec.options.tuning
    given = {"what": "training", "frames": model.frames, "tuning": tuning}
    reason = _VALUES
    if not model.spec.card.encodes:
        reason = f"{model.name} runs no encoder"
    elif not model.trainable():
        reason = f"tuning {tuning!r} leaves nothing to train"
    elif (memory := weigh_step(model, precision)) is not None and (step := count_step(model)).observed:
        words: dict[str, Any] = {"words": text_length(model.clip)}
        if model.reducer.depends_on_content:
            words["upper_bound"] = True  # no pixel, so no token is left out
        return [
            Measurement("gmacs_step", step.step_macs / 1e9, "GMACs", conditions=given | words),
            *(
                Measurement(
                    "step_memory",
                    memory.total(batch, batch) / 1e9,
                    "GB",
                    conditions=given | words | {"batch": batch, "precision": precision},
                )
                for batch in batches
            ),
        ]
    unknown = (Measurement.missing("step_memory", "GB", reason, **given, batch=batch) for batch in batches)
    return [Measurement.missing("gmacs_step", "GMACs", reason, **given), *unknown]


def _dead(profile: Mapping[str, Any]) -> Measurement:
    """Trainable parameters that the loss never reaches, with the tensors that hold them."""
    found = profile["dead"]
    if "reason" in found:
        return Measurement.missing("params_dead", "parameters", found["reason"])
    return Measurement("params_dead", profile["params"]["dead"], "parameters", conditions={"tensors": found})


def time_costs(job: Job, *, trains: bool) -> list[Measurement]:
    """Speed and memory of encoding, the speed-up over the dense encoder, the search of one query in a small gallery,
    and for a method that trains the step time.

    A measurement that fails (out of memory, for example) is missing with its reason, because hours of training may
    precede it. A checkpoint has no speed-up: its shape may differ from the protocol's backbone.
    """
    jobs = [job]
    if method_class(job.method).card.encodes and job.checkpoint is None:
        timing = replace(job.timing, warmup=1)
        speedup = replace(job, scenario="comparison", baseline=dense_encoder(), repeats=RUN_REPEATS, timing=timing)
        jobs.append(replace(speedup, latency=False))
    jobs.append(replace(job, scenario="search", batch=1, latency=False, galleries=RUN_GALLERIES))
    if trains:
        jobs.append(replace(job, scenario="training", latency=False))
    return [measurement for each in jobs for measurement in try_measure(each)]


def try_measure(job: Job) -> list[Measurement]:
    """The job's measurements; where it fails, its main measurement without a value and with the reason."""
    name, unit = _MAIN[job.scenario]
    try:
        return measure(job)
    except CheckFailed as error:
        return [Measurement.missing(name, unit, brief_reason(error), what=job.scenario, batch=job.batch)]


def brief_reason(error: CheckFailed) -> str:
    """The first and the last line of an error in one line, without folders of this machine.

    Where memory ran out, the remedy follows.
    """
    first, *rest = str(error).splitlines()
    reason = f"{first} {rest[-1].strip()}" if rest else first
    return without_folders(reason + ("; a smaller batch needs less memory" if names_out_of_memory(reason) else ""))


def record_costs(
    store: RecordStore,
    protocol: ProtocolRef,
    model: RetrievalModel,
    measure: Callable[[], Sequence[Measurement]],
    *,
    device: str,
    command: str,
    weights: WeightsRef | None = None,
    given: Mapping[str, Any] | None = None,
) -> tuple[Path, Sequence[Measurement]]:
    """Measure a model and store a record of it; returns the record's path and the measurements.

    Args:
        protocol: its name, and the hash of how the model is measured.
        model: what is measured, with or without values.
        device: where it was measured; ``meta`` where it was counted alone, which belongs to no device.
        weights: what was measured; None for random ones.
        given: the method's options as they were asked for, where the record is to tell them from the preset's.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    costs = measure()
    shape = {"backbone": vision_name(model.clip.arch), "frames": model.frames}
    record = {
        "schema_version": SCHEMA_VERSION,
        "protocol": protocol,
        "method": {"name": model.name, "options": shape | model.spec.describe()}
        | ({} if given is None else {"given": dict(given)}),
        "tuning": model.spec.options.tuning,
        "seed": 0,
        "data": {"dataset": "none", "split_fingerprint": None, "frames_fingerprint": None, "skipped": []},
        "weights_sha256": None if weights is None else weights["sha256"],
        "metrics": {},
        "cost": [measurement.to_json() for measurement in costs],
        "environment": environment(device),
        "command": command,
        "started": started.isoformat(timespec="seconds"),
        "duration_s": time.monotonic() - clock,
        "status": "completed",
        "failure": None,
    } | ({} if weights is None else {"weights": weights})
    return store.save(record), costs
