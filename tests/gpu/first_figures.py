"""Single measurements of the first run on a GPU, each a line of JSON as soon as it is done.

    python tests/gpu/first_figures.py sweep|speedups|training --out DIR [--device cuda] [--tiny]

They run in one process, to be quick: first figures, not records. ``tvrbench bench`` makes those.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tvrbench.harness.core import registry
from tvrbench.harness.core.errors import CheckFailed
from tvrbench.harness.core.numerics import set_numerics
from tvrbench.harness.models.cuda_graphs import record_graph
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.formula import analytic_macs
from tvrbench.harness.profiling.plan import Job, Timing, dense_encoder
from tvrbench.harness.profiling.scenarios.encoders import encoders, job_model
from tvrbench.harness.profiling.scenarios.inference import measure_inference
from tvrbench.harness.profiling.scenarios.speedup import compare_encoding
from tvrbench.harness.profiling.scenarios.synthetic import synthetic_batch
from tvrbench.harness.profiling.scenarios.training_step import measure_training
from tvrbench.harness.profiling.trackers.timing import time_calls
from tvrbench.harness.records.record import Measurement
from tvrbench.harness.regression.signature import same_randomness, save_tiny_weights
from tvrbench.harness.reporting.papers.published import Claim, load_claims, load_configurations

BACKBONES = ("ViT-B-32", "ViT-B-16")
FIRST = ("lora", "tempme", "centerclip", "vidtome", "tome")  # what would be missed most
TRAINED = ("lora", "tempme", "centerclip", "vidtome", "clip4clip")
PAIRS = {"ViT-B-32": 64, "ViT-B-16": 32}  # a GPU's share in the papers of the training memory; fewer with 60 frames
OURS = re.compile(r"[/\\\\](harness|methods|baselines)[/\\\\]")
BRIEF = Timing(min_iterations=5, min_seconds=0.0, warmup=2)


class Figures:
    """Where and on what to measure, and the file of lines that it goes to."""

    def __init__(self, out: Path, step: str, device: str, tiny: bool) -> None:
        self.file, self.device, self.tiny = out / f"{step}.jsonl", torch.device(device), tiny
        self.failed = 0
        self.file.write_text("", encoding="utf-8")
        self.backbones = ("tiny",) if tiny else BACKBONES
        self.weights = str(out / "tiny.safetensors") if tiny else "random:0"
        if tiny:
            with same_randomness():
                save_tiny_weights(Path(self.weights))

    def names(self, wanted: Sequence[str] = ()) -> list[str]:
        """The methods that run an encoder, these first; three in a trial."""
        known = [n for n in registry.names("methods", "baselines") if method_class(n).card.encodes]
        found = [n for n in wanted if n in known] or [*FIRST, *(n for n in known if n not in FIRST)]
        return found[:3] if self.tiny else found

    def job(self, method: str, backbone: str, options: Mapping[str, Any] | None = None, **settings: Any) -> Job:
        """A job on random weights, or on the tiny CLIP with the method's options for it."""
        on_gpu = self.device.type == "cuda"
        timing = Timing(min_iterations=10 if on_gpu else 2, min_seconds=0.4 if on_gpu else 0.0, warmup=2)
        given = dict(options or {})
        if self.tiny:
            given = method_class(method).card.tiny | {k: v for k, v in given.items() if k == "tuning"}
            settings["batch"] = 2
        where = {"device": str(self.device), "weights": self.weights, "backbone": None if self.tiny else backbone}
        return Job(method=method, options=given, **{"timing": timing, **where, **settings})

    @contextmanager
    def line(self, **said: Any) -> Iterator[dict[str, Any]]:
        """A line: what it is about, then what was found, or why nothing was."""
        start, found = time.perf_counter(), dict(said)
        try:
            yield found
        except Exception as error:  # noqa: BLE001 - the line holds it, and the next one is measured
            self.failed += 1
            found |= {"error": f"{type(error).__name__}: {str(error)[:300]}", "where": traceback.format_exc()[-2000:]}
        found["took_s"] = round(time.perf_counter() - start, 2)
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(found, default=str) + "\n")
        print(json.dumps(found, default=str)[:400], flush=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def values(measurements: Sequence[Measurement]) -> dict[str, Any]:
    """Value of each measurement, or the reason why there is none; why they are wrong, where they are."""
    found: dict[str, Any] = {m.name: m.conditions.get("reason") if m.value is None else m.value for m in measurements}
    invalid = next((m.conditions["invalid"] for m in measurements if "invalid" in m.conditions), None)
    return found | ({"invalid": invalid} if invalid else {})


def sweep(figures: Figures) -> None:
    """Every method: speed, memory and error in both precisions, its kernels one by one, waits, as a CUDA graph."""
    dense = dense_encoder().method
    for backbone in figures.backbones:
        for method in figures.names():
            said, model = {"method": method, "backbone": backbone}, None
            with figures.line(what="model", **said) as found:
                model = job_model(figures.job(method, backbone), figures.device)
                found["gmacs"] = analytic_macs(model)["video"] / 1e9
            # Float32 first: encoding in half precision casts the weights in place.
            for precision in ("float32", "bfloat16") if model is not None else ():
                with figures.line(what="encoding", precision=precision, **said) as found:
                    job = figures.job(method, backbone, precision=precision, batch=32, roofline=method == dense)
                    measured = measure_inference(model, job, figures.device)
                    found |= values(measured) | {"error_of": measured[0].conditions["largest_relative_error"]}
            if model is not None:
                with figures.line(what="kernels", **said) as found, torch.inference_mode():
                    kernels(figures, model, found)


def kernels(figures: Figures, model: RetrievalModel, found: dict[str, Any]) -> None:
    """Kernels of one encoding in bfloat16, where the host waits for them, and their time as a CUDA graph."""
    device, on_gpu = figures.device, figures.device.type == "cuda"
    inputs = synthetic_batch(model, 2 if figures.tiny else 32, device)
    timed = encoders(model, "bfloat16", False).video
    encode = partial(timed, inputs.frames, inputs.mask)
    found["ms"] = 1e3 * min(time_calls(encode, device, BRIEF, in_flight=5))
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as seen:
        encode()
        if on_gpu:
            torch.cuda.synchronize()
    if not on_gpu:
        found["operators"] = len(seen.events() or ())
        return
    ran = [e for e in seen.events() or () if e.device_type == torch.autograd.DeviceType.CUDA]
    took: Counter[str] = Counter()
    for event in ran:
        took[event.name[:90]] += event.time_range.elapsed_us()
    found |= {"kernels": len(ran), "kernel_ms": sum(took.values()) / 1e3, "top": took.most_common(10)}
    found["attention"] = sorted(n for n in took if any(w in n.lower() for w in ("flash", "fmha", "attention", "sdpa")))
    found["waits"] = waits(encode)
    try:
        graph = record_graph(timed, inputs.frames, inputs.mask).graph
    except CheckFailed as error:
        found["no_graph"] = str(error)
    else:
        found["graph_ms"] = 1e3 * min(time_calls(graph.replay, device, BRIEF, in_flight=5))


def waits(call: Callable[[], object]) -> dict[str, int]:
    """Where the host waits for the GPU, by torch's own account."""
    found: Counter[str] = Counter()

    def note(message: Warning | str, *_: Any) -> None:
        if "synchroniz" in str(message):
            ours = [f for f in traceback.extract_stack() if OURS.search(f.filename)]
            found[f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "elsewhere"] += 1

    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
    return dict(found)


def speedups(figures: Figures) -> None:
    """Against the dense encoder, in turn in one process, in bfloat16: what the bars are about."""
    for backbone in figures.backbones:
        for method in ("tempme", "centerclip"):
            for batch in (2,) if figures.tiny else (32, 128, 8):
                with figures.line(method=method, backbone=backbone, batch=batch) as found:
                    how = {"scenario": "comparison", "baseline": dense_encoder(), "precision": "bfloat16", "repeats": 3}
                    if figures.tiny:  # the dense encoder has no options of its own
                        how["precision"] = "float32"
                    job = figures.job(method, backbone, batch=batch, **how)
                    measured = compare_encoding(job_model(job, figures.device), job, figures.device)
                    found |= values(measured)
                    found["allowed"] = next(m for m in measured if m.name == "speedup_reached").conditions["allowed"]


def training(figures: Figures) -> None:
    """The papers' claims on training memory; then time and memory of steps of 128 pairs."""
    for claim in load_claims():
        if claim.number.metric == "train_memory":
            number, peaks = claim.number, []
            said = {"backbone": number.backbone, "frames": number.frames, "paper": number.cited, "text": claim.text}
            with figures.line(what="claim", method=number.method, config=number.config, **said) as found:
                found["claimed"] = claim.ratio
                for method, config in ((number.method, number.config), (claim.against, claim.against_config)):
                    measured = step(figures, *claim_side(claim, method, config), frames_of=claim)
                    peaks.append(measured.get("peak_memory_reserved", measured.get("peak_process_memory")))
                found |= {"MiB": peaks, "ratio": peaks[0] / peaks[1]}
            if figures.tiny:
                break
    small, large = figures.backbones[0], figures.backbones[-1]
    wanted = [("bfloat16", small, TRAINED), ("float32", small, TRAINED[:2]), ("bfloat16", large, TRAINED[:2])]
    for precision, backbone, methods in wanted[: 1 if figures.tiny else 3]:
        for method in figures.names(methods):
            pairs = 2 if figures.tiny else 128
            with figures.line(what="step", method=method, backbone=backbone, precision=precision, pairs=pairs) as found:
                found |= step(figures, method, backbone, {}, precision=precision, batch=pairs)


def claim_side(claim: Claim, method: str, config: str) -> tuple[str, str, Mapping[str, Any]]:
    """Method, backbone and options of one side of a claim."""
    backbone = str(claim.number.backbone)
    given = (c for c in load_configurations() if (c.paper, c.method, c.config) == (claim.number.paper, method, config))
    options: Mapping[str, Any] = next((c.options for c in given if c.backbone in (None, backbone)), {})
    return method, backbone, options


def step(
    figures: Figures,
    method: str,
    backbone: str,
    options: Mapping[str, Any],
    *,
    frames_of: Claim | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Time and memory of a training step; a claim's in bfloat16 where its baseline trains in another precision."""
    if frames_of is not None:
        frames = 12 if figures.tiny else frames_of.number.frames or 12
        half = "bfloat16" in frames_of.bench_options
        settings = {"frames": frames, "batch": PAIRS.get(backbone, 2) * 12 // frames}
        settings["precision"] = "bfloat16" if half else "float32"
    few = Timing(min_iterations=3, min_seconds=0.0, warmup=1)
    job = figures.job(method, backbone, options, scenario="training", timing=few, **settings)
    return values(measure_training(job_model(job, figures.device), job, figures.device))


STEPS = {each.__name__: each for each in (sweep, speedups, training)}


def main() -> int:
    """Measure what the command line asks for; 1 if a line holds an error."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("step", choices=STEPS)
    ask.add_argument("--out", type=Path, required=True)
    ask.add_argument("--device", default="cuda")
    ask.add_argument("--tiny", action="store_true")
    given = ask.parse_args()
    set_numerics()
    figures = Figures(given.out, given.step, given.device, given.tiny)
    STEPS[given.step](figures)
    return min(figures.failed, 1)


if __name__ == "__main__":
    sys.exit(main())
