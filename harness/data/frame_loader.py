"""Frames for the model: read from a cache or decoded, in threads ahead of use; kept in memory where all of them fit."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from tvrbench.harness.data.cache import CachedFrames
from tvrbench.harness.data.types import Clip, FrameSpec, RetrievalDataset, clip_sha256

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
MEMORY_LIMIT = 2 * 2**30
AHEAD = 2


def normalize(pixels: Tensor, mask: Tensor, device: torch.device | str) -> Tensor:
    """uint8 [B, T, 3, H, W] and mask [B, T] -> CLIP-normalized float32 on ``device``; padding frames are zero."""
    x = pixels.to(device).float().div_(255)
    mean = torch.tensor(CLIP_MEAN, device=x.device).view(3, 1, 1)
    std = torch.tensor(CLIP_STD, device=x.device).view(3, 1, 1)
    return x.sub_(mean).div_(std).mul_(mask.to(device).view(*mask.shape, 1, 1, 1))


class FrameLoader:
    """Loads clips of one data set under one FrameSpec.

    Args:
        dataset: where the clips come from.
        spec: frames, size, sampler, augmentation.
        videos: how many different videos will be asked for; decides whether decoded pixels are kept.
        memory_limit: bytes of decoded pixels that may be kept; a clip that depends on the seed is never kept.
        cached: where clips come from that need no decoding (``frame_cache.open_cache``).
    """

    def __init__(
        self,
        dataset: RetrievalDataset,
        spec: FrameSpec,
        videos: int,
        memory_limit: int = MEMORY_LIMIT,
        cached: CachedFrames | None = None,
    ) -> None:
        self.dataset = dataset
        self.spec = spec
        self.cached = cached
        needed = videos * spec.frames * 3 * spec.size**2
        self._kept: dict[str, Clip] | None = {} if not spec.random and needed <= memory_limit else None

    def _clip(self, video_id: str, seed: int) -> Clip:
        if self._kept is None:
            return self._load(video_id, seed)
        if video_id not in self._kept:
            self._kept[video_id] = self._load(video_id, seed)
        return self._kept[video_id]

    def _load(self, video_id: str, seed: int) -> Clip:
        clip = self.cached.clip(video_id, seed) if self.cached is not None else None
        return clip if clip is not None else self.dataset.frames(video_id, self.spec, seed)

    def batches(self, requests: Iterable[Sequence[tuple[str, int]]]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each request, a list of (video id, seed), the pixels uint8 [B, T, 3, H, W] and masks [B, T].

        Clips are decoded in threads, at most ``AHEAD`` requests before they are used. Faults raise here as UsageError.
        """
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            waiting: deque[list[Future[Clip]]] = deque()
            try:
                for request in requests:
                    waiting.append([pool.submit(self._clip, video, seed) for video, seed in request])
                    if len(waiting) > AHEAD:
                        yield _stack(waiting.popleft())
                while waiting:
                    yield _stack(waiting.popleft())
            finally:
                pool.shutdown(cancel_futures=True)


def frames_fingerprint(loader: FrameLoader, video_ids: Sequence[str]) -> str:
    """One figure for the decoded pixels of videos in the order given, so that sites can compare what they ran on.

    Raises:
        UsageError: a video cannot be decoded.
    """
    clips = loader.batches([(v, 0)] for v in video_ids)
    taken = (clip_sha256(pixels[0].numpy(), mask[0].numpy()) for pixels, mask in clips)
    return fingerprint_of(loader.spec, zip(video_ids, taken, strict=True))


def fingerprint_of(spec: FrameSpec, clips: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over what the frames are and, in the order given, (video id, `clip_sha256`) of each video.

    The decoder is left out: two that give the same pixels give the same fingerprint.
    """
    digest = hashlib.sha256(f"{spec.sampler} {spec.frames} {spec.size} {spec.augment}".encode())
    for video_id, sha256 in clips:
        digest.update(f"\n{video_id} {sha256}".encode())
    return digest.hexdigest()


def _stack(futures: list[Future[Clip]]) -> tuple[Tensor, Tensor]:
    clips = [future.result() for future in futures]
    pixels = torch.from_numpy(np.stack([pixels for pixels, _ in clips]))
    return pixels, torch.from_numpy(np.stack([mask for _, mask in clips]))
