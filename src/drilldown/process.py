"""This process: signals, the end of its parent, and the lock that shows others that it is alive.

Nothing slow is imported here, so that a process is guarded before it imports everything else.
"""

import atexit
import contextlib
import functools
import math
import os
import platform
import signal
import tempfile
import threading
import time
import uuid
from pathlib import Path

from filelock import FileLock

LIVENESS_FOLDER = Path(".processes")
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
PARENT = os.getppid()  # read as early as possible: the parent may end at any moment
OPENED_RUN = os.environ.get("MLFLOW_RUN_ID")  # by the program that started this one; MLflow removes the variable
POLL_SECONDS = 0.5  # between two looks at the parent
REPEAT_SECONDS = 3  # after a signal, further ones are ignored for so long: an interrupted `mlflow run` sends a second
RESEND_SECONDS = 30  # after which an orphan is signalled again: an exception raised in a finalizer is lost

ORPHANED = "the process that started it is gone"

_orphaned = threading.Event()
_last_signal_at = -math.inf  # time.monotonic()
_deferrals: set[int] = set()  # keys; signals are deferred while there are any
_deferred_signal: int | None = None


class Stopped(SystemExit):
    """This process was asked to end; being a SystemExit, it passes through `except Exception`."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(128 + number)  # a shell's convention
        self.reason = reason


def guard() -> None:
    """Raise Stopped in the main thread upon a signal, and when the `mlflow run` that started this process ends."""
    liveness_lock()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, _stop)
    if "MLFLOW_RUN_ID" in os.environ:  # only then: a shell may end before the processes that it started
        follow_parent()


def follow_parent() -> None:
    """Raise Stopped in the main thread when the process that started this one ends."""
    threading.Thread(target=_follow_parent, daemon=True).start()


def check_parent() -> None:
    """Raise Stopped if the process that started this one has ended, also where nobody has seen it yet."""
    if os.getppid() != PARENT:
        raise Stopped(signal.SIGTERM, ORPHANED)


def _stop(number: int, frame: object) -> None:
    global _last_signal_at, _deferred_signal
    if time.monotonic() - _last_signal_at < REPEAT_SECONDS:
        return
    if _deferrals:
        _deferred_signal = number
        return
    _last_signal_at = time.monotonic()
    name = signal.Signals(number).name
    raise Stopped(number, ORPHANED if _orphaned.is_set() else f"stopped by {name}")


def defer_signals(key: int) -> None:
    """Defer signals until `allow_signals` was called with this key and with every other one."""
    _deferrals.add(key)


def allow_signals(key: int) -> None:
    """End the deferral with this key; if it is the last one, the deferred signal is sent now."""
    global _deferred_signal
    _deferrals.discard(key)
    if _deferred_signal and not _deferrals:
        number, _deferred_signal = _deferred_signal, None
        os.kill(os.getpid(), number)


def _follow_parent() -> None:
    while os.getppid() == PARENT:
        time.sleep(POLL_SECONDS)
    _orphaned.set()
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(RESEND_SECONDS)


@functools.cache
def liveness_lock() -> str | None:
    """Lock a file for as long as this process lives; the system releases the lock however the process ends.

    Returns: the lock's name, by which other processes ask `is_gone`; None where no file can be written.
    """
    file_name = os.environ.get("MLFLOW_RUN_ID") or uuid.uuid4().hex  # other processes know the run's id from the start
    try:
        lock = FileLock(lock_folder() / file_name)
        lock.acquire(timeout=10)  # is_gone() takes it for a moment
    except OSError:
        return None
    atexit.register(_release, lock)
    return f"{platform.node()}:{lock.lock_file}"


def lock_folder() -> Path:
    """The folder for this project's locks: in the working directory, or else, if that is read-only, a temporary one.

    Raises: OSError when neither can be written.
    """
    with contextlib.suppress(OSError):
        LIVENESS_FOLDER.mkdir(parents=True, exist_ok=True)
        if os.access(LIVENESS_FOLDER, os.W_OK):
            return LIVENESS_FOLDER.absolute()
    folder = _temporary_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():  # another user may have made it
        raise PermissionError(f"{folder} belongs to another user")
    return folder


def _temporary_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"drilldown-{os.getuid()}"


def _release(lock: FileLock) -> None:
    if "MLFLOW_RUN_ID" not in os.environ:  # else no run has taken that id over, and another process closes the run
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def lock_name(file_name: str) -> str:
    """Return the name, machine:file, of the liveness lock of a process that works in this folder."""
    return f"{platform.node()}:{LIVENESS_FOLDER.absolute() / file_name}"


def is_elsewhere(lock: str) -> bool:
    """Tell whether the process with this lock works on another machine, or in a folder that does not exist here.

    A lock's name comes from the store, where others write too. What is no file of `lock_folder` counts as elsewhere,
    so that nobody can have this process delete another file.
    """
    machine, _, name = lock.partition(":")
    file = Path(name)
    is_ours = file.is_absolute() and file.parent.name in (LIVENESS_FOLDER.name, _temporary_folder().name)
    return not (machine == platform.node() and is_ours and os.path.isdir(file.parent))  # noqa: PTH112


def is_gone(lock: str, *, keep: bool = False) -> bool:
    """Tell whether the process with this lock has ended; False where this process cannot know.

    Removes the lock's file if so, unless `keep`.
    """
    if is_elsewhere(lock):
        return False
    file = Path(lock.partition(":")[2])
    try:
        with FileLock(file, timeout=0):
            if not keep:
                file.unlink()
    except OSError:  # locked, or not ours
        return False
    return True
