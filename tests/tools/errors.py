"""``raises``: assert an error's code and facts, never its wording; one snapshot test holds that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tvrbench.harness.core.errors import TvrbenchError, UsageError


@contextmanager
def raises(
    code: str, kind: type[TvrbenchError] = UsageError, **fields: Any
) -> Iterator[pytest.ExceptionInfo[TvrbenchError]]:
    """Expect an error of this kind with this code, and of its fields those given."""
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    assert error.code == code, f"{error.code!r}: {error}"
    assert {name: error.fields.get(name) for name in fields} == fields
