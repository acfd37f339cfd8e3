"""``tvrbench profile``: costs that need no data. Imports no torch by itself."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import Positional, arg

from tvrbench.harness.core.console import print_json, say
from tvrbench.harness.core.options import Assignments, Json, parse_assignments


def profile(
    method: Annotated[Positional[str], arg(metavar="METHOD")],
    /,
    backbone: str = "ViT-B-32",
    frames: int = 12,
    assignments: Assignments = (),
    as_json: Json = False,
) -> None:
    """Costs that need no data: GMACs, parameters and tokens of a method on a backbone.

    Args:
        method: A method or baseline (tvrbench list methods).
        backbone: ViT-B-32, ViT-B-16 or ViT-L-14.
        frames: Frames per video.
        assignments: A method option, for example --set r=2; may be repeated.
    """
    from tvrbench.harness.profiling.counts.flops import profile_by_name

    result = profile_by_name(method, backbone, frames, **parse_assignments(assignments))
    if as_json:
        print_json(result)
        return
    gmacs, params = result["gmacs"], result["params"]
    print(f"{method} on {backbone}, {frames} frames")
    print(f"  GMACs (papers' GFLOPs)   video {gmacs['video']:.2f}   text {gmacs['text']:.3f}")
    print(f"  parameters               total {params['total']:,}   trainable {params['trainable']:,}")
    print(f"  output tokens            {result['output_tokens']}")
    print("  tokens leaving blocks    " + "  ".join(f"{s}x{n}" for s, n in result["tokens"]))
    say("GMACs are multiply-adds per video and per 32-token caption, as fvcore counts them (docs/measurement.md)")
