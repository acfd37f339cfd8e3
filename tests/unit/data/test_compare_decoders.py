"""PyAV and torchcodec side by side; a decoder that stands in for torchcodec shifts pixels or refuses videos."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import videos
from errors import raises

from tvrbench.datasets.decoders import torchcodec
from tvrbench.datasets.decoding import scan
from tvrbench.datasets.msvd import MSVD
from tvrbench.datasets.video import read_frames
from tvrbench.harness.cli.app import main
from tvrbench.harness.data.compare_decoders import compare_decoders
from tvrbench.harness.data.types import FrameSpec

pytestmark = pytest.mark.unit

IDS = ("a_0_2", "b_0_2", "c_0_2")
SPEC = FrameSpec(frames=4, size=32)


class Folder(videos.Folder):
    """Three videos of a folder."""

    ids = IDS


class Decoder:
    """Hands out PyAV's frames, lighter by ``by``; finds another number of frames in ``refused``."""

    by: ClassVar[int] = 0
    refused: ClassVar[str] = ""

    def __init__(self, path: str, **_: Any) -> None:
        self.path, self.index = Path(path), scan(Path(path))

    def __len__(self) -> int:
        return self.index.count + (self.path.stem == self.refused)

    def get_frames_at(self, numbers: list[int]) -> SimpleNamespace:
        assert self.index.times is not None
        frames = np.stack(read_frames(self.path, numbers)) + np.uint8(self.by)
        times = [float(self.index.times[i] * self.index.time_base) for i in numbers]
        return SimpleNamespace(data=torch.from_numpy(frames), pts_seconds=torch.tensor(times, dtype=torch.float64))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(
        torchcodec, "import_module", lambda name: SimpleNamespace(__version__="0", VideoDecoder=Decoder)
    )
    for i, name in enumerate(IDS):
        pictures = [np.full((32, 32, 3), 40 * i + 9 * number, dtype=np.uint8) for number in range(8)]
        videos.encode(tmp_path / "videos" / f"{name}.mp4", pictures, rate=4)
    return tmp_path


def test_two_that_agree(root: Path) -> None:
    seen: list[tuple[int, int]] = []
    found = compare_decoders(Folder(root), SPEC, IDS, progress=lambda done, total: seen.append((done, total)))
    assert (found.videos, found.same_indices, found.same_pixels, found.largest, found.mean) == (3, 3, 3, 0, 0.0)
    assert found.refused == ()
    assert all(rate > 0 for rate in found.frames_per_s.values())
    assert found.versions["torchcodec"]["torchcodec"] == "0"
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_pixels_that_differ_and_a_video_that_one_refuses(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Decoder, "by", 3)
    monkeypatch.setattr(Decoder, "refused", "b_0_2")
    found = compare_decoders(Folder(root), SPEC, IDS)
    assert (found.videos, found.same_indices, found.same_pixels, found.largest) == (2, 2, 0, 3)
    assert found.mean == pytest.approx(3.0)
    (reason,) = found.refused
    assert reason.startswith("torchcodec: ")
    assert "b_0_2.mp4" in reason


def test_indices_that_differ(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbered = Folder.numbered_frames

    def meddle(self: Folder, video: str, spec: FrameSpec, seed: int = 0) -> Any:
        pixels, mask, numbers = numbered(self, video, spec, seed)
        return pixels, mask, numbers if spec.decoder == "pyav" or video != "a_0_2" else numbers[::-1]

    monkeypatch.setattr(Folder, "numbered_frames", meddle)
    assert compare_decoders(Folder(root), SPEC, IDS).same_indices == 2


def test_nothing_to_compare(root: Path) -> None:
    with raises("decoder.nothing-to-compare", dataset="folder"):
        compare_decoders(Folder(root), SPEC, [])


@pytest.fixture
def msvd(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(MSVD, "expected_contents", {})
    for name, video in zip(("test", "val", "train"), IDS, strict=True):
        (root / f"{name}_list.txt").write_text(f"{video}\n")
    captions = b"".join(b"X%s%s](X\x05\x00\x00\x00a cate" % (len(v).to_bytes(4, "little"), v.encode()) for v in IDS)
    (root / "raw-captions.pkl").write_bytes(b"}(" + captions + b"u.")
    return root


@pytest.fixture
def run(msvd: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*options: str) -> tuple[int, str, str]:
        code = main(["data", "decoders", "msvd", "--root", str(msvd), *options])
        return code, *capsys.readouterr()

    return call


def test_the_command(run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, msvd: Path) -> None:
    (msvd / "videos/c_0_2.mp4").unlink()  # what is not there is left out
    code, out, err = run("--frames", "4", "--size", "32")
    assert code == 0, err
    assert "of 2 videos" in out
    monkeypatch.setattr(Decoder, "refused", "b_0_2")
    code, out, err = run("--json", "--split", "test", "--split", "val")
    found = json.loads(out)
    assert (found["videos"], len(found["refused"])) == (1, 1)
    code, out, err = run("--limit", "1")
    assert "of 1 videos" in out


def test_an_absent_torchcodec(run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(torchcodec, "import_module", absent)
    code, _, err = run()
    assert (code, "torchcodec" in err) == (2, True)
    code, _, err = run("--limit", "0")
    assert (code, "--limit 0" in err) == (2, True)


def test_a_gpu_decodes_for_torchcodec_cuda(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def decoder(path: str, **options: Any) -> Decoder:
        asked.append(options["device"])
        return Decoder(path)

    fake = SimpleNamespace(__version__="0", VideoDecoder=decoder)
    monkeypatch.setattr(torchcodec, "import_module", lambda name: fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    found = compare_decoders(Folder(root), SPEC, IDS, other="torchcodec-cuda")
    assert (found.decoders, found.same_pixels) == (("pyav", "torchcodec-cuda"), 3)
    assert found.versions["torchcodec-cuda"]["gpu"] == "a GPU"
    assert set(asked) == {"cuda:0"}
    compare_decoders(Folder(root), SPEC, IDS)
    assert set(asked) == {"cuda:0", "cpu"}
    group = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "head", "MASTER_PORT": "29500"}
    for name, value in group.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    compare_decoders(Folder(root), SPEC, IDS, other="torchcodec-cuda")
    assert set(asked) == {"cuda:0", "cuda:1", "cpu"}


def test_a_gpu_that_is_missing_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "torchcodec", None)  # installing it would not help
    with raises("decoder.unavailable", decoder="torchcodec-cuda"):
        compare_decoders(Folder(root), SPEC, IDS, other="torchcodec-cuda")


def test_a_video_that_the_engine_does_not_take_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decoder(path: str, **_: Any) -> Decoder:
        raise RuntimeError("Failed to create the CUDA decoder\nmore")

    fake = SimpleNamespace(__version__="0", VideoDecoder=decoder)
    monkeypatch.setattr(torchcodec, "import_module", lambda name: fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with raises("video.unreadable"):
        Folder(root).frames(IDS[0], FrameSpec(frames=4, size=32, decoder="torchcodec-cuda"))


def test_memory_that_runs_out_is_no_fault_of_the_video(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the video would be skipped with --skip-bad-videos."""

    def full(path: str, **_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    fake = SimpleNamespace(__version__="0", VideoDecoder=full)
    monkeypatch.setattr(torchcodec, "import_module", lambda name: fake)
    with pytest.raises(torch.OutOfMemoryError):
        Folder(root).frames(IDS[0], FrameSpec(frames=4, size=32, decoder="torchcodec"))
