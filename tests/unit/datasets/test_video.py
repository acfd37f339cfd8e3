from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from errors import raises
from PIL import Image
from torchvision.transforms import functional as tv
from videos import encode, encode_sound

from tvrbench.datasets import decoders, decoding
from tvrbench.datasets.decoding import VideoError
from tvrbench.datasets.video import load_clip, probe, read_frames, resize_and_crop
from tvrbench.harness.data.types import FrameSpec, VideoFault

pytestmark = pytest.mark.unit

STEP = 8


def write_video(
    path: Path,
    frames: int = 30,
    *,
    fps: Fraction | int = 10,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    **container: str,
) -> Path:
    """A clip whose frame i is gray level 8 i in its left half, noise in its right one."""
    width, height = size
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    pictures[:, :, : width // 2] = STEP * np.arange(frames, dtype=np.uint8)[:, None, None, None]
    return encode(path, pictures, rate=fps, codec=codec, pixels=pixels, **container)


def numbers(pictures: Sequence[npt.NDArray[np.uint8]]) -> list[int]:
    """Which frames these are, by their gray level."""
    return [round(float(p[:, : p.shape[1] // 4].mean()) / STEP) for p in pictures]


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return write_video(tmp_path / "good.mp4")


@pytest.mark.parametrize(
    ("name", "codec", "known"),
    [
        ("a.mp4", "libx264", "h264"),
        ("a.mkv", "libx264", "h264"),
        ("a.avi", "mpeg4", "mpeg4"),
        ("a.webm", "libvpx-vp9", "vp9"),
        ("a.webm", "libvpx", "vp8"),
    ],
)
def test_every_container_gives_the_frames_asked_for(tmp_path: Path, name: str, codec: str, known: str) -> None:
    path = write_video(tmp_path / name, codec=codec)
    info = probe(path)
    assert (info.n_frames, info.fps, info.width, info.height, info.codec) == (30, 10.0, 64, 48, known)
    assert info.duration_s == pytest.approx(3.0)
    assert numbers(read_frames(path, [0, 7, 8, 29])) == [0, 7, 8, 29]
    assert load_clip(path, FrameSpec(size=32))[2] == [0, 2, 5, 7, 10, 13, 15, 18, 21, 23, 26, 29]


def test_frames_come_in_the_order_wanted_and_again_if_wanted(good: Path) -> None:
    pictures = read_frames(good, [20, 3, 3, 11])
    assert numbers(pictures) == [20, 3, 3, 11]
    assert pictures[0].shape == (48, 64, 3)
    assert pictures[0].dtype == np.uint8
    assert read_frames(good, []) == []


def test_a_spec_picks_the_frames(good: Path) -> None:
    assert numbers(read_frames(good, FrameSpec(sampler="clip4clip"))) == [0, 10, 20]


@pytest.mark.parametrize("number", [30, -1])
def test_a_frame_that_is_not_there(good: Path, number: int) -> None:
    with raises("video.sampling", video=str(good), cause="video.frame-index"):
        read_frames(good, [0, number])


def test_decoding_counts_where_packets_miscount(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def boastful(path: Path) -> decoding.PacketIndex:
        index = decoding.scan(path)
        assert index.times is not None
        more = tuple(range(index.times[-1] + 1, index.times[-1] + 3))
        return dataclasses.replace(index, count=index.count + 2, times=index.times + more)

    monkeypatch.setattr(decoders, "scan", boastful)
    assert load_clip(good, FrameSpec(size=32))[2][-1] == 29


def test_an_edit_list_hides_frames(good: Path) -> None:
    data = bytearray(good.read_bytes())
    at = data.index(b"elst") + 12
    (begin,) = struct.unpack(">i", data[at + 4 : at + 8])
    data[at : at + 8] = struct.pack(">Ii", 1000, begin + 10 * 1024)  # ms, and ticks of 1/10240 s
    good.write_bytes(data)
    assert probe(good).n_frames == 10
    assert numbers(read_frames(good, [0, 9])) == [10, 19]


def test_the_clip_is_masked_where_it_is_padded(good: Path) -> None:
    clip, mask, indices = load_clip(good, FrameSpec(sampler="clip4clip", size=32))
    assert clip.shape == (12, 3, 32, 32)
    assert clip.dtype == np.uint8
    assert indices == [0, 10, 20]
    assert mask.tolist() == [True] * 3 + [False] * 9
    assert not clip[3:].any()
    assert clip[2].any()


def test_a_clip_of_the_right_size_is_not_resampled(tmp_path: Path) -> None:
    path = write_video(tmp_path / "square.mp4", size=(32, 32))
    clip, _, indices = load_clip(path, FrameSpec(size=32))
    assert np.array_equal(clip.transpose(0, 2, 3, 1), np.stack(read_frames(path, indices)))


@pytest.mark.parametrize("width", [32, 33, 47, 64, 101])
@pytest.mark.parametrize("height", [32, 35, 90])
@pytest.mark.parametrize("size", [32, 33])
def test_resize_and_crop_are_torchvisions(width: int, height: int, size: int) -> None:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    expected = tv.center_crop(tv.resize(picture, [size], tv.InterpolationMode.BICUBIC), [size, size])
    assert np.array_equal(resize_and_crop(picture, size), np.asarray(expected).transpose(2, 0, 1))


def test_draws_depend_on_the_seed_alone(good: Path) -> None:
    spec = FrameSpec(sampler="centerclip-train", size=32, augment="tempme-randaugment")
    first, again, other = (load_clip(good, spec, seed) for seed in (1, 1, 2))
    assert first[2] == again[2] != other[2]
    assert np.array_equal(first[0], again[0])


def test_augmentation_treats_all_frames_alike_at_native_resolution(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []

    def draw(name: str, seed: int) -> Callable[[Image.Image], Image.Image]:
        sizes.append((-1, seed))

        def note(picture: Image.Image) -> Image.Image:
            sizes.append(picture.size)
            return picture

        return note

    monkeypatch.setattr("tvrbench.datasets.augment.draw", draw)
    load_clip(good, FrameSpec(size=32, augment="tempme-randaugment"), seed=5)
    assert sizes == [(-1, 5)] + [(64, 48)] * 12


def test_one_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "one.mp4", frames=1)
    _, mask, indices = load_clip(path, FrameSpec(size=32))
    assert indices == [0] * 12
    assert mask.all()
    assert load_clip(path, FrameSpec(sampler="clip4clip", size=32))[1].sum() == 1


def test_odd_sizes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "odd.mp4", size=(63, 47), pixels="yuv444p")
    assert read_frames(path, [4])[0].shape == (47, 63, 3)
    assert load_clip(path, FrameSpec(size=33))[0].shape == (12, 3, 33, 33)


@pytest.mark.parametrize(
    ("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)], ids=["90", "180", "270"]
)
def test_rotation_is_applied(good: Path, matrix: tuple[int, int, int, int], turns: int) -> None:
    upright = read_frames(good, [3])[0]
    data = bytearray(good.read_bytes())
    at = data.index(b"tkhd") + 44  # the transformation matrix of the track header (ISO/IEC 14496-12, 8.3.2)
    a, b, c, d = (x * 65536 for x in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    good.write_bytes(data)
    assert np.array_equal(read_frames(good, [3])[0], np.rot90(upright, turns))
    info = probe(good)
    assert (info.height, info.width) == np.rot90(upright, turns).shape[:2]


def kind_of(path: Path) -> str:
    """The fault's kind, the same from a check and from loading, with the file named in one line."""
    kinds = set()
    for use in (probe, lambda p: load_clip(p, FrameSpec(size=32))):
        with pytest.raises(VideoError) as caught:
            use(path)
        assert caught.value.fields["video"] == str(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        kinds.add(VideoFault.of("video", path, caught.value).kind)
    (kind,) = kinds
    return kind


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("end-index.mp4", "libx264", {}),
        ("front-index.mp4", "libx264", {"movflags": "faststart"}),
        ("fragmented.mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        ("a.avi", "mpeg4", {}),
        ("a.webm", "libvpx-vp9", {}),
    ],
)
def test_truncated(tmp_path: Path, name: str, codec: str, options: dict[str, str], share: float) -> None:
    assert kind_of(cut(write_video(tmp_path / name, codec=codec, **options), share)) == "truncated"


def test_a_stream_of_unknown_length_that_stops_early(good: Path, tmp_path: Path) -> None:
    path = write_video(tmp_path / "live.mkv")
    data = bytearray(path.read_bytes())
    at = data.index(bytes.fromhex("18538067")) + 4
    data[at : at + 8] = bytes([1] + [255] * 7)  # the segment's length: unknown
    path.write_bytes(data)
    assert probe(path).n_frames == 30
    assert kind_of(cut(path, 0.6)) == "truncated"


def test_missing(tmp_path: Path) -> None:
    assert kind_of(tmp_path / "nowhere.mp4") == "missing"
    assert kind_of(tmp_path) == "missing"


def test_empty(tmp_path: Path) -> None:
    path = tmp_path / "empty.mp4"
    path.touch()
    assert kind_of(path) == "empty"


def test_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "text.mp4"
    path.write_text("<html>404 Not Found</html>" * 100)
    assert kind_of(path) == "unreadable"


def test_sound_only(tmp_path: Path) -> None:
    path = encode_sound(tmp_path / "sound.mp4")
    assert kind_of(path) == "unreadable"


def test_a_playlist_opens_no_other_file(good: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.mp4"
    path.write_text(f"ffconcat version 1.0\nfile {good.name}\n")
    assert kind_of(path) == "unreadable"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{good.as_uri()}\n#EXT-X-ENDLIST\n")
    assert kind_of(path) == "unreadable"


def test_an_unreadable_file(good: Path) -> None:
    good.chmod(0)
    try:
        good.read_bytes()
    except PermissionError:
        assert kind_of(good) == "unreadable"
    else:
        pytest.skip("this user may read every file")


def test_damage_is_found_and_only_matters_as_far_as_it_is_read(good: Path) -> None:
    data = bytearray(good.read_bytes())
    end = data.index(b"moov")
    data[int(0.8 * end) : int(0.9 * end)] = b"\x55" * (int(0.9 * end) - int(0.8 * end))
    good.write_bytes(data)
    assert kind_of(good) == "unreadable"
    assert numbers(read_frames(good, [0, 5])) == [0, 5]


def test_damage_that_the_decoder_would_paint_over_is_a_fault(good: Path) -> None:
    data = bytearray(good.read_bytes())
    rng = np.random.default_rng(0)
    for at in rng.integers(200, data.index(b"moov"), 20):
        data[at] ^= 0x5A
    good.write_bytes(data)
    assert kind_of(good) == "unreadable"


def test_a_strip_has_no_square_crop(tmp_path: Path) -> None:
    path = write_video(tmp_path / "strip.mp4", size=(1024, 16), frames=2)
    with raises("video.unreadable", VideoError, video=str(path)):
        load_clip(path, FrameSpec(size=32))


def test_a_rate_too_low_for_the_sampler_names_the_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "slow.mp4", fps=Fraction(1, 4), frames=4)
    with raises("video.sampling", video=str(path), cause="sampling.frame-rate"):
        load_clip(path, FrameSpec(size=32))
