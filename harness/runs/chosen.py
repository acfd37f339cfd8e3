"""Which methods a command runs: those that it names, all of them, or a default."""

from __future__ import annotations

from collections.abc import Sequence

from tvrbench.harness.config.protocol import Protocol
from tvrbench.harness.core import registry
from tvrbench.harness.core.errors import UsageError


def chosen_methods(given: Sequence[str], protocol: Protocol) -> tuple[str, ...]:
    """The methods of a command under a protocol.

    Args:
        given: by the user: names, ``all`` alone for everything registered, or nothing for the default, which is the
            protocol's own methods, or else those whose card says ``by_default``.
        protocol: that they run under.

    Raises:
        UsageError: ``all`` beside a name.
    """
    named = tuple(given) or protocol.methods
    if registry.ALL in named and len(named) > 1:
        message = f"methods: {registry.ALL} is every registered method: leave the others out"
        raise UsageError(message, code="option.all-and-others")
    if registry.ALL in named:
        return tuple(registry.names("baselines", "methods"))
    return named or tuple(registry.matching("baselines", "methods", by_default=True))


def are_named(given: Sequence[str], protocol: Protocol) -> bool:
    """True if the user or the protocol names the methods one by one."""
    named = tuple(given) or protocol.methods
    return bool(named) and registry.ALL not in named


def what_is_left(given: Sequence[str], protocol: Protocol, how: str) -> str | None:
    """Say what a default leaves out, and ``how`` to run all; None where the user chose, or nothing is left out."""
    chosen = chosen_methods(given, protocol)
    left = [name for name in registry.names("baselines", "methods") if name not in chosen]
    if given or not left:
        return None
    if protocol.methods:
        return f"methods: those of this protocol, {', '.join(chosen)}; {how} runs every registered one"
    return f"methods: the default set; {how} also runs {', '.join(left)}"
