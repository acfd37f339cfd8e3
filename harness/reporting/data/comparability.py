"""Whether a run may be set beside a paper's number, and whether rows may be set beside each other; if not, why.

Every verdict, rank, test and best value asks here first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

from tvrbench.harness.config.known_weights import OPENAI_WEIGHTS
from tvrbench.harness.config.protocol import Protocol, shipped_protocol
from tvrbench.harness.core import registry
from tvrbench.harness.records.record import Record
from tvrbench.harness.records.store import LAST
from tvrbench.harness.reporting.papers.published import PublishedNumber

RULES = ("protocol-unknown", "protocol-hash")
"""Codes of runs under other rules than a shipped protocol's."""
OWN_REASONS = ("selection", "weights-random")
"""Codes of rows that compare with no row, whatever the others are."""


@dataclass(frozen=True)
class Reason:
    """Why something is not compared: a stable code, and the words for people."""

    code: str
    text: str


def shortfalls(record: Record) -> list[Reason]:
    """Return what keeps a run from being set beside any published number; a stand-in's weights and split are its own.

    What old records do not hold is taken from the shipped protocol of their name.
    """
    protocol = shipped_protocol(record["protocol"]["name"])
    found = [*_missing_videos(record, protocol), *_weights(record, protocol)]
    if protocol is None:
        name = record["protocol"]["name"]
        found.append(Reason("protocol-unknown", f"{name} is not a protocol of this benchmark"))
    elif protocol.weights == "openai":
        found += [*_other_split(record, protocol), *_other_rules(record, protocol)]
    if record["status"] != "completed":
        found.append(Reason("failed", "the run failed"))
    return found


def comparability(records: Iterable[Record], number: PublishedNumber) -> list[Reason]:
    """Return why a published number may not be judged by these runs (the seeds of a row); empty where it may."""
    found: dict[Reason, None] = {}
    for record in records:
        options, data = record["method"]["options"], record["data"]
        found |= dict.fromkeys(shortfalls(record))
        for code, key, wanted, unit in (
            ("backbone", "backbone", number.backbone, ""),
            ("frames", "frames", number.frames, " frames"),
        ):
            if wanted is not None and options.get(key) != wanted:
                found[Reason(code, f"run with {options.get(key)}{unit}, published with {wanted}{unit}")] = None
        trained, published = data.get("train_split"), number.train_split
        if published is not None and record["tuning"] != "frozen" and trained != published:
            found[Reason("train-split", f"trained on {trained} here, on {published} there")] = None
        if number.selection == LAST and record["metrics"].get("selection", LAST) != LAST:
            found[Reason("selection", "checkpoint chosen on the test set here, the last one there")] = None
    return list(found)


def set_apart(rows: Sequence[Sequence[Record]]) -> list[Reason | None]:
    """Return for each row of runs why it is compared with no other row; None for those that compare with each other.

    The rows that share test videos and captions, weights, backbone, number of frames, training videos and decoded
    frames (where known) with most others are compared with each other, those with most test videos where two groups
    are equally large.
    """
    facts = [[_conditions(record) for record in row] for row in rows]
    reasons = [_own_reason(row, conditions) for row, conditions in zip(rows, facts, strict=True)]
    usable = [conditions[0] for conditions, reason in zip(facts, reasons, strict=True) if reason is None]
    if not usable:
        return reasons
    usual = max(usable, key=lambda one: (_alike(one, usable), one["test-videos"])).copy()
    for key in [key for key, value in usual.items() if value is None]:
        known = Counter(one[key] for one in usable if one[key] is not None and _differing(usual, one) is None)
        usual[key] = known.most_common(1)[0][0] if known else None
    return [
        reason or next((r for one in conditions if (r := _differing(usual, one)) is not None), None)
        for conditions, reason in zip(facts, reasons, strict=True)
    ]


_DIFFERENT: Mapping[str, str] = {
    "split": "tested on other videos or captions",
    "weights": "started from other weights",
    "backbone": "has another backbone",
    "frame-count": "has another number of frames",
    "training-videos": "trained on other videos or captions",
    "frames": "saw other decoded frames",
}


def _conditions(record: Record) -> dict[str, Any]:
    """What rows must share, by code; None where not known."""
    data, options = record["data"], record["method"]["options"]
    sha256, weights = record["weights_sha256"], _weights_section(record)
    return {
        "split": data["split_fingerprint"],
        "weights": sha256 and (OPENAI_WEIGHTS.get(sha256, sha256), weights.get("activation")),
        "backbone": options.get("backbone"),
        "frame-count": options.get("frames"),
        "training-videos": None if record["tuning"] == "frozen" else data.get("train_fingerprint"),
        "frames": data["frames_fingerprint"],
        "test-videos": _count(data, "test_videos") or 0,
    }


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> Reason | None:
    """The first condition that both know and do not share."""
    for code, text in _DIFFERENT.items():
        if None not in (one[code], other[code]) and one[code] != other[code]:
            return Reason(code, text)
    return None


def _alike(one: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> int:
    return sum(_differing(one, other) is None for other in others)


def _own_reason(records: Sequence[Record], conditions: Sequence[Mapping[str, Any]]) -> Reason | None:
    """Why a row compares with no row at all."""
    if any(record["metrics"].get("selection", LAST) != LAST for record in records):
        return Reason("selection", "its checkpoint was chosen on the test set")
    if any(record["weights_sha256"] is None for record in records):
        return Reason("weights-random", "weights are random")
    if any(one["split"] is None for one in conditions):
        return Reason("split", "its test split is not recorded")
    mixed = next((r for one in conditions if (r := _differing(conditions[0], one)) is not None), None)
    return mixed and Reason(mixed.code, f"not all of its seeds are alike: one {mixed.text}")


def _count(data: Mapping[str, Any], key: str) -> int | None:
    value = data.get(key)
    return value if isinstance(value, int) else None


def _missing_videos(record: Record, protocol: Protocol | None) -> list[Reason]:
    """Videos left out of each split; old records name them without their split, so the test split's are counted."""
    data, skipped = record["data"], len(record["data"]["skipped"])
    whole, used = _count(data, "test_videos_declared"), _count(data, "test_videos")
    if whole is None and protocol is not None:
        whole = protocol.test_videos
    missing = skipped if whole is None or used is None else max(whole - used, 0)
    found = [("test", missing, whole)]
    if record["tuning"] != "frozen" and "checkpoint" not in record:
        whole, used = _count(data, "train_videos_declared"), _count(data, "train_videos")
        found.append(("training", skipped - missing if whole is None or used is None else whole - used, whole))
    return [
        Reason(f"{kind}-videos-missing", f"{n:,}{f' of {whole:,}' if whole else ''} {kind} videos are missing")
        for kind, n, whole in found
        if n > 0
    ]


def _weights(record: Record, protocol: Protocol | None) -> list[Reason]:
    sha256, named = record["weights_sha256"], str(record["method"]["options"].get("backbone"))
    if "checkpoint" in record:
        return []
    if sha256 is None:
        return [Reason("weights-random", "weights are random")]
    if protocol is None or protocol.weights != "openai":
        return []
    if OPENAI_WEIGHTS.get(sha256) != named:
        text = f"weights are no known file of OpenAI's {named} (SHA-256 {sha256[:12]}…)"
        return [Reason("weights-unknown", text)]
    if (activation := _weights_section(record).get("activation", "quick_gelu")) != "quick_gelu":
        return [Reason("weights-activation", f"OpenAI's weights run with {activation}, not QuickGELU")]
    return []


def _weights_section(record: Record) -> Mapping[str, Any]:
    """What newer records hold about the weights besides their SHA-256."""
    return cast(Mapping[str, Any], record).get("weights") or {}


def _other_split(record: Record, protocol: Protocol) -> list[Reason]:
    """Splits other than the published ones; an old record with skipped videos does not tell the whole split."""
    data, found = record["data"], []
    kinds = [("test", "split", protocol.test_split, "split_fingerprint")]
    if record["tuning"] != "frozen" and "checkpoint" not in record:
        kinds.append(("train", "train-split", protocol.train_split, "train_fingerprint"))
    for kind, code, name, used in kinds:
        own, expected = data.get(f"{kind}_split", name), _expected_fingerprint(data["dataset"], name)
        whole = data.get(f"{kind}_fingerprint_declared", None if data["skipped"] else data.get(used))
        differs = None not in (whole, expected) and whole != expected
        if own != name or differs or data.get(f"{kind}_split_published") is False:
            found.append(Reason(code, f"{kind} split {own} is not the published {name}"))
    size = _count(data, "test_videos_declared") or max(_count(data, "test_videos") or 0, protocol.test_videos)
    if not found and size != protocol.test_videos:
        found.append(Reason("split", f"the test split has {size:,} videos, the published {protocol.test_videos:,}"))
    return found


def _expected_fingerprint(dataset: str, split: str) -> str | None:
    if dataset not in registry.table("datasets"):
        return None
    return getattr(registry.lookup(dataset, "datasets"), "expected_fingerprints", {}).get(split)


def _other_rules(record: Record, protocol: Protocol) -> list[Reason]:
    """Another backbone or number of frames than the protocol's, or another hash, which covers words and recipes."""
    found = []
    for code, wanted in (("backbone", protocol.backbone), ("frames", protocol.frames)):
        if (own := record["method"]["options"].get(code, wanted)) != wanted:
            found.append(Reason(code, f"run with {code} {own}, the protocol has {wanted}"))
    if record["protocol"]["hash"] not in _hashes(protocol.name, record["weights_sha256"]):
        found.append(Reason("protocol-hash", f"run under other rules than {protocol.name} has now (protocol hash)"))
    return found


@cache
def _hashes(protocol_name: str, weights_sha256: str | None) -> tuple[str, ...]:
    """The hashes of a shipped protocol on its own weights, and on weights given by file."""
    if (protocol := shipped_protocol(protocol_name)) is None:
        return ()
    return protocol.hash, replace(protocol, weights_sha256=weights_sha256 or "random").hash
