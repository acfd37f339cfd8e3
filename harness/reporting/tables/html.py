"""Pages of HTML in which names, captions and messages of others are text, and a policy that lets nothing else run."""

from __future__ import annotations

import base64
import hashlib
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from tvrbench.harness.reporting.tables.markdown import one_line


def html_templates() -> jinja2.Environment:
    """The report's templates, escaped as HTML wants it; control and direction characters become spaces."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tvrbench.harness.reporting"),
        autoescape=True,
        finalize=lambda value: value if isinstance(value, Markup) else one_line(value),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"quoted": quote}
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "allow_nan": False}
    return environment


def data_uri(data: bytes, kind: str = "image/png") -> str:
    """A picture as an address that needs no file."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def source_hash(text: str) -> str:
    """What a content security policy names an inline script or style by."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"
