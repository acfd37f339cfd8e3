"""How a command ends: its exit code, and one sentence where it ends in an error that is the user's to mend."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from tvrbench.harness.core.errors import TvrbenchError
from tvrbench.harness.core.signals import Interrupted


def run_guarded(command: Callable[[], object]) -> int:
    """Run a command; where it ends in an error that is the user's to mend, print one sentence and no traceback.

    Returns:
        The exit code: 0 good, 1 a check or a run failed, 2 bad input, 130 Ctrl-C, 143 SIGTERM.
    """
    try:
        command()
    except BrokenPipeError:  # the reader of a pipe went away
        sys.stderr.close()
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _end(f"{where}{error.strerror or error}", 2)
    except TvrbenchError as error:
        return _end(f"{error} [{error.code}]" if error.code else str(error), error.exit_code)
    except Interrupted as stop:
        return _end(str(stop), stop.exit_code)
    except KeyboardInterrupt:
        return _end("interrupted", 130)
    return 0


def _end(sentence: str, code: int) -> int:
    """Say why the command ended; several processes of one run say which of them it was."""
    rank = os.environ.get("RANK", "0")
    who = "tvrbench" if rank == "0" else f"tvrbench (process {rank})"
    print(f"{who}: {sentence}", file=sys.stderr)
    return code
