"""``tvrbench profile``: costs that need no data. Imports no torch by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from tvrbench.harness.core.console import print_json, say
from tvrbench.harness.core.options import Assignments, Json, parse_assignments

if TYPE_CHECKING:
    from tvrbench.harness.models.model import RetrievalModel


def profile(
    method: Annotated[Positional[str], arg(metavar="METHOD")],
    /,
    backbone: str = "ViT-B-32",
    frames: int = 12,
    assignments: Assignments = (),
    as_json: Json = False,
) -> None:
    """Costs that need no data: GMACs, parameters, tokens and GPU kernels of a method on a backbone.

    Args:
        method: A method or baseline (tvrbench list methods).
        backbone: ViT-B-32, ViT-B-16 or ViT-L-14.
        frames: Frames per video.
        assignments: A method option, for example --set r=2; may be repeated.
    """
    from tvrbench.harness.profiling.counts.flops import by_name
    from tvrbench.harness.profiling.counts.flops import profile as costs
    from tvrbench.harness.profiling.counts.kernels import kernels_or_reason

    def count(model: RetrievalModel) -> dict[str, Any]:
        kernels = kernels_or_reason(model)  # first: a profile leaves the sums of LoRA's fold in the model
        return costs(model) | {"kernels": kernels}

    result = by_name(count, method, backbone, frames, **parse_assignments(assignments))
    if as_json:
        print_json(result)
        return
    gmacs, params, most = result["gmacs"], result["params"], "at most " * result["at_most"]
    print(f"{method} on {backbone}, {frames} frames")
    print(f"  GMACs (papers' GFLOPs)   video {most}{gmacs['video']:.2f}   text {gmacs['text']:.3f}")
    for line in _training(result):
        print(line)
    print(f"  parameters               total {params['total']:,}   trainable {params['trainable']:,}")
    print(f"  without gradient         {_dead(result['dead'])}")
    print(f"  output tokens            {most}{result['output_tokens']}")
    for line in _as_released(result):
        print(line)
    print(f"  tokens leaving blocks    {most}" + "  ".join(f"{s}x{n}" for s, n in result["tokens"]))
    for line in _search(result["search"]):
        print(line)
    print(f"  GPU kernels              {_kernels(result['kernels'])}")
    length = result["text_length"]
    counted = f"per video and per {length}-token caption, as fvcore counts them"
    if most:
        say("at most: the number of tokens depends on the pixels; a run records the mean over its test videos")
    say(f"GMACs are multiply-adds {counted} (docs/measurement.md)")


def _training(result: dict[str, Any]) -> list[str]:
    """GMACs of a training step's forward pass in one line, where it keeps other tokens than evaluation."""
    gmacs, training = result["gmacs"], result["gmacs"]["training"]
    if all(gmacs[name] == training[name] for name in training):
        return []
    most = "at most " * result["at_most"]
    return [f"  training step, forward   video {most}{training['video']:.2f}   text {training['text']:.3f}"]


def _dead(tensors: dict[str, Any]) -> str:
    """How many trainable parameters the loss never reaches, and the first tensors that hold them."""
    if "reason" in tensors:
        return f"not counted: {tensors['reason']}"
    names = list(tensors)
    shown = ", ".join(names[:2]) + f" and {len(names) - 2} more" * (len(names) > 2)
    return f"{sum(tensors.values()):,}" + f" ({shown})" * bool(names)


def _as_released(result: dict[str, Any]) -> list[str]:
    """The cost as released in one line and what that counts, where it does work whose results it drops."""
    released, tokens = result["gmacs"]["as_released"], result["output_tokens_as_released"]
    exact = {name: result["gmacs"][name] for name in released}
    if (released, tokens) == (exact, result["output_tokens"]):
        return []
    most = "at most " * result["at_most"]
    gmacs = f"video {most}{released['video']:.2f}   text {released['text']:.3f}"
    return [f"  {result['as_released_basis']:<23}  {gmacs}   output tokens {most}{tokens}"]


def _search(search: dict[str, Any]) -> list[str]:
    """Two lines: multiply-adds of one query in galleries of several sizes, and what is stored of a video."""
    again = "" if search["depth"] == 0 else f", of {'all' if search['depth'] is None else search['depth']} videos"
    millions = {name: number / 1e6 for name, number in search["macs"].items()}
    macs = "   ".join(f"{number:,{'.0f' if number >= 1000 else '.3g'}} in {name}" for name, number in millions.items())
    return [
        f"  search, MMACs per query  {macs} videos   ({search['macs_per_pair']:,} multiply-adds per pair{again})",
        f"  stored per video         {search['floats_per_video']:,} floats   {search['bytes_per_video']:,} bytes",
    ]


def _kernels(counts: dict[str, dict[str, Any]]) -> str:
    """Kernels of a batch in one line, and how often the host waits."""
    if "reason" in counts:
        return f"not counted: {counts['reason']}"
    video, text, waits = counts["video"], counts["text"], counts["waits"]
    sides = [f"{name} {n['float32']:,} (bfloat16 {n['bfloat16']:,})" for name, n in (("video", video), ("text", text))]
    return "   ".join([*sides, f"host waits {waits['video'] + waits['text']}"])
