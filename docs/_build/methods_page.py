"""``docs/methods.md``: every registered method with its source, settings and cost, made from the code itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from typing import Any

from tabulate import tabulate

from tvrbench.harness.core import registry
from tvrbench.harness.profiling.counts.formula import analytic_macs, reduction_macs
from tvrbench.harness.models.factory import load_model, method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.tuning import TUNINGS

BACKBONES = ("ViT-B-32", "ViT-B-16")
COSTS = ("method", "backbone", "video GMACs", "of them reduction", "text GMACs", "tokens out")
TUNED = ("tuning", "trainable parameters, plain ViT-B/32", "video GMACs", "text GMACs")


def methods_page(made_by: str) -> str:
    """The page; ``made_by`` is the command that writes it."""
    names = registry.names("methods", "baselines")
    return "\n".join(
        [
            "# Methods and baselines\n",
            f"Made from the code by `{made_by}`. Costs are of full-size models at 12 frames with each method's own "
            "preset; published figures stand beside measured ones in the reports.\n",
            "## What each is\n",
            *(_about(name) for name in names),
            "## What each costs\n",
            'GMACs are multiply-adds as the papers count them (their "GFLOPs"), of one video and of one 32-token '
            "caption; the reduction's own share is part of the video's. These are the formula's figures; `tvrbench "
            "profile` and `nox -s regression` trace every one and fail beyond 0.5 %.\n",
            _table(_costs(names), COSTS),
            "\n## What each tuning trains\n",
            "Every tuning goes with every method; a method's own parameters (TempMe's 16,128 frame positions on "
            "ViT-B/32, say) come on top. The adapter is 64 wide, LoRA of rank 8 (`rank`), prompts are 8.\n",
            _table(_tunings(), TUNED),
            "",
        ]
    )


def _about(name: str) -> str:
    cls = method_class(name)
    method, identity = _shape(name, "ViT-B-32").spec, cls.card.identity
    if isinstance(identity, str):
        same = f"none: {identity}"
    else:
        same = f"`{_options(identity)}`" if identity else "as it stands"
    options = {key: value for key, value in method.describe().items() if key not in ("rank", "tuning")}
    lines = [
        f"### {name}\n",
        f"{cls.card.summary[0].upper()}{cls.card.summary[1:]}.\n",
        f"- Source: {cls.card.paper}",
        f"- Recipe of the `published` protocols: `{cls.card.recipe}`; tuning: `{method.options.tuning}`",
    ]
    if options:
        lines.append(f"- Options, ViT-B/32: `{_options(options)}`")
    for backbone, preset in cls.card.presets.items():
        if backbone not in ("ViT-B-32", "tiny"):
            lines.append(f"- Preset for {backbone}: `{_options(preset)}`")
    lines.append(f"- Setting in which it is exactly the plain encoder with meanP: {same}")
    return "\n".join([*lines, ""])


def _options(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in options.items())


def _shape(name: str, backbone: str, **options: Any) -> RetrievalModel:
    """The method without values, for counting."""
    return load_model(name, backbone=backbone, weights="random:0", device="meta", **options)


def _costs(names: list[str]) -> Iterator[tuple[str, ...]]:
    for backbone in BACKBONES:
        for name in names:
            model = _shape(name, backbone)
            macs = analytic_macs(model)
            yield (
                name,
                backbone,
                f"{macs['video'] / 1e9:.2f}",
                f"{reduction_macs(model) / 1e9:.4f}",
                f"{macs['text'] / 1e9:.3f}",
                f"{prod(model.tokens[-1]) if model.tokens else 0:,}",
            )


def _tunings() -> Iterator[tuple[str, ...]]:
    for tuning in TUNINGS:
        model = _shape("clip4clip", "ViT-B-32", tuning=tuning)
        macs = analytic_macs(model)
        trainable = sum(p.numel() for p in model.trainable().values())
        yield tuning, f"{trainable:,}", f"{macs['video'] / 1e9:.2f}", f"{macs['text'] / 1e9:.3f}"


def _table(rows: Iterator[tuple[str, ...]], headers: tuple[str, ...]) -> str:
    align = ["left" if header in ("method", "backbone", "tuning") else "right" for header in headers]
    return tabulate(list(rows), headers=headers, tablefmt="pipe", colalign=align, disable_numparse=True)
