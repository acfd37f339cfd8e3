"""Uploads to a hub that refuses, sends the client away or answers with what a terminal would obey."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import TOKEN, FakeHub, fake_hub

from tvrbench.harness.core.errors import UsageError
from tvrbench.harness.runs.hub import push_folder

pytestmark = pytest.mark.unit

FILES = ("README.md", "model.safetensors")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub() as made:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", made.address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).write_text("---\nlicense: mit\n---\n")
    return tmp_path


@pytest.mark.parametrize(
    ("part", "status"),
    [
        ("create", 401),
        ("create", 404),
        ("validate-yaml", 400),
        ("preupload", 403),
        ("lfs", 404),
        ("commit", 422),
        ("commit", 200),
        ("create", 200),
    ],
)
def test_a_message_has_neither_the_token_nor_the_words_of_the_hub(
    part: str, status: int, hub: FakeHub, folder: Path
) -> None:
    hub.fails = {part: status}
    with pytest.raises(UsageError) as refused:
        push_folder(folder, FILES, "me/model", private=False)
    message = str(refused.value)
    assert refused.value.code == ("hub.refused" if status >= 400 else "hub.unreachable")
    assert message.isprintable()
    assert TOKEN not in message
    assert "--license" in message or status != 400
    assert not hub.repositories.get("me/model")


def test_the_address_of_a_commit_is_text(hub: FakeHub, folder: Path) -> None:
    hub.address_of_commits = f"{hub.address}/me/model/commit/\x1b[31m"
    try:
        address = push_folder(folder, FILES, "me/model", private=False)
    except UsageError as refused:  # some versions of the client refuse it
        address = str(refused)
    assert address.isprintable()
