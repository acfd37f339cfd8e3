"""One video written anew: which frames, which size, and what happens to odd and broken sources."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import av.filter
import numpy as np
import numpy.typing as npt
import pytest
from errors import raises
from videos import encode, encode_sound

from tvrbench.datasets import reencoding
from tvrbench.datasets.decoding import VideoError
from tvrbench.datasets.reencoding import encoder, encoder_facts, reencode
from tvrbench.datasets.video import probe, read_frames
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import Reencoding

pytestmark = pytest.mark.unit

STEP = 8
SMALL = Reencoding(short_side=32)


def gray(level: int, size: tuple[int, int] = (64, 48)) -> npt.NDArray[np.uint8]:
    return np.full((size[1], size[0], 3), level % 256, dtype=np.uint8)


def write(path: Path, times: Sequence[int], rate: int = 10, *, codec: str = "libx264", bf: int = 0) -> Path:
    """A clip whose frame i has gray level 8 i and is shown at ``times[i]`` / rate seconds."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, options={"bf": str(bf)})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, rate)
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(gray(STEP * i), "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = time, Fraction(1, rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def levels(path: Path) -> list[int]:
    """The numbers of the source's frames that a clip shows."""
    count = probe(path).n_frames
    return [round(float(picture.mean()) / STEP) for picture in read_frames(path, range(count))]


def shown_by_ffmpeg(path: Path, fps: int) -> list[int]:
    """The same from FFmpeg's own filter ``fps``."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        graph = av.filter.Graph()
        source, rate, sink = graph.add_buffer(template=stream), graph.add("fps", f"fps={fps}"), graph.add("buffersink")
        source.link_to(rate)
        rate.link_to(sink)
        graph.configure()
        for frame in file.decode(stream):
            graph.push(frame)
        graph.push(None)
        found = []
        while True:
            try:
                found.append(round(float(graph.pull().to_ndarray(format="rgb24").mean()) / STEP))
            except (av.EOFError, av.BlockingIOError):
                return found


@pytest.mark.parametrize("fps", [1, 3, 7, 25])
@pytest.mark.parametrize(
    "times",
    [range(20), range(31), [0, 1, 2, 3, 10, 11, 30, 31, 32, 60], [0, 7], [*range(0, 31, 5)]],
    ids=["even", "odd count", "variable", "two", "slow"],
)
@pytest.mark.parametrize("bf", [0, 2])
def test_the_frames_are_those_of_ffmpegs_filter(tmp_path: Path, times: Sequence[int], fps: int, bf: int) -> None:
    source = write(tmp_path / "a.mp4", times, bf=bf)
    facts = reencode(source, tmp_path / "b.mp4", Reencoding(fps=fps, short_side=32))
    shown = shown_by_ffmpeg(source, fps)
    found = levels(tmp_path / "b.mp4")
    assert facts == {"frames": len(found), "width": 42, "height": 32}
    # The last frame is shown for its own duration, of which FFmpeg's filter is told here and there only.
    assert found[: len(shown)] == shown[: len(found)]
    assert abs(len(found) - len(shown)) <= max(1, round(fps * 0.5))


def test_the_new_file_is_a_plain_video(tmp_path: Path) -> None:
    source = write(tmp_path / "a.mp4", range(100))
    reencode(source, tmp_path / "b.mp4", SMALL)
    info = probe(tmp_path / "b.mp4")
    assert (info.n_frames, info.fps, info.duration_s, info.notes) == (30, 3.0, 10.0, ())
    assert info.codec == "h264" if encoder() == "libx264" else "mpeg4"
    reencode(source, tmp_path / "c.mp4", SMALL)
    assert (tmp_path / "b.mp4").read_bytes() == (tmp_path / "c.mp4").read_bytes()


def test_one_frame_and_a_fractional_rate(tmp_path: Path) -> None:
    assert reencode(write(tmp_path / "a.mp4", [0]), tmp_path / "b.mp4", SMALL)["frames"] == 1
    fractional = Reencoding(fps=2.5, short_side=32)
    assert reencode(write(tmp_path / "c.mp4", range(40)), tmp_path / "d.mp4", fractional)["frames"] == 10
    assert probe(tmp_path / "d.mp4").fps == 2.5


def test_a_late_start_is_dropped(tmp_path: Path) -> None:
    for name, times in (("late.mp4", range(70, 100)), ("prompt.mp4", range(30))):
        reencode(write(tmp_path / name, times), tmp_path / f"new-{name}", SMALL)
    assert levels(tmp_path / "new-late.mp4") == levels(tmp_path / "new-prompt.mp4")
    assert probe(tmp_path / "new-late.mp4").n_frames == 9


@pytest.mark.parametrize(
    ("size", "new"),
    [((64, 48), (42, 32)), ((48, 64), (32, 42)), ((47, 63), (32, 42)), ((20, 20), (32, 32)), ((1000, 32), (1000, 32))],
)
def test_the_shorter_side_and_the_aspect(tmp_path: Path, size: tuple[int, int], new: tuple[int, int]) -> None:
    source = encode(tmp_path / "a.mp4", [gray(100, size)] * 10, pixels="yuv444p")
    facts = reencode(source, tmp_path / "b.mp4", SMALL)
    assert (facts["width"], facts["height"]) == new


def test_the_published_size(tmp_path: Path) -> None:
    source = encode(tmp_path / "a.mp4", [gray(100, (640, 360))] * 10)
    assert reencode(source, tmp_path / "b.mp4", Reencoding()) == {"frames": 3, "width": 398, "height": 224}


@pytest.mark.parametrize("matrix", [(0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)], ids=["90", "180", "270"])
def test_a_rotation_is_applied_once(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    picture = gray(40)
    picture[:24, :32] = (230, 60, 60)
    source = encode(tmp_path / "a.mp4", [picture] * 10)
    data = bytearray(source.read_bytes())
    at = data.index(b"tkhd") + 44  # the transformation matrix of the track header (ISO/IEC 14496-12, 8.3.2)
    a, b, c, d = (x * 65536 for x in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    source.write_bytes(data)
    [before] = read_frames(source, [0])
    reencode(source, tmp_path / "b.mp4", Reencoding(short_side=48))
    assert probe(tmp_path / "b.mp4").notes == ()
    [after] = read_frames(tmp_path / "b.mp4", [0])
    assert after.shape == before.shape
    assert np.abs(after.astype(int) - before).mean() < 5


@pytest.mark.parametrize("pixels", ["yuv420p10le", "yuvj420p", "yuv444p"])
def test_depth_range_and_chroma_become_ordinary(tmp_path: Path, pixels: str) -> None:
    source = encode(tmp_path / "a.mp4", [gray(8), gray(128), gray(247)], rate=1, pixels=pixels)
    [first, second, third] = read_frames(source, [0, 1, 2])
    reencode(source, tmp_path / "b.mp4", Reencoding(fps=1, short_side=48))
    for before, after in zip((first, second, third), read_frames(tmp_path / "b.mp4", [0, 1, 2]), strict=True):
        assert abs(float(before.mean()) - float(after.mean())) < 2.5
    with av.open(str(tmp_path / "b.mp4")) as file:
        assert file.streams.video[0].codec_context.pix_fmt == "yuv420p"


def test_sound_is_dropped(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        video, sound = file.add_stream("libx264", rate=10), file.add_stream("aac", rate=16000)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for _ in range(10):
            file.mux(video.encode(av.VideoFrame.from_ndarray(gray(90), "rgb24")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), "fltp", "mono")
        silence.sample_rate = 16000
        file.mux(sound.encode(silence))
        file.mux([*video.encode(), *sound.encode()])
    reencode(tmp_path / "a.mp4", tmp_path / "b.mp4", SMALL)
    with av.open(str(tmp_path / "b.mp4")) as file:
        assert [stream.type for stream in file.streams] == ["video"]


@pytest.mark.parametrize("name", ["a.avi", "a.mpg", "a.webm", "a.mkv", "a.mov"])
def test_other_containers(tmp_path: Path, name: str) -> None:
    codec = {"a.avi": "mpeg4", "a.mpg": "mpeg2video", "a.webm": "libvpx"}.get(name, "libx264")
    source = encode(tmp_path / name, [gray(STEP * i) for i in range(25)], rate=25, codec=codec)
    kept = tmp_path / f"new{Path(name).suffix}"
    assert reencode(source, kept, SMALL)["frames"] == 3
    assert probe(kept).n_frames == 3


def test_a_bad_source_is_named_and_a_stream_that_changes_its_aspect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write(tmp_path / "good.mp4", range(50))
    cut, target = tmp_path / "cut.mp4", tmp_path / "b.mp4"
    cut.write_bytes(good.read_bytes()[:1500])
    for path, code in (
        (cut, "video.truncated"),
        (encode_sound(tmp_path / "sound.m4a"), "video.unreadable"),
        (tmp_path / "none.mp4", "video.missing"),
    ):
        with raises(code, VideoError, video=str(path)):
            reencode(path, target, SMALL)
    pictures = iter([gray(0), gray(0, (32, 48))])
    monkeypatch.setattr(reencoding, "to_rgb", lambda *_: next(pictures))
    with raises("video.unreadable", VideoError, video=str(good)):
        reencode(good, target, SMALL)


def test_times_that_jump_for_days_do_not_fill_the_disk(tmp_path: Path) -> None:
    source = write(tmp_path / "a.mkv", [0, 1, 10 * 86_400 * 3])
    with raises("video.unreadable", VideoError, video=str(source)):
        reencode(source, tmp_path / "b.mp4", SMALL)


def test_a_target_that_cannot_be_written_is_no_fault_of_the_video(tmp_path: Path) -> None:
    source = write(tmp_path / "a.mp4", range(20))
    for target in (Path("/dev/full"), tmp_path / "nowhere/b.mp4"):
        with pytest.raises(OSError) as caught:  # noqa: PT011  (its errno and file name are looked at)
            reencode(source, target, SMALL)
        assert not isinstance(caught.value, UsageError)
        assert caught.value.filename == str(target)


def test_another_encoder_is_taken_where_x264_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reencoding, "ENCODERS", {"no-such-encoder": {}, "mpeg4": reencoding.ENCODERS["mpeg4"]})
    encoder.cache_clear()
    try:
        assert encoder_facts()["encoder"] == "mpeg4"
        reencode(write(tmp_path / "a.mp4", range(30)), tmp_path / "b.mp4", SMALL)
        assert (probe(tmp_path / "b.mp4").codec, probe(tmp_path / "b.mp4").n_frames) == ("mpeg4", 9)
        assert levels(tmp_path / "b.mp4")[0] == 1
        monkeypatch.setattr(reencoding, "ENCODERS", {"no-such-encoder": {}})
        encoder.cache_clear()
        with raises("encoder.unavailable"):
            encoder()
    finally:
        encoder.cache_clear()


@pytest.mark.parametrize(
    "options", [{"fps": 0}, {"fps": float("nan")}, {"fps": 1e9}, {"short_side": 225}, {"short_side": 0}]
)
def test_settings_out_of_range(options: dict[str, float]) -> None:
    with raises("option.range"):
        Reencoding(**options)  # type: ignore[arg-type]
