"""Other programs that benchmarks and tests start: find them, wait for them, end them."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

Answer = TypeVar("Answer")


BIN = Path(sys.executable).parent


def with_programs(environment: Mapping[str, str], programs: Path = BIN) -> dict[str, str]:
    """Return the environment with the programs of a folder (mlflow, python, …) first on the PATH."""
    return {**environment, "PATH": f"{programs}{os.pathsep}{environment['PATH']}"}


def wait_until(condition: Callable[[], Answer], *, seconds: float, for_what: str) -> Answer:
    """Call the condition until its answer is true, and return the answer. Raises TimeoutError after so many seconds."""
    end = time.monotonic() + seconds
    while not (answer := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"{for_what}: not within {seconds} s")
        time.sleep(0.1)
    return answer


@contextmanager
def server(command: Sequence[str], environment: Mapping[str, str], port: int | None = None) -> Iterator[int]:
    """Run the command with `--port` (by default a free one) added; yield the port once it answers; end the command."""
    port = port or free_port()
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        env=with_programs(environment),
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


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for(port: int, process: subprocess.Popen) -> None:
    """Wait until an HTTP server answers on the port; any status counts.

    Raises: RuntimeError when the process ends before, TimeoutError after two minutes.
    """

    def answers() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with {process.returncode} before it answered on port {port}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
                return True
        except urllib.error.HTTPError as answer:
            answer.close()
            return True
        except OSError:
            return False

    wait_until(answers, seconds=120, for_what=f"an answer on port {port}")
