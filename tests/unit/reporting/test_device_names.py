"""Names of devices and backbones in headings and file names: short, told apart, harmless."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvrbench.harness.reporting.data.device_names import (
    device_part,
    file_part,
    precision_part,
    printed_device,
    unique,
)
from tvrbench.harness.reporting.tables.markdown import slug

pytestmark = pytest.mark.unit

CPUS = {
    "AMD EPYC": ("AMD EPYC", "cpu-amd-epyc"),
    "AMD EPYC 7763 64-Core Processor": ("AMD EPYC 7763", "cpu-amd-epyc-7763"),
    "AMD Ryzen Threadripper PRO 5995WX 64-Cores": (
        "AMD Ryzen Threadripper PRO 5995WX",
        "cpu-amd-ryzen-threadripper-pro-5995wx",
    ),
    "AMD Ryzen 7 PRO 6850U with Radeon Graphics": ("AMD Ryzen 7 PRO 6850U", "cpu-amd-ryzen-7-pro-6850u"),
    "AMD Ryzen Threadripper 1900X Eight-Core Processor": (
        "AMD Ryzen Threadripper 1900X",
        "cpu-amd-ryzen-threadripper-1900x",
    ),
    "Intel(R) Xeon(R) Processor": ("Intel Xeon", "cpu-intel-xeon"),
    "Intel(R) Xeon(R) CPU @ 2.20GHz": ("Intel Xeon", "cpu-intel-xeon"),
    "Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz": ("Intel Xeon Platinum 8370C", "cpu-intel-xeon-platinum-8370c"),
    "12th Gen Intel(R) Core(TM) i7-12700K": ("Intel Core i7-12700K", "cpu-intel-core-i7-12700k"),
    "11th Gen Intel(R) Core(TM) i7-1165G7 @ 2.80GHz": ("Intel Core i7-1165G7", "cpu-intel-core-i7-1165g7"),
    "Apple M2 Pro": ("Apple M2 Pro", "cpu-apple-m2-pro"),
    "Neoverse-N1": ("Neoverse-N1", "cpu-neoverse-n1"),
    "x86_64": ("x86_64", "cpu-x86-64"),
    "": ("unnamed device", "cpu"),
}
GPUS = {
    "NVIDIA H200": "h200",
    "NVIDIA H100 80GB HBM3": "h100-80gb-hbm3",
    "NVIDIA A100-SXM4-80GB": "a100-sxm4-80gb",
    "NVIDIA A100-SXM4-40GB MIG 3g.20gb": "a100-sxm4-40gb-mig-3g-20gb",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "NVIDIA GeForce RTX 3080 Laptop GPU": "rtx-3080-laptop-gpu",
    "NVIDIA RTX 6000 Ada Generation": "rtx-6000-ada",
    "NVIDIA RTX A6000": "rtx-a6000",
    "NVIDIA L4": "l4",
    "Tesla V100-SXM2-16GB": "v100-sxm2-16gb",
    "Tesla T4": "t4",
    "Quadro RTX 8000": "quadro-rtx-8000",
    "AMD Instinct MI300X": "amd-instinct-mi300x",
    "NVIDIA": "gpu",
    "": "gpu",
}


@pytest.mark.parametrize("name", CPUS)
def test_a_cpu_has_its_model_and_no_clock_or_trademark(name: str) -> None:
    assert (printed_device(name), device_part(name, on_gpu=False)) == CPUS[name]
    assert device_part(name, on_gpu=False, alone=True) == "cpu"


@pytest.mark.parametrize("name", GPUS)
def test_a_gpu_has_the_name_that_people_use(name: str) -> None:
    assert device_part(name, on_gpu=True) == GPUS[name]


@pytest.mark.parametrize(
    ("precision", "short"), [("float32", "fp32"), ("bfloat16", "bf16"), ("float16", "fp16"), (None, "untimed")]
)
def test_precisions_are_short(precision: str | None, short: str) -> None:
    assert precision_part(precision) == short


@given(st.text(max_size=80), st.booleans())
def test_hostile_names_leave_parts_of_file_names(name: str, on_gpu: bool) -> None:
    assert re.fullmatch(r"[a-z0-9-]+", device_part(name, on_gpu=on_gpu))
    assert len(device_part(name, on_gpu=on_gpu)) <= 48
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", file_part(name))
    assert "\n" not in printed_device(name)


@given(st.lists(st.sampled_from(["a", "A", "a.b", "a-b", "a-2", "b"]), max_size=12))
def test_files_and_anchors_are_told_apart_on_any_system(names: list[str]) -> None:
    made = unique(names)
    assert len({slug(name) for name in made}) == len({name.lower() for name in made}) == len(names)
    assert all(new.startswith(old) for new, old in zip(made, names, strict=True))
