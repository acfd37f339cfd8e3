"""What a GPU must do before anything is measured on it, one small function per check.

A check takes the device and returns what it found, with units in the names. ``Unsupported`` says that something is
absent and all else works; any other error says that it is broken.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tvrbench.harness.core.gpu_driver import installed_driver
from tvrbench.harness.models.cuda_graphs import GraphedEncoder
from tvrbench.harness.profiling.plan import Precision, Timing
from tvrbench.harness.profiling.scenarios.encoders import TOLERANCES, relative_error
from tvrbench.harness.profiling.trackers.attention import compare_proportional_attention
from tvrbench.harness.profiling.trackers.interference import snapshot
from tvrbench.harness.profiling.trackers.nvml import Nvml, NvmlUnavailable, gpu_uuid
from tvrbench.harness.profiling.trackers.roofline import measure_roofline
from tvrbench.harness.profiling.trackers.timing import Call, time_calls

Facts = dict[str, str | float]
Check = Callable[[torch.device], Facts]

KERNELS = {
    "flash attention": SDPBackend.FLASH_ATTENTION,
    "memory-efficient attention": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN attention": SDPBackend.CUDNN_ATTENTION,
}
# [sequences, heads, tokens, width]: on a GPU one block of ViT-B/16 with 32 videos of 12 frames.
ATTENTION = {"cpu": (2, 2, 33, 64), "cuda": (384, 12, 197, 64)}
LAUNCHES = 1000
COPIED = {"cpu": 2**24, "cuda": 2**28}  # bytes of one batch on its way to the GPU
ENERGY_S = 0.5  # of work, many steps of the counter
_BRIEF = Timing(min_iterations=5, min_seconds=0.0, warmup=2)


class Unsupported(Exception):
    """This machine lacks it; the message says why."""


def checks(device: torch.device) -> Iterator[tuple[str, Check]]:
    """Every check that the device can do, by name, in the order of what would be missed most."""
    on_gpu = device.type == "cuda"
    yield "kernels", check_kernels
    if on_gpu:
        yield "NVML values", check_nvml
        yield "energy counter", check_energy
    yield "bfloat16", check_bfloat16
    for name, kind in KERNELS.items():
        yield name, partial(check_attention, kind)
    yield "proportional attention", check_proportional_attention
    if on_gpu:
        yield "CUDA graphs", check_graph
    yield "kernel launch", check_launch
    yield "copies to the device", check_copies
    for precision in ("float32", "bfloat16") if on_gpu else ("float32",):
        yield f"{precision} rates", partial(check_rates, precision)


def check_kernels(device: torch.device) -> Facts:
    """A product whose result is known: torch has code for this GPU."""
    x = torch.ones(64, 64, device=device)
    if (total := float((x @ x).sum())) != 64**3:
        raise ArithmeticError(f"a product of ones sums up to {total}, not {64**3}")
    if device.type != "cuda":
        return {}
    libraries = {"cuDNN": torch.backends.cudnn.version(), "NCCL": torch.cuda.nccl.version()}  # type: ignore[no-untyped-call]
    facts: Facts = {name: str(version) for name, version in libraries.items()}
    return facts | {"torch is built for": " ".join(torch.cuda.get_arch_list())}


def check_nvml(device: torch.device) -> Facts:
    """Every value that a measurement asks NVML for: clocks, utilization, processes, temperature, power cap."""
    driver = installed_driver()
    if driver is None:
        raise Unsupported("NVML gives no driver version: figures of it are missing from records")
    seen = snapshot(device)
    if seen.unavailable:
        lacking = "; ".join(f"{name}: {reason}" for name, reason in seen.unavailable.items())
        raise Unsupported(f"missing from records: {lacking}")
    values = {name: value for name, value in asdict(seen).items() if name != "unavailable"}
    values["clock_reasons"] = ", ".join(seen.clock_reasons or ()) or "none"
    return {"driver": driver.version, "CUDA up to": driver.cuda, "torch's CUDA": str(torch.version.cuda)} | values


def check_energy(device: torch.device) -> Facts:
    """The energy counter counts while the GPU works."""
    try:
        with closing(Nvml(gpu_uuid(device))) as nvml:
            joules, start = nvml.energy_j(), time.perf_counter()
            _work(device, ENERGY_S)
            used, seconds = nvml.energy_j() - joules, time.perf_counter() - start
    except NvmlUnavailable as error:
        raise Unsupported(f"{error}: no energy is measured") from None
    if used <= 0:
        raise Unsupported(f"the counter did not move in {seconds:.1f} s of work: no energy is measured")
    return {"W": used / seconds}


def _work(device: torch.device, seconds: float) -> None:
    x = torch.randn(4096, 4096, device=device)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        x @ x
        torch.cuda.synchronize(device)


def check_bfloat16(device: torch.device) -> Facts:
    """A bfloat16 product against float64."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise Unsupported("this GPU has no bfloat16: give --precision float16 or float32")
    a, b = (torch.randn(256, 256, device=device) for _ in range(2))
    error = relative_error((a.bfloat16() @ b.bfloat16()).double(), a.double() @ b.double())
    return {"largest relative error": _within(error, TOLERANCES["bfloat16"])}


def check_attention(kind: SDPBackend, device: torch.device) -> Facts:
    """One attention kernel, forced, in bfloat16: without a mask, and with one where it takes any."""
    q, k, v, bias = _attention_inputs(device)
    facts = _attention(kind, q, k, v, None)
    try:
        masked = _attention(kind, q, k, v, bias)
    except Unsupported:
        return facts | {"with a mask": "not supported"}
    return facts | {f"{name} with a mask": value for name, value in masked.items()}


def check_proportional_attention(device: torch.device) -> Facts:
    """Attention as torch chooses it, and with token sizes: as a mask, and in further dimensions of the keys."""
    q, k, v, _ = _attention_inputs(device)
    plain = _milliseconds(partial(_attend, q, k, v, None), device)
    ways = compare_proportional_attention(device, sequences=len(q))
    return {"ms without sizes": plain, **{f"ms, sizes as {way}": ms for way, ms in ways.items()}}


def _attention_inputs(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sequences, heads, tokens, width = ATTENTION[device.type]
    generator = torch.Generator(device).manual_seed(0)
    shape = (3, sequences, heads, tokens, width)
    q, k, v = torch.randn(shape, generator=generator, device=device).to(torch.bfloat16)
    size = torch.rand(sequences, 1, 1, tokens, generator=generator, device=device) * 8 + 1
    return q, k, v, size.log().to(torch.bfloat16).expand(sequences, 1, tokens, tokens)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _attention(kind: SDPBackend, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Facts:
    """Milliseconds of this kernel and its error against the definition; Unsupported where torch refuses it."""
    few = [x[:2].float() for x in (q, k, v)]
    with sdpa_kernel(SDPBackend.MATH):
        expected = _attend(few[0], few[1], few[2], None if bias is None else bias[:2].float())
    with sdpa_kernel(kind), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            out = _attend(q, k, v, bias)
        except RuntimeError as refusal:
            if not any(words in str(refusal) for words in ("No available kernel", "No viable backend")):
                raise
            raise Unsupported(_reason(said) or brief(refusal)) from None
        error = relative_error(out[:2].float(), expected)
        return {"ms": _milliseconds(partial(_attend, q, k, v, bias), q.device), "error": _within(error, 0.02)}


def _reason(said: list[warnings.WarningMessage]) -> str:
    """Why torch refuses the kernel: it warns of every kernel and its reason, for most that they are switched off."""
    texts = [str(each.message).split(" (Triggered")[0].strip() for each in said]
    return next((t for t in texts if not t.endswith("because:") and "runtime disabled" not in t), "")


def check_graph(device: torch.device) -> Facts:
    """A small model captured as a CUDA graph: the replay sees new input and gives what eager execution gives."""
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)).to(device)
    mask = torch.ones(32, device=device)
    with torch.inference_mode():
        encode = GraphedEncoder(lambda items, _: model(items))
        encode(torch.zeros(32, 64, device=device), mask)
        x = torch.randn(32, 64, device=device)
        error = relative_error(encode(x, mask), model(x))
    return {"largest relative error": _within(error, TOLERANCES["float32"])}


def check_launch(device: torch.device) -> Facts:
    """Microseconds of a kernel that does next to nothing: what its launch takes."""
    x = torch.zeros(8, device=device)

    def launch_many() -> None:
        for _ in range(LAUNCHES):
            x.add_(1)

    return {"µs": min(time_calls(launch_many, device, _BRIEF)) / LAUNCHES * 1e6}


def check_copies(device: torch.device) -> Facts:
    """Rates of a batch from pageable and, to a GPU, from pinned memory."""
    pageable = torch.zeros(COPIED[device.type], dtype=torch.uint8)
    target = torch.empty_like(pageable, device=device)
    sources = {"pageable": pageable} | ({"pinned": pageable.pin_memory()} if device.type == "cuda" else {})
    seconds = {name: min(time_calls(partial(_copy, target, x), device, _BRIEF)) for name, x in sources.items()}
    return {f"{name} GB/s": len(pageable) / s / 1e9 for name, s in seconds.items()}


def _copy(target: Tensor, source: Tensor) -> None:
    target.copy_(source, non_blocking=True)


def check_rates(precision: Precision, device: torch.device) -> Facts:
    """The peak of matrix products in a precision, and of copies in the device's own memory."""
    peak, copies = measure_roofline(device, precision)
    return {"TFLOP/s": 2 * (peak.value or 0) / 1e3, "side": peak.conditions["side"], "copy GB/s": copies.value or 0}


def _milliseconds(call: Call, device: torch.device) -> float:
    return 1e3 * median(time_calls(call, device, _BRIEF, in_flight=5))


def _within(error: float, limit: float) -> float:
    if not error <= limit:  # true for NaN
        raise ArithmeticError(f"relative error {error:.2g}, over {limit}")
    return error


def brief(error: BaseException) -> str:
    """An error of anybody's as one short line."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return first if len(first) <= 200 else f"{first[:197]}..."


def shown(facts: dict[str, Any]) -> str:
    """Facts as one line."""
    values = {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in facts.items()}
    return ", ".join(f"{name} {value}" for name, value in values.items())
