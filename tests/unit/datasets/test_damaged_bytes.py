"""Any bytes give frames or a `VideoError` that names the file; no other exception, and no end without an answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from gray_videos import write_video
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tvrbench.datasets.decoding import VideoError
from tvrbench.datasets.video import examine, load_clip, probe, read_frames, stored_frames
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.types import NATIVE, FrameSpec

pytestmark = pytest.mark.unit

FILES = {
    "a.mp4": {},
    "fragments.mp4": {"movflags": "frag_keyframe+empty_moov"},
    "a.mkv": {},
    "a.avi": {"codec": "mpeg4"},
    "a.ts": {},
    "a.webm": {"codec": "libvpx-vp9"},
    "a.wmv": {"codec": "wmv2"},
}
SPEC = FrameSpec(frames=4, size=32)
USES: tuple[Callable[[Path], object], ...] = (
    probe,
    lambda path: load_clip(path, SPEC),
    lambda path: examine(path, SPEC),
    lambda path: stored_frames(path, FrameSpec(frames=4, size=NATIVE)),
    lambda path: read_frames(path, FrameSpec(frames=4)),
)
# Headers lie at the start and at the end, so that most damage goes there.
PLACE = st.one_of(st.floats(0, 1), st.floats(0, 0.15), st.floats(0.85, 1))
DAMAGE = st.one_of(
    st.tuples(st.just("cut"), PLACE, st.just(b"")),
    st.tuples(st.just("flip"), PLACE, st.sampled_from([bytes([1 << bit]) for bit in range(8)])),
    st.tuples(st.just("write"), PLACE, st.sampled_from([bytes(n) for n in (1, 4, 64)] + [b"\xff" * 4, b"\x80\0\0\0"])),
    st.tuples(st.just("insert"), PLACE, st.binary(min_size=1, max_size=4)),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    return {name: write_video(folder / name, range(12), **options).read_bytes() for name, options in FILES.items()}


def damaged(data: bytes, damages: list[tuple[str, float, bytes]]) -> bytes:
    for kind, place, value in damages:
        at = min(int(place * len(data)), len(data) - 1)
        match kind:
            case "cut":
                data = data[: max(1, at)]
            case "flip":
                data = data[:at] + bytes([data[at] ^ value[0]]) + data[at + 1 :]
            case "write":
                data = data[:at] + value + data[at + len(value) :]
            case "insert":
                data = data[:at] + value + data[at:]
    return data


def check(path: Path) -> None:
    """Every use of the file gives frames or an error that names it; any other exception fails the test."""
    errors = list[UsageError]()
    for use in USES:
        try:
            use(path)
        except UsageError as error:
            errors.append(error)
    for error in errors:
        assert isinstance(error, VideoError) or error.code in ("video.sampling", "video.size-changes")
        assert error.fields["video"] == str(path)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damages=st.lists(DAMAGE, min_size=1, max_size=5))
@pytest.mark.parametrize("name", FILES)
def test_damage_gives_frames_or_a_video_error(
    whole: dict[str, bytes], tmp_path: Path, name: str, damages: list[tuple[str, float, bytes]]
) -> None:
    path = tmp_path / name
    path.write_bytes(damaged(whole[name], damages))
    check(path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9, 0.99])
def test_zeros_and_cuts_everywhere(whole: dict[str, bytes], tmp_path: Path, name: str, share: float) -> None:
    data = whole[name]
    at = int(share * len(data))
    path = tmp_path / name
    for changed in (data[: at + 1], data[:at] + bytes(len(data) - at), bytes(at) + data[at:], data[:at] + data):
        path.write_bytes(changed)
        check(path)
