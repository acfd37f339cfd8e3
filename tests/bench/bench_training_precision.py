"""What bfloat16 in training does to a score: pairs of runs of the stand-in that differ in nothing but their precision.

    python tests/bench/bench_training_precision.py [--methods lora,tempme,clip4clip] [--seeds 0,1,2] [--steps 100]

Both trainings of a pair start from the same weights and take the same batches; the forward pass of one runs under
autocast to bfloat16, as a uniform protocol's does on a GPU, here forced on a CPU. Both are evaluated in float32. Prints
R@1 and R-Sum (text to video) of each pair, then the mean and standard deviation of the differences, and of float32's
own runs over the seeds.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from statistics import mean, stdev

import torch
from tabulate import tabulate

from tvrbench.harness.config.protocol import load_protocol
from tvrbench.harness.runs.config import RunConfig, new_model, recipe_of
from tvrbench.harness.runs.context import RunContext, open_context, with_training_data
from tvrbench.harness.training.trainer import Precision, Trainer

METRICS = ("R1", "RSum")


def score(context: RunContext, config: RunConfig, precision: Precision) -> list[float]:
    """R@1 and R-Sum of one training."""
    recipe = recipe_of(context.protocol, config)
    pairs, total = (
        context.pairs(context.train, recipe, config.seed, config.frame_captions),
        recipe.total_steps(len(context.train.captions)),
    )
    torch.manual_seed(config.seed)
    trainer = Trainer(new_model(context, config), recipe, total)
    trainer.precision = precision  # a recipe alone never autocasts a CPU
    for batch in pairs.batches(0, total):
        pixels = trainer.model.normalize(batch.pixels, batch.video_mask)
        trainer.step(pixels, batch.video_mask, batch.ids, batch.text_mask)
    trainer.finish()
    metrics = context.evaluate(trainer.model, context.test, recipe.sampler, lambda _: None).metrics
    return [metrics["t2v"]["R1"], metrics["RSum"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="lora,tempme,clip4clip")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()
    protocol = load_protocol("standin/uniform")
    protocol = replace(protocol, recipe_overrides={**protocol.recipe_overrides, "steps": arguments.steps})
    context = with_training_data(open_context(protocol, None, None))
    pairs: dict[str, list[tuple[list[float], list[float]]]] = {}
    for seed in map(int, arguments.seeds.split(",")):
        for method in arguments.methods.split(","):
            clock, config = time.monotonic(), RunConfig(method=method, seed=seed)
            exact, rounded = (score(context, config, precision) for precision in ("float32", "bfloat16"))
            pairs.setdefault(method, []).append((exact, rounded))
            values = "  ".join(f"{n} {a:.1f} {b:.1f}" for n, a, b in zip(METRICS, exact, rounded, strict=True))
            print(f"{method} seed {seed}: {values}  ({time.monotonic() - clock:.0f} s)", flush=True)
    rows = []
    for method, runs in pairs.items():
        for place, name in enumerate(METRICS):
            differences, own = [b[place] - a[place] for a, b in runs], [a[place] for a, _ in runs]
            spread = (stdev(differences), stdev(own)) if len(runs) > 1 else (None, None)
            rows.append([method, name, mean(own), mean(differences), *spread])
    headers = ("method", "metric", "float32", "bfloat16 minus float32", "its sd", "sd of float32 over seeds")
    print(tabulate(rows, headers=headers, floatfmt=".1f", missingval="-"))


if __name__ == "__main__":
    main()
