"""Whether the scores of a run compare with published ones, and those of several runs with each other; if not, why.

Every verdict, rank, test and best value asks here first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import mode
from typing import Any

from tvrbench.harness.config.known_weights import OPENAI_WEIGHTS
from tvrbench.harness.config.protocol import Protocol, shipped_protocol
from tvrbench.harness.core import registry
from tvrbench.harness.records.reading import USUAL_READING, USUAL_TOKENIZER, unusual_reading
from tvrbench.harness.records.record import Record, trained
from tvrbench.harness.records.store import LAST

RULES = ("protocol-unknown", "protocol-hash")
"""Codes of runs under other rules than a shipped protocol's."""
ALWAYS = (
    "test-videos-missing",
    "training-videos-missing",
    "test-captions-missing",
    "training-captions-missing",
    "frame-captions",
    "weights-random",
)
"""Codes that a reader must know even where no paper has numbers for the data."""
OWN_REASONS = ("selection", "weights-random")
"""Codes of rows that compare with no row, whatever the others are."""

Facts = Mapping[str, str | None]


@dataclass(frozen=True)
class Reason:
    """Why something is not compared: a stable code, and the words for people."""

    code: str
    text: str


def shortfalls(record: Record) -> list[Reason]:
    """Return what keeps a run from being set beside any published number; a stand-in's weights and split are its own.

    What old records do not hold is taken from the shipped protocol of their name.
    """
    name = record["protocol"]["name"]
    protocol = shipped_protocol(name)
    found = [*_missing_videos(record, protocol), *_weights(record, protocol)]
    if protocol is None:
        found.append(Reason("protocol-unknown", f"{name} is not a protocol of this benchmark"))
    elif protocol.weights == "openai":
        found += [*_other_split(record, protocol), *_other_rules(record, protocol)]
    if trained(record) and record["data"].get("frame_captions", "none needed") is None:
        found.append(Reason("frame-captions", "no frame captions in training, and so no losses on them"))
    if record["status"] != "completed":
        found.append(Reason("failed", "the run failed"))
    return found


def set_apart(rows: Sequence[Sequence[Record]]) -> list[Reason | None]:
    """Return for each row of runs why it is compared with no other row; None for those that compare with each other.

    The rows that share all of ``_SHARED`` with most others, where it is known, are compared with each other; of two
    groups of one size those with most test videos.
    """
    facts = [[_facts(record) for record in row] for row in rows]
    reasons = [_own_reason(row, own) for row, own in zip(rows, facts, strict=True)]
    usable = [(own[0], row[0]) for row, own, reason in zip(rows, facts, reasons, strict=True) if reason is None]
    if not usable:
        return reasons

    def alike(one: tuple[Facts, Record]) -> tuple[int, int]:
        same = sum(_differing(one[0], other) is None for other, _ in usable)
        return same, _count(one[1]["data"], "test_videos") or 0

    usual = dict(max(usable, key=alike)[0])
    for code in [code for code, value in usual.items() if value is None]:  # as most rows have it that know it
        known = [own[code] for own, _ in usable if own[code] is not None and _differing(usual, own) is None]
        usual[code] = mode(known) if known else None
    return [
        reason or next((found for one in own if (found := _differing(usual, one)) is not None), None)
        for own, reason in zip(facts, reasons, strict=True)
    ]


def reasons_between(one: Record, other: Record) -> list[Reason]:
    """Return why two runs do not compare: what keeps either from comparing at all, else each fact they do not share."""
    facts = [_facts(record) for record in (one, other)]
    own = [_own_reason([record], [its]) for record, its in zip((one, other), facts, strict=True)]
    return [reason for reason in own if reason is not None] or list(_differences(*facts))


def _facts(record: Record) -> Facts:
    return {code: fact(record) for code, (_, fact) in _SHARED.items()}


def _initial_weights(record: Record) -> str | None:
    sha256 = record["weights_sha256"]
    return sha256 and OPENAI_WEIGHTS.get(sha256, sha256)


def _reading(record: Record, *names: str) -> str:
    """How the weights were read, in these respects; an old record was read in the usual way."""
    section = record.get("weights", {})
    return str([section.get(name, USUAL_READING[name]) for name in names])


def _tokenizer(record: Record) -> str | None:
    """The tokenizer; an old record of other weights than OpenAI's does not tell it."""
    usual = USUAL_TOKENIZER if record["weights_sha256"] in OPENAI_WEIGHTS else None
    return _text(record.get("weights", {}).get("tokenizer", usual))


def _split(record: Record, fingerprint: str, kind: str) -> str | None:
    """A split as used, by fingerprint and size; None where its fingerprint is not recorded."""
    data = record["data"]
    return None if data.get(fingerprint) is None else f"{data[fingerprint]} {data.get(f'{kind}_videos')}"


def _text(value: object) -> str | None:
    return None if value is None else str(value)


_SHARED: Mapping[str, tuple[str, Callable[[Record], str | None]]] = {
    "split": ("tested on other videos or captions", lambda r: _split(r, "split_fingerprint", "test")),
    "order": (
        "lists its test captions in another order",
        lambda r: _text(r["data"].get("order_fingerprint")),
    ),
    "weights": ("started from other weights", _initial_weights),
    "weights-activation": ("ran its weights with another activation", lambda r: _reading(r, "activation")),
    "weights-normalization": ("normalized its frames in another way", lambda r: _reading(r, "mean", "std")),
    "weights-tokenizer": ("read its captions with another tokenizer", _tokenizer),
    "backbone": ("has another backbone", lambda r: _text(r["method"]["options"].get("backbone"))),
    "frame-count": ("has another number of frames", lambda r: _text(r["method"]["options"].get("frames"))),
    "training-videos": (
        "trained on other videos or captions",
        lambda r: _split(r, "train_fingerprint", "train") if trained(r) else None,
    ),
    "frames": ("saw other decoded frames", lambda r: r["data"]["frames_fingerprint"]),
}
"""What rows must share to be compared, by code: the words for a row that differs, and how a record has it."""


def _differences(one: Facts, other: Facts) -> Iterator[Reason]:
    """The facts that both know and do not share."""
    for code, (text, _) in _SHARED.items():
        if None not in (one[code], other[code]) and one[code] != other[code]:
            yield Reason(code, text)


def _differing(one: Facts, other: Facts) -> Reason | None:
    return next(_differences(one, other), None)


def _own_reason(records: Sequence[Record], facts: Sequence[Facts]) -> Reason | None:
    """Why a row compares with no row at all."""
    if any(record["metrics"].get("selection", LAST) != LAST for record in records):
        return Reason("selection", "its checkpoint was chosen on the test set")
    if any(record["weights_sha256"] is None and "checkpoint" not in record for record in records):
        return Reason("weights-random", "weights are random")
    if any(one["split"] is None for one in facts):
        return Reason("split", "its test split is not recorded")
    mixed = next((found for one in facts if (found := _differing(facts[0], one)) is not None), None)
    return mixed and Reason(mixed.code, f"not all of its seeds are alike: one {mixed.text}")


def _count(data: Mapping[str, Any], key: str) -> int | None:
    value = data.get(key)
    return value if isinstance(value, int) else None


def _missing_videos(record: Record, protocol: Protocol | None) -> Iterator[Reason]:
    """Videos, or else captions, left out of each split.

    An old record names videos without their split, and counts those of the test.
    """
    data, skipped = record["data"], len(record["data"]["skipped"])
    tested, whole = _count(data, "test_videos"), _count(data, "test_videos_declared")
    if whole is None and protocol is not None:
        whole = protocol.test_videos
    missing = skipped if whole is None or tested is None else max(whole - tested, 0)
    counts = [("test", missing, whole)]
    if trained(record):
        used, whole = _count(data, "train_videos"), _count(data, "train_videos_declared")
        counts.append(("training", skipped - missing if whole is None or used is None else whole - used, whole))
    for kind, gone, whole in counts:
        if gone > 0:
            of = f" of {whole:,}" if whole else ""
            yield Reason(f"{kind}-videos-missing", f"{gone:,}{of} {kind} videos are missing")
            continue
        texts = "test_captions" if kind == "test" else "train_pairs"
        used, whole = _count(data, texts), _count(data, f"{texts}_declared")
        if used is not None and whole is not None and used < whole:
            text = f"{whole - used:,} of {whole:,} {kind} captions are missing"
            yield Reason(f"{kind}-captions-missing", text)


def _weights(record: Record, protocol: Protocol | None) -> Iterator[Reason]:
    sha256, backbone = record["weights_sha256"], record["method"]["options"].get("backbone")
    if "checkpoint" in record:
        return
    if sha256 is None:
        yield Reason("weights-random", "weights are random")
    elif protocol is None or protocol.weights != "openai":
        return
    elif OPENAI_WEIGHTS.get(sha256) != backbone:
        yield Reason("weights-unknown", f"weights are no known file of OpenAI's {backbone} (SHA-256 {sha256[:12]}…)")
    else:
        yield from _other_reading(unusual_reading(record))


def _other_reading(unusual: Mapping[str, Any]) -> Iterator[Reason]:
    """How OpenAI's weights were read where that is not OpenAI's way."""
    if "activation" in unusual:
        text = f"OpenAI's weights run with another activation ({unusual['activation']}, not QuickGELU)"
        yield Reason("weights-activation", text)
    if unusual.keys() & {"mean", "std"}:
        yield Reason("weights-normalization", "frames are normalized in another way than for OpenAI's weights")
    if "tokenizer" in unusual:
        yield Reason("weights-tokenizer", "captions are read with another tokenizer than CLIP's byte pairs")


def _other_split(record: Record, protocol: Protocol) -> Iterator[Reason]:
    """Splits other than the published ones; an old record with skipped videos does not tell the whole split."""
    data = record["data"]
    train = [("train", "train-split", protocol.train_split, "train_fingerprint")] * trained(record)
    for kind, code, name, used in (("test", "split", protocol.test_split, "split_fingerprint"), *train):
        published_splits = registry.declared(data["dataset"], "expected_fingerprints") or {}
        own, expected = data.get(f"{kind}_split", name), published_splits.get(name)
        whole = data.get(f"{kind}_fingerprint_declared", None if data["skipped"] else data.get(used))
        differs = None not in (whole, expected) and whole != expected
        if whole is None and data.get(used) is None:
            yield Reason(code, f"its {kind} split is not recorded")
        if own != name or differs or data.get(f"{kind}_split_published") is False:
            yield Reason(code, f"{kind} split {own} is not the published {name}")
    if _count(data, "test_videos") is None:
        yield Reason("split", "its number of test videos is not recorded")
    if (published := protocol.test_videos) is not None:  # None: the data sets of this protocol differ
        size = _count(data, "test_videos_declared") or max(_count(data, "test_videos") or 0, published)
        if size != published:
            yield Reason("split", f"the test split has {size:,} videos, the published {published:,}")


def _other_rules(record: Record, protocol: Protocol) -> Iterator[Reason]:
    """Another backbone or number of frames than the protocol's, or another hash, which covers words and recipes."""
    for code, wanted in (("backbone", protocol.backbone), ("frames", protocol.frames)):
        if (own := record["method"]["options"].get(code, wanted)) != wanted:
            yield Reason(code, f"run with {code} {own}, the protocol has {wanted}")
    if record["protocol"]["hash"] not in _hashes(protocol.name, record["weights_sha256"]):
        version = f"an earlier or changed version of protocol {protocol.name}"
        yield Reason("protocol-hash", f"recorded under {version} (protocol hash)")


@cache
def _hashes(protocol_name: str, weights_sha256: str | None) -> tuple[str, ...]:
    """The hashes of a shipped protocol on its own weights, and on weights given by file."""
    if (protocol := shipped_protocol(protocol_name)) is None:
        return ()
    return protocol.hash, replace(protocol, weights_sha256=weights_sha256 or "random").hash
