"""Clips and a model that the tests of searching share."""

from __future__ import annotations

from pathlib import Path

import pytest
from search_folder import make_encoder

from tvrbench.datasets.standin.demo import write_demo
from tvrbench.harness.search.encoder import Encoder


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 generated clips, each named by its caption; do not change it."""
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder, 24)
    return folder


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """The stand-in's CLIP."""
    return make_encoder()
