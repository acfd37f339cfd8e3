"""The entries of ``docs/deviations.md``, from deviations.toml: each switch must exist and must not be the default."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from tvrbench.harness.config.protocol import load_protocol
from tvrbench.harness.config.recipe import Recipe
from tvrbench.harness.models.factory import load_model

ROOT = Path(__file__).parents[2]


class Deviation(BaseModel):
    """One difference; deviations.toml explains the fields.

    Raises:
        ValueError: there is neither a switch nor a reason, the switch does not exist, or it is the default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    area: Literal["Training", "Reducing tokens", "Counting", "Ranking", "Text", "Videos"]
    whose: str
    theirs: str
    ours: str
    switch: dict[str, Any] | None = None
    because: str | None = None
    effect: str | None = None
    source: str

    @model_validator(mode="after")
    def _check(self) -> Deviation:
        if not self.switch and not self.because:
            raise ValueError(f"{self.theirs!r} has neither a switch nor a reason")
        return self

    def __str__(self) -> str:
        switch = switch_text(self.switch) if self.switch else "none"
        reason = f"{'; ' if self.switch else ', because '}{self.because}" if self.because else ""
        effect = f"\n  - Measured effect: {self.effect}." if self.effect else ""
        return (
            f"- **{self.whose}** {self.theirs}.\n  - Ours: {self.ours}.\n"
            f"  - Switch: {switch}{reason}.{effect}\n  - Source: {self.source}.\n"
        )


def page(path: Path = ROOT / "docs" / "_build" / "deviations.toml") -> str:
    """Render every entry under the heading of its area."""
    entries = [Deviation(**entry) for entry in tomllib.loads(path.read_text(encoding="utf-8"))["deviation"]]
    areas = dict.fromkeys(entry.area for entry in entries)
    return "\n".join(f"## {area}\n\n" + "\n".join(str(e) for e in entries if e.area == area) for area in areas)


def switch_text(switch: Mapping[str, Any]) -> str:
    """Check that a switch exists and is not the default, and render it.

    Raises:
        ValueError: it does not exist, or it is the default.
    """
    match switch:
        case {"protocol": name}:
            exists, text = load_protocol(name).kind == "published", f"tvrbench run {name}"
        case {"method": method, "set": options}:
            changed = _options(method, **options)
            # An option may have another default beside the others.
            beside = {
                key: _options(method, **{other: options[other] for other in options if other != key}) for key in options
            }
            exists = all(getattr(beside[key], key) != value == getattr(changed, key) for key, value in options.items())
            text = " ".join([f"--methods {method}", *(f"--set {key}={value}" for key, value in options.items())])
        case {"recipe": field, "value": value}:
            exists = field in {known.name for known in dataclasses.fields(Recipe)}
            text = f'load_recipe(name, {{"{field}": {value}}})'
        case {"run": option, "value": value}:
            # A wide terminal, so that the option, its choices and its default are not broken apart.
            command, terminal = ["tvrbench", "run", "--help"], {**os.environ, "COLUMNS": "500"}
            help_text = subprocess.run(command, capture_output=True, text=True, env=terminal, check=True).stdout
            choices = re.search(rf"--{option} \{{(.+?)\}}.*?\(default: (\S+)\)", help_text, re.DOTALL)
            exists = choices is not None and value in choices[1].split(",") and value != choices[2]
            text = f"tvrbench run PROTOCOL --{option} {value}"
        case _:
            exists, text = False, str(switch)
    if not exists:
        raise ValueError(f"deviations.toml: the switch {text} does not exist, or it is the default")
    return f"`{text}`"


def _options(method: str, **options: Any) -> Any:
    model = load_model(method, backbone="ViT-B-32", weights="random:0", device="meta", **options)
    return model.spec.options
