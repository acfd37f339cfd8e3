"""Names of devices, precisions and backbones as people write them, in headings and in file names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tvrbench.harness.reporting.tables.markdown import brief, one_line, slug

_PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
# What drivers add to a name: trademarks, clock, number of cores, generation.
_ADDED = re.compile(
    r"\((?:r|tm|c)\)|®|™|(?:\bcpu )?@.*$|\b\w+-cores?\b|\bwith radeon .*$|\b\d+th gen\b|\bprocessor\b"
    r"|\bgeneration\b",
    re.IGNORECASE,
)
_MAKER = re.compile(r"\b(?:nvidia|geforce|tesla)\b", re.IGNORECASE)
_LONGEST = 40
UNNAMED = "unnamed device"


def printed_device(name: str) -> str:
    """Return a device's name without trademarks, clock and number of cores: Intel Xeon, AMD EPYC 7763, NVIDIA H200."""
    return brief(" ".join(_ADDED.sub(" ", one_line(name)).split()) or one_line(name) or UNNAMED, 60)


def device_part(name: str, *, on_gpu: bool, alone: bool = False) -> str:
    """Return a device as a part of file names: ``h200``, ``rtx-4090``, ``cpu-amd-epyc``, ``cpu``.

    Args:
        name: as the driver or the system gives it; hostile text leaves only letters and digits.
        on_gpu: a GPU needs no maker.
        alone: the report has no other CPU, which then needs no name.
    """
    printed = printed_device(name) if one_line(name) else ""
    short = slug(_MAKER.sub(" ", printed) if on_gpu else printed, _LONGEST).strip("-")
    if on_gpu:
        return short or "gpu"
    return "cpu" if alone or not short else f"cpu-{short}"


def precision_part(precision: str | None) -> str:
    """Return a precision as papers write it: fp32, fp16, bf16; ``untimed`` where nothing was timed."""
    return _PRECISIONS.get(precision or "", precision) or "untimed"


def file_part(name: str) -> str:
    """Return a backbone's name as a part of file names: as it is, without all but letters, digits, ``_`` and ``-``."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", name)[:_LONGEST].strip("-") or "unnamed"


def unique(names: Sequence[str]) -> list[str]:
    """Number names that are the same, or would be the same anchor or file on any system: ``a``, ``a-2``."""
    seen: set[str] = set()
    result = []
    for name in names:
        numbered = (name if number == 1 else f"{name}-{number}" for number in range(1, len(names) + 1))
        free = next(candidate for candidate in numbered if slug(candidate) not in seen)
        seen.add(slug(free))
        result.append(free)
    return result
