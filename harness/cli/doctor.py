"""``tvrbench doctor``: what this machine has and lacks. Imports no torch by itself."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tvrbench.harness.core import registry
from tvrbench.harness.core.console import print_json, print_table
from tvrbench.harness.core.errors import CheckFailed
from tvrbench.harness.core.options import RESULTS, Json


@dataclass(frozen=True)
class Finding:
    """One finding: ``ok``, ``missing`` (something works less well) or ``broken`` (nothing runs)."""

    what: str
    state: Literal["ok", "missing", "broken"]
    detail: str


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("GPU", "ok", torch.cuda.get_device_name())
    return Finding("GPU", "missing", "no CUDA device: everything runs on the CPU, full-size training is slow")


def _nvml() -> Finding:
    import pynvml

    try:
        pynvml.nvmlInit()
        driver = str(pynvml.nvmlSystemGetDriverVersion())
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        return Finding("NVML", "missing", f"{error}: GPU memory is reported as not available")
    return Finding("NVML", "ok", f"driver {driver}")


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


def doctor(results: Path = RESULTS, as_json: Json = False) -> None:
    """Show what this machine has and lacks; exits with 1 where something is broken.

    Args:
        results: Folder of the records.
    """
    import torch

    from tvrbench.harness.records.provenance import environment

    versions = environment("cuda" if torch.cuda.is_available() else "cpu")["versions"]
    installed = Finding("versions", "ok", ", ".join(f"{k} {v}" for k, v in versions.items() if v))
    findings = [installed, _device(), _nvml(), _h264(), *_registry(), _weights(), _folder(results)]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table([[f.what, f.state, f.detail] for f in findings], ["what", "state", "detail"])
    if broken := [f.what for f in findings if f.state == "broken"]:
        raise CheckFailed(f"broken: {', '.join(broken)}; see the details above", code="doctor.broken", broken=broken)
