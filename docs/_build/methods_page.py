"""The generated parts of ``docs/methods.md`` and of the appendix on costs, made from the methods themselves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

from tabulate import tabulate

from tvrbench.harness.core import registry
from tvrbench.harness.models.factory import load_model, method_class
from tvrbench.harness.models.model import RetrievalModel
from tvrbench.harness.models.tuning import TUNINGS
from tvrbench.harness.profiling.counts.formula import analytic_macs, reduction_macs, released_macs

BACKBONES = ("ViT-B-32", "ViT-B-16")
COSTS = ("method", "backbone", "video GMACs", "of which reduction", "text GMACs", "tokens out")
TUNED = ("tuning", "trainable parameters, dense ViT-B/32", "video GMACs", "text GMACs")


def descriptions() -> str:
    """Describe every method under a heading of its own."""
    return "\n".join(_description(name) for name in registry.names("methods", "baselines"))


def costs() -> str:
    """Tabulate the GMACs and the tokens of every method on both backbones."""
    rows = []
    for backbone, name in product(BACKBONES, registry.names("methods", "baselines")):
        model = _shape(name, backbone)
        macs, tokens = analytic_macs(model), prod(model.tokens[-1]) if model.tokens else 0
        gmacs = f"{macs['video'] / 1e9:.2f}", f"{reduction_macs(model) / 1e9:.4f}", f"{macs['text'] / 1e9:.3f}"
        rows.append((name, backbone, *gmacs, f"{tokens:,}"))
    return _table(COSTS, rows)


def tunings() -> str:
    """Tabulate the trainable parameters and the GMACs of every tuning of the dense encoder."""
    rows = []
    for tuning in TUNINGS:
        model = _shape("clip4clip", "ViT-B-32", tuning=tuning)
        macs, trainable = analytic_macs(model), sum(p.numel() for p in model.trainable().values())
        rows.append((tuning, f"{trainable:,}", f"{macs['video'] / 1e9:.2f}", f"{macs['text'] / 1e9:.3f}"))
    return _table(TUNED, rows)


def readings() -> str:
    """Tabulate the GMACs of every method and variant whose released code does work that it drops, in both readings."""
    variants = {"vop": ("F", "F+C")}
    rows = []
    for name in registry.names("methods", "baselines"):
        for variant in ("", *variants.get(name, ())):
            models = [_shape(name, backbone, **({"variant": variant} if variant else {})) for backbone in BACKBONES]
            counts = [(analytic_macs(model)["video"], released_macs(model)["video"]) for model in models]
            if any(exact != released for exact, released in counts):
                label = f"{name}, variant={variant}" if variant else name
                rows.append((label, *(f"{macs / 1e9:.2f}" for pair in counts for macs in pair)))
    return _table(("method", *(f"{b}, {reading}" for b in BACKBONES for reading in ("exact", "as released"))), rows)


def _description(name: str) -> str:
    card, spec = method_class(name).card, _shape(name, "ViT-B-32").spec
    options = {key: value for key, value in spec.describe().items() if key not in ("rank", "tuning")}
    presets = {backbone: preset for backbone, preset in card.presets.items() if backbone not in ("ViT-B-32", "tiny")}
    if isinstance(card.identity, str):
        same = f"none: {card.identity}"
    else:
        same = f"`{_text(card.identity)}`" if card.identity else "its defaults"
    return "\n".join(
        [
            f"### {name}\n",
            f"{card.summary[0].upper()}{card.summary[1:]}.\n",
            f"- Source: {card.paper}",
            f"- Recipe of the `published` protocols: `{card.recipe}`; tuning: `{spec.options.tuning}`",
            *([f"- Options, ViT-B/32: `{_text(options)}`"] if options else []),
            *(f"- Preset for {backbone}: `{_text(preset)}`" for backbone, preset in presets.items()),
            f"- Setting in which it is exactly the dense encoder with meanP: {same}\n",
        ]
    )


def _text(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in options.items())


def _shape(name: str, backbone: str, **options: Any) -> RetrievalModel:
    """Build a method without values, for counting."""
    return load_model(name, backbone=backbone, weights="random:0", device="meta", **options)


def _table(headers: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    align = ["left" if header in ("method", "backbone", "tuning") else "right" for header in headers]
    return tabulate(rows, headers=headers, tablefmt="pipe", colalign=align, disable_numparse=True)
