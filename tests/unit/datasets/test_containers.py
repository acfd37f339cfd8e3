"""Files that start late, declare a wrong duration or none, or are cut: only the cut ones are refused."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from errors import raises
from gray_videos import STEP, levels, write_video
from videos import Folder

from tvrbench.datasets.completeness import is_whole
from tvrbench.datasets.decoding import VideoError, scan
from tvrbench.datasets.video import load_clip, probe, read_frames, stored_frames
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.cache import fill_cache
from tvrbench.harness.data.types import NATIVE, FrameSpec

pytestmark = pytest.mark.unit

CODECS = {"avi": "mpeg4", "wmv": "wmv2", "mpg": "mpeg2video", "webm": "libvpx-vp9"}
SEGMENT = bytes.fromhex("18538067")
DURATION = bytes.fromhex("448988")  # and 8 bytes: milliseconds as a 64-bit float
UNKNOWN_LENGTH = bytes([1] + [255] * 7)
WRONG = "wrong duration in its header"


def late(path: Path, start_s: int, *, codec: str | None = None, pixels: str = "yuv420p", **container: str) -> Path:
    codec = codec or CODECS.get(path.suffix[1:], "libx264")
    return write_video(path, [10 * start_s + i for i in range(30)], rate=10, codec=codec, pixels=pixels, **container)


def declare(path: Path, factor: float) -> Path:
    """Change the duration in the header of an MP4, AVI or Matroska file."""
    data = bytearray(path.read_bytes())
    if path.suffix in (".mkv", ".webm"):
        at = data.index(DURATION) + len(DURATION)
        (was,) = struct.unpack(">d", data[at : at + 8])
        data[at : at + 8] = struct.pack(">d", was * factor)
    elif path.suffix == ".avi":
        for at in (data.index(b"avih") + 24, data.index(b"strh") + 40):  # frames of the file and of the stream
            data[at : at + 4] = struct.pack("<I", int(struct.unpack("<I", data[at : at + 4])[0] * factor))
    else:
        for at in (data.index(b"mvhd") + 20, data.index(b"mdhd") + 20, data.index(b"tkhd") + 24):
            data[at : at + 4] = struct.pack(">I", int(struct.unpack(">I", data[at : at + 4])[0] * factor))
    path.write_bytes(data)
    return path


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def without_length(path: Path) -> Path:
    """A Matroska file whose writer could not go back to state the segment's length."""
    data = bytearray(path.read_bytes())
    at = data.index(SEGMENT) + len(SEGMENT)
    data[at : at + 8] = UNKNOWN_LENGTH
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("start_s", [1, 7, 3600])
@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm", "ts", "mpg", "wmv"])
def test_a_late_start(tmp_path: Path, suffix: str, start_s: int) -> None:
    path = late(tmp_path / f"a.{suffix}", start_s)
    info = probe(path)
    assert info.n_frames == 30
    assert info.duration_s == pytest.approx(3.0, abs=0.1)
    assert WRONG not in info.notes
    if suffix in ("mp4", "mkv"):
        assert levels(read_frames(path, [0, 20, 29])) == [0, 20, 29]


@pytest.mark.parametrize(
    "options", ["frag_keyframe+empty_moov", "frag_keyframe+empty_moov+delay_moov+default_base_moof"]
)
def test_late_fragments(tmp_path: Path, options: str) -> None:
    assert probe(late(tmp_path / "a.mp4", 7, movflags=options)).n_frames == 30


@pytest.mark.parametrize("start_s", [0, 1, 7, 3600])
@pytest.mark.parametrize("from_first", [False, True])
@pytest.mark.parametrize("live", [False, True])
def test_matroska_counts_a_duration_from_0_or_from_the_first_picture(
    tmp_path: Path, start_s: int, from_first: bool, live: bool
) -> None:
    path = late(tmp_path / "a.mkv", start_s, codec="mjpeg", pixels="yuvj420p")  # its frames have one size
    if from_first:
        declare(path, 3 / (3 + start_s))
    if live:
        without_length(path)
    info = probe(path)
    assert (info.n_frames, info.notes) == (30, ())
    assert is_whole(path) is (None if live else True)
    with raises("video.truncated", VideoError, video=str(path)):
        probe(cut(path, 0.3))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm", "avi"])
@pytest.mark.parametrize("factor", [0.25, 4])
def test_a_wrong_duration_in_a_whole_file_is_noted(tmp_path: Path, suffix: str, factor: float) -> None:
    path = declare(late(tmp_path / f"a.{suffix}", 0), factor)
    info = probe(path)
    assert info.n_frames == 30
    assert WRONG in info.notes or suffix == "mp4"  # FFmpeg takes an MP4's from its table of samples
    with raises("video.truncated", VideoError, video=str(path)):
        probe(cut(path, 0.3))


def test_a_duration_of_which_too_little_is_there(tmp_path: Path) -> None:
    path = without_length(declare(late(tmp_path / "a.mkv", 0), 4))
    with raises("video.truncated", VideoError, video=str(path)):
        scan(path)


@pytest.mark.parametrize("late_s", [0, 7])
def test_a_live_stream_declares_nothing(tmp_path: Path, late_s: int) -> None:
    path = tmp_path / "live.webm"
    with path.open("wb") as sink:  # cannot seek
        pipe = SimpleNamespace(write=sink.write)
        with av.open(pipe, "w", format="webm", options={"live": "1"}) as file:
            stream = file.add_stream("libvpx-vp9", rate=25)
            stream.width, stream.height = 64, 48
            for i in range(25):
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), STEP * i, np.uint8), "rgb24")
                frame.pts, frame.time_base = i + 25 * late_s, Fraction(1, 25)
                file.mux(stream.encode(frame))
            file.mux(stream.encode())
    info = probe(path)
    assert (info.n_frames, info.notes) == (25, ("no duration in its header",))


def changing_size(path: Path) -> Path:
    """20 frames of 64 x 48 and 20 of 96 x 64, each with its own parameters, in one stream."""
    parts = [write_video(path.with_name(f"{i}.ts"), size=size) for i, size in enumerate([(64, 48), (96, 64)])]
    with av.open(str(path), "w") as new:
        copy = None
        for number, part in enumerate(parts):
            with av.open(str(part)) as old:
                stream = old.streams.video[0]
                copy = copy or new.add_stream_from_template(stream)
                packets = [packet for packet in old.demux(stream) if packet.size]
                shift = round(3 * number / stream.time_base)
                for packet in packets:
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                    new.mux(packet)
    return path


def test_a_stream_that_changes_its_size(tmp_path: Path) -> None:
    path = changing_size(tmp_path / "a.mkv")
    assert [frame.shape for frame in read_frames(path, [0, 19, 20, 39])] == [(48, 64, 3)] * 2 + [(64, 96, 3)] * 2
    info = probe(path)
    assert (info.width, info.height) == (64, 48)
    assert "size changes" in info.notes
    spec = FrameSpec(frames=4, size=32)
    assert np.array_equal(stored_frames(path, spec), load_clip(path, spec)[0])
    with raises("video.size-changes", UsageError, video=str(path)):
        stored_frames(path, FrameSpec(frames=4, size=NATIVE))


def test_a_native_cache_names_the_video_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "videos").mkdir()
    changing_size(tmp_path / "videos" / "a.mkv")
    write_video(tmp_path / "videos" / "b.mp4")
    for rest in (tmp_path / "videos").glob("*.ts"):
        rest.unlink()
    monkeypatch.setattr(Folder, "ids", ("a", "b"), raising=False)
    report = fill_cache(Folder(tmp_path), FrameSpec(frames=4, size=NATIVE), ["a", "b"])
    assert report.added == 1
    assert [(fault.video_id, fault.kind) for fault in report.faults] == [("a", "unreadable")]
