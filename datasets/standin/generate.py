"""Writes the stand-in to disk in MSR-VTT's layout: three annotation files and ``videos/videoN.mp4``.

A swapped clip has the same frames in another order, also after lossy coding, because every frame is coded
independently: IDR frames only, a constant quantizer, one thread, no lookahead.
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

VERSION = 1  # increase it with every change that affects the generated data
MARKER = "standin.json"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size and seed of the generated data; with ``VERSION`` they decide every byte but the encoder's.

    Attributes:
        train_scenes: scenes in the training split, two clips each (both orders).
        test_pairs: test scenes shown in both orders, so that only the order distinguishes their clips.
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
    """One video file to write: a scene in one of its two orders; ``key`` is its key in the test CSV."""

    video_id: str
    scene_number: int
    scene: Scene
    swapped: bool
    split: str
    order_only: bool
    key: str

    @property
    def caption(self) -> str:
        """The sentence that describes the clip."""
        return self.scene.caption(self.swapped)


def clips(settings: Settings) -> list[Clip]:
    """Return all clips in order: training, swapped test pairs, test singles."""
    paired = settings.train_scenes + settings.test_pairs
    result: list[Clip] = []
    for number, scene in enumerate(draw_scenes(paired + settings.test_singles, settings.seed)):
        for swapped in (False, True) if number < paired else (False,):
            clip = Clip(
                video_id=f"video{len(result)}",
                scene_number=number,
                scene=scene,
                swapped=swapped,
                split="train" if number < settings.train_scenes else "test",
                order_only=settings.train_scenes <= number < paired,
                key=f"ret{len(result) - 2 * settings.train_scenes}" if number >= settings.train_scenes else "",
            )
            result.append(clip)
    return result


def encode(path: Path, frames: npt.NDArray[np.uint8], quantizer: int) -> None:
    """Write frames [T, H, W, 3] as an H.264 MP4 at one frame per second, each frame coded independently."""
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


def check_encoder() -> None:
    """Raise UsageError if this PyAV cannot write the clips."""
    if "libx264" not in av.codecs_available:
        message = "this build of PyAV lacks the H.264 encoder libx264, which the stand-in needs; install PyAV from PyPI"
        raise UsageError(message, code="standin.no-encoder")


def _write_all(folder: Path, settings: Settings) -> None:
    check_encoder()
    wanted, console = clips(settings), Console(stderr=True)
    (folder / "videos").mkdir()
    frames = np.empty((2 * EVENT_FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    for clip in track(wanted, description="Generating the stand-in data set", console=console, transient=True):
        frames = swap(frames) if clip.swapped else render(clip.scene)
        encode(folder / "videos" / f"{clip.video_id}.mp4", frames, settings.quantizer)
    _write_annotations(folder, wanted)
    marker = {"version": VERSION, "settings": asdict(settings), "digest": settings.digest}
    (folder / MARKER).write_text(json.dumps(marker), encoding="utf-8")


def _write_annotations(folder: Path, wanted: Sequence[Clip]) -> None:
    common = {"category": 0, "url": "", "start time": 0.0, "end time": float(2 * EVENT_FRAMES)}
    document = {
        "videos": [common | {"video_id": c.video_id, "split": c.split, "id": i} for i, c in enumerate(wanted)],
        "sentences": [{"caption": c.caption, "video_id": c.video_id, "sen_id": i} for i, c in enumerate(wanted)],
    }
    (folder / "MSRVTT_data.json").write_text(json.dumps(document), encoding="utf-8")
    tested = [[c.key, c.video_id.replace("video", "msr"), c.video_id, c.caption] for c in wanted if c.split == "test"]
    for name, rows in (
        ("MSRVTT_train.9k.csv", [["video_id"], *([c.video_id] for c in wanted if c.split == "train")]),
        ("MSRVTT_JSFUSION_test.csv", [["key", "vid_key", "video_id", "sentence"], *tested]),
    ):
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)


def _finished(root: Path, settings: Settings) -> bool:
    """True if ``root`` contains this stand-in, False if it is empty; UsageError if it contains anything else."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        digest = json.loads((root / MARKER).read_text(encoding="utf-8"))["digest"]
    except (OSError, ValueError, TypeError, KeyError):
        message = f"{root} is not empty and not a stand-in; give an empty or new folder"
        raise UsageError(message, code="standin.foreign-folder", root=str(root)) from None
    if digest != settings.digest:
        message = f"{root} contains another version of the stand-in; remove it or give another folder"
        raise UsageError(message, code="standin.other-version", root=str(root))
    return True


def generate(root: Path, settings: Settings) -> None:
    """Generate the stand-in in ``root`` unless it is there; all of it appears at once, or nothing.

    Safe with several processes: one writes, the others wait. The default settings take about 13 MB.

    Raises:
        UsageError: ``root`` contains something else, or cannot be written.
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
            shutil.rmtree(partial, ignore_errors=True)  # left by a killed run
            partial.mkdir()
            try:
                _write_all(partial, settings)
                if root.exists():
                    root.rmdir()
                partial.rename(root)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        message = f"cannot write the stand-in to {root} ({error.strerror or error}); give another folder"
        raise UsageError(message, code="io.write", path=str(root)) from error
