"""Output of commands and their exit codes: results on stdout, everything else, errors included, on stderr."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from tvrbench.harness.core.errors import TvrbenchError
from tvrbench.harness.core.signals import Interrupted, raising

_IN_ASCII = "tvrbench.in-ascii"
# Of the characters that our output and the parser's help draw with.
_ASCII = dict(zip("─━│┃╭╮╰╯┌┐└┘├┤┬┴┼•·×–—−…“”‘’µ", "--||+++++++++++++**x---.\"\"''u", strict=True)) | {
    "→": "->",
    "≥": ">=",
    "≤": "<=",
    "±": "+-",
    "⚠": "!",
}


def print_json(document: Any) -> None:
    """Print one JSON document on stdout, escaped where its encoding is not of Unicode."""
    escaped = not (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    print(json.dumps(document, indent=2, ensure_ascii=escaped, allow_nan=False))


def print_table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> None:
    """Print a plain table on stdout; a missing value is a dash."""
    from tabulate import tabulate  # takes as long to import as the rest of the command line

    print(tabulate(rows, headers=headers, tablefmt="simple", missingval="–"))


def say(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


def run_guarded(command: Callable[[], object]) -> int:
    """Run a command; for an error that the user can fix, print ``message [code]`` and no traceback.

    Returns:
        The exit code: 0 good, 1 a check or a run failed, 2 bad input, 128 + N a signal (130 Ctrl-C, 143 SIGTERM).
    """
    _make_printable()
    try:
        with raising():
            try:
                command()
            finally:
                sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe is gone
        return _end(None, 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _end(error, 2, f"{where}{error.strerror or error}")
    except TvrbenchError as error:
        return _end(error, error.exit_code, f"{error} [{error.code}]")
    except Interrupted as stop:
        return _end(stop, stop.exit_code)
    except KeyboardInterrupt as stop:
        return _end(stop, 130, "interrupted")
    return 0


def _end(error: BaseException | None, exit_code: int, message: str = "") -> int:
    """Print the message; ``error`` may carry the number of the process as a note."""
    note = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
    if error is not None:
        with suppress(OSError):  # stderr is gone: a closed pipe, or a terminal that hung up
            print(f"tvrbench{note}: {message or error}", file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # the interpreter flushes once more at its end, which would print a traceback
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return exit_code


def _make_printable() -> None:
    """Let both streams take any text: what their encoding lacks is printed in ASCII; a closed stream drops all."""
    codecs.register_error(_IN_ASCII, _in_ascii)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8"))
        elif isinstance(stream := getattr(sys, name), io.TextIOWrapper):
            stream.reconfigure(errors=_IN_ASCII)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """Replace what cannot be encoded; a handler of ``codecs``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in lacking), error.end
