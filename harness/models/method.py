"""``Method``: the factory of a model's parts, from options with presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, ClassVar, Generic, TypeVar, cast

from torch import Tensor

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.validation import validated
from tvrbench.harness.models.backbone.architecture import PRESETS, Architecture, vision_name
from tvrbench.harness.models.heads import Head, MeanPooling
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.scorer import Scorer
from tvrbench.harness.models.spec import MethodCard, MethodOptions, MethodSpec
from tvrbench.harness.models.text import TextPath
from tvrbench.harness.models.tokens import TokenReducer

OptionsT = TypeVar("OptionsT", bound=MethodOptions)


class Method(Generic[OptionsT]):
    """Base class of every method and baseline.

    Attributes:
        card: its declaration.
        Options: its options, a frozen dataclass.
        Model: the class that ``load_model`` returns, for a baseline that encodes in another way.
    """

    card: ClassVar[MethodCard]
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    Model: ClassVar[type[RetrievalModel]] = RetrievalModel

    def __init__(self, options: OptionsT, arch: Architecture, frames: int) -> None:
        self.options = options
        self.arch = arch
        self.frames = frames

    @classmethod
    def configure(cls, name: str, arch: Architecture, frames: int, given: dict[str, Any]) -> Method[Any]:
        """The method with its preset for this backbone, overridden by the ``given`` options.

        Raises:
            UsageError: an unknown option, a value of the wrong type, or no value for an option without default.
        """
        values = {"tuning": cls.card.tuning} | cls.card.presets.get(vision_name(arch), {}) | given
        required = [f.name for f in fields(cls.Options) if f.default is MISSING and f.default_factory is MISSING]
        if missing := [key for key in required if key not in values]:
            known = [backbone for backbone in cls.card.presets if backbone in PRESETS]
            raise UsageError(
                f"{name}: there is no published preset for this backbone: give {', '.join(missing)} "
                f"(presets exist for {', '.join(known) or 'none'})",
                code="method.no-preset",
                method=name,
                missing=missing,
            )
        return cls(cast(OptionsT, validated(cls.Options, values, f"{name} option")), arch, frames)

    def spec(self, name: str) -> MethodSpec:
        """The configured method as data."""
        return MethodSpec(name=name, card=self.card, options=self.options, frames=self.frames)

    def build_reducer(self) -> TokenReducer:
        """The token reducer; reduces nothing by default."""
        return TokenReducer(self.arch, self.frames)

    def build_head(self) -> Head:
        """The head, from the class tokens that leave the tower to one video feature; meanP by default."""
        return MeanPooling()

    def build_scorer(self) -> Scorer:
        """What compares the two sides; the cosine of one vector each by default."""
        return Scorer()

    def build_text_path(self, reducer: TokenReducer) -> TextPath:
        """What acts on the text tower; nothing does by default. ``reducer`` is this model's, whose parameters it may
        share."""
        return TextPath(self.arch)

    @classmethod
    def from_released(cls, key: str, tensor: Tensor) -> tuple[str, Tensor]:
        """Our name and shape for a tensor of this method's released checkpoint (``module.`` already removed)."""
        return key, tensor

    def fit_released(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A checkpoint's tensors under ``from_released``'s names, as these options part or join them; by default as
        they are."""
        return state

    @classmethod
    def released_options(cls, state: Mapping[str, Tensor]) -> dict[str, Any]:  # noqa: ARG003 - subclasses look
        """The options that the shapes of a released checkpoint tell, under our names (``from_released``); given ones
        come before them."""
        return {}
