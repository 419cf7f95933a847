"""A program that starts warm does what it does when it starts as users start it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import warm
from tests.support.programs import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="programs start warm on Linux only"),
]
TELL = """
import json, os, sys
from pathlib import Path
import told
sys.stderr.write("to standard error")
path = [folder for folder in sys.path if "site-packages" not in folder and "lib/python" not in folder]
print(json.dumps([__name__, sys.argv, path, os.getcwd(), os.environ["TOLD"], sys.stdin.read(), told.__file__]))
sys.exit(3)
"""
WAIT = """
import os, signal, sys, time
def stop(number, frame):
    sys.exit(f"stopped by {number}")
signal.signal(signal.SIGTERM, stop)
print(os.getpid(), "mlflow" in sys.modules, flush=True)
time.sleep(60)
"""

FOLLOW = """
import os, sys, time
from pathlib import Path
print(os.getppid(), Path(sys.argv[1]).read_text(), flush=True)
while os.getppid() == int(sys.argv[2]):
    time.sleep(0.1)
Path("orphaned").touch()
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "tell.py").write_text(TELL)
    (tmp_path / "follow.py").write_text(FOLLOW)
    (tmp_path / "wait.py").write_text(WAIT)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "told.py").write_text("")
    return tmp_path


def start(folder, *arguments, python=None, **environment):
    return subprocess.Popen(
        [python or warm.python(), *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "elsewhere"), "TOLD": "ä"} | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("arguments", [["-m", "tell", "a b"], ["tell.py", "--x"], ["-I", "tell.py"], ["-c", TELL]])
def test_it_gets_what_it_is_given_and_ends_as_it_would(folder, arguments):
    done = []
    for python in (warm.python(), sys.executable):
        with start(folder, *arguments, python=python) as process:
            stdout, stderr = process.communicate("from standard input")
        done.append((process.returncode, stdout, stderr.splitlines()[-1]))
    assert done[0] == done[1]
    assert done[0][0] == (1 if "-I" in arguments else 3)  # isolated, it does not see `elsewhere`


def test_it_is_warm_unless_it_is_to_start_cold(folder):
    for environment, is_warm in (({}, "True"), (warm.COLD, "False")):
        with start(folder, "wait.py", **environment) as process:
            assert process.stdout.readline().split()[1] == is_warm
            process.terminate()
            assert process.communicate()[1] == f"stopped by {signal.SIGTERM}\n"
        assert process.returncode == 1


def test_it_ends_with_a_signal_as_its_client_does(folder):
    with start(folder, "wait.py") as process:
        os.kill(int(process.stdout.readline().split()[0]), signal.SIGKILL)
        assert process.wait(timeout=20) == -signal.SIGKILL
    with start(folder, "wait.py") as process:
        program = Path("/proc") / process.stdout.readline().split()[0]
        assert program.exists()
        process.kill()
        wait_until(lambda: not program.exists(), seconds=20, for_what="the end of the program")


def test_it_gets_open_files_and_knows_its_parent(folder):
    (folder / "given").write_text("from a file")
    with (folder / "given").open() as given:
        command = f"{warm.python()} follow.py /dev/fd/{given.fileno()} $$ & wait"
        with subprocess.Popen(
            ["sh", "-c", command], cwd=folder, stdout=subprocess.PIPE, pass_fds=[given.fileno()], text=True
        ) as shell:
            assert shell.stdout.readline() == f"{shell.pid} from a file\n"
            shell.kill()
    wait_until((folder / "orphaned").exists, seconds=20, for_what="the news that its parent is gone")
