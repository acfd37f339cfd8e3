"""``Kept``: what is made from parameters alone, held until one of them changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Kept(Generic[T]):
    """A value made from tensors, made again when one of them is another, was written to or moved.

    Writes past autograd (``.data``, fused optimizers) do not show: in eval mode they need a call of ``train()`` first.
    A copy starts empty, because its tensors are others.
    """

    def __init__(self) -> None:
        # The tensors and storages are held, so that neither can come back as another with its id or address.
        self._of: list[tuple[Tensor, torch.UntypedStorage, int]] = []
        self._also: object = None
        self._value: T | None = None

    def get(self, sources: Iterable[Tensor], make: Callable[[], T], also: object = None) -> T:
        """The value of ``make``, kept while the sources and ``also`` (whatever else it depends on) are the same.

        Tensors of inference mode have no version, so nothing made from them is kept.
        """
        sources = tuple(sources)
        if any(each.is_inference() for each in sources):
            return make()
        if self._value is None or self._also != also or not self._made_from(sources):
            self._value = make()
            self._of = [(each, each.untyped_storage(), each._version) for each in sources]
            self._also = also
        return self._value

    def clear(self) -> None:
        """Free the value and what it was made from."""
        self._of, self._value = [], None

    def _made_from(self, sources: tuple[Tensor, ...]) -> bool:
        return len(self._of) == len(sources) and all(
            each is source and each._version == version and each.untyped_storage()._cdata == storage._cdata
            for each, (source, storage, version) in zip(sources, self._of, strict=True)
        )

    def __reduce__(self) -> tuple[type[Kept[T]], tuple[()]]:
        return Kept, ()
