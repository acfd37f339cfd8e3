"""Every method on a GPU that is not there, and the ledger of what it asks of it: tests/contract/fake_cuda.json.

``python tests/tools/fake_cuda.py`` counts everything anew and writes the ledger, with names of methods their pages;
read the difference before you commit.

Beside what ``counts/kernels.py`` needs, training wants three things of a GPU. The autograd engine refuses CUDA tensors
on a machine without one, so gradients of zeros are put where the graph ends: what runs backwards is not tested.
Autocast and the scaler ask whether a device is there; random states are the CPU's alone.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_streams import Fakes
from plugin import NAME, registered_plugin
from torch import Tensor

from tvrbench.harness import load_model
from tvrbench.harness.config.recipe import load_recipe
from tvrbench.harness.core import registry
from tvrbench.harness.data.prefetch import prefetch
from tvrbench.harness.evaluation.encode import encode_texts, encode_videos
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.profiling.counts.kernels import CUDA, KernelCounter, count_kernels, fake_cuda, on_fake_cuda
from tvrbench.harness.regression.signature import same_randomness, save_tiny_weights
from tvrbench.harness.training import trainer as training
from tvrbench.harness.training.trainer import Precision, Trainer

LEDGER = Path(__file__).parents[1] / "contract" / "fake_cuda.json"
METHODS = [name for name in registry.names("methods", "baselines") if method_class(name).card.encodes]
NAMES = [*METHODS, NAME]
STEPS: dict[str, tuple[Precision, int | None]] = {
    "float32": ("float32", None),
    "bfloat16": ("bfloat16", None),
    "float16, micro-batches of 2": ("float16", 2),
}
PAIRS = 4
FULL: dict[str, dict[str, Any]] = {NAME: {"n": 2}}  # options beside those of the method's preset


def tiny(name: str, weights: Path, **options: Any) -> RetrievalModel:
    """A method on the tiny CLIP."""
    return load_model(name, weights=weights, **(method_class(name).card.tiny | FULL.get(name, {}) | options))


@contextmanager
def fake_gpu() -> Iterator[None]:
    """A machine that passes for one with a GPU, for training too, as far as fake tensors go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(training, "random_state", lambda device: (torch.get_rng_state(), None))
        patch.setattr(Tensor, "backward", _put_gradients)
        patch.setattr(torch.autograd, "backward", _put_gradients)
        with fake_cuda():
            yield


def _put_gradients(tensors: Any, *_: Any, **__: Any) -> None:
    """Zeros for every leaf that the graph of the tensors reaches."""
    waiting = [t.grad_fn for t in ([tensors] if isinstance(tensors, Tensor) else tensors)]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            node.variable.grad = torch.zeros_like(node.variable)
        waiting.extend(following for following, _ in node.next_functions)


def pairs(model: RetrievalModel, *, frame_captions: bool = False) -> tuple[Tensor, ...]:
    """A batch on the fake GPU."""
    arch = model.clip.arch
    of_frames = (PAIRS, model.frames, arch.context_length)
    further = (torch.long, torch.bool) if frame_captions else ()
    return (
        torch.empty(PAIRS, model.frames, 3, arch.image_size, arch.image_size, device=CUDA),
        torch.ones(PAIRS, model.frames, dtype=torch.bool, device=CUDA),
        torch.zeros(PAIRS, arch.context_length, dtype=torch.long, device=CUDA),
        torch.ones(PAIRS, arch.context_length, dtype=torch.bool, device=CUDA),
        *(torch.ones(of_frames, dtype=dtype, device=CUDA) for dtype in further),
    )


def count_encoding(name: str) -> dict[str, dict[str, int]]:
    """What ``tvrbench profile`` counts, on ViT-B/32."""
    options = FULL.get(name, {})
    return count_kernels(load_model(name, backbone="ViT-B-32", weights="random:0", device="meta", **options))


def count_step(
    model: RetrievalModel, precision: Precision, micro_batch_size: int | None, *, frame_captions: bool = False
) -> KernelCounter:
    """A training step by the method's own recipe, after a first one that made the optimizer's state."""
    with fake_gpu():
        twin = on_fake_cuda(model)
        recipe: Any = replace(load_recipe(twin.spec.card.recipe), precision=precision)
        trainer = Trainer(twin, recipe, 100, micro_batch_size=micro_batch_size)
        batch = pairs(twin, frame_captions=frame_captions)
        for seen in (KernelCounter(), KernelCounter()):
            with seen:
                trainer.step(*batch)
    return seen


def count_evaluation(model: RetrievalModel) -> dict[str, KernelCounter]:
    """Encoding two batches of videos and one of captions that come from the CPU, to features on the CPU."""
    arch = model.clip.arch

    def clips(requests: Any) -> Generator[tuple[Tensor, Tensor], None, None]:
        for request in requests:
            shape = (len(request), model.frames, 3, arch.image_size, arch.image_size)
            yield torch.zeros(shape, dtype=torch.uint8), torch.ones(shape[:2], dtype=torch.bool)

    def tokenizer(batch: Any, words: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(batch), words, dtype=torch.long), torch.ones(len(batch), words, dtype=torch.bool)

    loader: Any = SimpleNamespace(batches=lambda requests, device: prefetch(clips(requests), device))
    tokens: Any = tokenizer
    with pytest.MonkeyPatch.context() as patch, fake_gpu():
        Fakes().install(patch, moves=False)
        twin = on_fake_cuda(model).eval()
        calls: dict[str, Callable[[], Tensor]] = {
            "video": lambda: encode_videos(twin, ("a", "b", "c"), loader, 2, lambda _: None).coarse,
            "text": lambda: encode_texts(twin, ("x", "y"), tokens, 8).coarse,
        }
        found = {}
        for what, call in calls.items():
            with KernelCounter() as found[what]:
                features = call()
            assert features.device.type == "cpu"
            assert features.shape == ({"video": 3, "text": 2}[what], arch.embed_dim)
    return found


def total(seen: KernelCounter) -> dict[str, int]:
    """A counter as the ledger holds it."""
    return {"kernels": seen.kernels.total(), "waits": seen.waits.total()}


def count_all(name: str, weights: Path) -> dict[str, Any]:
    """A method's page of the ledger."""
    model = tiny(name, weights)
    page: dict[str, Any] = {"encoding": count_encoding(name)}
    if model.spec.card.trains:
        page["step"] = {kind: total(count_step(model, *how)) for kind, how in STEPS.items()}
    page["evaluation"] = {what: total(seen) for what, seen in count_evaluation(model).items()}
    return page


def page_of(name: str) -> dict[str, Any]:
    """What the ledger says of a method."""
    page: dict[str, Any] = json.loads(LEDGER.read_text())["methods"].get(name, {})
    return page


def faults(found: Any, bound: Any, where: str, told: str = "") -> list[str]:
    """Every number that is not the one of the ledger; it may only fall, and a lower one is to be written down."""
    if isinstance(found, dict):
        parts = [(found.get(key), bound.get(key, {}) if isinstance(bound, dict) else {}, key) for key in found]
        return [fault for part, limit, key in parts for fault in faults(part, limit, f"{where}, {key}", told)]
    if found == bound:
        return []
    how = "is not in the ledger" if not isinstance(bound, int) else "rose" if found > bound else "fell"
    message = f"{where} {how}: {found}, ledger {bound}"
    return [f"{message}\n{told}" if how == "rose" else f"{message}: write it down with python tests/tools/fake_cuda.py"]


def main(names: Sequence[str]) -> None:
    """Write the pages of some methods anew, or the whole ledger."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(registered_plugin(folder))
        with same_randomness():
            save_tiny_weights(folder / "tiny.safetensors")
        pages = json.loads(LEDGER.read_text())["methods"] if names else {}
        for name in names or NAMES:
            print(name, file=sys.stderr)
            pages[name] = count_all(name, folder / "tiny.safetensors")
    ledger = {"torch": ".".join(torch.__version__.split(".")[:2]), "methods": pages}
    LEDGER.write_text(json.dumps(ledger, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
