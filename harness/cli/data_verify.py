"""``tvrbench data verify``: what is wrong with a copy of a data set, and what missing test videos do to R@1."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvrbench.harness.cli.data_options import OnFrames, print_faults, progress_bar
from tvrbench.harness.core.console import print_json, print_table, say
from tvrbench.harness.core.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from tvrbench.harness.data.types import RetrievalDataset
    from tvrbench.harness.data.verify import VerifyReport
    from tvrbench.harness.evaluation.missing_videos import Ranking

NAMED = 5  # missing videos that are named; --missing-list writes all


@dataclass(frozen=True, kw_only=True)
class Verify(OnFrames):
    """Decode every video: report missing and broken ones, wrong durations, and the fingerprint of the frames.

    Where test videos are missing, it also says how far that moves R@1, by a run that has been scored on the split.

    Attributes:
        decoder: pyav, torchcodec or torchcodec-cuda; by default TVRBENCH_DECODER, or pyav.
        missing_list: Write the ids of missing videos to this file, one per line.
        force: Replace an existing file of --missing-list.
        report: JSON file for the facts of each video, for tvrbench data compare.
        embeddings: A file of tvrbench run --save-embeddings (default: the newest run in --results on the same split).
        results: Folder of the results (default: that of tvrbench run).
    """

    decoder: str | None = None
    missing_list: Path | None = None
    force: bool = False
    report: Path | None = None
    embeddings: Path | None = None
    results: Path | None = None

    def run(self) -> None:
        """Raise CheckFailed if a video is missing, broken, or has a wrong duration."""
        from tvrbench.harness.data.open import splits_of
        from tvrbench.harness.data.verify import check_writable, verify, write_missing, write_report

        spec, dataset = self.spec(decoder=self.decoder), self.open()
        if self.report is not None:
            check_writable(self.report, "--report")
        ranking = self._given_ranking(dataset)
        if (problem := self._list_problem()) is not None:
            say(f"{problem}; the videos are checked all the same")
        splits, hint = self.splits or splits_of(dataset), "nothing was written; run the same command to start again"
        with progress_bar(f"decoding videos of {self.dataset}", hint) as bar:
            result = verify(dataset, splits, spec=spec, progress=bar.reach)
        if self.report is not None:
            write_report(result, self.report)
        effects = self._effects(dataset, result, ranking)
        if self.as_json:
            print_json(result.summary() | {"missing_effect": effects})
        else:
            _print_report(result, self.missing_list)
            if options := getattr(dataset, "options_in_use", ()):
                print(f"a protocol file may share the videos out otherwise: [data_options] {', '.join(options)}")
            for effect in effects:
                _print_effect(effect)
        if self.report is not None:
            say(f"{self.report} describes every video; tvrbench data compare explains the differences of two reports")
        if problem is not None:
            raise problem
        if self.missing_list is not None:
            write_missing(result, self.missing_list)
        if not result.ok:
            counts = {name: len(getattr(result, name)) for name in ("corrupt", "missing", "wrong_duration")}
            parts = f"{counts['corrupt']} are corrupt, {counts['missing']} missing and {counts['wrong_duration']}"
            message = f"{self.dataset}: of {len(result.reports)} videos, {parts} of a wrong duration; replace them"
            raise CheckFailed(message, code="data.unusable-videos", dataset=self.dataset, **counts)

    def _list_problem(self) -> UsageError | None:
        """Why the list of missing videos cannot be written; None if it can, or is not wanted."""
        from tvrbench.harness.data.verify import check_writable

        path = self.missing_list
        if path is None:
            return None
        if path.is_file() and not self.force:
            message = f"--missing-list {path} exists already; choose another file, or replace it with --force"
            return UsageError(message, code="verify.list-exists", path=str(path))
        try:
            check_writable(path, "--missing-list")
        except UsageError as error:
            return error
        return None

    def _given_ranking(self, dataset: RetrievalDataset) -> Ranking | None:
        if self.embeddings is None:
            return None
        from tvrbench.harness.evaluation.missing_videos import ranking_of_embeddings

        return ranking_of_embeddings(self.embeddings, dataset)

    def _effects(self, dataset: RetrievalDataset, result: VerifyReport, given: Ranking | None) -> list[dict[str, Any]]:
        """What the unusable videos of each test split do to R@1, where a run tells."""
        test_splits = _test_splits(self.dataset) | ({given.split} if given else set())
        unusable = {s.name: s.missing + s.corrupt for s in result.splits if s.name in test_splits}
        effects = []
        for name, count in unusable.items():
            own = given if given is not None and given.split == name else None
            if count or own:
                effects.append(_effect(name, count, own or self._newest_ranking(dataset, name)))
        return effects

    def _newest_ranking(self, dataset: RetrievalDataset, split: str) -> Ranking | None:
        from tvrbench.harness.evaluation.missing_videos import newest_ranking
        from tvrbench.harness.runs.settings import ExecutionSettings

        try:
            return newest_ranking(self.results or ExecutionSettings.results, dataset, split)
        except UsageError as error:  # what is in the folder of results decides nothing here
            say(f"the effect on R@1 is left out: {error}")
            return None


def _print_report(result: VerifyReport, missing_list: Path | None) -> None:
    columns = ["split", "videos", "captions", "present", "missing", "corrupt", "wrong duration"]
    hashes = [[s.fingerprint[:12], s.frames_fingerprint and s.frames_fingerprint[:12]] for s in result.splits]
    rows = [[*list(asdict(s).values())[:7], *pair] for s, pair in zip(result.splits, hashes, strict=True)]
    print_table(rows, [*columns, "annotation", "frames"])
    for line in result.split_origin.lines() if result.split_origin else ():
        print(line)
    print_faults(result.corrupt)
    for video in result.wrong_duration:
        off, seconds = video.off_by_s or 0.0, video.facts["duration_s"]
        than = "longer" if off > 0 else "shorter"
        print(f"{video.path}: duration: {seconds:.1f} s, {abs(off):.1f} s {than} than annotated")
    if count := len(result.missing):
        first = ", ".join(result.missing[:NAMED]) + (", ..." if count > NAMED else "")
        how = "" if missing_list else "; --missing-list FILE writes all ids"
        print(f"{count} videos are missing in {result.root}: {first}{how}")


def _test_splits(dataset: str) -> set[str]:
    """The splits that some protocol scores."""
    from tvrbench.harness.config.protocol import load_protocol, protocol_names

    protocols = [load_protocol(name) for name in protocol_names()]
    return {protocol.test_split for protocol in protocols if protocol.dataset == dataset}


def _effect(split: str, unusable: int, ranking: Ranking | None) -> dict[str, Any]:
    """The effect as plain data; without a ranking, or if no video is left, only what is known."""
    known = {"split": split, "unusable": unusable}
    if ranking is None or unusable >= ranking.videos:
        return known | {"run": None, "file": None, "complete": None, "effect": None}
    from tvrbench.harness.evaluation.missing_videos import missing_effect

    effect = asdict(missing_effect(ranking.better_Q, ranking.caption_video, ranking.videos, unusable))
    return known | {"run": ranking.run, "file": str(ranking.path), "complete": ranking.complete, "effect": effect}


def _print_effect(found: dict[str, Any]) -> None:
    effect, split = found["effect"], found["split"]
    if effect is None:
        how = "keep the embeddings of a run (--save-embeddings), or name their file with --embeddings"
        print(f"{split}: {found['unusable']} unusable videos; to learn how far they move R@1, {how}")
        return
    r1, by = effect["r1"], f"by {found['run']} ({found['file']})"
    shift = f"{effect['expected_r1'] - r1:+.1f}, spread {effect['spread']:.1f}"
    if not found["complete"]:
        known = f"its R@1 {r1:.1f} on {effect['videos']:,} videos is already without some of the split"
        print(f"{split}: {effect['missing']} videos left out at random move R@1 by about {shift}, {by}; {known}")
    elif effect["missing"]:
        after = f"R@1 {r1:.1f} is expected to become {effect['expected_r1']:.1f} ({shift})"
        print(f"{split}: without {effect['missing']} videos at random, {after}, {by}")
    error = f"R@1 {r1:.1f} by one standard error ({effect['standard_error']:.1f})"
    print(f"{split}: {effect['limit'] or 'no number of'} missing videos move {error}, {by}")
