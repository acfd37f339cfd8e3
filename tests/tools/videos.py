"""Small video files for tests, and a data set of the videos of a folder."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import ClassVar, cast

import av
import numpy as np
import numpy.typing as npt
from av.video import VideoStream

from tvrbench.datasets.base import VideoFolderDataset
from tvrbench.harness.data.types import Split


class Folder(VideoFolderDataset):
    """The videos of a folder; each one's id is its only caption."""

    name, summary, wanted, split_names = "folder", "videos of a folder", "videos", ("all",)
    ids: ClassVar[tuple[str, ...]]

    def split(self, name: str) -> Split:
        return Split(name=name, video_ids=self.ids, captions=self.ids, caption_video=tuple(range(len(self.ids))))


def encode(
    path: Path,
    pictures: Iterable[npt.NDArray[np.uint8]],
    *,
    rate: Fraction | int = 10,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    **container: str,
) -> Path:
    """Write pictures [H, W, 3], all of one size, as one video; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream: VideoStream | None = None
    with av.open(str(path), "w", options=container) as file:
        for picture in pictures:
            if stream is None:
                stream = cast(VideoStream, file.add_stream(codec, rate=rate, options=options or {}))
                (stream.height, stream.width), stream.pix_fmt = picture.shape[:2], pixels
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        assert stream is not None, "a video needs a picture"
        file.mux(stream.encode())
    return path


def encode_sound(path: Path, cover: npt.NDArray[np.uint8] | None = None) -> Path:
    """Write a sound file without video, with a cover picture if one is given."""
    with av.open(str(path), "w") as file:
        sound = file.add_stream("aac", rate=16000)
        if cover is not None:
            picture = file.add_stream("mjpeg", rate=1)
            (picture.height, picture.width), picture.pix_fmt = cover.shape[:2], "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        file.mux(sound.encode(frame))
        if cover is not None:
            file.mux(picture.encode(av.VideoFrame.from_ndarray(cover, "rgb24").reformat(format="yuvj420p")))
            file.mux(picture.encode())
        file.mux(sound.encode())
    return path
