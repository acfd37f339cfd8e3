"""Output of commands and their exit codes: results on stdout, everything else, errors included, on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tabulate import tabulate

from tvrbench.harness.core.errors import TvrbenchError
from tvrbench.harness.core.signals import Interrupted


def print_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def print_table(rows: Sequence[Sequence[Any]], headers: Sequence[str]) -> None:
    """Print a plain table on stdout; a missing value is a dash."""
    print(tabulate(rows, headers=headers, tablefmt="simple", missingval="–"))


def say(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


def run_guarded(command: Callable[[], object]) -> int:
    """Run a command; for an error that the user can fix, print ``message [code]`` and no traceback.

    Returns:
        The exit code: 0 good, 1 a check or a run failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM.
    """
    try:
        command()
    except BrokenPipeError:  # the reader of a pipe is gone
        sys.stderr.close()
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _end(f"{where}{error.strerror or error}", 2)
    except TvrbenchError as error:
        return _end(f"{error} [{error.code}]", error.exit_code)
    except Interrupted as stop:
        return _end(str(stop), stop.exit_code)
    except KeyboardInterrupt:
        return _end("interrupted", 130)
    return 0


def _end(message: str, exit_code: int) -> int:
    rank = os.environ.get("RANK", "0")
    print(f"tvrbench{'' if rank == '0' else f' (process {rank})'}: {message}", file=sys.stderr)
    return exit_code
