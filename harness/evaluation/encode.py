"""Encode texts and videos; under torchrun every process encodes its share of the batches.

Batches are cut as a single process cuts them and then distributed whole, so the number of processes changes no result.
One vector each is gathered in memory. What a scorer keeps beside it goes straight into a file, batch by batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tvrbench.harness.core.distributed import dist_info, gather_shares
from tvrbench.harness.data.frame_loader import FrameLoader
from tvrbench.harness.data.prefetch import IN_FLIGHT, recorded, to_cpu, to_device, wait_for
from tvrbench.harness.evaluation.side_store import SideStore, side_bytes, store_sides
from tvrbench.harness.models.backbone.tokenizer import Tokenizer
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.scorer import Side

TEXT_BATCH = 256

Part = tuple[int, Side]
T = TypeVar("T")


def own_batches(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """This process's share of the batches of ``items``, in order."""
    batches = [items[first : first + size] for first in range(0, len(items), size)]
    return batches[dist_info().share(len(batches))]


@torch.inference_mode()
def encode_texts(model: RetrievalModel, captions: tuple[str, ...], tokenizer: Tokenizer, words: int) -> Tensor:
    """Encode all captions -> [Nt, E] float32 on the CPU of every process."""
    device = model.clip.logit_scale.device
    parts = [torch.empty(0, model.clip.arch.embed_dim)]
    for batch in own_batches(captions, TEXT_BATCH):
        ids, mask = tokenizer(batch, words)
        parts.append(to_cpu(model.encode_text(to_device(ids, device), to_device(mask, device)).float()))
    wait_for(device)
    return gather_shares(torch.cat(parts))


@torch.inference_mode()
def encode_videos(
    model: RetrievalModel, video_ids: tuple[str, ...], loader: FrameLoader, batch: int, on_batch: Callable[[int], None]
) -> Tensor:
    """Encode all videos -> [Nv, E] float32 on the CPU of every process; ``on_batch`` gets this process's counts."""
    device = model.clip.logit_scale.device
    requests = [[(video, 0) for video in part] for part in own_batches(video_ids, batch)]
    parts = [torch.empty(0, model.clip.arch.embed_dim)]
    with closing(loader.batches(requests, device)) as batches:
        for pixels, mask in batches:
            parts.append(to_cpu(model.encode_video(model.normalize(pixels, mask), mask).float()))
            on_batch(len(pixels))
    wait_for(device)
    return gather_shares(torch.cat(parts))


def store_texts(
    model: RetrievalModel, captions: tuple[str, ...], tokenizer: Tokenizer, words: int, path: Path
) -> SideStore:
    """Encode all captions into a file; every process writes its share, and reads them all.

    Where words are stored, every caption is as long as ``words``, so that all have the same shape.

    Raises:
        UsageError, ValueError: as ``store_sides``.
    """

    @torch.inference_mode()
    def parts() -> Iterator[Part]:
        device, start = model.clip.logit_scale.device, _first_item(len(captions), TEXT_BATCH)
        for batch in own_batches(captions, TEXT_BATCH):
            ids, mask = tokenizer(batch, words)
            if model.scorer.text_names:
                ids, mask = _padded(ids, words), _padded(mask, words)
            yield start, _on_cpu(model.text_side(to_device(ids, device), to_device(mask, device)))
            start += len(batch)

    return store_sides(path, len(captions), _arrived(parts(), model), model.scorer.storage)


def store_videos(
    model: RetrievalModel,
    video_ids: tuple[str, ...],
    loader: FrameLoader,
    batch: int,
    on_batch: Callable[[int], None],
    path: Path,
) -> SideStore:
    """Encode all videos into a file, as ``store_texts``; ``on_batch`` gets this process's counts."""

    @torch.inference_mode()
    def parts() -> Iterator[Part]:
        device, start = model.clip.logit_scale.device, _first_item(len(video_ids), batch)
        requests = [[(video, 0) for video in part] for part in own_batches(video_ids, batch)]
        with closing(loader.batches(requests, device)) as batches:
            for pixels, mask in batches:
                yield start, _on_cpu(model.video_side(model.normalize(pixels, mask), mask))
                start += len(pixels)
                on_batch(len(pixels))

    return store_sides(path, len(video_ids), _arrived(parts(), model), model.scorer.storage)


def encoded_bytes(model: RetrievalModel, captions: int, videos: int, words: int) -> int | None:
    """Bytes of the files of ``store_texts`` and ``store_videos``, from a model without values.

    0 where nothing is stored; None where the shapes depend on values.
    """
    if not model.scorer.two_stage:
        return 0
    arch = model.clip.arch
    with torch.device("meta"):
        frames = torch.empty(1, model.frames, 3, arch.image_size, arch.image_size)
        frame_mask, word_mask = torch.ones(1, model.frames).bool(), torch.ones(1, words).bool()
        ids = torch.zeros(1, words, dtype=torch.long)
    try:
        text, video = model.text_side(ids, word_mask), model.video_side(frames, frame_mask)
    except (RuntimeError, TypeError):  # torch has no value for a meta tensor
        return None
    storage = model.scorer.storage
    return captions * side_bytes(text, storage) + videos * side_bytes(video, storage)


def _first_item(count: int, size: int) -> int:
    """Number of the first item of this process's batches."""
    first: int = dist_info().share(-(-count // size)).start
    return first * size


def _padded(rows_BL: Tensor, length: int) -> Tensor:
    return F.pad(rows_BL, (0, length - rows_BL.shape[1]))


def _on_cpu(side: Side) -> Side:
    return Side.of([to_cpu(tensor.float()) for tensor in side.tensors], list(side.fine))


def _arrived(parts: Iterator[Part], model: RetrievalModel) -> Iterator[Part]:
    """The same parts, each once its values are on the CPU: the device computes on the next while one is written."""
    device = model.clip.logit_scale.device
    waiting = deque[tuple[torch.cuda.Event | None, Part]]()

    def oldest() -> Part:
        event, part = waiting.popleft()
        if event is not None:
            event.synchronize()
        return part

    for part in parts:
        waiting.append((recorded(device), part))
        if len(waiting) >= IN_FLIGHT:
            yield oldest()
    while waiting:
        yield oldest()
