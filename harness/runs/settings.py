"""Options of ``run`` and ``sweep``, each once, with its help. Imports nothing heavy."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Fixed, Positional, Suppress, arg

from tvrbench.harness.config.grid import parse_grid
from tvrbench.harness.config.protocol import Activation
from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.core.options import (
    REPORTS,
    RESULTS,
    Assignments,
    Bytes,
    Device,
    GridTexts,
    Json,
    Names,
    Numbers,
    format_bytes,
    parse_assignments,
)

# Fields of ``RunSettings`` that are no option, and those that choose the runs or what is done with them.
_NO_OPTION = ("protocol", "refuse_other_states", "videos_checked", "command")
_CHOICE = ("methods", "seeds", "dry_run", "as_json")


@dataclass(frozen=True, kw_only=True)
class ExecutionSettings:
    """How a command carries out its runs. Nothing here affects results beyond rounding, but for the videos skipped.

    Attributes:
        device: Where to run; auto takes a GPU if there is one, and a sweep takes all of them.
        results: Folder of the records.
        reports: Folder of the reports.
        skip_bad_videos: Run without the videos that cannot be decoded; records list them.
        save_interval_min: Minutes between two saves of the training state; the end of every epoch is saved too.
        micro_batch_size: Micro-batch size for gradient caching (default: full batch, or on a GPU what fits its free
            memory). Gradients stay exact.
        memory_limit: Memory that training may use on the device, for example 8GB: trials find the largest micro-batch
            under it.
        tensorboard: Write TensorBoard events beside the log.
        deterministic: Repeat bit for bit on a GPU too, more slowly; an operator that cannot ends the run.
        dry_run: Print the plan (steps, disk, estimated hours on this device) and stop.
    """

    device: Device = "auto"
    results: Path = RESULTS
    reports: Path = REPORTS
    skip_bad_videos: bool = False
    save_interval_min: float = 10.0
    micro_batch_size: int | None = None
    memory_limit: Bytes = None
    tensorboard: bool = False
    deterministic: bool = False
    dry_run: bool = False
    as_json: Json = False

    def __post_init__(self) -> None:
        if self.micro_batch_size is not None and self.memory_limit is not None:
            raise UsageError(
                "--micro-batch-size and --memory-limit exclude each other: the second finds the first; give one",
                code="option.exclusive",
            )
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise UsageError(
                f"--micro-batch-size {self.micro_batch_size}: give at least 1",
                code="option.range",
                name="micro-batch-size",
            )
        if not self.save_interval_min >= 0:
            raise UsageError(
                "--save-interval-min: give minutes, 0 to save after every step",
                code="option.range",
                name="save-interval-min",
            )


@dataclass(frozen=True, kw_only=True)
class RunSettings(ExecutionSettings):
    """One ``tvrbench run``.

    Attributes:
        protocol: For example msrvtt-1ka-9k/uniform or standin/uniform (tvrbench list protocols), or the path of a
            protocol file of your own, which ends in .toml.
        methods: Names separated by commas, or all for every registered one (default: the protocol's own, or else the
            default set, which tvrbench list methods shows).
        seeds: Whole numbers separated by commas (default: the protocol's own).
        data: Folder of the data set: annotations and a folder videos. The embedded one needs none.
        backbone: A backbone instead of the protocol's; the protocol's name then says so.
        weights: CLIP weights instead of the protocol's: openai, an open_clip tag, a file or a folder, random:SEED, or a
            data set that ships weights, for example standin.
        activation: Activation of CLIP weights or of a checkpoint, where no config says it or the config is wrong.
        checkpoint: A trained model to score with --eval-only: of runs/checkpoints, a folder of tvrbench export, or a
            state dict released by a paper's code (then name its --methods).
        eval_only: Score the --checkpoint on the protocol's test split; train nothing.
        checkpoint_selection: The checkpoint to report; best-on-test looks at the test set in training and is flagged
            everywhere.
        assignments: A method option for every method of this run, for example --set r=2.
        grid: Values of a method option, for example --grid r=1,2,4; every combination with further --grid options is a
            run. Commas inside brackets separate no values: --grid "blocks=(3,6,9),(2,5)" has two. It takes the place of
            the protocol's own grid.
        frame_captions: A JSON file of one caption per frame of every training pair, for methods whose training takes
            them; see docs/training.md.
        full_size_costs: What the methods cost on full-size ViT-B/32 and ViT-B/16: count (GMACs, tokens, parameters),
            time (minutes per method on a CPU), or off; auto times on a GPU, counts on a CPU, and is off with
            --eval-only and over a grid.
        single_process: Ignore the variables of torchrun (RANK, WORLD_SIZE, ...), for example those that a cluster left.
        no_timing: Leave out the measurements of time and memory.
        no_report: Leave the report as it is.
        resume: Resume an interrupted command. Completed runs are skipped.
        skip_existing: Skip completed runs; start interrupted ones again.
        save_embeddings: Keep the features of the test split under runs/embeddings, for tvrbench rescore.
        refuse_other_states: With resume, stop if another run of the same method and seed was interrupted.
        videos_checked: The caller has decoded the videos to check them.
        command: The command of the records; the one typed by default.
    """

    protocol: Annotated[Positional[str], arg(metavar="PROTOCOL")]
    methods: Names = ()
    seeds: Numbers = ()
    data: Path | None = None
    backbone: str | None = None
    weights: str | None = None
    activation: Activation | None = None
    checkpoint: Path | None = None
    eval_only: bool = False
    checkpoint_selection: Literal["last", "best-on-test"] = "last"
    assignments: Assignments = ()
    grid: GridTexts = ()
    frame_captions: Path | None = None
    full_size_costs: Literal["auto", "count", "time", "off"] = "auto"
    single_process: bool = False
    no_timing: bool = False
    no_report: bool = False
    resume: bool = False
    skip_existing: bool = False
    save_embeddings: bool = False
    refuse_other_states: Suppress[Fixed[bool]] = True
    videos_checked: Suppress[Fixed[bool]] = False
    command: Suppress[Fixed[str | None]] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if both := sorted(self.options.keys() & self.grid_values.keys()):
            message = (
                f"{both[0]} is in --set and in --grid: --set gives one value, --grid several; leave one of them out"
            )
            raise UsageError(message, code="grid.and-set", option=both[0])
        if self.eval_only and self.checkpoint is None:
            raise UsageError(
                "--eval-only scores a trained checkpoint: give its file with --checkpoint FILE",
                code="eval-only.no-checkpoint",
            )
        if self.checkpoint is None:
            return
        if not self.eval_only:
            raise UsageError(
                "--checkpoint FILE needs --eval-only, which scores it: a run always trains from the protocol's weights",
                code="eval-only.missing",
            )
        if self.checkpoint_selection != "last":
            raise UsageError(
                f"--checkpoint-selection {self.checkpoint_selection} is a choice in training, and --eval-only trains "
                "nothing: leave one of them out",
                code="eval-only.selection",
            )
        if self.frame_captions is not None:
            raise UsageError(
                "--frame-captions is read in training, and --eval-only trains nothing: leave one of them out",
                code="eval-only.frame-captions",
            )
        if len(self.seeds) > 1:
            raise UsageError(
                "--checkpoint FILE is scored once: give no --seeds, or one to file the record under",
                code="eval-only.seeds",
            )

    @property
    def options(self) -> dict[str, Any]:
        """The method options of ``--set``."""
        return parse_assignments(self.assignments)

    @property
    def grid_values(self) -> dict[str, tuple[Any, ...]]:
        """The values of ``--grid``, by option."""
        return parse_grid(self.grid)

    @property
    def command_of_any_run(self) -> str:
        """The command with these settings, quoted for a shell, but for its methods, its seeds and ``--dry-run``."""
        words = ["tvrbench", "run", self.protocol]
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name not in (*_NO_OPTION, *_CHOICE) and value != each.default:
                words += _option_words(each.name, value)
        return shlex.join(words)


def _option_words(name: str, value: Any) -> list[str]:
    """The words that give an option this value."""
    option = f"--{name.replace('_', '-')}"
    if name in ("assignments", "grid"):
        option = "--set" if name == "assignments" else option
        return [word for text in value for word in (option, text)]
    if value is True:
        return [option]
    return [option, format_bytes(value) if name == "memory_limit" else str(value)]


@dataclass(frozen=True, kw_only=True)
class SweepSettings(ExecutionSettings):
    """One ``tvrbench sweep``.

    Attributes:
        file: Lists of protocols, methods, seeds and backbones; every combination is a run. See docs/training.md.
        slurm: Submit a job per run to a SLURM cluster, with the parameters of the file's table slurm.
    """

    file: Annotated[Positional[Path], arg(metavar="FILE.toml")]
    slurm: bool = False
