"""Writes the stand-in to disk as MSR-VTT is laid out: three annotation files and ``videos/videoN.mp4``.

A swapped clip holds the same frames in another order. So that this still holds after lossy coding, every
frame is coded by itself: all of them IDR, one constant quantizer, one thread, nothing that looks at neighbors.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from filelock import FileLock
from rich.console import Console
from rich.progress import track

from tvrbench.datasets.standin.render import EVENT_FRAMES, SIDE, render, swap
from tvrbench.datasets.standin.scenes import Scene, draw_scenes
from tvrbench.harness.core.errors import UsageError

VERSION = 1  # raise it whenever a change to this package changes what is generated
MARKER = "standin.json"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much to generate; with ``VERSION`` it decides every byte but the encoder's own.

    Attributes:
        train_scenes: scenes in the training split, two clips each (both orders).
        test_pairs: test scenes shown in both orders, so that only order tells their clips apart.
        test_singles: test scenes shown in one order.
        seed: of scenes, backgrounds and positions.
        quantizer: H.264's constant quantization parameter.
    """

    train_scenes: int = 1000
    test_pairs: int = 100
    test_singles: int = 100
    seed: int = 2024
    quantizer: int = 24

    @property
    def digest(self) -> str:
        """SHA-256 of these settings and the generator's version."""
        return hashlib.sha256(json.dumps([VERSION, asdict(self)], sort_keys=True).encode()).hexdigest()


DEFAULT = Settings()


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One video file to write: a scene in one of its two orders; ``key`` is that of its row in the test CSV."""

    video_id: str
    scene_number: int
    scene: Scene
    swapped: bool
    split: str
    order_only: bool
    key: str

    @property
    def caption(self) -> str:
        """The one sentence that describes the clip."""
        return self.scene.caption(self.swapped)


def clips(settings: Settings) -> list[Clip]:
    """All clips in the order of their numbers: training, swapped test pairs, test singles."""
    paired = settings.train_scenes + settings.test_pairs
    found: list[Clip] = []
    for number, scene in enumerate(draw_scenes(paired + settings.test_singles, settings.seed)):
        for swapped in (False, True) if number < paired else (False,):
            clip = Clip(
                video_id=f"video{len(found)}",
                scene_number=number,
                scene=scene,
                swapped=swapped,
                split="train" if number < settings.train_scenes else "test",
                order_only=settings.train_scenes <= number < paired,
                key=f"ret{len(found) - 2 * settings.train_scenes}" if number >= settings.train_scenes else "",
            )
            found.append(clip)
    return found


def encode(path: Path, frames: npt.NDArray[np.uint8], quantizer: int) -> None:
    """Write frames [T, H, W, 3] as an H.264 MP4 at one frame a second, each frame coded on its own."""
    options = {"preset": "veryfast", "qp": str(quantizer), "x264-params": "keyint=1:scenecut=0:bframes=0:threads=1"}
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(1), options=options)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.codec_context.thread_count = 1
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _write_videos(folder: Path, wanted: Sequence[Clip], quantizer: int) -> None:
    folder.mkdir()
    console = Console(stderr=True)
    frames = np.empty((2 * EVENT_FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    for clip in track(wanted, description="Generating the stand-in data set", console=console, transient=True):
        frames = swap(frames) if clip.swapped else render(clip.scene)
        encode(folder / f"{clip.video_id}.mp4", frames, quantizer)


def _write_annotations(folder: Path, wanted: Sequence[Clip]) -> None:
    seconds = float(2 * EVENT_FRAMES)
    videos = [
        {
            "category": 0,
            "url": "",
            "video_id": c.video_id,
            "start time": 0.0,
            "end time": seconds,
            "split": c.split,
            "id": i,
        }
        for i, c in enumerate(wanted)
    ]
    sentences = [{"caption": c.caption, "video_id": c.video_id, "sen_id": i} for i, c in enumerate(wanted)]
    (folder / "MSRVTT_data.json").write_text(json.dumps({"videos": videos, "sentences": sentences}), encoding="utf-8")
    with (folder / "MSRVTT_train.9k.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["video_id"], *([c.video_id] for c in wanted if c.split == "train")])
    with (folder / "MSRVTT_JSFUSION_test.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "vid_key", "video_id", "sentence"])
        for c in (c for c in wanted if c.split == "test"):
            rows.writerow([c.key, c.video_id.replace("video", "msr"), c.video_id, c.caption])


def _write_all(folder: Path, settings: Settings) -> None:
    if "libx264" not in av.codecs_available:
        raise UsageError(
            "this build of PyAV has no H.264 encoder libx264, which the stand-in needs; use the one on PyPI"
        )
    wanted = clips(settings)
    _write_videos(folder / "videos", wanted, settings.quantizer)
    _write_annotations(folder, wanted)
    marker = {"version": VERSION, "settings": asdict(settings), "digest": settings.digest}
    (folder / MARKER).write_text(json.dumps(marker), encoding="utf-8")


def _finished(root: Path, settings: Settings) -> bool:
    """Whether ``root`` holds the wanted stand-in; UsageError if it holds anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        digest = json.loads((root / MARKER).read_text(encoding="utf-8"))["digest"]
    except (OSError, ValueError, TypeError, KeyError):
        raise UsageError(f"{root} is not empty and holds no stand-in; give an empty or a new folder") from None
    if digest != settings.digest:
        raise UsageError(f"{root} holds a stand-in of another version; remove it or give another folder")
    return True


def generate(root: Path, settings: Settings) -> None:
    """Bring the stand-in into ``root`` unless it is there; all of it appears at once, or nothing.

    Safe with several processes at once: one writes, the others wait. about 13 MB with the default settings.

    Raises:
        UsageError: ``root`` holds something else, or cannot be written.
    """
    root = root.absolute()
    try:
        if _finished(root, settings):
            return
        root.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(root.with_name(f".{root.name}.lock")):
            if _finished(root, settings):
                return
            partial = root.with_name(f".{root.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
            partial.mkdir()
            try:
                _write_all(partial, settings)
                if root.exists():
                    root.rmdir()
                partial.rename(root)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UsageError(f"cannot write the stand-in data set to {root}: {error.strerror or error}") from error
