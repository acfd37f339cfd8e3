"""Whether two runs of ``tvrbench bench`` agree within the spread that each reports of itself.

    tvrbench bench all --results first && tvrbench bench all --results second
    python tests/bench/bench_repeats.py first second

Figures are paired by method, options, backbone, name and batch. Two agree where their samples' 95 % intervals meet
(Student's t on the logarithm, as in the reports). Figures of one process know nothing of the pace that the machine had
in another, so only ratios can be expected to agree; the pace of both runs is printed. Figures that either run marked as
disturbed are counted apart. Counts (multiply-adds, tokens, parameters) must be equal, and the script fails where one is
not.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from tvrbench.harness.core.console import run_guarded
from tvrbench.harness.core.errors import CheckFailed
from tvrbench.harness.evaluation.statistics import repeats_interval
from tvrbench.harness.records.record import MeasurementDoc
from tvrbench.harness.records.store import RecordStore
from tvrbench.harness.reporting.data.records import stored_records

COUNTED = ("GMACs", "tokens", "parameters")
Key = tuple[Any, ...]


def figures(results: Path) -> dict[Key, MeasurementDoc]:
    """What the records of a folder hold, by what it is of."""
    return dict(_figures(results))


def _figures(results: Path) -> Iterator[tuple[Key, MeasurementDoc]]:
    for run in stored_records(RecordStore(results), "efficiency"):
        method = run.record["method"]
        of = (method["name"], json.dumps(method["options"], sort_keys=True), run.record["environment"]["device"])
        for m in run.record["cost"]:
            if m["value"] is not None:
                yield (*of, m["name"], m["conditions"].get("what"), m["conditions"].get("batch")), m


def meet(a: MeasurementDoc, b: MeasurementDoc) -> bool:
    """Whether the intervals have a point in common."""
    (a_low, a_high), (b_low, b_high) = repeats_interval(a["samples"]), repeats_interval(b["samples"])
    return a_low <= b_high and b_low <= a_high


def pace(found: dict[Key, MeasurementDoc]) -> str:
    """What the machine itself ran at before and after each process of a run."""
    paces = [p for m in found.values() for p in m["conditions"].get("pace_gmacs_per_s", {}).values()]
    return f"{min(paces):.0f} to {max(paces):.0f}, median {median(paces):.0f} GMACs/s" if paces else "not recorded"


def main() -> None:
    """Print a line for each kind of figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    arguments = parser.parse_args()
    first, second = figures(arguments.first), figures(arguments.second)
    shared = sorted(first.keys() & second.keys(), key=str)
    if not shared:
        raise CheckFailed(f"no figure is in both {arguments.first} and {arguments.second}", code="repeats.none")
    changed = [key for key in shared if first[key]["unit"] in COUNTED and first[key]["value"] != second[key]["value"]]
    counted = sum(first[key]["unit"] in COUNTED for key in shared)
    alone = len(first.keys() ^ second.keys())
    print(f"{counted} counts, {len(changed)} of them changed; {alone} figures in one run only\n")
    print(f"pace of the machine: {pace(first)}; {pace(second)}\n")
    sampled = [key for key in shared if min(len(first[key]["samples"]), len(second[key]["samples"])) > 1]
    print("| figure | pairs | intervals meet | median difference | largest | disturbed, left out |")
    print("|---|---|---|---|---|---|")
    for name in dict.fromkeys(key[3] for key in sampled):
        pairs = [(first[key], second[key]) for key in sampled if key[3] == name]
        valid = [(a, b) for a, b in pairs if "invalid" not in a["conditions"] and "invalid" not in b["conditions"]]
        apart = [abs(b["value"] / a["value"] - 1) for a, b in valid if a["value"] and b["value"]]
        spread = f"{100 * median(apart):.1f} % | {100 * max(apart):.1f} %" if apart else "– | –"
        agree = sum(meet(a, b) for a, b in valid)
        print(f"| {name} | {len(valid)} | {agree} | {spread} | {len(pairs) - len(valid)} |")
    if changed:
        names = ", ".join(str(key[:4]) for key in changed)
        raise CheckFailed(f"counts changed between two runs: {names}", code="repeats.counts")


if __name__ == "__main__":
    sys.exit(run_guarded(main))
