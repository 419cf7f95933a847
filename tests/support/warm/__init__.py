"""Programs that start warm: forked from a process that has PyTorch, MLflow and the like imported already.

To import them costs `mlflow run` some five seconds of CPU time, and a training twice as much. The project's own modules
are imported by each process, from its own path.
"""

import atexit
import os
import shlex
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from tests.support.programs import BIN

HERE = Path(__file__).parent
COLD = {"COLD_START": "1"}  # in the environment of a program: it starts as users start it


@cache
def programs() -> Path:
    """Start the server, once per process of pytest; it ends with that process.

    Returns: a folder like the environment's `bin`, where `python` and `mlflow` start warm; not on Linux, `bin` itself.
    """
    if not hasattr(os, "pidfd_open"):
        return BIN
    folder = Path(tempfile.mkdtemp(prefix="warm"))  # short, as the address of a socket must be
    client = shlex.join([sys.executable, "-IS", str(HERE / "client.py"), str(folder / "socket"), str(BIN)])
    shims = folder / "bin"
    shims.mkdir()
    for program in BIN.iterdir():
        if program.name in ("python", "mlflow"):
            (shims / program.name).write_text(f'#!/bin/sh\nexec {client} {program.name} "$@"\n')
            (shims / program.name).chmod(0o755)
        else:
            (shims / program.name).symlink_to(program)
    server = subprocess.Popen(
        [sys.executable, "-I", HERE / "server.py", folder / "socket"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert server.stdin
    assert server.stdout
    assert server.stdout.readline(), "the server of warm programs did not start"
    atexit.register(server.communicate)
    return shims


def python() -> str:
    """Return the `python` that starts warm."""
    return str(programs() / "python")
