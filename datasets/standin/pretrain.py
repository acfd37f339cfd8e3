"""Pre-trains the stand-in's small CLIP: ``python -m tvrbench.datasets.standin.pretrain --out FILE``.

It learns objects, attributes and relations from single images, never from a verb, a clip or a test caption: events in
time are left for fine-tuning. Takes about six minutes on two CPU cores.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import tyro
from rich.console import Console
from rich.progress import track
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from tvrbench.datasets.standin.render import RADIUS, SIDE, background, paint
from tvrbench.datasets.standin.scenes import COLORS, RELATIONS, SHAPES, SIZES, VOCABULARY, draw
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.data.frame_loader import normalize
from tvrbench.harness.models.backbone.architecture import HEAD_WIDTH, Architecture
from tvrbench.harness.models.backbone.clip import CLIP
from tvrbench.harness.models.backbone.tokenizer import WordTokenizer
from tvrbench.harness.models.backbone.weights import initialize
from tvrbench.harness.models.backbone.weights_config import OPEN_CLIP

ARCHITECTURE = Architecture(
    image_size=SIDE,
    patch_size=16,
    vision_width=64,
    vision_layers=12,
    text_width=128,
    text_layers=4,
    context_length=32,
    vocab_size=len(VOCABULARY) + 3,
    embed_dim=128,
)
LONGEST = 12  # tokens of the longest caption here; padding to the whole context would double the cost
PLACES = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """Options of the pre-training command.

    Attributes:
        out: the safetensors file to write; ``vocab.txt`` and ``open_clip_config.json`` go beside it.
        images: captioned images, all drawn before the first step.
        steps: optimizer steps.
        batch: images per step.
        lr: peak learning rate of AdamW.
        seed: of images, initial weights and batches.
        threads: CPU threads; another number may change the last digits.
    """

    out: Path
    images: int = 40_000
    steps: int = 1_800
    batch: int = 128
    lr: float = 1e-3
    seed: int = 0
    threads: int = 2


def captioned_image(seed: int) -> tuple[npt.NDArray[np.uint8], str]:
    """Draw an image [SIDE, SIDE, 3] of one or two objects; return it and its caption."""
    rng, pixels = Random(seed), np.random.default_rng(seed)
    canvas = background(pixels)
    relation = draw(rng, RELATIONS) if rng.random() < 0.6 else ""
    names = []
    for sign in (1, -1) if relation else (0,):
        size, color, shape = draw(rng, SIZES), draw(rng, COLORS), draw(rng, SHAPES)
        spread = (3, 3) if relation else (16, 16)
        center = [SIDE / 2 + pixels.uniform(-s, s) for s in spread]
        for axis, place in enumerate(PLACES.get(relation, (0, 0))):
            center[axis] += sign * place * 14.5
        canvas = paint(canvas, shape, color, (center[0], center[1]), RADIUS[size] * pixels.uniform(0.9, 1.1))
        # all attributes, or without one or both
        keep_size, keep_color = draw(rng, ((True, True), (True, True), (False, True), (True, False), (False, False)))
        names.append(" ".join(word for word in ("a", size * keep_size, color * keep_color, shape) if word))
    joint = "and" if rng.random() < 0.3 else relation
    return np.asarray(canvas.round(), dtype=np.uint8), f" {joint} ".join(names)


def multi_positive_loss(image: Tensor, text: Tensor, scale: Tensor, captions: list[str]) -> Tensor:
    """Symmetric cross-entropy of features [B, E]; pairs with the same caption share the target evenly."""
    number = {caption: i for i, caption in enumerate(captions)}
    group_B = torch.tensor([number[caption] for caption in captions])
    same_BB = (group_B[:, None] == group_B[None, :]).float()
    target_BB = same_BB / same_BB.sum(dim=1, keepdim=True)
    logits_BB = scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
    return (F.cross_entropy(logits_BB, target_BB) + F.cross_entropy(logits_BB.T, target_BB)) / 2


def learning_rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over the first 5 % of the steps, then half a cosine to 0."""
    warmup = int(0.05 * steps)
    return step / warmup if step < warmup else (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def pretrain(options: Pretraining, tokenizer: WordTokenizer) -> CLIP:
    """Train from scratch; progress is shown on stderr."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    console = Console(stderr=True)
    pixels = torch.empty((options.images, 3, SIDE, SIDE), dtype=torch.uint8)
    captions = []
    for i in track(range(options.images), description="Drawing images", console=console):
        picture, caption = captioned_image(options.seed * 10**7 + i)  # no two seeds share an image
        pixels[i] = torch.from_numpy(picture).permute(2, 0, 1)
        captions.append(caption)
    model = CLIP(ARCHITECTURE)
    initialize(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: learning_rate_factor(t, options.steps))
    for step in track(range(options.steps), description="Pre-training", console=console):
        rows = torch.randint(options.images, (options.batch,))
        batch = [captions[i] for i in rows.tolist()]
        ids, mask = tokenizer(batch, LONGEST)
        shown, arch = torch.ones(len(rows), 1), model.arch
        one_frame = normalize(pixels[rows].unsqueeze(1), shown, "cpu", arch.mean, arch.std)
        image, text = model.encode_image(one_frame[:, 0]), model.encode_text(ids, mask)
        loss = multi_positive_loss(image, text, model.logit_scale, batch)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        if step % 100 == 99:
            console.print(f"step {step + 1}: loss {loss.item():.3f}")
    return model


def config(arch: Architecture) -> dict[str, Any]:
    """open_clip's description of the model, for the file beside the weights: they hold no activation themselves."""
    vision = {"image_size": arch.image_size, "patch_size": arch.patch_size}
    vision |= {"width": arch.vision_width, "layers": arch.vision_layers}
    text = {"context_length": arch.context_length, "vocab_size": arch.vocab_size, "width": arch.text_width}
    text |= {"heads": arch.text_width // HEAD_WIDTH, "layers": arch.text_layers}
    model = {"embed_dim": arch.embed_dim, "quick_gelu": arch.activation == "quick_gelu"}
    preprocessing = {"mean": list(arch.mean), "std": list(arch.std)}
    return {"model_cfg": model | {"vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": preprocessing}


def write_weights(options: Pretraining) -> None:
    """Write vocabulary and config, train, and write the weights in float16 with the command that reproduces them."""
    if min(options.images, options.steps, options.batch, options.threads) < 1:
        raise UsageError("--images, --steps, --batch and --threads must each be at least 1", code="option.range")
    vocabulary = options.out.parent / "vocab.txt"
    try:
        vocabulary.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
        text = json.dumps(config(ARCHITECTURE), indent=2) + "\n"
        options.out.with_name(OPEN_CLIP).write_text(text, encoding="utf-8")
        model = pretrain(options, WordTokenizer.from_file(vocabulary))
        state = {key: value.detach().half().contiguous() for key, value in model.state_dict().items()}
        settings = {key: str(value) for key, value in asdict(options).items() if key != "out"}
        command = "python -m tvrbench.datasets.standin.pretrain --out " + options.out.name
        command += "".join(f" --{key} {value}" for key, value in settings.items())
        options.out.write_bytes(save(state, metadata={"format": "pt", "command": command, **settings}))
    except OSError as error:
        message = f"--out {options.out} cannot be written ({error.strerror}); choose another file"
        raise UsageError(message, code="io.write", path=str(options.out)) from error


def main() -> None:
    """Run the command line; exit with 2 for bad input."""
    try:
        write_weights(tyro.cli(Pretraining, description=__doc__))
    except UsageError as error:
        print(f"pretrain: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
