"""A server for as long as it is needed: in benchmarks, and in tests."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def server(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[int]:
    """Run the command with a free port added to it; yields the port when it answers, and ends it."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    programs = Path(sys.executable).parent  # mlflow calls others of its environment by name
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        env={**environment, "PATH": f"{programs}{os.pathsep}{environment['PATH']}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(port, process)
        yield port
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)


def wait_for(port: int, process: subprocess.Popen, seconds: float = 120) -> None:
    """Until something answers on the port, be it that it finds nothing there.

    Raises RuntimeError when the process ends before, or the time does.
    """
    last = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < last:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
                return
        except urllib.error.HTTPError as answer:
            answer.close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"nothing answers on port {port}: {process.args}, exit status {process.poll()}")
