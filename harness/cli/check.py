"""``tvrbench check``: measure again and compare with a baseline."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, get_args

from tyro.conf import arg

from tvrbench.harness.core.console import print_json, print_table, say
from tvrbench.harness.core.errors import CheckFailed, UsageError
from tvrbench.harness.core.options import Json, Names
from tvrbench.harness.regression.baseline import (
    Acceptance,
    Baseline,
    Row,
    Tier,
    Value,
    compare,
    read_baseline,
    tiers_of,
    write_baseline,
)


@dataclass(frozen=True, kw_only=True)
class Check:
    """Measure again and compare with a baseline file; exits with 1 if a metric moved or was not measured.

    Attributes:
        against: Baseline file, for example results/baselines/cpu-standin.json; --update-baseline makes a new one.
        tier: Tiers separated by commas: exact (counts and signatures), tight (R@k on the stand-in), loose (time and
            memory, as ratios), real (R@k on real data, with --data). Default: all in the file except real.
        records: Compare the records in this results folder instead of measuring.
        update_baseline: Accept the measured values into the baseline for this reason, which the file keeps.
        data: Folder of the data set of the tier real.
    """

    against: Path
    tier: Names = ()
    records: Path | None = None
    update_baseline: Annotated[str | None, arg(metavar="REASON")] = None
    data: Path | None = None
    as_json: Json = False

    def run(self) -> None:
        """Compare, or accept the new values.

        Raises:
            UsageError: a broken baseline, one made on a device that this machine lacks, or options that do not fit.
            CheckFailed: a metric moved beyond its margin or was not measured.
        """
        from tvrbench.harness.core.numerics import set_numerics
        from tvrbench.harness.records.provenance import source_revision
        from tvrbench.harness.regression.measure import from_store, measure, updated, with_current_protocols

        set_numerics()
        update = self.update_baseline is not None
        baseline = self._baseline()
        tiers = self._tiers(baseline)
        baseline = with_current_protocols(baseline, tiers, update=update)
        if self.records is None:
            measured = measure(baseline, tiers, update=update, data=self.data)
        else:
            measured = from_store(self.records, baseline, tiers)
        rows = compare(baseline, measured.values, tiers)
        failed = [row for row in rows if row.state in ("moved", "missing")]
        if self.update_baseline is not None:
            today, git_sha = datetime.now(UTC).date().isoformat(), source_revision()[0]
            note = Acceptance(date=today, reason=self.update_baseline, git_sha=git_sha)
            write_baseline(self.against, updated(baseline, measured, note))
        _print(rows, self.as_json)
        if update:
            say(f"{self.against}: {len(measured.values)} metrics accepted; {len(failed)} of {len(rows)} had moved")
            return
        if not rows:
            message = f"{self.against} holds nothing that can be compared this way"
            raise CheckFailed(message, code="check.empty", path=str(self.against))
        if failed:
            message = f"{len(failed)} of {len(rows)} metrics moved or were not measured (baseline {self.against})"
            raise CheckFailed(message, code="check.moved", keys=[row.key for row in failed])
        better = sum(row.state == "better" for row in rows)
        hint = f"; {better} are better: accept them with --update-baseline" if better else ""
        say(f"{len(rows)} metrics compared, none moved{hint}")

    def _baseline(self) -> Baseline:
        """The file's, or an empty one for a new file; made on a device that this machine has."""
        if self.update_baseline is not None and not self.update_baseline.strip():
            message = "--update-baseline needs a reason: --update-baseline 'why the numbers moved'"
            raise UsageError(message, code="check.reason")
        import torch

        here = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        if self.update_baseline is not None and not self.against.exists():
            return Baseline(device=here, standin=None, entries={}, accepted=[])
        baseline = read_baseline(self.against)
        if baseline.device not in ("cpu", here):
            message = f"the baseline was made on {baseline.device}, this machine has {here}: use one made here"
            raise UsageError(message, code="baseline.device", device=baseline.device, here=here)
        return baseline

    def _tiers(self, baseline: Baseline) -> list[Tier]:
        held, known, asked = tiers_of(baseline), get_args(Tier), self.tier
        if unknown := [tier for tier in asked if tier not in known]:
            message = f"--tier {unknown[0]}: known are {', '.join(known)}"
            raise UsageError(message, code="check.tier-unknown", tier=unknown[0])
        if self.update_baseline is None and (absent := [tier for tier in asked if tier not in held]):
            remedy = f"add it with --tier {absent[0]} --update-baseline REASON"
            message = f"{self.against} holds no tier {absent[0]}: {remedy}"
            raise UsageError(message, code="check.tier-absent", tier=absent[0])
        default = [tier for tier in held or ["exact", "tight"] if tier != "real"]
        tiers = [tier for tier in known if tier in (asked or default)]
        if self.records is None:
            if "real" in tiers and self.data is None:
                raise UsageError("--tier real needs its data set's folder: add --data DIR", code="check.data")
            return tiers
        say("--records compares stored records; leave it out to measure the exact tier")
        return [tier for tier in tiers if tier != "exact"]


def _print(rows: list[Row], as_json: bool) -> None:
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    if changed := [row for row in rows if row.state != "same"]:
        table = [[row.key, _short(row.baseline), _short(row.measured), row.margin, row.state] for row in changed]
        print_table(table, ["metric", "baseline", "measured", "margin", "state"])


def _short(value: Value) -> float | str | None:
    return " ".join(f"{s}x{n}" for s, n in value) if isinstance(value, list) else value
