"""Reads a pickle that contains only dictionaries, lists, tuples and strings, without running it.

A pickle is a program. `pickletools` takes its instructions apart; the few that build plain containers and strings are
carried out here, and any other, such as those that import or call, is refused by name. Sizes that the file only claims
allocate nothing.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

from tvrbench.datasets.annotations import malformed
from tvrbench.harness.core.errors import UsageError

_MAX_STEPS = 10_000_000  # the published captions need 1.5 million; each may cost 64 bytes of memory
_MARK = object()  # pushed by the instruction `(`; a later instruction collects everything above it


class _Machine:
    """Stack and memory of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def take(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise ValueError("it pops an empty stack")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def since_mark(self) -> list[Any]:
        at = next(i for i in reversed(range(len(self.stack))) if self.stack[i] is _MARK)
        taken = self.stack[at + 1 :]
        del self.stack[at:]
        return taken

    def remember(self, where: int) -> None:
        self.memory[where] = self.stack[-1]

    def fill_list(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError("it appends to something other than a list")
        target.extend(values)

    def fill_dict(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError("it sets items of something other than a dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str):
                raise ValueError("a key of a dictionary is not a string")
            if key in target:
                raise ValueError(f"the key {key!r:.60} is repeated")
            target[key] = value


def _new_dict(machine: _Machine, values: list[Any]) -> None:
    machine.push({})
    machine.fill_dict(values)


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda m, _: m.push(_MARK),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "DICT": lambda m, _: _new_dict(m, m.since_mark()),
    "LIST": lambda m, _: m.push(m.since_mark()),
    "TUPLE": lambda m, _: m.push(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.push(tuple(m.take(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.take(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.take(3))),
    "APPEND": lambda m, _: m.fill_list(m.take(1)),
    "APPENDS": lambda m, _: m.fill_list(m.since_mark()),
    "SETITEM": lambda m, _: m.fill_dict(m.take(2)),
    "SETITEMS": lambda m, _: m.fill_dict(m.since_mark()),
    "MEMOIZE": lambda m, _: m.remember(len(m.memory)),
    # Python 2 wrote its strings as bytes, which pickletools returns as Latin-1.
    **{name: lambda *_: None for name in ("PROTO", "FRAME")},
    **{name: lambda m, text: m.push(text) for name in ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")},
    **{
        name: lambda m, text: m.push(text.encode("latin-1").decode("utf-8"))
        for name in ("STRING", "BINSTRING", "SHORT_BINSTRING")
    },
    **{name: lambda m, where: m.remember(where) for name in ("PUT", "BINPUT", "LONG_BINPUT")},
    **{name: lambda m, where: m.push(m.memory[where]) for name in ("GET", "BINGET", "LONG_BINGET")},
}


def parse_plain_pickle(data: bytes, where: str) -> object:
    """Return the pickle's content: nested dictionaries with string keys, lists, tuples and strings.

    A container may occur in many places of the result, or in itself: walk it to a fixed depth only.

    Raises:
        UsageError: the pickle is damaged or contains anything else; nothing in it has been run.
    """
    machine = _Machine()
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if step > _MAX_STEPS:
                raise malformed(where, "pickle", f"the pickle has more than {_MAX_STEPS:,} instructions")
            if opcode.name == "STOP":
                (result,) = machine.stack
                return result
            if (action := _ACTIONS.get(opcode.name)) is None:
                message = f"{where} has the unsafe instruction {opcode.name}; replace it with the published file"
                raise UsageError(message, code="annotation.unsafe-pickle", where=where, instruction=opcode.name)
            action(machine, argument)
    except UsageError:
        raise
    except KeyError as error:
        raise malformed(where, "pickle", f"not a valid pickle (it reads the empty memory place {error})") from error
    except (ValueError, IndexError, StopIteration, RuntimeError, UnicodeError, MemoryError) as error:
        raise malformed(where, "pickle", f"not a valid pickle ({error or type(error).__name__})") from error
    raise malformed(where, "pickle", "not a valid pickle (it does not end)")
