"""Signals: a command that is asked to stop saves what it has, says so in one line, and ends within half a minute.

Its exit status is 128 + the number of the signal, as shells have it. The first signal raises `Stopped` in the main
thread, or only sets a flag in a `deferred` block. A second signal ends the process at once, and so does a first one
that has not done so after GRACE_SECONDS. That loses nothing: files are replaced atomically.

This module imports nothing but the standard library, so that signals are handled before jax is imported.
"""

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

# Ctrl-C, the end of a job, a closed terminal, and the warning that Slurm gives before a time limit.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
GRACE_SECONDS = 25  # from the first signal to the end; Slurm and Kubernetes kill after 30
# A closing terminal sends SIGHUP twice, and some launchers pass on the Ctrl-C that the terminal has sent as well. The
# same signal again within so many seconds is no second request.
ECHO_SECONDS = 0.2
INTACT = "everything saved before is intact"
_RETRY = 0  # what the watching thread is told when a Stopped was lost; no signal has this number
_RETRY_SECONDS = 0.01  # so that whatever has lost it is over by then; doubled each time


class Stopped(KeyboardInterrupt):
    """The process was asked to stop by the signal `signum`."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum

    @property
    def status(self) -> int:
        return 128 + self.signum

    def __del__(self) -> None:
        # Python drops what is raised in a finaliser, and some libraries drop what is raised in a callback.
        if _current is not None:
            _current.lost()


def arrived() -> int | None:
    """The first signal that arrived in the command that is running, or in the last deferred block; None if none has."""
    return None if _newest is None else _newest.arrived


def status() -> int:
    """The exit status of what was stopped: 128 + the number of the signal."""
    return 128 + (arrived() or signal.SIGINT)


def report(what: str = "") -> int:
    """Say on standard error that the command was stopped, and `what` became of it; returns `status()`."""
    if _current is not None:
        _current.due = _current.may_retry = False
    _say(f"stopped by {signal.Signals(status() - 128).name}{'; ' if what else ''}{what}")
    return status()


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Put off signals to the end of the block, and yield a function that says whether one has arrived.

    A block that asks takes it upon itself to stop. If it has not asked, the signal takes effect at its end. Outside a
    command, as in a notebook, handlers are there for the block alone; a second signal then raises Stopped at once, but
    never ends the process, which is not ours. In a thread other than the main one nothing is ever asked.
    """
    if not _in_main_thread():
        yield lambda: False
    elif _current is not None:
        with _current.put_off() as asked:
            yield asked
        _current.raise_if_due()
    else:
        with _installed(_Handlers()) as handlers, handlers.put_off() as asked:
            yield asked
        if handlers.arrived is not None and handlers.due:
            signal.raise_signal(handlers.arrived)  # for the handler that is there otherwise


def status_of(run: Callable[[], int], saved: str = "", *, until_exit: bool = False) -> int:
    """What `run` returns; if a signal stops it, `status()` after one line on standard error.

    saved: what the line says besides. until_exit: whether the process ends with this command; signals are handled
    until it has done so.
    """
    if not _in_main_thread():
        return run()
    if _current is not None:
        return _status_of(run, saved)
    handlers = _CommandHandlers()
    with _installed(handlers, keep=until_exit):
        status = _status_of(run, saved)
        if until_exit and handlers.arrived is not None:
            _end(status)  # what was stopped half-way, imports among it, may not survive the interpreter's own end
    return status


def _status_of(run: Callable[[], int], saved: str) -> int:
    try:
        status = run()
        if _current is not None:
            _current.due = False  # it is done: nothing is left to stop
        return status
    except KeyboardInterrupt:
        return report(saved)
    except (Exception, SystemExit) as error:
        if arrived() is None:
            raise
        # What a library made of Stopped, or what went wrong in saving.
        return report(" ".join([f"{type(error).__name__}:", *str(error).split()])[:300])


class _Handlers:
    """The handlers of the signals that the process does not ignore, and what has arrived.

    Attributes:
        arrived: the first signal.
        due: whether Stopped is still to be raised for it, or for one to come.
        may_retry: whether Stopped is raised again if it is lost on its way to the command.
    """

    may_retry = False

    def __init__(self) -> None:
        self.arrived: int | None = None
        self.due = True
        self._deferring = 0

    def install(self) -> None:
        # What nohup or a shell that runs a job in the background has set to be ignored stays ignored.
        old = {signum: signal.getsignal(signum) for signum in SIGNALS}
        self._old = {signum: handler for signum, handler in old.items() if handler not in (signal.SIG_IGN, None)}
        for signum in self._old:
            signal.signal(signum, self._handle)

    def restore(self) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, handler)

    def lost(self) -> None:
        """Called when a Stopped is gone."""

    def raise_if_due(self) -> None:
        if self.arrived is not None and self.due and not self._deferring:
            self.due = False
            raise Stopped(self.arrived)

    @contextmanager
    def put_off(self) -> Iterator[Callable[[], bool]]:
        self._deferring += 1
        try:
            yield self._asked
        finally:
            self._deferring -= 1

    def _asked(self) -> bool:
        if self.arrived is None:
            return False
        self.due = False
        return True

    def _handle(self, signum: int, frame: Any) -> None:
        if self.arrived is not None:
            self._handle_again(signum)
        self.arrived = self.arrived or signum
        self.raise_if_due()

    def _handle_again(self, signum: int) -> None:
        raise Stopped(signum)


class _CommandHandlers(_Handlers):
    """The handlers of a command, with a thread that hears of signals even while the main thread is in compiled code.

    is_over: whether the command has ended, so that nothing is left to save.
    """

    def __init__(self) -> None:
        super().__init__()
        self.may_retry, self.is_over = True, False

    def install(self) -> None:
        self._ear, self._mouth = socket.socketpair()  # a pipe could not be waited for on Windows
        self._mouth.setblocking(False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        self._old_hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        self._old_fd = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        super().install()

    def restore(self) -> None:
        super().restore()
        signal.set_wakeup_fd(self._old_fd)
        sys.unraisablehook = self._old_hook
        self._mouth.close()
        self._thread.join()
        self._ear.close()

    def lost(self) -> None:
        if self.may_retry:
            self._mouth.send(bytes([_RETRY]))

    def _unraisable(self, what: Any) -> None:
        if self.arrived is None:
            self._old_hook(what)

    def _handle_again(self, signum: int) -> None:
        """Nothing: the thread has ended the process, unless this signal is an echo or comes from the thread."""

    def _listen(self) -> None:
        """End the process at the second signal, or when the time after the first one is over."""
        first, since, own, wait = None, 0.0, 0, _RETRY_SECONDS
        while True:
            self._ear.settimeout(None if first is None else max(0.01, since + GRACE_SECONDS - time.monotonic()))
            heard = None
            with suppress(TimeoutError):
                heard = self._ear.recv(1)
            if first is not None and time.monotonic() > since + GRACE_SECONDS:
                _end_at_once(first, f"after {GRACE_SECONDS} s, as the running step had not ended")
            if heard is None:
                continue
            if not heard:
                return
            now, signum = time.monotonic(), heard[0]
            if signum == _RETRY and first is not None:
                time.sleep(wait)
                own, wait, self.due = own + 1, 2 * wait, True
                _send_to_main_thread(first)
            elif own and signum == first:
                own -= 1
            elif signum in self._old and first is None and not self.is_over:
                first, since = signum, now
            elif signum in self._old and not (signum == first and now - since < ECHO_SECONDS):
                _end_at_once(signum, "at once")


_current: _Handlers | None = None  # those that are installed
_newest: _Handlers | None = None  # those, or the last ones that were


def _ignore_signals() -> None:
    """Keep the status of what has finished: the interpreter would restore the default, which kills."""
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _send_to_main_thread(signum: int) -> None:
    main = threading.main_thread().ident
    if main is not None and hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main, signum)  # which wakes it from a sleep too
    else:
        signal.raise_signal(signum)


@contextmanager
def _installed(handlers: Any, *, keep: bool = False) -> Iterator[Any]:
    """Install handlers for the block; keep: and leave them there, for a process that is about to end."""
    global _current, _newest
    _current = _newest = handlers
    handlers.install()
    if keep:
        atexit.register(_ignore_signals)  # registered before all others, it is called after them
    try:
        yield handlers
    finally:
        handlers.may_retry = False
        if keep:
            handlers.due, handlers.is_over = False, True
        else:
            handlers.restore()
            _current = None


def _say(line: str) -> None:
    with suppress(OSError, ValueError):  # nobody reads any more, as after a closed terminal
        print(line, file=sys.stderr, flush=True)


def _end(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _end_at_once(signum: int, when: str) -> NoReturn:
    """End the process from any thread, whatever the others do."""
    # A live line has hidden the cursor.
    prefix = "\r\x1b[K\x1b[?25h" if os.isatty(2) else ""
    line = f"stopped by {signal.Signals(signum).name} {when}; {INTACT}\n"
    with suppress(OSError):
        os.write(2, (prefix + line).encode())
    os._exit(128 + signum)
