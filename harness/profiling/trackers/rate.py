"""One rate of a device: multiply-adds per second of a training step in the shapes of an encoder."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tvrbench.harness.core.memory import is_out_of_memory, release_memory
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.precision import DTYPES
from tvrbench.harness.models.spec import MethodOptions
from tvrbench.harness.models.tuning import apply_tuning
from tvrbench.harness.profiling.counts.formula import text_length
from tvrbench.harness.profiling.plan import Precision, Timing
from tvrbench.harness.profiling.trackers.timing import time_calls

BLOCKS = 1  # of each tower: all of them are alike
WORDS = 512  # a vocabulary for the probe: looking words up takes no multiply-adds
# Multiply-adds of one call of the probe: enough that launching it is not what is timed.
_CALL_MACS = {"cpu": 6e9, "cuda": 2e12}
_SOFTWARE_MACS = 1e9  # half precision on a CPU, where many have no instruction for it
_TIMING = {
    "cpu": Timing(min_iterations=3, min_seconds=0.5, warmup=1),
    "cuda": Timing(min_iterations=10, min_seconds=0.5, warmup=3),
}


Inputs = tuple[Tensor, Tensor, Tensor]


def measure_training_rate(arch: Architecture, frames: int, device: torch.device, precision: Precision) -> float:
    """Multiply-adds per second of forward and backward through both towers, shortened to one block each.

    Widths, heads, tokens per frame and words per caption are those of the architecture, with one caption to ``frames``
    frames; the blocks are trained, the stem is not. The median of a few calls after a warm-up: about 1 s on a CPU.
    Where a GPU's memory runs out, half as many frames are tried.
    """
    short = replace(arch, vision_layers=BLOCKS, text_layers=BLOCKS, vocab_size=min(WORDS, arch.vocab_size))
    wanted = _SOFTWARE_MACS if device.type == "cpu" and precision != "float32" else _CALL_MACS[device.type]
    shown = max(1, round(wanted / _macs(short, 1, frames) * frames))  # a CPU may get less than a video
    while True:
        try:
            return _rate(short, shown, frames, device, precision)
        except (RuntimeError, MemoryError) as error:
            if shown == 1 or not is_out_of_memory(error):
                raise
        shown //= 2
        release_memory()


def _rate(arch: Architecture, shown: int, frames: int, device: torch.device, precision: Precision) -> float:
    """Multiply-adds per second with this many frames in a call."""
    captions = max(1, round(shown / frames))
    model, inputs = _probe(arch, captions, shown, device)
    with torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "float32"):
        seconds = time_calls(lambda: _step(model, inputs), device, _TIMING[device.type])
    return _macs(arch, captions, shown) / median(seconds)


def _probe(arch: Architecture, captions: int, frames: int, device: torch.device) -> tuple[CLIP, Inputs]:
    with device, torch.random.fork_rng(devices=[]):
        model = CLIP(arch)
        apply_tuning(model, Method(MethodOptions(tuning="full"), arch, frames))
        ids = torch.zeros(captions, text_length(model), dtype=torch.long)
        pixels = torch.rand(frames, 3, arch.image_size, arch.image_size)
        return model, (pixels, ids, torch.ones_like(ids, dtype=torch.bool))


def _step(model: CLIP, inputs: Inputs) -> None:
    pixels, ids, mask = inputs
    model.zero_grad(set_to_none=True)
    loss = model.encode_image(pixels).sum() + model.encode_text(ids, mask).sum()
    loss.backward()  # type: ignore[no-untyped-call]


def _macs(arch: Architecture, captions: int, frames: int) -> float:
    model, inputs = _probe(arch, captions, frames, torch.device("meta"))
    with FlopCounterMode(display=False) as counter:
        _step(model, inputs)
    return float(counter.get_total_flops() / 2)
