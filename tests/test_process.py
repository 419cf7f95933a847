"""A process ends in order when it is asked to, and shows that it lives as long as it does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from src import process

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")
WAIT = """
import os, time
from src import process
process.guard()
try:
    print(os.getpid(), process.sign(), flush=True)
    time.sleep(30)
except process.Stopped as stop:
    print(stop.reason, flush=True)
    time.sleep(1)  # it is closing what is open
    raise
"""


def start(folder, **settings):
    return subprocess.Popen(
        [sys.executable, "-c", WAIT], cwd=folder, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)} | settings,
    )  # fmt: skip


def test_a_signal_is_obeyed_once(tmp_path):
    with start(tmp_path) as waiting:
        _, sign = waiting.stdout.readline().split()
        assert not process.is_gone(sign)
        waiting.terminate()
        assert waiting.stdout.readline() == "stopped by SIGTERM\n"
        waiting.send_signal(signal.SIGINT)  # as `mlflow run` does
        assert waiting.wait() == 128 + signal.SIGTERM
    assert process.is_gone(sign)
    assert not any((tmp_path / process.SIGNS).iterdir())


def test_a_killed_process_is_gone(tmp_path):
    with start(tmp_path) as waiting:
        _, sign = waiting.stdout.readline().split()
        waiting.kill()
    assert Path(sign.partition(":")[2]).exists()
    assert process.is_gone(sign)


@pytest.mark.parametrize(("settings", "follows"), [({"MLFLOW_RUN_ID": "a"}, True), ({}, False)])
def test_it_follows_the_mlflow_run_that_started_it_and_no_shell(tmp_path, settings, follows):
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {WAIT!r}]); sys.stdin.read()"
    parent = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)} | settings,
    )  # fmt: skip
    with parent:
        child, sign = parent.stdout.readline().split()
        parent.kill()
        parent.stdin.close()
        if follows:
            assert parent.stdout.readline() == "the process that started it is gone\n"
        else:
            time.sleep(3 * process.LOOK)
            assert not process.is_gone(sign)
            os.kill(int(child), signal.SIGKILL)


def test_signs_that_cannot_be_judged(tmp_path):
    assert process.is_elsewhere(f"elsewhere:{tmp_path / 'a'}")
    here = process.sign_of("a").partition(":")[0]
    assert process.is_elsewhere(f"{here}:{tmp_path / 'nowhere' / 'a'}")
    assert not process.is_gone(f"{here}:{tmp_path / 'nowhere' / 'a'}")
