"""Videos that are to be turned or mirrored for display: as FFmpeg's players show them, or refused."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.bitstream import BitStreamFilterContext, bitstream_filters_available
from errors import raises
from videos import encode

from tvrbench.datasets.decoders import torchcodec
from tvrbench.datasets.decoding import VideoError
from tvrbench.datasets.orientation import UPRIGHT, OddAngle, Orientation, orientation
from tvrbench.datasets.video import load_clip, probe, read_frames, stored_frames
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import NATIVE, FrameSpec

pytestmark = pytest.mark.unit

Picture = npt.NDArray[np.uint8]
ONE = 1 << 16
LIMITS = (-(1 << 31), (1 << 31) - 1)
# What the matrix (a b, c d) asks for: x' = a x + c y, y' = b x + d y.
EIGHT: dict[str, tuple[tuple[int, int, int, int], Callable[[Picture], Picture], list[str]]] = {
    "as it is": ((1, 0, 0, 1), lambda p: p, []),
    "90": ((0, 1, -1, 0), lambda p: np.rot90(p, -1), ["turned by 90 degrees"]),
    "180": ((-1, 0, 0, -1), lambda p: np.rot90(p, 2), ["turned by 180 degrees"]),
    "270": ((0, -1, 1, 0), lambda p: np.rot90(p), ["turned by 270 degrees"]),
    "left to right": ((-1, 0, 0, 1), lambda p: p[:, ::-1], ["mirrored"]),
    "upside down": ((1, 0, 0, -1), lambda p: p[::-1], ["mirrored", "turned by 180 degrees"]),
    "transposed": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1), ["mirrored", "turned by 270 degrees"]),
    "transversed": (
        (0, -1, -1, 0),
        lambda p: np.rot90(p, 2).swapaxes(0, 1),
        ["mirrored", "turned by 90 degrees"],
    ),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames of noise, a key frame every 5."""
    pictures = np.random.default_rng(0).integers(0, 256, (20, 6, 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    return encode(tmp_path_factory.mktemp("source") / "a.mp4", pictures, options={"g": "5", "bf": "0"})


def with_matrix(source: Path, path: Path, a: int, b: int, c: int, d: int, w: int = 1 << 30) -> Path:
    """A copy of an MP4 with another matrix in its track header (ISO/IEC 14496-12, 8.3.2)."""
    data = bytearray(source.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, w)
    path.write_bytes(data)
    return path


def with_messages(source: Path, path: Path, parts: Sequence[tuple[int, str | None]]) -> Path:
    """A copy whose packets from each number on start with a display orientation message, or none."""
    if "h264_metadata" not in bitstream_filters_available:
        pytest.skip("this PyAV has no filter h264_metadata")
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = old.streams.video[0]
        packets = [packet for packet in old.demux(stream) if packet.size]
        copy = new.add_stream_from_template(stream)
        ends = [begin for begin, _ in parts[1:]] + [len(packets)]
        for (begin, message), end in zip(parts, ends, strict=True):
            part = packets[begin:end]
            if message is not None:
                insert = BitStreamFilterContext(f"h264_metadata=display_orientation=insert:{message}", stream)
                part = [out for packet in [*part, None] for out in insert.filter(packet)]
            for packet in part:
                packet.stream = copy
                new.mux(packet)
    return path


@pytest.mark.parametrize("name", EIGHT)
@pytest.mark.parametrize("noise", [0, 0.01, -0.01])
@pytest.mark.parametrize("scale", [1, 0.5, 3])
def test_eight_matrices(name: str, noise: float, scale: float) -> None:
    entries, turn, notes = EIGHT[name]
    a, b, c, d = (round(ONE * scale * (entry + noise)) for entry in entries)
    found = orientation([a, b, 0, c, d, 0, 123, 456, 1 << 30])
    picture = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    assert np.array_equal(found.apply(picture), turn(picture))
    assert found.size(6, 4) == (turn(picture).shape[1], turn(picture).shape[0])
    assert found.notes() == notes


@pytest.mark.parametrize(
    "entries",
    [(0, 0, 0, 0), (1, 0, 0, 0), (0, 0, 0, 1), (0, 1, 0, 0), (1, 1, 1, 1), (LIMITS[0],) * 4, (LIMITS[1],) * 4],
)
def test_a_matrix_without_an_inverse_turns_nothing(entries: tuple[int, int, int, int]) -> None:
    a, b, c, d = entries
    assert orientation([a, b, 0, c, d, 0, 0, 0, 0]) == UPRIGHT


@pytest.mark.parametrize("low", [1, *LIMITS])
@pytest.mark.parametrize("high", LIMITS)
def test_extreme_entries(low: int, high: int) -> None:
    for entries in ((high, 0, 0, low), (0, high, low, 0)):
        a, b, c, d = entries
        assert isinstance(orientation([a, b, high, c, d, low, high, high, low]), Orientation)


@pytest.mark.parametrize("angle", [2, 30, 45, 88, 135, 225, 300])
@pytest.mark.parametrize("mirrored", [1, -1])
def test_other_angles_are_refused(angle: int, mirrored: int) -> None:
    a, b = (round(ONE * f(math.radians(angle))) for f in (math.cos, math.sin))
    with pytest.raises(OddAngle) as caught:
        orientation([a, b, 0, -b * mirrored, a * mirrored, 0, 0, 0, 1 << 30])
    assert caught.value.args == (angle,)


@pytest.mark.parametrize("name", EIGHT)
def test_a_file_is_shown_as_its_matrix_asks(source: Path, tmp_path: Path, name: str) -> None:
    entries, turn, notes = EIGHT[name]
    upright = read_frames(source, [3, 12])
    path = with_matrix(source, tmp_path / "a.mp4", *(ONE * entry for entry in entries))
    for was, now in zip(upright, read_frames(path, [3, 12]), strict=True):
        assert np.array_equal(now, turn(was))
    info = probe(path)
    assert (info.height, info.width) == turn(upright[0]).shape[:2]
    assert list(info.notes) == notes


def test_a_file_with_an_all_zero_matrix_is_upright(source: Path, tmp_path: Path) -> None:
    path = with_matrix(source, tmp_path / "a.mp4", 0, 0, 0, 0, w=0)
    assert probe(path).notes == ()
    assert np.array_equal(read_frames(path, [3])[0], read_frames(source, [3])[0])


def test_an_odd_angle_names_the_file(source: Path, tmp_path: Path) -> None:
    path = with_matrix(source, tmp_path / "a.mp4", 46341, 46341, -46341, 46341)
    for use in (probe, lambda p: read_frames(p, [0]), lambda p: load_clip(p, FrameSpec(size=32))):
        with raises("video.unreadable", VideoError, video=str(path)):
            use(path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize(("message", "turns"), [("rotate=90", 1), ("rotate=270", 3), ("flip=horizontal", None)])
def test_a_message_on_one_frame_holds_for_the_video(
    source: Path, tmp_path: Path, name: str, message: str, turns: int | None
) -> None:
    path = with_messages(source, tmp_path / name, [(0, message)])
    upright = read_frames(source, range(20))
    for was, now in zip(upright, read_frames(path, range(20)), strict=True):
        assert np.array_equal(now, was[:, ::-1] if turns is None else np.rot90(was, turns))
    assert "orientation changes" not in probe(path).notes


def test_each_frame_has_the_orientation_in_force(source: Path, tmp_path: Path) -> None:
    parts = [(0, None), (5, "rotate=90"), (10, "rotate=270"), (15, "rotate=90")]
    path = with_messages(source, tmp_path / "a.mkv", parts)
    upright, turns = read_frames(source, range(20)), [0] * 5 + [1] * 5 + [3] * 5 + [1] * 5
    for was, now, turn in zip(upright, read_frames(path, range(20)), turns, strict=True):
        assert np.array_equal(now, np.rot90(was, turn))
    assert "orientation changes" in probe(path).notes
    assert load_clip(path, FrameSpec(frames=4, size=32))[0].shape == (4, 3, 32, 32)
    with raises("video.size-changes", UsageError, video=str(path)):
        stored_frames(path, FrameSpec(frames=4, size=NATIVE))


def test_the_container_has_the_last_word(source: Path, tmp_path: Path) -> None:
    path = with_messages(source, tmp_path / "a.mp4", [(0, "rotate=90"), (10, "rotate=270")])
    with_matrix(path, path, -ONE, 0, 0, -ONE)
    for was, now in zip(read_frames(source, range(20)), read_frames(path, range(20)), strict=True):
        assert np.array_equal(now, np.rot90(was, 2))
    assert probe(path).notes == ("turned by 180 degrees",)


def test_torchcodec_leaves_turned_videos_to_pyav(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchcodec, "import_module", lambda name: SimpleNamespace(__version__="0"))
    for entries, _, notes in EIGHT.values():
        path = with_matrix(source, tmp_path / "a.mp4", *(ONE * entry for entry in entries))
        if notes:
            with raises("video.unreadable", VideoError, video=str(path), decoder="torchcodec"):
                load_clip(path, FrameSpec(size=32, decoder="torchcodec"))
