"""``ScoredMethod``: a method that is a scorer, over the encoder of any other method."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from tvrbench.harness.core import registry
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.models.backbone.architecture import PRESETS, vision_name
from tvrbench.harness.models.heads import Head, SequenceTransformer
from tvrbench.harness.models.method import Method
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.scorer import V2T, Scorer, Storage
from tvrbench.harness.models.spec import MethodOptions, MethodSpec, option_error
from tvrbench.harness.models.text import TextPath
from tvrbench.harness.models.tokens import TokenReducer


def _depth(value: Any) -> int | None:
    """A whole number from 0 on; None of ``none``."""
    if value is None or value == "none":
        return None
    try:
        number, whole = int(value), float(value).is_integer()
    except (TypeError, ValueError, OverflowError):
        number, whole = -1, False
    if number < 0 or not whole:
        raise PydanticCustomError("depth", "give a whole number from 0 on, or none to score all pairs")
    return number


Depth = Annotated[int | None, BeforeValidator(_depth)]


@dataclass(frozen=True, kw_only=True)
class ScorerOptions(MethodOptions):
    """Options of every method that scores more than a vector of each side.

    Attributes:
        head: ``meanP``, the mean of the frames, or that of the method that ``reducer`` names; ``seqTransf``,
            CLIP4Clip's transformer over the frames before their mean.
        depth: how many of the coarse stage's best are scored again; None (``none``) for all pairs, 0 for none.
        v2t: ``own``, each video's best captions are scored again, or ``transposed``, the scores of text to video are
            read from the video's side.
        storage: type of the numbers that are stored of frames, patches and words in an evaluation.
        reducer: a method whose token reducer and text path the encoder has, with its published preset or that for
            small models; none if empty.
        reducer_options: that method's options, over its preset.
    """

    head: Literal["meanP", "seqTransf"] = "meanP"
    depth: Depth = None
    v2t: V2T = "own"
    storage: Storage = "float32"
    reducer: str = ""
    reducer_options: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True)
class RelatedScorerOptions(ScorerOptions):
    """Options of a scorer whose paper relates frames before it compares them; the same but for the default head."""

    head: Literal["meanP", "seqTransf"] = "seqTransf"


OptionsT = TypeVar("OptionsT", bound=ScorerOptions)


class ScoredMethod(Method[OptionsT]):
    """Base class of methods that are a scorer; a subclass gives ``new_scorer``."""

    def new_scorer(self) -> Scorer:
        """The scorer, before the options of all scorers are set."""
        raise NotImplementedError

    def build_scorer(self) -> Scorer:
        """The scorer, with the depth, direction and storage of the options."""
        scorer = self.new_scorer()
        scorer.depth, scorer.v2t, scorer.storage = self.options.depth, self.options.v2t, self.options.storage
        return scorer

    @cached_property
    def _encoder(self) -> Method[Any] | None:
        """The method whose encoder this one scores; None for the plain encoder."""
        name = self.options.reducer
        if not name:
            return None
        known = name in registry.names("methods", "baselines")
        cls: type[Method[Any]] | None = registry.lookup(name, "methods", "baselines") if known else None
        if cls is None or issubclass(cls, ScoredMethod) or cls.Model is not RetrievalModel or not cls.card.encodes:
            problem = f"names {name!r}, which is no token reducer: give a method that reduces tokens, such as 'tempme'"
            raise option_error("scorer", "reducer", problem)
        if own := sorted(set(self.options.reducer_options) & {"tuning", "rank", "head"}):
            message = f"option {own[0]!r} is this method's own: leave it out of reducer_options"
            raise UsageError(message, code="option.value", method=name, option=own[0])
        small = cls.card.tiny if vision_name(self.arch) not in PRESETS else {}
        given = small | {"tuning": self.options.tuning} | self.options.reducer_options
        return cls.configure(name, self.arch, self.frames, given)

    def spec(self, name: str) -> MethodSpec:
        """The configured method as data; what is dead in the encoder is dead here."""
        spec, encoder = super().spec(name), self._encoder
        return (
            spec if encoder is None else replace(spec, card=replace(spec.card, dead=spec.card.dead + encoder.card.dead))
        )

    @cached_property
    def class_tokens(self) -> int:
        """Class tokens of a video that leave the vision tower."""
        if self._encoder is None:
            return self.frames
        last = self.build_reducer().plan()[-1]
        return last.leaving[0] * last.classes

    def build_reducer(self) -> TokenReducer:
        """That of the method that ``reducer`` names."""
        return self._encoder.build_reducer() if self._encoder else super().build_reducer()

    def build_text_path(self, reducer: TokenReducer) -> TextPath:
        """That of the method that ``reducer`` names."""
        return self._encoder.build_text_path(reducer) if self._encoder else super().build_text_path(reducer)

    def build_head(self) -> Head:
        """The one that was asked for."""
        if self.options.head == "seqTransf":
            return SequenceTransformer(self.arch, self.class_tokens)
        return self._encoder.build_head() if self._encoder else super().build_head()
