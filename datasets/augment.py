"""Training augmentations: drawn once per clip, applied identically to every frame."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable
from typing import Any, cast

from PIL import Image
from timm.data.auto_augment import AugmentOp, rand_augment_transform

from tvrbench.harness.core.errors import UsageError

Picture = Image.Image

# TempMe (Shen et al., ICLR 2025): RandAugment of timm, magnitude 7 +- 0.5, four operations, each applied half the
# time, bicubic.
_POLICIES = {"tempme-randaugment": "rand-m7-n4-mstd0.5-inc1"}
# timm draws from Python's global generator, which one thread at a time may use.
_random_state_lock = threading.Lock()


def draw(name: str, seed: int) -> Callable[[Picture], Picture]:
    """Draw one augmentation; the result depends on ``seed`` alone and changes every frame in the same way.

    Python's global random state is restored before returning. For the microseconds of drawing, other threads that use
    that generator see a different state.

    Raises:
        UsageError: there is no augmentation of this name.
    """
    if name not in _POLICIES:
        message = f"there is no augmentation {name!r}; choose none or one of {', '.join(_POLICIES)}"
        raise UsageError(message, code="augmentation.unknown", augmentation=name)
    policy = rand_augment_transform(_POLICIES[name], {"interpolation": Image.Resampling.BICUBIC})
    with _random_state_lock:
        state = random.getstate()
        try:
            random.seed(seed)
            edits = [_draw_edit(op) for op in random.choices(policy.ops, k=policy.num_layers)]
        finally:
            random.setstate(state)

    def apply(picture: Picture) -> Picture:
        for edit in edits:
            picture = edit(picture) if edit is not None else picture
        return picture

    return apply


def _draw_edit(op: AugmentOp) -> Callable[[Picture], Picture] | None:
    """Return the operation's function with its drawn strength, or None if it would do nothing.

    The operation runs on no picture, with a function that only records its arguments. timm's own code thus decides on
    chance, strength and sign, and decides once.
    """

    def record(_: None, *strength: Any, **settings: Any) -> Callable[[Picture], Picture]:
        return lambda picture: apply(picture, *strength, **settings)

    apply = cast("Callable[..., Picture]", op.aug_fn)
    recording = copy.copy(op)
    recording.aug_fn = record
    edit: Callable[[Picture], Picture] | None = recording(None)
    return edit
