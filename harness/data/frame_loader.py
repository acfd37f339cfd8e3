"""Frames for the model: cached or decoded, in threads ahead of use, and kept in memory if all of them fit."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from tvrbench.harness.core.distributed import all_gather_object, dist_info
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.rendezvous import usable_cores
from tvrbench.harness.data.cache import CachedFrames
from tvrbench.harness.data.prefetch import prefetch
from tvrbench.harness.data.types import Clip, Frames, FrameSpec, Mask, RetrievalDataset, clip_sha256

MEMORY_LIMIT = 2 * 2**30
AHEAD = 2


def normalize(
    pixels: Tensor,
    mask: Tensor,
    device: torch.device | str,
    mean: Sequence[float] | Tensor,
    std: Sequence[float] | Tensor,
) -> Tensor:
    """Normalize frames as weights ask for, see ``RetrievalModel.normalize``.

    Args:
        pixels: [B, T, 3, H, W] uint8.
        mask: [B, T] bool, False = padding, which becomes zero.
        device: of the result.
        mean, std: of red, green and blue, of pixels from 0 to 1.

    Returns:
        [B, T, 3, H, W] float32.
    """
    x = pixels.to(device).float().div_(255)
    means, stds = (torch.as_tensor(values, device=x.device).view(3, 1, 1) for values in (mean, std))
    return x.sub_(means).div_(stds).mul_(mask.to(device).view(*mask.shape, 1, 1, 1))


class FrameLoader:
    """Loads clips of one data set under one FrameSpec.

    Args:
        dataset: the source of the clips.
        spec: frames, size, sampler, augmentation.
        videos: number of different videos; decides whether decoded pixels are kept.
        memory_limit: maximum bytes of decoded pixels kept; a clip that depends on the seed is never kept.
        cached: the frame cache (``cache.open_cache``); None to decode every clip.
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

    @property
    def keeps_clips(self) -> bool:
        """True if every clip stays in memory, so that it is decoded once."""
        return self._kept is not None

    def _clip(self, video_id: str, seed: int) -> Clip:
        clip = self._kept.get(video_id) if self._kept is not None else None
        if clip is None and self.cached is not None:
            clip = self.cached.clip(video_id, seed)
        if clip is None:
            clip = self.dataset.frames(video_id, self.spec, seed)
        if self._kept is not None:
            self._kept[video_id] = clip
        return clip

    def batches(
        self, requests: Iterable[Sequence[tuple[str, int]]], device: torch.device | str = "cpu"
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Yield pixels uint8 [B, T, 3, H, W] and masks [B, T] on a device for each request, a list of (video id, seed).

        Threads decode each clip, or copy it from the cache, to its place in the batch, at most ``AHEAD`` requests
        ahead. On a GPU the next batch is copied while the GPU works on this one (``prefetch``).

        Raises:
            UsageError: a video cannot be decoded.
        """
        device = torch.device(device)
        on_gpu = device.type == "cuda"
        loaded = self._loaded(requests, pinned=on_gpu)
        return prefetch(loaded, device) if on_gpu else loaded

    def _loaded(
        self, requests: Iterable[Sequence[tuple[str, int]]], *, pinned: bool
    ) -> Generator[tuple[Tensor, Tensor], None, None]:
        """The batches in memory of the CPU, from which a GPU can copy at full speed if it is pinned."""
        with ThreadPoolExecutor(usable_cores()) as pool:
            pending: deque[_Pending] = deque()
            try:
                for request in requests:
                    pending.append(self._start(pool, request, pinned))
                    if len(pending) > AHEAD:
                        yield pending.popleft().finished()
                while pending:
                    yield pending.popleft().finished()
            finally:
                pool.shutdown(cancel_futures=True)

    def _start(self, pool: ThreadPoolExecutor, request: Sequence[tuple[str, int]], pinned: bool) -> _Pending:
        shape = (len(request), self.spec.frames)
        pixels = _uninitialized((*shape, 3, self.spec.size, self.spec.size), torch.uint8, pinned)
        mask = _uninitialized(shape, torch.bool, pinned)
        places = zip(request, pixels.numpy(), mask.numpy(), strict=True)
        clips = [pool.submit(self._put, video, seed, *place) for (video, seed), *place in places]
        return _Pending(pixels, mask, clips)

    def _put(self, video_id: str, seed: int, pixels: Frames, mask: Mask) -> None:
        """Write a clip to its place in a batch."""
        clip = self._clip(video_id, seed)
        if (clip[0].shape, clip[1].shape) != (pixels.shape, mask.shape):
            raise UsageError(
                f"data set {self.dataset.name}: the clip of {video_id} is {list(clip[0].shape)} with a mask of "
                f"{list(clip[1].shape)}, not {list(pixels.shape)} with {list(mask.shape)}: let frames() return these",
                code="dataset.clip-shape",
                video=video_id,
                shape=clip[0].shape,
            )
        pixels[...], mask[...] = clip


def _uninitialized(shape: tuple[int, ...], dtype: torch.dtype, pinned: bool) -> Tensor:
    """Memory for a batch of bytes."""
    if pinned:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    # numpy asks for huge pages: with torch's small ones, touching new memory takes longer than copying clips to it.
    return torch.from_numpy(np.empty(shape, dtype=np.uint8)).view(dtype)


@dataclass(frozen=True)
class _Pending:
    """A batch whose clips are being written to their places."""

    pixels: Tensor
    mask: Tensor
    clips: Sequence[Future[None]]

    def finished(self) -> tuple[Tensor, Tensor]:
        """The batch, once its last clip is there; the error of the first clip that has one."""
        for clip in self.clips:
            clip.result()
        return self.pixels, self.mask


def frames_fingerprint(loader: FrameLoader, video_ids: Sequence[str]) -> str:
    """Return one hash of the decoded pixels of videos in the order given, so that sites can compare their data.

    Under torchrun every process calls this and decodes its share.

    Raises:
        UsageError: a video cannot be decoded.
    """
    own = video_ids[dist_info().share(len(video_ids))]
    clips = loader.batches([(v, 0)] for v in own)
    hashes = [clip_sha256(pixels[0].numpy(), mask[0].numpy()) for pixels, mask in clips]
    return fingerprint_of(loader.spec, zip(video_ids, chain.from_iterable(all_gather_object(hashes)), strict=True))


def fingerprint_of(spec: FrameSpec, clips: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over the spec and, in the order given, (video id, `clip_sha256`) of each video.

    The decoder is left out, so that two decoders with the same pixels give the same fingerprint.
    """
    digest = hashlib.sha256(f"{spec.sampler} {spec.frames} {spec.size} {spec.augment}".encode())
    for video_id, sha256 in clips:
        digest.update(f"\n{video_id} {sha256}".encode())
    return digest.hexdigest()
