"""Signals: whatever a command is doing, it saves and ends within half a minute, and says so in one line."""

import csv
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxgrok import stopping
from jaxgrok.cli import command
from jaxgrok.stopping import SIGNALS, Stopped, deferred, status_of
from tests.conftest import COMPILED_IN_FULL, REPOSITORY

SWEEP = [sys.executable, str(REPOSITORY / "scripts" / "sweep.py")]
ANALYZE = [sys.executable, str(REPOSITORY / "scripts" / "analyze.py")]
TINY = ["--arch", "mlp", "--p", "5", "--d-mlp", "8", "--frac", "0.5", "--seeds", "2", "--eval-every", "100"]
LIMIT = 30  # seconds from the signal to the end

each_signal = pytest.mark.parametrize("signum", SIGNALS, ids=lambda signum: signum.name)


# --- in this process --------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def handlers_are_given_back():
    def found():
        fd = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(fd)
        handlers = [signal.getsignal(signum) for signum in SIGNALS]
        return fd, handlers, sys.unraisablehook, {thread.name for thread in threading.enumerate()}

    before = found()
    yield
    assert found() == before


def send(signum):
    os.kill(os.getpid(), signum)


@each_signal
def test_a_signal_stops_a_command_and_what_it_was_doing_can_save(signum, capsys):
    saved = []

    def run():
        try:
            send(signum)
            time.sleep(60)
        finally:
            time.sleep(0.01)
            saved.append(True)
        return 0

    assert status_of(run, "all is saved.") == 128 + signum == stopping.status()
    assert capsys.readouterr().err == f"stopped by {signum.name}; all is saved.\n"
    assert saved == [True]
    assert stopping.arrived() == signum


@each_signal
def test_a_deferred_block_is_asked(signum, capsys):
    def run():
        with deferred() as asked:
            assert not asked()
            send(signum)
            assert asked()
            assert asked()
        return stopping.report("the curves are saved")

    assert status_of(run) == 128 + signum
    assert capsys.readouterr().err == f"stopped by {signum.name}; the curves are saved\n"


def test_a_deferred_block_that_does_not_ask_is_finished_first(capsys):
    done = []

    def run():
        with deferred():
            with deferred():
                send(signal.SIGTERM)
            done.append(1)
        done.append(2)
        return 0

    assert status_of(run) == 143
    assert done == [1]
    assert capsys.readouterr().err == "stopped by SIGTERM\n"


def test_a_command_that_ends_is_left_alone(capsys):
    assert status_of(lambda: 3) == 3
    assert stopping.arrived() is None
    with pytest.raises(ZeroDivisionError):
        status_of(lambda: 1 // 0)
    with pytest.raises(SystemExit):
        status_of(lambda: sys.exit(2))
    assert capsys.readouterr().err == ""


def test_a_stop_is_not_lost_in_a_finaliser_or_a_library(capsys):
    """Python drops what is raised in a finaliser; a library may drop anything. Nothing is printed of that."""

    class Finalised:
        def __del__(self):
            send(signal.SIGTERM)
            time.sleep(0.01)

    def finalise():
        Finalised()
        time.sleep(60)

    def swallow():
        try:
            send(signal.SIGTERM)
            time.sleep(60)
        except BaseException:
            pass
        time.sleep(60)

    for run in (finalise, swallow):
        assert status_of(lambda run=run: run() or 0) == 143
        assert capsys.readouterr().err == "stopped by SIGTERM\n"


def test_what_a_library_makes_of_a_stop_is_one_line(capsys):
    def run():
        try:
            send(signal.SIGTERM)
            time.sleep(60)
        except KeyboardInterrupt:
            raise ImportError("numpy\ncould not be imported") from None

    assert status_of(run) == 143
    assert capsys.readouterr().err == "stopped by SIGTERM; ImportError: numpy could not be imported\n"


def test_outside_a_command_a_second_signal_raises_and_never_ends_the_process():
    with deferred() as asked:
        send(signal.SIGTERM)
        assert asked()
    assert stopping.arrived() == signal.SIGTERM

    def stopped_twice():
        with deferred() as asked:
            send(signal.SIGTERM)
            assert asked()
            send(signal.SIGINT)
            time.sleep(60)

    with pytest.raises(Stopped) as stopped:
        stopped_twice()
    assert stopped.value.status == 130


def test_outside_a_command_a_signal_that_nobody_asked_for_goes_to_the_handler_there():
    done = []

    def stopped_once():
        with deferred():
            send(signal.SIGINT)
            done.append(True)
        time.sleep(60)

    with pytest.raises(KeyboardInterrupt) as stopped:
        stopped_once()
    assert done == [True]
    assert not isinstance(stopped.value, Stopped)


def test_in_another_thread_nothing_is_installed():
    found = []

    def run():
        with deferred() as asked:
            found.extend([asked(), signal.getsignal(signal.SIGTERM), status_of(lambda: 7)])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False, signal.getsignal(signal.SIGTERM), 7]


# --- what else a command says in one line -----------------------------------------------------------------------------


class JaxRuntimeError(RuntimeError):
    """As jax raises it."""


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (MemoryError(), 1, "sweep.py: error: out of memory: fewer runs at once (--batch-runs) or"),
        (JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating"), 1, "(RESOURCE_EXHAUSTED: Out of memory all"),
        (JaxRuntimeError("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory"), 1, "out of memory: "),
        (RuntimeError("can't start new thread"), 1, "(can't start new thread)"),
        (RuntimeError("std::bad_alloc"), 1, "a smaller network needs less (std::bad_alloc)"),
        (OSError(28, "No space left on device", "x.npz"), 1, "x.npz could not be written: No space left on device; "),
        (ValueError("RESOURCE_EXHAUSTED: write [No space left on device]"), 1, "a checkpoint could not be written: "),
        (OSError(2, "No such file or directory", "x.pth"), 2, "x.pth: cannot be read or written (No such file"),
    ],
    ids=repr,
)
def test_a_failure_that_one_can_do_something_about_is_one_line(monkeypatch, capsys, error, status, said):
    def fail(args):
        raise error

    monkeypatch.setattr("jaxgrok.cli.sweep.chosen", fail)
    assert command("sweep", []) == status
    shown = capsys.readouterr().err
    assert said in shown
    assert shown.count("\n") == 1


def test_a_reader_that_leaves_is_no_error():
    read, write = os.pipe()
    os.close(read)
    words = [sys.executable, str(REPOSITORY / "scripts" / "slingshots.py"), "--help"]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, text=True, env=buffered)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


# --- small processes --------------------------------------------------------------------------------------------------

PROGRAM = """
import sys, time
from jaxgrok import stopping

def stuck():
    if True:
        with stopping.deferred() as asked:
            print("ready", flush=True)
            time.sleep(60)
    return 0

{before}
sys.exit(stopping.status_of({run}, until_exit=True))
"""


def started(program=None, *, run="stuck", before="", prefix=()):
    """A small process that has said that it is ready."""
    text = PROGRAM.format(run=run, before=before) if program is None else program
    words = [*prefix, sys.executable, "-c", text]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    child = subprocess.Popen(words, text=True, cwd=REPOSITORY, **pipes)
    assert child.stdout.readline() == "ready\n"
    return child


def ended(child):
    _, error = child.communicate(timeout=LIMIT)
    return child.returncode, error


@each_signal
def test_a_second_signal_ends_the_process_at_once(signum):
    child = started()
    child.send_signal(signal.SIGTERM if signum is not signal.SIGTERM else signal.SIGINT)
    time.sleep(0.5)
    assert child.poll() is None
    child.send_signal(signum)
    error = f"stopped by {signum.name} at once; everything saved before is intact\n"
    assert ended(child) == (128 + signum, error)


def test_the_same_signal_twice_within_a_moment_is_one():
    """A closing terminal sends SIGHUP twice."""
    child = started()
    child.send_signal(signal.SIGHUP)
    time.sleep(stopping.ECHO_SECONDS / 4)
    child.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert child.poll() is None
    child.send_signal(signal.SIGHUP)
    assert ended(child)[0] == 129


def test_the_process_ends_when_the_time_is_over():
    child = started(before="stopping.GRACE_SECONDS = 0.5")
    child.send_signal(signal.SIGUSR1)
    status, error = ended(child)
    assert status == 128 + signal.SIGUSR1
    assert error.startswith("stopped by SIGUSR1 after 0.5 s")
    assert error.count("\n") == 1


def test_after_its_end_a_command_can_be_stopped_and_says_so():
    """As when the interpreter waits for the threads of a library."""
    before = "import atexit\nwait = lambda: print('ready', flush=True) or time.sleep(60)"
    child = started(run="lambda: 0 if atexit.register(wait) else 1", before=before)
    child.send_signal(signal.SIGTERM)
    assert ended(child)[0] == 143


def test_what_nohup_ignores_stays_ignored():
    child = started(prefix=["sh", "-c", 'trap "" HUP INT; exec "$0" "$@"'])
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGHUP):
        child.send_signal(signum)
        time.sleep(0.3)
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    child.send_signal(signal.SIGTERM)
    assert ended(child)[0] == 143


def test_handlers_come_before_heavy_imports():
    code = "import sys, jaxgrok.cli\nsys.exit(any(name in sys.modules for name in ('numpy', 'jax', 'argparse')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


# --- commands ---------------------------------------------------------------------------------------------------------


def stopped_command(words, cwd, signum, wait):
    """Start a command, call `wait` with it, send a signal, and check how it ends. Returns its status."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    child = subprocess.Popen(words, cwd=cwd, env=COMPILED_IN_FULL, text=True, **pipes)
    wait(child)
    start = time.monotonic()
    child.send_signal(signum)
    _, error = child.communicate(timeout=2 * LIMIT)
    assert time.monotonic() - start < LIMIT
    assert child.returncode in (0, 128 + signum), error
    assert "Traceback" not in error
    about = [line for line in error.splitlines() if "stopped" in line]
    assert len(about) == (child.returncode != 0), error
    return child.returncode


def until(file):
    """A wait for a file to appear."""

    def wait(child):
        while not file.exists():
            assert child.poll() is None, child.communicate()
            time.sleep(0.05)

    return wait


def test_a_stopped_sweep_resumes(tmp_path):
    words = [*SWEEP, *TINY, "--out", "runs", "--epochs"]
    # The lock is there from before the first compilation on.
    assert stopped_command([*words, "2000000"], tmp_path, signal.SIGTERM, until(tmp_path / "runs" / ".lock")) == 143
    done = subprocess.run([*words, "200"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_sweep_and_its_analysis_are_stopped_at_random_moments(tmp_path):
    """Thirty moments over imports, compilation, training, tables and figures, and the end of the interpreter."""
    draw, place = random.Random(0), tmp_path / "runs"
    sweep = [*SWEEP, "--p", "7", "--d-model", "16", "--n-heads", "2", "--frac", "0.5", "--wd", "0.1,0.3,1,3"]
    sweep += ["--seeds", "2", "--epochs", "300", "--out", str(place)]
    for words in (sweep, [*ANALYZE, str(place)]):
        start = time.monotonic()
        assert subprocess.run(words, cwd=tmp_path, capture_output=True).returncode == 0
        took = time.monotonic() - start
        statuses = []
        for i in range(15):
            out = tmp_path / f"{len(words)}-{i}"
            if words is sweep:
                these = [*words[:-1], str(out)]
            else:
                these = [*ANALYZE, str(place), "--tables", str(out)]
                for file in (place / "analysis").rglob("*.npz"):
                    file.unlink()
            moment = took * (i + draw.random()) / 15
            statuses.append(stopped_command(these, tmp_path, SIGNALS[i % 4], lambda child, t=moment: time.sleep(t)))
            done = subprocess.run(these, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        assert statuses.count(0) < 5
        table = (place if words is sweep else out) / ("tables/timings.csv" if words is sweep else "timings.csv")
        assert list(csv.DictReader(table.read_text().splitlines()))
