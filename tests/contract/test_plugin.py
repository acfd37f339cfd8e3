"""The method of docs/adding-a-method.md works as a plug-in package would: registered by entry point, then run."""

from __future__ import annotations

import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch

from tvrbench.harness import load_model
from tvrbench.harness.core import registry
from tvrbench.harness.profiling.counts.flops import checked_macs

pytestmark = pytest.mark.contract
DOCUMENT = Path(__file__).parents[2] / "docs" / "adding-a-method.md"


@pytest.fixture
def _plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    code = re.search(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert code is not None
    assert code.group(1).count("\n") < 60
    (tmp_path / "my_package.py").write_text(code.group(1))
    monkeypatch.syspath_prepend(str(tmp_path))
    entry = EntryPoint(name="every_nth", value="my_package:EveryNth", group="tvrbench.methods")
    found = registry.entry_points

    def with_plugin(**wanted: str) -> Any:
        more = (entry,) if wanted.get("group") == "tvrbench.methods" else ()
        return (*found(**wanted), *more)

    monkeypatch.setattr(registry, "entry_points", with_plugin)
    registry._table.cache_clear()
    yield
    registry._table.cache_clear()
    sys.modules.pop("my_package", None)


@pytest.mark.usefixtures("_plugin")
def test_the_documented_method_is_registered_counted_and_run(tiny_weights: Path, tiny_batch: dict[str, Any]) -> None:
    assert "every_nth" in registry.names("methods")
    model = load_model("every_nth", weights=tiny_weights, n=2)
    assert model.tokens == [(12, 9)] * 12
    with torch.no_grad():
        together = model.encode_video(tiny_batch["frames"], tiny_batch["mask"])
        alone = model.encode_video(tiny_batch["frames"][:1], tiny_batch["mask"][:1])
        stream = model.video_tokens(tiny_batch["frames"], trace=True)
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-5)
    assert stream.origin is not None
    assert (stream.origin >= 0).float().mean() == 0.5
    assert checked_macs(model)["video"] < checked_macs(load_model("lora", weights=tiny_weights))["video"]
