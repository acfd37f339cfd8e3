"""Shared fixtures: a tiny CLIP, and the optional folder of reference tensors and data beside the project."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tvrbench.harness import load_model
from tvrbench.harness.models.backbone.architecture import Architecture
from tvrbench.harness.models.backbone.weights import load_weights
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.regression.signature import TINY, same_randomness, save_tiny_weights

ROOT = Path(__file__).parents[1]
FIXTURES = Path(__file__).parent / "fixtures"
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    # Every worker, and every process that a test starts, would compile torch anew; nothing is written beside sources.
    sys.pycache_prefix = os.environ.setdefault("PYTHONPYCACHEPREFIX", str(ROOT / "build" / "bytecode"))
    sys.dont_write_bytecode = False
MODULES = pytest.StashKey[list[int]]()
STARTS_AT_ZERO = (".lora.B", ".adapter.up.", ".calibration.out.", "clip.factors.")


def _spare_collections(known: list[int]) -> None:
    """Take the objects of tests and modules out of collections of garbage, of which every run makes several."""
    if len(sys.modules) > known[-1] + 100:
        known[:] = [len(sys.modules)]
        gc.collect()
        gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Spare what has been imported since, too: torch imports its compiler when it is first needed."""
    _spare_collections(item.session.stash.setdefault(MODULES, [0]))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors gain nothing from threads, and parallel test workers or their jobs, would fight over cores."""
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_a_terminal() -> None:
    """A job in the background ignores Ctrl-C, under nohup SIGHUP too, and what a test starts would inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference tensors, annotations and clips beside the project; skips where it is absent."""
    folder = ROOT.parent / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip("the reference folder beside the project is not here")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> RecordStore:
    """An empty store of records in the test's folder."""
    return RecordStore(tmp_path / "results")


@pytest.fixture(scope="session")
def standin_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder in which the clips of the stand-in are generated once per test process; do not change them."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def standin_folder(standin_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run the test in a folder of its own, on the stand-in in ``standin_cache``."""
    monkeypatch.setenv("TVRBENCH_CACHE", str(standin_cache))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def tiny_arch() -> Architecture:
    """A 64-wide CLIP with 16 patches per frame."""
    return TINY


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the tiny CLIP in a file, made from a fixed seed."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    with same_randomness():
        save_tiny_weights(path)
    return path


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of a CLIP with 3 blocks, for tests that train and need no more."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    with same_randomness():
        save_tiny_weights(path, replace(TINY, vision_layers=3))
    return path


@pytest.fixture(scope="session")
def tiny_batch() -> dict[str, Any]:
    """Three videos of 12 frames with masks, and three captions, for the tiny CLIP."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 500, (3, 32), generator=generator)
    text_mask = torch.zeros(3, 32, dtype=torch.bool)
    for row, length in enumerate((5, 9, 32)):
        text_mask[row, :length] = True
        ids[row, length - 1] = 511
        ids[row, length:] = 0
    return {
        "frames": torch.randn(3, 12, 3, 64, 64, generator=generator),
        "mask": torch.ones(3, 12, dtype=torch.bool),
        "ids": ids,
        "text_mask": text_mask,
    }


@pytest.fixture(scope="session")
def tiny_model(tiny_weights: Path) -> Callable[..., RetrievalModel]:
    """Makes a method on the tiny CLIP, with its options for small models.

    Parameters that start at zero (LoRA's B, an adapter's way up, its calibration and factors, a reducer's tables) are
    drawn anew, so that nothing passes for being switched off.
    """
    weights = load_weights(tiny_weights)

    def make(name: str, **options: Any) -> RetrievalModel:
        model = load_model(name, weights=weights, **(method_class(name).card.tiny | options))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            for key, parameter in model.named_parameters():
                if any(part in key for part in STARTS_AT_ZERO) or key.startswith("reducer."):
                    nn.init.normal_(parameter, std=0.05)
        return model

    return make
