"""Sessions: ``nox -s reproduce-msrvtt`` runs the main job, ``nox -s tests`` the tests. Each sets itself up."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "typecheck", "tests"]

ROOT = Path(__file__).parent
PACKAGES = ("harness", "methods", "baselines", "datasets")


def _install(session: nox.Session, *extras: str) -> None:
    """The project, editable, with the exact versions of constraints.txt."""
    what = f".[{','.join(extras)}]" if extras else "."
    session.install("-c", "constraints.txt", "-e", what)
    # The repository has a folder named `datasets`: a bare `import datasets` must never find it.
    session.env["PYTHONSAFEPATH"] = "1"


def _wants_data(session: nox.Session) -> bool:
    return any(arg == "--data" or arg.startswith("--data=") for arg in session.posargs)


@nox.session(name="reproduce-msrvtt")
def reproduce_msrvtt(session: nox.Session) -> None:
    """The main job: MSR-VTT with `-- --data DIR`, otherwise the embedded stand-in."""
    _install(session)
    if _wants_data(session) or "--dry-run" in session.posargs:
        session.run("tvrbench", "run", "msrvtt-1ka-9k/uniform", *session.posargs)
    else:
        session.warn("no --data DIR was given: running the whole job on the EMBEDDED STAND-IN, not on MSR-VTT")
        session.run("tvrbench", "run", "standin/uniform", *session.posargs)
        session.warn("this was the EMBEDDED STAND-IN: for MSR-VTT run nox -s reproduce-msrvtt -- --data DIR")


@nox.session(name="reproduce-standin")
def reproduce_standin(session: nox.Session) -> None:
    """The whole job on the embedded stand-in."""
    _install(session)
    session.run("tvrbench", "run", "standin/uniform", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """The test suite but for its slow tier; `-- -m slow`, `-- -m unit` and the like pick another one."""
    _install(session, "test")
    workers = str(min(4, os.cpu_count() or 1))
    session.run("pytest", "-n", workers, *(session.posargs or ("-m", "not slow")))


@nox.session
def lint(session: nox.Session) -> None:
    """Style, imports that point one way, and files that are too long."""
    _install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")


@nox.session
def typecheck(session: nox.Session) -> None:
    """mypy, strict, over a folder of links that spells the package's import names."""
    _install(session, "test", "typecheck")
    links = ROOT / "build" / "typecheck"
    shutil.rmtree(links, ignore_errors=True)
    (links / "tvrbench").mkdir(parents=True)
    for package in PACKAGES:
        (links / "tvrbench" / package).symlink_to(ROOT / package, target_is_directory=True)
    (links / "tvrbench" / "published").symlink_to(ROOT / "results" / "published", target_is_directory=True)
    with session.chdir(links):
        session.run("mypy", "--config-file", str(ROOT / "pyproject.toml"), *(f"-ptvrbench.{p}" for p in PACKAGES))


# Rows beside the registered methods: the two ablations of TempMe's paper (cross-frame attention without merging, and
# merging inside frames only), and the curve of the honest rival, fewer frames.
EFFICIENCY_ROWS = (
    "tempme:r=0;clip_ratio=0;intra_ratio=0",
    "tempme:merge_blocks=();merge_frames=()",
    "frame_subsample:keep=4",
    "frame_subsample:keep=6",
)
# What the papers' training and clustering figures are about; a CPU would take too long.
GPU_ROWS = (
    "tempme:tuning=full",
    "centerclip:schedule=((6,3,49),)",
    "centerclip:clustering=spectral",
)
# Videos a call on a CPU. One of ViT-B/32 has so few tokens that reading the weights is a noticeable part of its time.
CPU_BATCHES = {"ViT-B-32": "2", "ViT-B-16": "1"}


@nox.session
def efficiency(session: nox.Session) -> None:
    """What every method costs on this device at full size: records and a table; options such as --training pass on."""
    _install(session)
    if shutil.which("nvidia-smi") is not None:
        rows, extent = EFFICIENCY_ROWS + GPU_ROWS, ("--training", "--end-to-end", "--energy")
        session.run("tvrbench", "bench", "all", *rows, "--backbone", ",".join(CPU_BATCHES), *extent, *session.posargs)
        return
    for backbone, batch in CPU_BATCHES.items():
        extent = ("--backbone", backbone, "--batches", batch, "--repeats", "3")
        session.run("tvrbench", "bench", "all", *EFFICIENCY_ROWS, *extent, *session.posargs)


@nox.session
def regression(session: nox.Session) -> None:
    """Measure tokens, GMACs, parameters and the stand-in again, and compare with the committed baseline."""
    _install(session)
    session.run("tvrbench", "check", "--against", "results/baselines/cpu-standin.json", *session.posargs)


@nox.session(name="docs-check")
def docs_check(session: nox.Session) -> None:
    """Fail where a document made from data is not what its data gives, or a command in a document does not work."""
    _install(session)
    tools = {"PYTHONPATH": str(ROOT / "docs" / "_build")}  # they import each other, and nothing else does
    session.run("python", "docs/_build/generate.py", "--check", env=tools)
    session.run("python", "docs/_build/document_commands.py", env=tools)
