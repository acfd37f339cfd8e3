"""Provenance of a number: device, versions, source revision, command; no machine path, user or host name."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from importlib import metadata
from importlib.machinery import all_suffixes
from pathlib import Path, PureWindowsPath

import pynvml
import torch

from tvrbench.harness.core.numerics import numerics
from tvrbench.harness.records.record import Environment

_PACKAGES = ("torchvision", "open_clip_torch", "transformers", "fvcore", "numpy", "av", "tvrbench")
_SOURCE_ROOT = Path(__file__).resolve().parents[2]
_OWN_PACKAGES = ("harness", "methods", "baselines", "datasets")
# What a number can depend on: a change of a document, a test or an output of a run is none of the sources.
_SOURCES = (*_OWN_PACKAGES, "results/published", "pyproject.toml", "constraints.txt")
# Files that the packages would find although git does not track them.
_FOUND = (
    *(f":(glob){package}/**/*{suffix}" for package in _OWN_PACKAGES for suffix in all_suffixes()),
    ":(glob)harness/config/**/*.toml",
    ":(glob)harness/regression/*.toml",
    ":(glob)harness/reporting/templates/*.j2",
    ":(glob)datasets/standin/clip.safetensors",
    ":(glob)datasets/standin/open_clip_config.json",
    ":(glob)datasets/standin/vocab.txt",
    ":(glob)results/published/*.csv",
    ":(glob)results/published/ranks/*.json",
)


def environment(device: torch.device | str) -> Environment:
    """The machine and software of a run, without the name of a person, a host or a folder.

    ``device`` is the GPU's or the CPU's model name, ``meta`` for what is counted and belongs to none; ``driver`` the
    GPU driver's version, None without a GPU;
    ``git_sha`` and ``dirty`` are None unless tvrbench itself runs from its own git checkout. The fields of
    ``core.numerics`` are those of this process.
    """
    device = torch.device(device)
    git_sha, dirty = source_revision()
    return Environment(
        device=_name_of(device),
        cpu_count=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        driver=gpu_driver() if device.type == "cuda" else None,
        versions={"python": platform.python_version(), "torch": str(torch.__version__), "cuda": torch.version.cuda}
        | {package: _version(package) for package in _PACKAGES},
        git_sha=git_sha,
        dirty=dirty,
        **numerics(),
    )


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "meta" if device.type == "meta" else cpu_model()


def cpu_model() -> str:
    """The CPU's model name, e.g. ``AMD EPYC 7763 64-Core Processor``; else its architecture."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    model = re.search(r"^model name\s*:\s*(\S.*)$", text, flags=re.MULTILINE)
    return model.group(1).strip() if model else platform.processor() or platform.machine()


def gpu_driver() -> str | None:
    """The NVIDIA driver's version; None without a driver."""
    try:
        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


def source_revision(root: Path = _SOURCE_ROOT) -> tuple[str | None, bool | None]:
    """Commit of the checkout at ``root``, and True if its sources differ from it; (None, None) elsewhere.

    Sources are the packages, the published numbers and the pinned versions: tracked files that differ from the commit,
    and untracked files that the packages would find. Any other file (an environment, a log, a sweep, a result, a
    document, a test) is none. A repository that merely contains ``root`` (an environment inside another project) does
    not count.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    sha = _git(root, "rev-parse", "--verify", "HEAD")
    if top is None or sha is None or Path(top) != root.resolve():
        return None, None
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", *_SOURCES)
    untracked = _git(root, "ls-files", "-z", "--others", "--", *_FOUND)  # ignored ones too
    if changed is None or untracked is None:
        return sha, None
    return sha, bool(changed) or any(_is_source(root, Path(name)) for name in untracked.split("\0") if name)


def _is_source(root: Path, path: Path) -> bool:
    """False for a module that no import finds (a backup, a copy, a cache), and inside a virtual environment."""
    if any((root / folder / "pyvenv.cfg").exists() for folder in list(path.parents)[:-1]):
        return False
    if "__pycache__" in path.parts:
        return False
    endings = [suffix for suffix in all_suffixes() if path.name.endswith(suffix)]
    stems = [path.name.removesuffix(suffix) for suffix in endings]
    is_module = any(stem.isidentifier() for stem in stems) and all(part.isidentifier() for part in path.parts[:-1])
    return is_module or not endings


def command_line(arguments: Sequence[str]) -> str:
    """The command as typed (without the program's name), quoted for a shell, every path made portable."""
    # A path may follow any of these: --data=/x, a=/x,/y, file:/x, C:\x, ('/x', '/y').
    pieces = [re.split(r"""([=,;:'"()\[\]{}\s])""", argument) for argument in arguments]
    return shlex.join(["tvrbench", *("".join(map(portable_path, each)) for each in pieces)])


def portable_path(path: str) -> str:
    """A path inside the working directory relative to it; any other absolute or upward path by its last part."""
    if path.startswith("/"):
        absolute = Path(os.path.normpath(path))
        return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else _last_part(path)
    if path.startswith(("\\", "~")) or ".." in re.split(r"[\\/]", path):
        return _last_part(path)
    return path


def _last_part(path: str) -> str:
    part = PureWindowsPath(path).name
    is_home = path.rstrip("/") == str(Path.home()) or part.startswith("~")
    return "~" if is_home else part or "."


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str | None:
    """Git's output; None if it fails or is not installed. Variables such as GIT_DIR must not point it elsewhere.

    The checkout is the one that this process runs its code from, so an owner other than the user (in a container) is
    no reason to distrust it. Permission bits, which some file systems do not keep, are no change of a source.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    settings = {"safe.directory": str(root), "core.fileMode": "false", "core.fsmonitor": "false"}
    command = ["git", "--no-optional-locks", "-C", str(root)]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    try:
        done = subprocess.run([*command, *arguments], env=variables, capture_output=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return os.fsdecode(done.stdout).rstrip("\n")
