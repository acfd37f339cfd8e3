"""Sessions: ``nox -s reproduce-msrvtt`` runs the main job, ``nox -s tests`` the tests. Each sets itself up."""

from __future__ import annotations

import argparse
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
GENERATED = ("README.md", "docs/methods.md", "docs/deviations.md", "docs/appendix/measurement.md")


def _install(session: nox.Session, *extras: str) -> None:
    """Install the project, editable, with the exact versions of constraints.txt."""
    session.install("-c", "constraints.txt", "-e", f".[{','.join(extras)}]" if extras else ".")
    # The repository has a folder named `datasets`, which a bare `import datasets` must never find.
    session.env["PYTHONSAFEPATH"] = "1"
    session.env["PYTHONDONTWRITEBYTECODE"] = ""  # every process would compile torch anew


def _wants_data(session: nox.Session) -> bool:
    return any(arg == "--data" or arg.startswith("--data=") for arg in session.posargs)


def _device(session: nox.Session) -> str:
    """The device of the commands to come: what torch in the session's environment makes of ``--device``."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    parser.add_argument("--device", default="auto")
    wanted = parser.parse_known_args(session.posargs)[0].device
    names = (
        "from tvrbench.harness.core.console import run_guarded",
        "from tvrbench.harness.core.options import pick_device",
    )
    ask = "; ".join(["import sys", *names, "sys.exit(run_guarded(lambda: print(pick_device(sys.argv[1]))))"])
    said = session.run("python", "-c", ask, wanted, silent=True)  # ends the session where the GPU cannot be used
    return str(said).split()[-1] if said else "cpu"


@nox.session(name="reproduce-msrvtt")
def reproduce_msrvtt(session: nox.Session) -> None:
    """Run the main job: MSR-VTT with `-- --data DIR`, otherwise the embedded stand-in; `-- --methods all` for all."""
    _install(session)
    if _wants_data(session) or "--dry-run" in session.posargs:
        session.run("tvrbench", "run", "msrvtt-1ka-9k/uniform", *session.posargs)
    else:
        session.warn("no --data DIR was given: running the whole job on the EMBEDDED STAND-IN, not on MSR-VTT")
        session.run("tvrbench", "run", "standin/uniform", *session.posargs)
        session.warn("this was the EMBEDDED STAND-IN: for MSR-VTT run nox -s reproduce-msrvtt -- --data DIR")


@nox.session(name="reproduce-standin")
def reproduce_standin(session: nox.Session) -> None:
    """Run the whole job on the embedded stand-in."""
    _install(session)
    session.run("tvrbench", "run", "standin/uniform", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests except the slow ones; `-- -m slow`, `-- -m unit` and the like select others."""
    _install(session, "test", "docs")
    workers = str(min(4, os.cpu_count() or 1))
    session.run("pytest", "-n", workers, "--dist", "worksteal", *(session.posargs or ("-m", "not slow")))


# Commands, messages, decoding, weights, the frame cache, one training, half precision and graphs of torch.compile: what
# new or old versions break first.
BOUNDS_TESTS = (
    "tests/cli/test_cli.py",
    "tests/contract/test_precision.py",
    "tests/unit/core/test_packaging.py",
    "tests/unit/data/test_cache.py",
    "tests/unit/datasets/test_containers.py",
    "tests/unit/datasets/test_odd_videos.py",
    "tests/unit/datasets/test_orientation.py",
    "tests/unit/models",
    "tests/unit/training/test_trainer.py",
)


@nox.session(venv_backend="uv")
@nox.parametrize("resolution", [nox.param(name, id=name) for name in ("lowest-direct", "highest")])
def bounds(session: nox.Session, resolution: str) -> None:
    """Test the lowest and the newest versions that pyproject.toml allows; arguments replace the choice of tests."""
    # These versions are used once: in the cache, every new torch would fill the disk of a machine that runs CI often.
    session.install("--no-cache", "--upgrade", "--resolution", resolution, "-e", ".[test,docs]")
    session.env["PYTHONSAFEPATH"] = "1"
    session.run("pytest", "-n", "2", "--dist", "worksteal", "-m", "not slow", *(session.posargs or BOUNDS_TESTS))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, the direction of imports and the length of files."""
    _install(session, "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("lint-imports")
    for path in (path for folder in (*PACKAGES, "docs", "tests") for path in (ROOT / folder).rglob("*.py")):
        most = 400 if path.is_relative_to(ROOT / "tests") else 450
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > most:
            session.error(f"{path.relative_to(ROOT)} has {lines} lines; split it, or shorten it to {most}")


@nox.session
def typecheck(session: nox.Session) -> None:
    """Run mypy, strict, over the packages (through links with their import names), docs/_build and tests/tools."""
    _install(session, "test", "docs", "typecheck")
    links = ROOT / "build" / "typecheck"
    shutil.rmtree(links, ignore_errors=True)
    (links / "tvrbench").mkdir(parents=True)
    for package in PACKAGES:
        (links / "tvrbench" / package).symlink_to(ROOT / package, target_is_directory=True)
    (links / "tvrbench" / "published").symlink_to(ROOT / "results" / "published", target_is_directory=True)
    mypy = ("mypy", "--config-file", str(ROOT / "pyproject.toml"))
    with session.chdir(links):
        session.run(*mypy, *(f"-ptvrbench.{package}" for package in PACKAGES))
        session.run(*mypy, str(ROOT / "docs" / "_build"), str(ROOT / "tests" / "tools"))


# Rows in addition to the registered methods: the two ablations of TempMe's paper (attention across frames without
# merging, and merging inside frames only), what its headline is read against beside VoP and DGL (VoP^F+C, VoP^F, DGL's
# other space), and two points of the baseline that encodes fewer frames.
EFFICIENCY_ROWS = (
    "tempme:r=0;clip_ratio=0;intra_ratio=0",
    "tempme:merge_blocks=();merge_frames=()",
    "vop:variant=F+C",
    "vop:variant=F",
    "dgl:space=linear",
    "frame_subsample:keep=4",
    "frame_subsample:keep=6",
)
# The papers' figures on training and clustering; these take too long on a CPU.
GPU_ROWS = (
    "tempme:tuning=full",
    "centerclip:schedule=((6,3,49),)",
    "centerclip:clustering=spectral",
)
# Long videos: these numbers of frames, and beside them the published settings of CenterCLIP for ActivityNet, 60 frames,
# with what they reduce.
LONG_FRAMES = "12,32,64"
LONG_ROWS = ("frame_subsample:keep=12", "rlt:budget=0.5")
CENTERCLIP_60 = {
    "ViT-B-32": ("centerclip:schedule=((6,15,49),)", "centerclip:schedule=((6,12,49),)"),
    "ViT-B-16": ("centerclip:schedule=((6,15,160),)",),
}
# Videos per call on a CPU. At one video per call, reading the weights of ViT-B/32 is a noticeable part of the time.
CPU_BATCHES = {"ViT-B-32": "2", "ViT-B-16": "1"}


def _folders(session: nox.Session) -> list[str]:
    """Those of the session's arguments that say where records and reports are."""
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    names = ("results", "reports")
    for name in names:
        parser.add_argument(f"--{name}")
    found = vars(parser.parse_known_args(session.posargs)[0])
    return [f"--{name}={found[name]}" for name in names if found[name] is not None]


def _long_videos(session: nox.Session, frames: str, *how: str) -> None:
    """Count or time methods with more frames, in the precision that GPUs train in."""
    how = ("--precision", "bfloat16", *how, *_folders(session))
    extent = ("--backbone", ",".join(CENTERCLIP_60), "--frames", frames)
    session.run("tvrbench", "bench", "all", *LONG_ROWS, *extent, *how)
    for backbone, rows in CENTERCLIP_60.items():
        extent = ("--backbone", backbone, "--frames", "60")
        session.run("tvrbench", "bench", "lora", "clip4clip", *rows, *extent, *how)


@nox.session
def efficiency(session: nox.Session) -> None:
    """Measure every method at full size on this device, and write the report; options such as --training pass on.

    A GPU measures in bfloat16, which its tensor cores compute in, then in float32, unless --precision names one. Long
    videos are counted, on a GPU also timed; of the options only those of folders pass on to them.
    """
    _install(session)
    _long_videos(session, LONG_FRAMES, "--count-only")
    if _device(session) == "cuda":
        rows, measured = EFFICIENCY_ROWS + GPU_ROWS, ("--training", "--end-to-end", "--energy")
        named = any(word.partition("=")[0] == "--precision" for word in session.posargs)
        for precision in [()] if named else [("--precision", "bfloat16"), ("--precision", "float32")]:
            extent = ("--backbone", ",".join(CPU_BATCHES), *measured, *precision)
            session.run("tvrbench", "bench", "all", *rows, *extent, *session.posargs)
        _long_videos(session, "32,64", "--batches", "1,8,32", "--training-batches", "32")
        return
    for backbone, batch in CPU_BATCHES.items():
        extent = ("--backbone", backbone, "--batches", batch, "--repeats", "3")
        session.run("tvrbench", "bench", "all", *EFFICIENCY_ROWS, *extent, *session.posargs)


@nox.session
def regression(session: nox.Session) -> None:
    """Measure tokens, GMACs, parameters and the stand-in again, and compare them with the committed baseline."""
    _install(session)
    session.run("tvrbench", "check", "--against", "results/baselines/cpu-standin.json", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Write the generated parts of documents."""
    _install(session, "docs")
    session.run("cog", "-I", "docs/_build", "-r", *GENERATED)


@nox.session(name="docs-check")
def docs_check(session: nox.Session) -> None:
    """Fail if a generated part of a document or a report is not current, or if a snippet in a document fails."""
    _install(session, "docs")
    session.run("cog", "-I", "docs/_build", "--check", "--diff", "--check-fail-msg=run nox -s docs", *GENERATED)
    session.run("pytest", "docs/_build/committed_reports.py")
    snippets = {"PYTHONPATH": str(ROOT / "docs" / "_build")}  # -p imports before pytest reads its settings
    split = ("-n", "2", "--dist", "loadfile")
    session.run("pytest", "-p", "snippets", *split, "README.md", "CONTRIBUTING.md", "docs", env=snippets)
