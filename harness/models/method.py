"""What a method is to the harness: options with presets, a token reducer, a head and a published recipe."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, Literal, TypeVar, cast

from torch import Tensor

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.validation import validated
from tvrbench.harness.models.backbone.architecture import Architecture, vision_name
from tvrbench.harness.models.heads import Head, MeanPooling
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.tokens import TokenReducer


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Options every method has.

    Attributes:
        tuning: what learns, see ``tvrbench.harness.models.tuning``.
        rank: inner width of the LoRA update.
    """

    tuning: str
    rank: int = 8


OptionsT = TypeVar("OptionsT", bound=MethodOptions)


class Method(Generic[OptionsT]):
    """Base of everything in the ``methods`` and ``baselines`` tables. Subclasses set the class variables.

    Attributes:
        summary: one line for lists and reports.
        paper: where it comes from.
        Options: its options, a frozen dataclass.
        Model: what ``load_model`` returns, for a baseline that encodes in another way.
        defaults: option values on every backbone.
        presets: published option values by backbone name.
        needs: options that have no value off a preset and must be given there.
        small: options for a small model (64-pixel frames, 16-pixel patches, 12 frames, 12 blocks), which the stand-in
            and the contract tests use.
        recipe: the recipe of its paper.
        trains: whether anything is trained at all.
        encodes: whether the two towers run; False where no encoder's cost is to be expected.
        role: what comparisons use it as: ``dense`` (the encoder without token reduction) or ``frame_budget`` (the
            encoder on fewer frames, option ``keep``); None for everything else.
        identity: options under which nothing is reduced, see ``identity_config``; None where there are none.
        no_identity: why there are none.
    """

    summary: ClassVar[str]
    paper: ClassVar[str]
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    Model: ClassVar[type[RetrievalModel]] = RetrievalModel
    defaults: ClassVar[dict[str, Any]] = {}
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    needs: ClassVar[tuple[str, ...]] = ()
    small: ClassVar[dict[str, Any]] = {}
    recipe: ClassVar[str]
    trains: ClassVar[bool] = True
    encodes: ClassVar[bool] = True
    role: ClassVar[Literal["dense", "frame_budget"] | None] = None
    identity: ClassVar[dict[str, Any] | None] = {}
    no_identity: ClassVar[str] = ""

    def __init__(self, options: OptionsT, arch: Architecture, frames: int) -> None:
        self.options = options
        self.arch = arch
        self.frames = frames

    @classmethod
    def configure(cls, name: str, arch: Architecture, frames: int, given: dict[str, Any]) -> Method[Any]:
        """The method with its preset for this backbone, overridden by the ``given`` options.

        Raises:
            UsageError: an unknown option, a value of the wrong type, or an option that this shape needs and has not.
        """
        values = cls.defaults | cls.presets.get(vision_name(arch), {}) | given
        missing = [key for key in cls.needs if key not in values]
        if missing:
            raise UsageError(
                f"{name}: no published preset for this backbone shape, so give {', '.join(missing)} "
                f"(presets exist for {', '.join(cls.presets)})"
            )
        options = cast(OptionsT, validated(cls.Options, values, f"{name} option"))
        return cls(options, arch, frames)

    def identity_config(self) -> dict[str, Any] | None:
        """Options under which this method gives exactly the features of the plain encoder with meanP.

        None where no setting does; ``no_identity`` then says why.
        """
        return self.identity

    def build_reducer(self) -> TokenReducer:
        """The token reducer; reduces nothing by default."""
        return TokenReducer(self.arch, self.frames)

    def build_head(self) -> Head:
        """What turns the class tokens that leave the tower into one video feature."""
        return MeanPooling()

    @classmethod
    def from_released(cls, key: str, tensor: Tensor) -> tuple[str, Tensor]:
        """Our name and shape for a tensor of this method's released checkpoint (``module.`` already stripped)."""
        return key, tensor

    def describe(self) -> dict[str, Any]:
        """The options as plain data, for records."""
        return asdict(self.options)
