"""The command line on any terminal: fast help, any encoding, closed streams, signals, variables of a notebook."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from records import make_record

from tvrbench.harness.cli.app import COMMANDS
from tvrbench.harness.core.options import REPORTS, RESULTS
from tvrbench.harness.records.store import RecordStore

pytestmark = pytest.mark.cli
PROGRAM = "import sys; from tvrbench.harness.cli.app import main; sys.exit(main())"
HEAVY = "torch numpy pandas pydantic jinja2 scipy matplotlib tabulate tyro"
ROOT = Path(__file__).parents[2]
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX streams and signals")


def tvrbench(
    *arguments: str, program: str = PROGRAM, folder: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LC_", "LANG"))} | variables
    command = [sys.executable, "-P", "-c", program, *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, timeout=120, check=False)


@pytest.fixture
def two_records(tmp_path: Path) -> list[str]:
    store = RecordStore(tmp_path)
    paths = [store.save(make_record(seed=seed) | {"tuning": tuning}) for seed, tuning in ((0, "full"), (1, None))]
    return [str(path) for path in paths]


def test_the_help_imports_nothing_heavy() -> None:
    program = f"""
import sys
from tvrbench.harness.cli.app import main
try:
    main(["--help"])
finally:
    assert not {{*{HEAVY.split()!r}}} & set(sys.modules), sys.modules.keys()
"""
    done = tvrbench(program=program)
    assert done.returncode == 0, done.stderr
    for name, (_, summary) in COMMANDS.items():
        assert name.encode() in done.stdout
        assert summary.split()[0].encode() in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_all_is_the_first_sentence_of_each(name: str) -> None:
    target, summary = COMMANDS[name]
    module, _, attribute = target.partition(":")
    function = getattr(import_module(f"tvrbench.harness.cli.{module}"), attribute)
    text = " ".join((inspect.getdoc(function) or "").split())
    assert text.startswith(summary)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_writes_and_looks_in_the_ignored_folder(name: str) -> None:
    module, _, attribute = COMMANDS[name][0].partition(":")
    function = getattr(import_module(f"tvrbench.harness.cli.{module}"), attribute)
    annotations = inspect.signature(function, eval_str=True).parameters
    settings = annotations["settings"].annotation.__origin__ if "settings" in annotations else function
    parameters = inspect.signature(settings).parameters
    for option, folder in (("results", RESULTS), ("reports", REPORTS)):
        assert option not in parameters or parameters[option].default == folder
    assert f"/{RESULTS.parts[0]}/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


SEVERAL = """
import json, sys
from tvrbench.harness.cli.app import main
for arguments in json.loads(sys.argv[1]):
    try:
        print("\\n====", main(arguments))
    except SystemExit as stop:
        print("\\n====", stop.code)
"""


@pytest.mark.parametrize(
    ("encoding", "variables"),
    [
        ("ascii", {"PYTHONIOENCODING": "ascii"}),
        pytest.param("latin-1", {"PYTHONIOENCODING": "latin-1"}, marks=pytest.mark.slow),
        pytest.param("cp437", {"PYTHONIOENCODING": "cp437"}, marks=pytest.mark.slow),
        ("utf-16", {"PYTHONIOENCODING": "utf-16"}),
        ("ascii", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    ],
)
def test_outputs_of_any_encoding(encoding: str, variables: dict[str, str], two_records: list[str]) -> None:
    commands = [["--help"], ["data", "--help"], ["compare", *two_records], ["compare", *two_records, "--json"]]
    done = tvrbench(json.dumps([*commands, ["report", "größe/→"]]), program=SEVERAL, **variables)
    assert done.returncode == 0, done.stderr
    assert b"Error" not in done.stderr
    out = done.stdout.decode(encoding)
    pages = out.replace("\r", "").split("\n==== ")
    assert [page.partition("\n")[0] for page in pages[1:]] == ["0", "0", "0", "0", "2"]
    assert "\\u25" not in pages[1]
    assert ("–" if encoding == "utf-16" else "-") in pages[2].split()
    assert set(json.loads(pages[3].partition("\n")[2])) >= {"a", "b", "metrics"}
    assert "[name.unsafe]" in done.stderr.decode(encoding)


@posix
@pytest.mark.parametrize(
    ("shell", "code"),
    [
        ("{} list methods >&-", 0),
        ("{} list methods 2>&- >&- <&-", 0),
        ("{} report nothing/here 2>&-", 2),
        ("{} report nothing/here >&-", 2),
        ("{} list methods | true; exit ${{PIPESTATUS[0]}}", 1),
        ("{} data --help | true; exit ${{PIPESTATUS[0]}}", 1),
        ("{} --help | true", 0),
    ],
)
def test_closed_streams(shell: str, code: int) -> None:
    program = f"{sys.executable} -P -c '{PROGRAM}'"
    done = subprocess.run(["bash", "-c", shell.format(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_stdout() -> None:
    command = [sys.executable, "-P", "-c", PROGRAM, "list", "methods"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


SIGNALED = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "{module}":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Finder())
from tvrbench.harness.cli.app import main
sys.exit(main())
"""


@posix
@pytest.mark.parametrize("module", ["tvrbench.harness.core.console", "tyro", "tvrbench.harness.cli.report", "numpy"])
def test_ctrl_c_at_any_import_ends_in_one_sentence(module: str) -> None:
    done = tvrbench("report", "a/b", program=SIGNALED.format(module=module, number=int(signal.SIGINT)))
    assert done.returncode == 130
    assert b"interrupted" in done.stderr
    assert b"Traceback" not in done.stderr


@posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_other_signals_say_so(name: str) -> None:
    number = int(getattr(signal, name))
    done = tvrbench("report", "a/b", program=SIGNALED.format(module="tvrbench.harness.cli.report", number=number))
    assert done.returncode == 128 + number
    assert done.stderr.decode().splitlines() == [f"tvrbench: interrupted by {name}"]


@posix
def test_nohup_stays_in_force() -> None:
    program = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)" + SIGNALED
    done = tvrbench("report", "a/b", program=program.format(module="tyro", number=int(signal.SIGHUP)))
    assert done.returncode == 2
    assert b"report.no-run" in done.stderr


FAULTY = """
import os, signal
from tvrbench.harness.core.console import run_guarded
def command():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except KeyboardInterrupt:
        raise {error}
raise SystemExit(run_guarded(command))
"""


@posix
@pytest.mark.parametrize("error", ["ImportError('half of it')", "RecursionError", "OSError(5, 'x')"])
def test_an_error_that_a_signal_caused_counts_as_the_signal(error: str) -> None:
    done = tvrbench(program=FAULTY.format(error=error))
    assert done.returncode == 143
    assert done.stderr.decode().splitlines() == ["tvrbench: interrupted by SIGTERM"]


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.no_such_backend", "tkagg", "qtagg", ""])
def test_a_report_starts_whatever_the_backend_of_the_users(backend: str, tmp_path: Path) -> None:
    done = tvrbench("report", "standin/uniform", folder=tmp_path, MPLBACKEND=backend)
    assert done.returncode == 2
    assert b"[report.no-run]" in done.stderr


@pytest.mark.parametrize(
    "backend",
    ["nonsense", *(pytest.param(backend, marks=pytest.mark.slow) for backend in ("module://no.such", "qtagg", ""))],
)
def test_figures_need_no_backend_of_the_users(backend: str, tmp_path: Path) -> None:
    if not (ROOT / "results" / "records").is_dir():
        pytest.skip("the committed records are not here")
    places = ("--results", str(ROOT / "results"), "--reports", str(tmp_path))
    done = tvrbench("report", "standin/uniform", *places, MPLBACKEND=backend)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("*.png"))


def test_a_broken_matplotlibrc_is_named(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe\x00")
    done = tvrbench("report", "standin/uniform", folder=tmp_path)
    assert done.returncode == 2
    assert b"[figures.matplotlib]" in done.stderr
    assert b"Traceback" not in done.stderr


def test_the_library_leaves_a_notebook_s_backend_alone() -> None:
    program = """
import os, matplotlib
matplotlib.use("svg")
import tvrbench.harness, tvrbench.harness.reporting.figures.style as style
with style.canvas(2, 2) as figure:
    assert style.png(figure)[1:4] == b"PNG"
assert matplotlib.get_backend() == "svg"
assert "MPLBACKEND" not in os.environ
"""
    env = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
    subprocess.run([sys.executable, "-P", "-c", program], env=env, check=True, timeout=120)
