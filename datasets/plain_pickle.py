"""Read a pickle that holds nothing but dictionaries, lists, tuples and strings, and run nothing in it.

A pickle is a program. Here its instructions are read one by one (`pickletools` only takes them apart), and those few
that build plain containers and strings are carried out; any other, above all the ones that import or call something,
is refused by name. Nothing is allocated by what the file only claims.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any

from tvrbench.harness.core.errors import UsageError

_MAX_STEPS = 10_000_000  # the published captions take 1.5 million; each may cost 64 bytes of memory
_MARK = object()  # what `(` puts on the stack, to be found again by the instruction that gathers what follows


class _Machine:
    """The stack and the memory of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def take(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise ValueError("it takes more from its stack than is there")
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
            raise ValueError("it appends to what is no list")
        target.extend(values)

    def fill_dict(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError("it sets items of what is no dictionary")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str):
                raise ValueError("a key of a dictionary is no string")
            if key in target:
                raise ValueError(f"the key {key!r:.60} stands twice")
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
    # Python 2 wrote its strings as bytes, which pickletools hands over as Latin-1.
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
    """What the pickle holds: dictionaries with string keys, lists, tuples and strings in each other.

    One container may stand in many places of the result, or in itself: walk it to a fixed depth only.

    Raises:
        UsageError: the pickle is damaged, or holds anything else; nothing in it has been run.
    """
    machine = _Machine()
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if step > _MAX_STEPS:
                raise UsageError(f"{where} is too long a pickle ({_MAX_STEPS:,} instructions) for captions")
            if opcode.name == "STOP":
                (result,) = machine.stack
                return result
            action = _ACTIONS.get(opcode.name)
            if action is None:
                raise UsageError(
                    f"{where} holds more than plain containers and strings (the instruction {opcode.name}), so it is "
                    f"not opened; put the published file there"
                )
            action(machine, argument)
    except UsageError:
        raise
    except KeyError as error:
        raise UsageError(
            f"{where} is not a valid pickle (it takes {error} from its memory, which holds none)"
        ) from error
    except (ValueError, IndexError, StopIteration, RuntimeError, UnicodeError, MemoryError) as error:
        raise UsageError(f"{where} is not a valid pickle ({error or type(error).__name__})") from error
    raise UsageError(f"{where} is not a valid pickle (it does not end)")
