"""``tvrbench list``."""

from __future__ import annotations

from typing import Any, Literal

from tyro.conf import Positional

from tvrbench.harness.core import registry
from tvrbench.harness.core.console import print_json, print_table
from tvrbench.harness.core.options import Json


def list_names(
    kind: Positional[Literal["methods", "baselines", "datasets", "protocols", "published"]], /, as_json: Json = False
) -> None:
    """List what is registered, including plug-ins.

    Args:
        kind: What to list; published lists the papers' results that tvrbench compare can test a run against.
    """
    from tvrbench.harness.config.protocol import load_protocol, protocol_names

    rows: list[dict[str, Any]]
    if kind == "protocols":
        rows = [{"name": name, "summary": load_protocol(name).title} for name in protocol_names()]
    elif kind == "published":
        from tvrbench.harness.reporting.papers.ranks import PREFIX, load_published_ranks, published_ranks

        results = [load_published_ranks(name) for name in published_ranks()]
        rows = [{"name": f"{PREFIX}{each.name}", "summary": each.title, "paper": each.paper} for each in results]
    elif kind == "datasets":
        rows = [{"name": name, "summary": registry.lookup(name, kind).summary} for name in registry.names(kind)]
    else:
        cards = {name: registry.lookup(name, kind).card for name in registry.names(kind)}
        rows = [
            {"name": name, "by_default": card.by_default, "summary": card.summary, "paper": card.paper}
            for name, card in cards.items()
        ]
    if as_json:
        print_json(rows)
    else:
        shown = [[{True: "yes", False: "no"}.get(value, value) for value in row.values()] for row in rows]
        print_table(shown, [name.replace("_", " ") for name in rows[0]] if rows else [])
