"""``tvrbench profile``: cost that needs no data."""

from __future__ import annotations

from typing import Any

from tvrbench.harness.core.console import print_json, say
from tvrbench.harness.profiling.counts.flops import profile_by_name


def profile_method(method: str, backbone: str, frames: int, options: dict[str, Any], as_json: bool) -> None:
    """Count multiply-adds, parameters and tokens of a method on a preset backbone with random weights."""
    result = profile_by_name(method, backbone, frames, **options)
    if as_json:
        print_json(result)
        return
    gmacs, params = result["gmacs"], result["params"]
    print(f"{method} on {backbone}, {frames} frames")
    print(f"  GMACs (papers' GFLOPs)   video {gmacs['video']:.2f}   text {gmacs['text']:.3f}")
    print(f"  parameters               total {params['total']:,}   trainable {params['trainable']:,}")
    print(f"  output tokens            {result['output_tokens']}")
    print("  tokens leaving blocks    " + "  ".join(f"{s}x{n}" for s, n in result["tokens"]))
    say("GMACs are multiply-adds of one video and one 32-token caption, as fvcore counts them (docs/measurement.md)")
