"""MSVD's layout with three small videos, and ``tvrbench data`` as a user calls it on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tyro
from videos import encode

from tvrbench.datasets.msvd import MSVD
from tvrbench.harness.cli.app import main
from tvrbench.harness.cli.data import DataCommand

IDS = ("b_0_2", "c_0_2", "d_0_2")


def write_video(path: Path, gray: int, fps: int = 4) -> None:
    """Write two seconds of gray pictures, one level a second."""
    encode(path, [np.full((32, 32, 3), gray + 9 * (i // fps), dtype=np.uint8) for i in range(2 * fps)], rate=fps)


def make_msvd(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the folder, with one video in each split."""
    monkeypatch.setattr(MSVD, "expected_contents", {})
    folder.mkdir()
    for name, video in zip(("test", "val", "train"), IDS, strict=True):
        (folder / f"{name}_list.txt").write_text(f"{video}\n")
        write_video(folder / "videos" / f"{video}.mp4", 60 * IDS.index(video) + 30)
    captions = b"}(" + b"".join(
        b"X%s%s](X\x05\x00\x00\x00a cate" % (len(v).to_bytes(4, "little"), v.encode()) for v in IDS
    )
    (folder / "raw-captions.pkl").write_bytes(captions + b"u.")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command as a user calls it; returns exit code, stdout and stderr."""
    code = main(["data", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def call(*arguments: str) -> None:
    """Run the command without its outermost layer, so that its errors can be looked at."""
    tyro.cli(DataCommand, args=arguments).run()
