"""The command line: its commands and their exit codes. A command is imported when it is asked for, torch when it runs.

Next to nothing is imported here, so that Ctrl-C finds ``main`` running and ends in a sentence.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

# Name: where the command is (module:name in this package), and the first sentence of its help. A function does its
# command; of a dataclass, ``run`` does.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "list": ("list_names:list_names", "List what is registered, including plug-ins."),
    "profile": (
        "profile:profile",
        "Costs that need no data: GMACs, parameters, tokens and GPU kernels of a method on a backbone.",
    ),
    "bench": (
        "bench:bench",
        "Throughput, latency, memory and speed-up of methods on this device, on synthetic videos.",
    ),
    "run": (
        "run:run",
        "Train, evaluate and measure methods under a protocol; write a record per run, then the report.",
    ),
    "sweep": (
        "sweep:sweep",
        "Do many runs from one file: those without a record, one at a time on every GPU; interrupted ones resume.",
    ),
    "report": ("report:report", "Write the report of a protocol, or of efficiency, again from its records alone."),
    "rescore": (
        "rescore:rescore",
        "Compute metrics again from the embeddings of tvrbench run --save-embeddings; needs no model and no data.",
    ),
    "visualize": (
        "visualize:Visualize",
        "Draw figures that need models and videos: patches that share a token, or queries on which two methods "
        "disagree.",
    ),
    "compare": (
        "compare:compare",
        "Explain what differs between two records, then compare their numbers, with intervals where queries are "
        "shared.",
    ),
    "export": (
        "export:export",
        "Write a run's trained checkpoint, its model card and its record into a folder in the layout of Hugging Face.",
    ),
    "check": (
        "check:Check",
        "Measure again and compare with a baseline file; exits with 1 if a metric moved or was not measured.",
    ),
    "data": ("data:data", "Download, verify and re-encode data sets, compare two copies, keep decoded frames."),
    "embed": ("embed:Embed", "Encode the videos below a folder into an index, which tvrbench search searches."),
    "search": (
        "search:Search",
        "Find the videos of a folder that are closest to words, a picture or a video.",
    ),
    "doctor": ("doctor:doctor", "Show what this machine has and lacks; exits with 1 where something is broken."),
}
DESCRIPTION = "Train, evaluate and measure efficient text-video retrieval methods under one protocol."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code of ``run_guarded``."""
    try:
        return _main(arguments)
    except KeyboardInterrupt:  # before run_guarded takes over
        sys.stderr.write("tvrbench: interrupted\n")
        return 130


def _main(arguments: Sequence[str] | None) -> int:
    import signal

    from tvrbench.harness.core.console import run_guarded

    # Before torch is imported: threads that wait by spinning slow a step tenfold as soon as another process needs the
    # same cores (measured on two cores), and cost next to nothing when they sleep instead.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Figures are files: the backend of a notebook or a desktop, perhaps not installed here, would end the import.
    os.environ["MPLBACKEND"] = "agg"
    code = run_guarded(lambda: _run(sys.argv[1:] if arguments is None else arguments))
    if arguments is None and code > 128:
        signal.signal(
            signal.SIGINT, signal.SIG_DFL
        )  # a second Ctrl-C ends the interpreter's own end, without traceback
    return code


def _run(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0] not in COMMANDS:
        import argparse

        parser = argparse.ArgumentParser(prog="tvrbench", description=DESCRIPTION, allow_abbrev=False)
        commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
        for name, (_, summary) in COMMANDS.items():
            commands.add_parser(name, help=summary, add_help=False)
        parser.parse_args(arguments)  # prints the help, or what is wrong, and exits
        return
    from importlib import import_module

    import tyro

    name, *rest = arguments
    module, _, attribute = COMMANDS[name][0].partition(":")
    function = getattr(import_module(f"{__package__}.{module}"), attribute)
    command = tyro.cli(function, prog=f"tvrbench {name}", args=rest, config=(tyro.conf.FlagCreatePairsOff,))
    if command is not None:
        command.run()
