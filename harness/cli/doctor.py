"""``tvrbench doctor``: what this machine has and lacks. Imports no torch by itself."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from tvrbench.harness.core import registry
from tvrbench.harness.core.console import print_json, print_table, say
from tvrbench.harness.core.errors import CheckFailed
from tvrbench.harness.core.gpu_driver import installed_driver, unusable_gpu
from tvrbench.harness.core.options import RESULTS, Json

if TYPE_CHECKING:
    import torch

    from tvrbench.harness.profiling.gpu_checks import Check, Facts

GPU_CHECKS_S = 60.0
GpuChecks = Annotated[
    bool,
    arg(name="gpu", help="Also check the GPU for a minute: kernels, parity of every method with the CPU, rates."),
]


@dataclass(frozen=True)
class Finding:
    """One finding: ``ok``, ``missing`` (something works less well) or ``broken`` (nothing runs).

    Attributes:
        facts: what was measured, with units in the names.
    """

    what: str
    state: Literal["ok", "missing", "broken"]
    detail: str
    facts: dict[str, Any] = field(default_factory=dict)


def gpu(wanted: bool) -> Finding:
    """The GPU as torch sees it; broken where there is one that torch cannot use, or none where one is wanted."""
    import torch

    if torch.cuda.is_available():
        seen = torch.cuda.get_device_properties(0)
        facts: dict[str, Any] = {"capability": f"{seen.major}.{seen.minor}", "memory GiB": seen.total_memory / 2**30}
        facts |= {"multiprocessors": seen.multi_processor_count}
        detail = f"{seen.name}, capability {facts['capability']}, {facts['memory GiB']:.0f} GiB"
        return Finding("GPU", "ok", detail, {"name": seen.name, **facts})
    if (unusable := unusable_gpu()) is not None:
        return Finding("GPU", "broken", f"torch cannot use it: {unusable.cause}; {unusable.remedy}")
    if wanted:
        return Finding("GPU", "broken", "no CUDA device, so there is nothing for --gpu to check")
    return Finding("GPU", "missing", "no CUDA device: everything runs on the CPU, full-size training is slow")


def _nvml() -> Finding:
    driver = installed_driver()
    if driver is None:
        return Finding("NVML", "missing", "no answer: GPU memory, clocks and energy are reported as not available")
    return Finding("NVML", "ok", f"driver {driver.version}, for CUDA up to {driver.cuda}")


def gpu_findings(device: torch.device, limit_s: float = GPU_CHECKS_S) -> Iterator[Finding]:
    """The checks of ``doctor --gpu`` on a device; those that would begin after ``limit_s`` seconds say so instead."""
    from tvrbench.harness.core.numerics import set_numerics
    from tvrbench.harness.profiling.gpu_checks import checks

    methods = registry.names("methods", "baselines")
    parities: list[tuple[str, Check]] = [(f"parity of {method}", partial(_parity, method)) for method in methods]
    set_numerics()
    start = time.monotonic()
    for what, check in [*checks(device), *parities]:
        if time.monotonic() - start > limit_s:
            yield Finding(what, "missing", f"not checked: {limit_s:.0f} s are over")
        else:
            say(f"checking: {what}")
            yield judged(what, check, device)


def judged(what: str, check: Check, device: torch.device) -> Finding:
    """The finding of one check; whatever it raises is the reason."""
    from tvrbench.harness.profiling.gpu_checks import Unsupported, brief, shown

    try:
        facts = check(device)
    except Unsupported as absent:
        return Finding(what, "missing", brief(absent))
    except Exception as error:  # noqa: BLE001 - torch, the driver and the methods raise what they like
        return Finding(what, "broken", f"{type(error).__name__}: {brief(error)}")
    return Finding(what, "ok", shown(facts), facts)


def _parity(method: str, device: torch.device) -> Facts:
    from tvrbench.harness.regression.parity import parity

    found = parity(method, device)
    if found.fault is not None:
        raise CheckFailed(found.fault, code="doctor.parity", method=method, error=found.error, cosine=found.cosine)
    alike = {} if found.alike is None else {"% of merges alike": 100 * found.alike}
    return {"largest difference": found.error, "bfloat16 cosine": found.cosine, **alike}


def _h264() -> Finding:
    import av

    able = "libx264" in av.codecs_available and "h264" in av.codecs_available
    return Finding("H.264", "ok" if able else "broken", f"PyAV {av.__version__}{'' if able else ' lacks H.264'}")


def _registry() -> Iterator[Finding]:
    for kind in registry.KINDS:
        broken = []
        for name in registry.names(kind):
            try:
                registry.lookup(name, kind)
            except (ImportError, AttributeError) as error:
                broken.append(f"{name} ({error})")
        detail = "does not import: " + ", ".join(broken) if broken else ", ".join(registry.names(kind))
        yield Finding(kind, "broken" if broken else "ok", detail)


def _weights() -> Finding:
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    config = open_clip.get_pretrained_cfg("ViT-B-32", "openai")
    repository = str(config.get("hf_hub", "")).strip("/")
    cached = repository and any(
        isinstance(try_to_load_from_cache(repository, name), str)
        for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    )
    if cached:
        return Finding("CLIP weights", "ok", "ViT-B-32 from OpenAI is in the hub's cache")
    missing = f"not downloaded yet ({repository}); a first full-size run fetches it, or give --weights FILE"
    return Finding("CLIP weights", "missing", missing)


def _folder(results: Path) -> Finding:
    folder = results if results.exists() else results.absolute().parent
    if not os.access(folder, os.W_OK):
        return Finding("results folder", "broken", f"{results} cannot be written to")
    return Finding("results folder", "ok", f"{shutil.disk_usage(folder).free / 2**30:.0f} GiB free")


def doctor(results: Path = RESULTS, gpu_checks: GpuChecks = False, as_json: Json = False) -> None:
    """Show what this machine has and lacks; exits with 1 where something is broken.

    Args:
        results: Folder of the records.
    """
    import torch

    from tvrbench.harness.records.provenance import environment

    on_gpu = torch.cuda.is_available()
    versions = environment("cuda" if on_gpu else "cpu")["versions"]
    installed = Finding("versions", "ok", ", ".join(f"{k} {v}" for k, v in versions.items() if v))
    findings = [installed, gpu(gpu_checks), _nvml(), _h264(), *_registry(), _weights(), _folder(results)]
    if gpu_checks and on_gpu:
        findings += gpu_findings(torch.device("cuda"))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table([[f.what, f.state, f.detail] for f in findings], ["what", "state", "detail"])
    if broken := [f.what for f in findings if f.state == "broken"]:
        raise CheckFailed(f"broken: {', '.join(broken)}; see the details above", code="doctor.broken", broken=broken)
