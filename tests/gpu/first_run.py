"""First run on a GPU: what works there, and how fast, in steps with time limits of their own (docs/gpu.md).

    python tests/gpu/first_run.py [STEP ...] [--out gpu-first-run] [--device cuda] [--tiny] [--within SECONDS]

Nothing is installed or downloaded. What a step has found is on the disk when it ends or is ended.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tabulate import tabulate

HERE = Path(__file__).resolve().parent
PYTHON = [sys.executable, "-P"]
TVRBENCH = [*PYTHON, "-c", "import sys; from tvrbench.harness.cli.app import main; sys.exit(main())"]
ENDING_S = 10.0  # between the request to end and the end of a step that ran out of time


@dataclass(frozen=True)
class Step:
    """A command, its limit in seconds, and the file of the results that its standard output goes to, if any."""

    limit_s: int
    command: Sequence[str]
    stdout: str | None = None


def steps(out: Path, device: str, tiny: bool) -> dict[str, Step]:
    """Every step, in the order of what would be missed most. A trial (``tiny``) takes a tiny CLIP."""
    where = ["--device", device]
    full = ["--backbone", "ViT-B-32", "--batches", "32", "--precision", "bfloat16", "--repeats", "3"]
    small = ["--weights", str(out / "tiny.safetensors"), "--batches", "2", "--repeats", "1"]
    bench = [*where, *(small if tiny else full)]
    pytest = [*PYTHON, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(HERE)]
    run = ["run", "standin/uniform", *where, "--full-size-costs", "off"]

    def figures(name: str) -> list[str]:
        return [*PYTHON, str(HERE / "first_figures.py"), name, "--out", str(out), *where, *(["--tiny"] if tiny else [])]

    def folders(name: str) -> list[str]:
        return ["--results", str(out / name), "--reports", str(out / name / "reports")]

    several, two = (["lora"], "zero_shot") if tiny else (["lora", "tempme", "centerclip"], "tempme,centerclip")
    return {
        "facts": Step(120, [*TVRBENCH, "doctor", "--json", *(["--gpu"] if device == "cuda" else [])], "facts.json"),
        "tests": Step(300, [*pytest, "-k", "not energy and not nccl", "--junitxml", str(out / "tests.xml")]),
        "sweep": Step(480, figures("sweep")),
        "speedups": Step(240, figures("speedups")),
        "training": Step(300, figures("training")),
        "run": Step(240, [*TVRBENCH, *run, "--methods", two, *folders("run")]),
        "bench": Step(240, [*TVRBENCH, "bench", *several[:2], *bench, *folders("bench")]),
        "compiled": Step(420, [*TVRBENCH, "bench", *several, "--compile", *bench, *folders("compiled")]),
        "energy": Step(90, [*pytest, "-k", "energy"]),
        "nccl": Step(180, [*pytest, "-k", "nccl"]),  # by itself: a group that hangs takes no other step with it
    }


def carry_out(name: str, step: Step, limit_s: float, out: Path) -> dict[str, Any]:
    """Run a step's command in a session of its own, at most so long; how it ended, and after how many seconds.

    Output goes to ``NAME.log``. Whatever ends this program ends the step too.
    """
    start = time.monotonic()
    with (out / f"{name}.log").open("wb") as log, (out / (step.stdout or f"{name}.log")).open("ab") as answer:
        answer.truncate(0)
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(
            step.command, stdin=subprocess.DEVNULL, stdout=answer, stderr=log, env=environment, start_new_session=True
        )
        timed_out = False
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            _end(process)
    return _note(out, name, "out of time" if timed_out else f"exit {process.returncode}", time.monotonic() - start)


def _note(out: Path, name: str, end: str, seconds: float | None = None) -> dict[str, Any]:
    """Write down how a step ended and when, and say it; no seconds for one that did not end by itself or its limit."""
    ended = {"step": name, "end": end, "seconds": None if seconds is None else round(seconds)}
    with (out / "steps.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(ended) + "\n")
    print(f"{name}: {end}" + ("" if seconds is None else f" after {seconds:.0f} s"), flush=True)
    return ended


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a step and what it started: by SIGTERM, and by SIGKILL what is left ten seconds later."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(ENDING_S)
        except (ProcessLookupError, PermissionError):  # nothing of it is left; macOS says the latter
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def lines(out: Path, name: str) -> list[dict[str, Any]]:
    """The lines of ``NAME.jsonl``; one that was cut off in writing is left out."""
    file, found = out / f"{name}.jsonl", []
    for text in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return found


def bars(out: Path) -> list[tuple[str, str, str]]:
    """Every bar for an H100 or H200: its words, what was measured, and ``reached``, ``missed`` or ``not measured``."""
    speedups, swept = lines(out, "speedups"), lines(out, "sweep")
    found = []
    for backbone in ("ViT-B-32", "ViT-B-16"):
        best = _best(speedups, "speedup_reached", method="tempme", backbone=backbone)
        words = f"tempme on {backbone}, best batch: at least 90 % of the speed-up that its multiply-adds allow"
        found.append(_bar(words, best, "{:.0f} %", lambda share: share >= 90))
        best = _best(speedups, "speedup", method="centerclip", backbone=backbone)
        words = f"centerclip on {backbone}, best batch: faster than its baseline"
        found.append(_bar(words, best, "{:.2f}x", lambda ratio: ratio > 1))
    best = _best(swept, "share_of_peak", backbone="ViT-B-16", precision="bfloat16")
    words = "plain encoder on ViT-B-16: at least 40 % of the measured bfloat16 peak"
    found.append(_bar(words, best, "{:.0f} %", lambda share: share >= 40))
    for row in lines(out, "training"):
        if row["what"] == "claim":
            words = f"training memory within 5 points of {100 * row['claimed']:.0f} % of its baseline's"
            where = f"{row['method']} ({row['config']}) on {row['backbone']}, {row['frames']} frames"
            share, claimed = (None if "ratio" not in row else 100 * row["ratio"]), 100 * row["claimed"]
            found.append(_bar(f"{where}: {words}", share, "{:.0f} %", lambda s, c=claimed: abs(s - c) <= 5))
    return found


def _best(rows: Sequence[dict[str, Any]], key: str, **wanted: str) -> float | None:
    """The largest valid number of these rows; None where there is none."""
    mine = [r for r in rows if "invalid" not in r and all(r.get(name) == value for name, value in wanted.items())]
    return max((r[key] for r in mine if isinstance(r.get(key), float)), default=None)


def _bar(words: str, measured: float | None, form: str, reached: Callable[[float], bool]) -> tuple[str, str, str]:
    if measured is None:
        return words, "–", "not measured"
    return words, form.format(measured), "reached" if reached(measured) else "missed"


def summary(out: Path, trial: bool) -> str:
    """All that the files of the results say, as Markdown."""
    parts = ["# First run on a GPU", "", *_facts(out), "", "## Steps", "", _table(_ended(out)), "", "## Bars", ""]
    parts.append("For an H100 or H200; on another GPU they are for orientation." + " This is a trial." * trial)
    judged = [{"bar": bar, "measured": m, "verdict": "not judged" if trial else v} for bar, m, v in bars(out)]
    parts += ["", _table(judged) if judged else "No bar was measured.", "", *_invalid(out)]
    swept = lines(out, "sweep")
    encoding = ["method", "backbone", "precision", "throughput", "error_of", "peak_memory_allocated", "share_of_peak"]
    kernels = ["method", "backbone", "ms", "kernels", "kernel_ms", "graph_ms", "waits", "attention"]
    speedups = ["method", "backbone", "batch", "speedup", "allowed", "speedup_reached"]
    training = ["method", "backbone", "precision", "pairs", "step_time", "peak_memory_reserved"]
    for title, rows, columns in (
        ("Encoding, batch 32", [r for r in swept if r["what"] == "encoding"], encoding),
        ("Kernels in bfloat16, batch 32", [r for r in swept if r["what"] == "kernels"], kernels),
        ("Speed-ups in bfloat16", lines(out, "speedups"), speedups),
        ("Training steps", [r for r in lines(out, "training") if r["what"] == "step"], training),
    ):
        if rows:
            parts += ["", f"## {title}", "", _table([{c: _cell(r.get(c)) for c in columns} | _fault(r) for r in rows])]
    return "\n".join(parts) + "\n"


def _table(rows: Sequence[dict[str, Any]]) -> str:
    return tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4g", missingval="–")


def _cell(value: Any) -> Any:
    """Lists as one word or several, waits by their number."""
    return sum(value.values()) if isinstance(value, dict) else ", ".join(value) if isinstance(value, list) else value


def _fault(row: dict[str, Any]) -> dict[str, Any]:
    return {"fault": str(row.get("error") or row.get("invalid") or "")[:80]}


def _facts(out: Path) -> Iterator[str]:
    """A line for each finding of ``tvrbench doctor``."""
    try:
        findings = json.loads((out / "facts.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        findings = []
    for finding in findings:
        yield f"- {finding['state']}: {finding['what']}: {finding['detail']}"
    if not findings:
        yield "Nothing is known of the machine: the step `facts` gave no answer."


def _ended(out: Path) -> list[dict[str, Any]]:
    """How each step ended, its latest run counting; what the tests said, and how many figures failed."""
    found = {row["step"]: row for row in lines(out, "steps")}
    ends = {name: row["end"] for name, row in found.items()}
    for name in ends:
        if found[name]["seconds"] is not None and (figures := lines(out, name)):
            ends[name] += f": {len(figures)} figures, {sum('error' in row for row in figures)} failed"
    try:
        suites = [each.attrib for each in ElementTree.parse(out / "tests.xml").iter("testsuite")]  # our own file
        counts = {key: sum(int(suite[key]) for suite in suites) for key in ("tests", "failures", "errors", "skipped")}
        ends["tests"] += ": " + ", ".join(f"{count} {key}" for key, count in counts.items())
    except (OSError, KeyError, ElementTree.ParseError):
        counts = {}  # no tests, or tests that were ended
    return [{"step": name, "end": end, "s": found[name]["seconds"]} for name, end in ends.items()]


def _invalid(out: Path) -> Iterator[str]:
    """What the records that product commands made here mark as invalid, by reason."""
    paths = list(out.rglob("records/**/*.json"))
    costs = [cost for path in paths for cost in json.loads(path.read_text(encoding="utf-8")).get("cost", ())]
    reasons = [cost["conditions"]["invalid"] for cost in costs if "invalid" in cost.get("conditions", {})]
    yield f"{len(paths)} records, {len(costs)} measurements, {len(reasons)} of them invalid."
    yield from (f"- {reasons.count(reason)}: {reason}" for reason in sorted(set(reasons)))


def main() -> int:
    """Carry out the steps and write the summary; 0 where every step ended well, 1 otherwise, 130 or 143 if stopped."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument(
        "steps", nargs="*", metavar="STEP", help=f"all by default: {' '.join(steps(Path(), 'cuda', False))}"
    )
    ask.add_argument("--out", type=Path, default=Path("gpu-first-run"), help="folder of the results")
    ask.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu for a trial, with --tiny")
    ask.add_argument("--tiny", action="store_true", help="a trial on a tiny CLIP and three methods")
    ask.add_argument("--within", type=float, default=3600, metavar="SECONDS", help="limit of all steps together")
    given = ask.parse_args()
    out: Path = given.out.resolve()
    plan = steps(out, given.device, given.tiny)
    if unknown := [name for name in given.steps if name not in plan]:
        ask.error(f"unknown steps: {', '.join(unknown)}; there are {', '.join(plan)}")
    import torch  # slow, and --help needs none

    if given.device == "cuda" and not torch.cuda.is_available():
        ask.error("torch sees no GPU here, tvrbench doctor --gpu says why; for a trial without: --device cpu --tiny")
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    until, good = time.monotonic() + given.within, True
    try:
        for name in given.steps or plan:
            limit_s = min(plan[name].limit_s, until - time.monotonic())
            if limit_s < 1:
                _note(out, name, "no time left")
                good = False
                continue
            print(f"{name}: at most {limit_s:.0f} s ({out / name}.log) ...", flush=True)
            good = carry_out(name, plan[name], limit_s, out)["end"] == "exit 0" and good
    except (KeyboardInterrupt, SystemExit) as stop:
        _note(out, name, "stopped")
        return 143 if isinstance(stop, SystemExit) else 130
    finally:
        (out / "summary.md").write_text(summary(out, given.tiny or given.device == "cpu"), encoding="utf-8")
        print(f"summary: {out / 'summary.md'}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
