"""The gradient of the contrastive loss over the whole batch, whatever fits into memory at a time.

Without chunks this is one forward and one backward. With them (gradient caching, arXiv 2101.06983) every chunk is
encoded without a graph first, the loss is taken over all features, and then each chunk is encoded again with the
random state it had, to send its features' gradient on. The result is the gradient of the whole batch, and the graph
of one chunk is all that is ever held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tvrbench.harness.core.distributed import gather_rows
from tvrbench.harness.models.model import RetrievalModel


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """This process's share of a batch: frames [b, T, 3, H, W], ids [b, L] and their masks."""

    video: Tensor
    video_mask: Tensor
    ids: Tensor
    text_mask: Tensor

    def __len__(self) -> int:
        return self.video.shape[0]

    def part(self, first: int, count: int) -> Pairs:
        """``count`` pairs from ``first`` on."""
        where = slice(first, first + count)
        return Pairs(
            video=self.video[where],
            video_mask=self.video_mask[where],
            ids=self.ids[where],
            text_mask=self.text_mask[where],
        )


Encode = Callable[[Pairs], tuple[Tensor, Tensor]]
Scale = Callable[[Tensor], Tensor]


def contrastive_loss(similarity: Tensor) -> Tensor:
    """Mean of the two cross-entropies of a square similarity matrix [B, B] (text -> video and back)."""
    target = torch.arange(len(similarity), device=similarity.device)
    return (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2


def local_loss(model: RetrievalModel, text_bE: Tensor, video_bE: Tensor, rank: int) -> Tensor:
    """This process's share of the loss over the global batch; the shares of all processes add up to it.

    A process compares its own texts with all videos and its own videos with all texts: [b, B] each.
    """
    text_BE, video_BE = gather_rows(text_bE), gather_rows(video_bE)
    b, B = len(text_bE), len(text_BE)
    if b == B:
        return contrastive_loss(model.similarity(text_bE, video_bE))
    target = torch.arange(rank * b, rank * b + b, device=text_bE.device)
    rows_bB, columns_bB = model.similarity(text_bE, video_BE), model.similarity(text_BE, video_bE).T
    total = F.cross_entropy(rows_bB, target, reduction="sum") + F.cross_entropy(columns_bB, target, reduction="sum")
    return total / (2 * B)


def full_batch_backward(
    pairs: Pairs, encode: Encode, loss_of: Callable[[Tensor, Tensor], Tensor], scale: Scale
) -> Tensor:
    """Gradients of the whole share at once; returns the loss, unscaled."""
    text, video = encode(pairs)
    loss = loss_of(text.float(), video.float())
    scale(loss).backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def cached_backward(
    pairs: Pairs, chunk: int, encode: Encode, loss_of: Callable[[Tensor, Tensor], Tensor], scale: Scale
) -> Tensor:
    """The same gradients with the graph of ``chunk`` pairs in memory at a time; returns the loss, unscaled."""
    parts = [pairs.part(first, chunk) for first in range(0, len(pairs), chunk)]
    device = pairs.video.device
    states, texts, videos = [], [], []
    with torch.no_grad():
        for part in parts:
            states.append(random_state(device))
            text, video = encode(part)
            texts.append(text.float())
            videos.append(video.float())
    text, video = torch.cat(texts).requires_grad_(), torch.cat(videos).requires_grad_()
    loss = loss_of(text, video)
    scale(loss).backward()  # type: ignore[no-untyped-call]
    assert text.grad is not None
    assert video.grad is not None
    for part, state, text_grad, video_grad in zip(
        parts, states, torch.split(text.grad, chunk), torch.split(video.grad, chunk), strict=True
    ):
        restore_random_state(state, device)
        again_text, again_video = encode(part)
        torch.autograd.backward((again_text.float(), again_video.float()), (text_grad, video_grad))
    return loss.detach()


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The state of torch's default generators, of the CPU and of the device."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def restore_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Go back to a state that ``random_state`` gave."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
