"""This process: how it is asked to end, who started it, and the sign by which others see that it lives.

Nothing here takes time to import, so that a process is guarded before all that does.
"""

import atexit
import functools
import math
import os
import platform
import signal
import threading
import time
import uuid
from pathlib import Path

from filelock import FileLock

SIGNS = Path(".processes")
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
PARENT = os.getppid()  # asked as early as can be: it may end at any moment
LOOK = 0.5  # seconds between two looks at it
PATIENCE = 3  # seconds in which one signal is obeyed: `mlflow run`, when it is interrupted, sends a second
AGAIN = 30  # seconds after which an orphan is told once more: an exception that is raised in a finalizer is lost

_orphaned = threading.Event()
_obeyed = -math.inf  # since when
_uncut: set[int] = set()  # what signals wait for
_late: int | None = None  # the signal that waits


class Stopped(SystemExit):
    """This process was asked to end; like every SystemExit, it passes by what handles errors."""

    def __init__(self, number: int, reason: str):
        super().__init__(128 + number)  # as shells count
        self.reason = reason


def guard() -> None:
    """Let a signal, or the end of the `mlflow run` that started this process, end it in order: by Stopped."""
    sign()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # it is ignored under nohup
            signal.signal(number, _stop)
    if "MLFLOW_RUN_ID" in os.environ:  # a shell, in contrast, may end before what it has started
        threading.Thread(target=_follow_parent, daemon=True).start()


def _stop(number: int, frame: object) -> None:
    global _obeyed, _late
    if time.monotonic() - _obeyed < PATIENCE:
        return
    if _uncut:
        _late = number
        return
    _obeyed = time.monotonic()
    name = signal.Signals(number).name
    raise Stopped(number, "the process that started it is gone" if _orphaned.is_set() else f"stopped by {name}")


def hold_signals(key: int) -> None:
    """From now on signals wait, until this key and every other one is released."""
    _uncut.add(key)


def release_signals(key: int) -> None:
    """Let go of the key; the signal that has waited comes now."""
    global _late
    _uncut.discard(key)
    if _late and not _uncut:
        number, _late = _late, None
        os.kill(os.getpid(), number)


def _follow_parent() -> None:
    while os.getppid() == PARENT:
        time.sleep(LOOK)
    _orphaned.set()
    while True:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(AGAIN)


@functools.cache
def sign() -> str | None:
    """This process's own sign, None where it cannot leave one: a file that it holds locked.

    However the process ends, the system lets go of the lock then.
    """
    name = os.environ.get("MLFLOW_RUN_ID") or uuid.uuid4().hex  # others know the first from the start
    lock = FileLock(SIGNS.absolute() / name)
    try:
        SIGNS.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=10)  # others look at it for a moment
    except OSError:
        return None
    atexit.register(_withdraw, lock)
    return sign_of(name)


def _withdraw(lock: FileLock) -> None:
    if "MLFLOW_RUN_ID" not in os.environ:  # otherwise that run was never taken over, and is to be closed
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def sign_of(name: str) -> str:
    """The sign, machine:file, of a process of this folder."""
    return f"{platform.node()}:{SIGNS.absolute() / name}"


def is_elsewhere(sign: str) -> bool:
    """Whether the process with this sign is one of another machine, or of a folder that is not here."""
    machine, _, file = sign.partition(":")
    return machine != platform.node() or not os.path.isdir(os.path.dirname(file))  # noqa: PTH112, PTH120 (no errors)


def is_gone(sign: str) -> bool:
    """Whether the process with this sign has ended; False where that cannot be seen."""
    if is_elsewhere(sign):
        return False
    file = Path(sign.partition(":")[2])
    try:
        with FileLock(file, timeout=0):
            file.unlink()
    except OSError:  # it is locked, or somebody else's
        return False
    return True
