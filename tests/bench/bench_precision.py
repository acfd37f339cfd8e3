"""What bfloat16 does to each method: the error of its arithmetic, and the choices that fall the other way.

    python tests/bench/bench_precision.py [--backbone ViT-B-32] [--batch 2] [--weights random:0] [--device cpu]

Prints, for every registered method: the relative error of its features under autocast when the choices of float32 are
carried out, the smallest cosine when it chooses for itself, the share of its choices that agree, and how near float32's
choices were (the median margin between the last merged pair and the first unmerged one). The same figures are asserted
on a small model by ``tests/contract/test_precision.py``.
"""

from __future__ import annotations

import argparse

import torch
from tabulate import tabulate
from torch.nn import functional as F

from tvrbench.harness import load_model
from tvrbench.harness.core import registry
from tvrbench.harness.models.decisions import Margins, Recorder, Replay, agreement, watched
from tvrbench.harness.models.factory import method_class
from tvrbench.harness.profiling.scenarios.synthetic import synthetic_batch

HEADERS = ("method", "error, same choices", "cosine, own choices", "choices that agree", "median margin")


@torch.no_grad()
def row(name: str, arguments: argparse.Namespace) -> list[object]:
    device = torch.device(arguments.device)
    model = load_model(name, backbone=arguments.backbone, weights=arguments.weights, device=device)
    inputs = synthetic_batch(model, arguments.batch, device)
    exact, free, margins = Recorder(), Recorder(), Margins()
    with watched(model.reducer, exact):
        reference = model.encode_video(inputs.frames, inputs.mask)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        with watched(model.reducer, Replay(exact.made)):
            injected = model.encode_video(inputs.frames, inputs.mask).float()
        with watched(model.reducer, free):
            alone = model.encode_video(inputs.frames, inputs.mask).float()
    for decision in exact.made:
        margins(decision)
    error = ((injected - reference).norm(dim=1) / reference.norm(dim=1)).max()
    cosine = F.cosine_similarity(alone, reference, dim=1).min()
    share, near = agreement(exact.made, free.made), margins.summary()
    return [
        name,
        f"{float(error):.1e}",
        f"{float(cosine):.4f}",
        None if share is None else f"{100 * share:.1f} %",
        None if near is None else f"{near['median']:.1e}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="ViT-B-32")
    parser.add_argument("--weights", default="random:0")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    names = [name for name in registry.names("methods", "baselines") if method_class(name).card.encodes]
    print(f"{arguments.backbone}, {arguments.weights}, batch {arguments.batch}, bfloat16 on {arguments.device}")
    print(tabulate([row(name, arguments) for name in names], headers=HEADERS, missingval="-"))


if __name__ == "__main__":
    main()
