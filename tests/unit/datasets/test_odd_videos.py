"""Videos as they come: each is decoded right, or refused with the reason; and both decoders give the same frames."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from errors import raises
from gray_videos import STEP, levels, write_video
from videos import encode_sound

from tvrbench.datasets import decoders
from tvrbench.datasets.decoders import torchcodec
from tvrbench.datasets.decoding import VideoError, scan
from tvrbench.datasets.sampling import frame_indices
from tvrbench.datasets.video import examine, load_clip, probe, read_frames
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import FrameSpec, clip_sha256

pytestmark = pytest.mark.unit

SPEC = FrameSpec(frames=4, size=32)


def test_a_variable_frame_rate_is_picked_by_frame_number(tmp_path: Path) -> None:
    times = [0, 1, 2, 3, 10, 11, 30, 31, 32, 60]
    path = write_video(tmp_path / "vfr.mp4", times, options={"bf": "0"})
    info = probe(path)
    assert info.n_frames == 10
    assert "variable frame rate" in info.notes
    assert levels(read_frames(path, range(10))) == list(range(10))
    assert info.fps == pytest.approx(10 / 6.1, rel=0.3)  # the average, by which seconds are counted
    assert info.duration_s == pytest.approx(6.0 + 1 / info.fps)
    assert load_clip(path, SPEC)[2] == frame_indices("tempme", 10, info.fps, 4)


def test_an_even_rate_is_not_called_variable(tmp_path: Path) -> None:
    assert probe(write_video(tmp_path / "a.mp4")).notes == ()
    assert probe(write_video(tmp_path / "b.mp4", options={"bf": "3"})).notes == ()


@pytest.mark.parametrize(("codec", "pixels"), [("libx264", "yuv420p10le"), ("libx265", "yuv420p10le")])
def test_ten_bits_a_channel(tmp_path: Path, codec: str, pixels: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")
    path = write_video(tmp_path / "a.mp4", codec=codec, pixels=pixels)
    assert probe(path).notes == ("10-bit",)
    pictures = read_frames(path, [0, 7, 19])
    assert levels(pictures) == [0, 7, 19]
    assert abs(float(pictures[1].mean()) - 7 * STEP) < 3
    assert np.asarray(pictures[1]).dtype == np.uint8


def test_full_range_and_high_dynamic_range(tmp_path: Path) -> None:
    def pq(frame: av.VideoFrame) -> None:
        frame.color_trc = 16

    options = {"color_trc": "smpte2084", "colorspace": "bt2020nc", "color_primaries": "bt2020"}
    path = write_video(tmp_path / "hdr.mp4", pixels="yuv420p10le", options=options, mark=pq)
    assert probe(path).notes == ("10-bit", "high dynamic range")
    assert levels(read_frames(path, [7])) == [7]  # as it is coded: no tone mapping, like every loader of the field


def test_interlaced_fields_stay_woven(tmp_path: Path) -> None:
    options = {"flags": "+ildct+ilme", "x264-params": "tff=1"}
    path = write_video(tmp_path / "tv.mp4", options=options, size=(64, 64))
    info = probe(path)
    assert (info.n_frames, info.notes) == (20, ("interlaced",))
    assert levels(read_frames(path, [0, 9, 19])) == [0, 9, 19]


def test_interlaced_mpeg2_in_a_program_stream(tmp_path: Path) -> None:
    options = {"flags": "+ildct+ilme", "qscale": "1"}
    path = write_video(tmp_path / "tv.mpg", codec="mpeg2video", rate=25, options=options, size=(64, 64))
    assert probe(path).codec == "mpeg2video"
    pictures = read_frames(path, FrameSpec(frames=4))
    assert levels(pictures) == sorted(levels(pictures))


def test_no_duration_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "live.mkv"
    with path.open("wb") as sink:  # cannot seek, so nothing is filled in afterwards
        pipe = SimpleNamespace(write=sink.write)
        with av.open(pipe, "w", format="matroska") as file:
            stream = file.add_stream("libx264", rate=10)
            stream.width, stream.height = 64, 48
            for i in range(20):
                file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), STEP * i, np.uint8), "rgb24")))
            file.mux(stream.encode())
    assert scan(path).duration_s is None
    info = probe(path)
    assert (info.n_frames, info.notes) == (20, ("no duration in its header",))
    assert info.duration_s == pytest.approx(2.0, rel=0.1)
    assert levels(read_frames(path, [0, 19])) == [0, 19]


@pytest.mark.parametrize("size", [(65, 49), (64, 1 + 48), (33, 64)])
def test_odd_sizes_are_kept(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write_video(tmp_path / "odd.mp4", size=size, pixels="yuv444p")
    assert probe(path).notes == ("odd size",)
    assert read_frames(path, [3])[0].shape == (size[1], size[0], 3)
    assert load_clip(path, SPEC)[0].shape == (4, 3, 32, 32)


@pytest.mark.parametrize("name", ["one.mp4", "one.mkv", "one.avi", "one.webm"])
def test_one_frame(tmp_path: Path, name: str) -> None:
    codec = {"one.avi": "mpeg4", "one.webm": "libvpx-vp9"}.get(name, "libx264")
    path = write_video(tmp_path / name, times=[0], codec=codec)
    assert probe(path).n_frames == 1
    assert load_clip(path, SPEC)[2] == [0, 0, 0, 0]


@pytest.mark.parametrize("cover", [False, True])
def test_sound_alone_is_no_video_and_its_cover_picture_is_none_either(tmp_path: Path, cover: bool) -> None:
    path = encode_sound(tmp_path / "song.mp4", np.zeros((48, 64, 3), np.uint8) if cover else None)
    with av.open(str(path)) as file:
        assert len(file.streams.video) == cover
    with raises("video.unreadable", VideoError, video=str(path)):
        probe(path)


def test_a_video_with_sound_first(tmp_path: Path) -> None:
    path = tmp_path / "both.mp4"
    with av.open(str(path), "w") as file:
        sound, stream = file.add_stream("aac", rate=16000), file.add_stream("libx264", rate=10)
        stream.width, stream.height = 64, 48
        for i in range(20):
            audio = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), "fltp", "mono")
            audio.sample_rate = 16000
            file.mux(sound.encode(audio))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), STEP * i, np.uint8), "rgb24")))
        file.mux(sound.encode())
        file.mux(stream.encode())
    assert scan(path).stream == 1
    assert levels(read_frames(path, [5, 19])) == [5, 19]


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx"), ("a.webm", "libvpx-vp9")]
)
@pytest.mark.parametrize("sampler", ["tempme", "clip4clip", "centerclip"])
def test_one_look_gives_what_two_would(tmp_path: Path, name: str, codec: str, sampler: str) -> None:
    path = write_video(tmp_path / name, codec=codec)
    spec = FrameSpec(sampler=sampler, frames=4, size=32)
    info, clip = examine(path, spec)
    pixels, mask, _ = load_clip(path, spec)
    assert info == probe(path)
    assert clip_sha256(*clip) == clip_sha256(pixels, mask)


def test_only_the_beginning_counts_where_the_data_set_says_so(tmp_path: Path) -> None:
    whole, cut = write_video(tmp_path / "whole.mp4", range(30)), write_video(tmp_path / "cut.mp4", range(20))
    for sampler in ("tempme", "clip4clip", "centerclip"):
        spec = FrameSpec(sampler=sampler, frames=4, size=32)
        numbers = load_clip(whole, spec, window=(0.0, 2.0))[2]
        assert numbers == load_clip(cut, spec)[2] != load_clip(whole, spec)[2]
        assert clip_sha256(*examine(whole, spec, window=(0.0, 2.0))[1]) == clip_sha256(
            *load_clip(whole, spec, window=(0.0, 2.0))[:2]
        )


def test_unknown_decoder() -> None:
    with raises("decoder.unknown", decoder="x"):
        decoders.read_picked("x", Path("a.mp4"), lambda n, fps: [0], lambda rgb: rgb)


def test_the_environment_names_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FrameSpec().decoder == "pyav"
    monkeypatch.setenv("TVRBENCH_DECODER", "torchcodec")
    assert FrameSpec().decoder == "torchcodec"


@pytest.mark.parametrize(
    ("error", "installed"),
    [
        (ModuleNotFoundError("No module named 'torchcodec'"), False),
        (RuntimeError("Could not load libtorchcodec\nmore"), True),
    ],
)
def test_an_unavailable_torchcodec_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, installed: bool
) -> None:
    def absent(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(torchcodec, "import_module", absent)
    path = write_video(tmp_path / "a.mp4")
    for use in (lambda: load_clip(path, FrameSpec(decoder="torchcodec")), lambda: decoders.versions("torchcodec")):
        with raises("decoder.unavailable", decoder="torchcodec", installed=installed):
            use()


class _Decoder:
    """Stands in for torchcodec's: hands out PyAV's frames, or lies."""

    shift, lost = 0.0, 0

    def __init__(self, path: str, *, stream_index: int, **settings: Any) -> None:
        assert settings["seek_mode"] == "exact"
        self.index, self.path = scan(Path(path)), Path(path)
        assert stream_index == self.index.stream

    def __len__(self) -> int:
        return self.index.count - self.lost

    def get_frames_at(self, numbers: list[int]) -> SimpleNamespace:
        assert numbers == sorted(set(numbers))
        data = torch.from_numpy(np.stack(read_frames(self.path, numbers)))
        times = [float(self.index.times[i] * self.index.time_base) + self.shift for i in numbers]
        return SimpleNamespace(data=data, pts_seconds=torch.tensor(times, dtype=torch.float64))


@pytest.fixture
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace(__version__="0", VideoDecoder=_Decoder)
    monkeypatch.setattr(torchcodec, "import_module", lambda name: package)


@pytest.mark.usefixtures("_stand_in")
def test_torchcodec_is_asked_for_the_same_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", options={"bf": "2"})
    for frames in (4, 40):  # 40 of 20 frames: some twice
        mine, other = (load_clip(path, FrameSpec(frames=frames, size=32, decoder=d)) for d in ("pyav", "torchcodec"))
        assert mine[2] == other[2]
        assert clip_sha256(*mine[:2]) == clip_sha256(*other[:2])
    monkeypatch.setattr(_Decoder, "shift", 0.1)
    with raises("video.unreadable", VideoError, decoder="torchcodec"):
        load_clip(path, FrameSpec(decoder="torchcodec"))
    monkeypatch.setattr(_Decoder, "shift", 0.0)
    monkeypatch.setattr(_Decoder, "lost", 1)
    with raises("video.unreadable", VideoError, decoder="torchcodec"):
        load_clip(path, FrameSpec(decoder="torchcodec"))


def _torchcodec_works() -> bool:
    if importlib.util.find_spec("torchcodec") is None:
        return False
    try:
        torchcodec.versions()
    except UsageError:
        return False
    return "torchcodec" in sys.modules


@pytest.mark.skipif(not _torchcodec_works(), reason="torchcodec is not installed, or does not load")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {}),
        ("b.mp4", {"options": {"bf": "3"}}),
        ("c.mkv", {}),
        ("d.webm", {"codec": "libvpx-vp9"}),
        ("e.avi", {"codec": "mpeg4"}),
        ("f.mp4", {"times": [0, 1, 2, 3, 10, 11, 30, 31, 32, 60]}),
        ("g.mp4", {"pixels": "yuv420p10le"}),
        ("h.mp4", {"times": [0]}),
    ],
)
def test_torchcodec_gives_the_frames_that_pyav_gives(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    path = write_video(tmp_path / name, **options)
    mine, other = (load_clip(path, FrameSpec(frames=4, size=32, decoder=d)) for d in ("pyav", "torchcodec"))
    assert mine[2] == other[2]
    assert np.abs(mine[0].astype(int) - other[0].astype(int)).max() <= 2
