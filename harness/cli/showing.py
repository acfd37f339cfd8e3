"""Models and clips for pictures: trained ones where a run left its checkpoint, else on the protocol's weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tvrbench.harness.data.types import FrameSpec
from tvrbench.harness.models.checkpoint import method_in
from tvrbench.harness.models.factory import load_model
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.plan import MethodChoice
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.runs.config import RunConfig, new_model, recipe_of
from tvrbench.harness.runs.context import RunContext


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A model to show, what it is called, which weights it has, and how its videos are sampled."""

    label: str
    origin: str
    model: RetrievalModel
    spec: FrameSpec


def shown_model(prepared: RunContext, store: RecordStore, entry: MethodChoice, seed: int, device: str) -> Shown:
    """The method as its run under the protocol trained it, or untrained where there is no checkpoint of this seed.

    Options of ``entry`` stand over those of the run.

    Raises:
        UsageError: an unknown method, an option that does not fit, or a broken checkpoint.
    """
    protocol = prepared.protocol
    config = RunConfig(method=entry.method, seed=seed, device=device, options=entry.options)
    found = _checkpoint(store, protocol.name, entry.method, seed)
    model: RetrievalModel
    if found is None:
        model = new_model(prepared, config)
        origin = "not trained: on the protocol's weights" if prepared.weights_spec else "not trained"
    else:
        model = load_model(entry.method, checkpoint=found, device=device, seed=seed, **entry.options)
        origin = f"trained: {found.name}{', with other options' if entry.options else ''}"
    sampler = recipe_of(protocol, config).sampler
    return Shown(label=entry.label, origin=origin, model=model.eval(), spec=prepared.spec(sampler))


def _checkpoint(store: RecordStore, protocol: str, method: str, seed: int) -> Path | None:
    """The model that a run of this method and seed saved last."""
    records = store.folder(protocol)
    folder = records.parents[1] / "checkpoints" / records.name
    stem = f"seed{seed}"
    named = (path for path in folder.glob(f"{method}-*.safetensors") if stem in path.stem.split("-"))
    own = [path for path in named if method_in(path) == method]
    return max(own, key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)
