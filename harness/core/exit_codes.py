"""Exit codes of commands, and one message without traceback for errors that the user can fix."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from tvrbench.harness.core.errors import TvrbenchError
from tvrbench.harness.core.signals import Interrupted


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
