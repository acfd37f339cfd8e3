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


def encode_texts(
    model: RetrievalModel, captions: tuple[str, ...], tokenizer: Tokenizer, words: int, folder: Path | None = None
) -> SideStore:
    """Encode all captions, for every process.

    Args:
        model: in evaluation mode.
        captions: to be encoded.
        tokenizer: of the model.
        words: of a caption at most.
        folder: for the file of whole sides, whose captions are all as long as ``words``, so that they have the same
            shape. None for coarse vectors alone.

    Raises:
        UsageError, ValueError: as ``store_sides``.
    """

    @torch.inference_mode()
    def sides() -> Iterator[Side]:
        device = model.clip.logit_scale.device
        for batch in own_batches(captions, TEXT_BATCH):
            ids, mask = (to_device(part, device) for part in tokenizer(batch, words))
            if folder is None:
                yield Side(coarse=model.encode_text(ids, mask))
            elif model.scorer.text_names:
                yield model.text_side(*(F.pad(part, (0, words - part.shape[1])) for part in (ids, mask)))
            else:
                yield model.text_side(ids, mask)

    return _collected(model, sides(), len(captions), TEXT_BATCH, folder and folder / "text.safetensors")


def encode_videos(
    model: RetrievalModel,
    video_ids: tuple[str, ...],
    loader: FrameLoader,
    batch: int,
    on_batch: Callable[[int], None],
    folder: Path | None = None,
) -> SideStore:
    """Encode all videos, as ``encode_texts``; ``on_batch`` gets this process's counts."""

    @torch.inference_mode()
    def sides() -> Iterator[Side]:
        requests = [[(video, 0) for video in part] for part in own_batches(video_ids, batch)]
        with closing(loader.batches(requests, model.clip.logit_scale.device)) as batches:
            for pixels, mask in batches:
                frames = model.normalize(pixels, mask)
                if folder is None:
                    yield Side(coarse=model.encode_video(frames, mask))
                else:
                    yield model.video_side(frames, mask)
                on_batch(len(pixels))

    return _collected(model, sides(), len(video_ids), batch, folder and folder / "video.safetensors")


def encoded_bytes(model: RetrievalModel, captions: int, videos: int, words: int) -> int | None:
    """Bytes of the files of ``encode_texts`` and ``encode_videos``, from a model without values.

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


def _collected(model: RetrievalModel, sides: Iterator[Side], count: int, batch: int, path: Path | None) -> SideStore:
    """The sides of all batches of all processes, of ``count`` items: coarse vectors in memory, all else in a file."""
    on_cpu = (Side.of([to_cpu(tensor.float()) for tensor in side.tensors], list(side.fine)) for side in sides)
    if path is None:
        parts = [torch.empty(0, model.clip.arch.embed_dim), *(side.coarse for side in on_cpu)]
        wait_for(model.clip.logit_scale.device)
        return SideStore(coarse=gather_shares(torch.cat(parts)))

    def numbered() -> Iterator[Part]:
        start = dist_info().share(-(-count // batch)).start * batch
        for side in on_cpu:
            yield start, side
            start += len(side)

    return store_sides(path, count, _arrived(numbered(), model), model.scorer.storage)


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
