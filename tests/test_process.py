"""A process ends in order upon a signal, and others can see whether it is alive."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from drilldown import process
from drilldown.steps import ROOT

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
WAIT = """
import os, time
from drilldown import process
process.guard()
try:
    print(os.getpid(), process.liveness_lock(), flush=True)
    time.sleep(30)
except process.Stopped as stop:
    print(stop.reason, flush=True)
    time.sleep(1)  # as if it closed its run
    raise
"""


def start(folder, *arguments, code=WAIT, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")} | environment,
    )


@pytest.mark.slow
def test_a_second_signal_is_ignored(tmp_path):
    with start(tmp_path) as waiting:
        _, lock = waiting.stdout.readline().split()
        assert not process.is_gone(lock)
        waiting.terminate()
        assert waiting.stdout.readline() == "stopped by SIGTERM\n"
        waiting.send_signal(signal.SIGINT)  # as `mlflow run` does
        assert waiting.wait() == 128 + signal.SIGTERM
    assert process.is_gone(lock)
    assert not any((tmp_path / process.LIVENESS_FOLDER).iterdir())


def test_a_killed_process_is_gone(tmp_path):
    with start(tmp_path) as waiting:
        _, lock = waiting.stdout.readline().split()
        waiting.kill()
    assert Path(lock.partition(":")[2]).exists()
    assert process.is_gone(lock)


@pytest.mark.parametrize(("environment", "follows"), [({"MLFLOW_RUN_ID": "a"}, True), ({}, False)])
@pytest.mark.slow
def test_it_ends_with_the_mlflow_run_that_started_it_but_not_with_a_shell(tmp_path, environment, follows):
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]]); sys.stdin.read()"
    with start(tmp_path, WAIT, code=code, **environment) as parent:
        child, lock = parent.stdout.readline().split()
        parent.kill()
        parent.stdin.close()
        if follows:
            assert parent.stdout.readline() == "the process that started it is gone\n"
        else:
            time.sleep(3 * process.POLL_SECONDS)
            assert not process.is_gone(lock)
            os.kill(int(child), signal.SIGKILL)


DEFER = """
import os, signal
from drilldown import process
process.guard()
process.defer_signals(1)
process.defer_signals(2)
os.kill(os.getpid(), signal.SIGTERM)
process.allow_signals(1)
print("still running", flush=True)
process.allow_signals(2)
print("not reached", flush=True)
"""


def test_a_deferred_signal_comes_when_the_last_deferral_ends(tmp_path):
    with start(tmp_path, code=DEFER) as deferring:
        printed, _ = deferring.communicate()
    assert printed == "still running\n"
    assert deferring.returncode == 128 + signal.SIGTERM


def test_locks_of_other_machines_and_folders(tmp_path):
    here = tmp_path / process.LIVENESS_FOLDER
    here.mkdir()
    machine = process.lock_name("a").partition(":")[0]
    assert not process.is_elsewhere(f"{machine}:{here / 'a'}")
    assert process.is_elsewhere(f"elsewhere:{here / 'a'}")
    nowhere = f"{machine}:{tmp_path / 'nowhere' / process.LIVENESS_FOLDER / 'a'}"
    assert process.is_elsewhere(nowhere)
    assert not process.is_gone(nowhere)


def test_a_tag_that_names_another_file_deletes_nothing(tmp_path):
    """On a shared server, every user can write the tag."""
    (tmp_path / process.LIVENESS_FOLDER).mkdir()
    machine = process.lock_name("a").partition(":")[0]
    precious = tmp_path / "precious"
    precious.write_text("kept")
    for path in (precious, tmp_path / process.LIVENESS_FOLDER / ".." / "precious", "precious"):
        assert not process.is_gone(f"{machine}:{path}")
    assert precious.read_text() == "kept"
