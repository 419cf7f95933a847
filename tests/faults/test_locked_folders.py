"""Nothing can be written to the installation, the home or the working directory: it works, or says what to set.

/proc takes no file from anybody, not even from root.
"""

import os
import subprocess
from pathlib import Path

import pytest
import torch

from drilldown import __main__, process
from drilldown.engine import accelerate, support
from drilldown.errors import EngineError, ParameterError
from drilldown.learning.checkpoint import FOLDER_VARIABLE
from drilldown.steps import load_step
from drilldown.tracking.store import store_lock
from tests.test_cli import refused

LOCKED = Path("/proc/nobody-writes-here")
pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc here")


@pytest.fixture
def locked_home(monkeypatch):
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(name, str(LOCKED))
    monkeypatch.setattr(support, "__file__", str(LOCKED / "support.py"))  # the installation


@pytest.mark.fault(
    "a read-only installation and home",
    "Numba has no folder for its kernels",
    "torch's layers train, and one line says what to set",
)
def test_training_without_a_folder_for_compiled_kernels(store, capsys, locked_home):
    __main__.main(["step2", "--dataset", "digits", "--epochs", "1"])
    said = capsys.readouterr().out.splitlines()[1]
    assert said == (
        "engine: torch, because Numba has no folder for its compiled kernels: set NUMBA_CACHE_DIR to one that can be "
        "written"
    )
    (run,) = store.search_runs(["0"])
    assert (run.info.status, run.data.params["run.engine"]) == ("FINISHED", "torch")


def test_one_folder_that_can_be_written_is_enough(locked_home, monkeypatch, tmp_path):
    assert "no folder" in support.why_unavailable()
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "made" / "when needed"))
    assert support.why_unavailable() is None


@pytest.mark.parametrize(("value", "engine"), [("1", "torch"), ("0", "numba"), ("", "numba")])
def test_numba_without_its_compiler(monkeypatch, value, engine):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", value)
    network = load_step("step4").network()
    assert accelerate(network).engine == engine
    if engine == "torch":
        with pytest.raises(ParameterError, match="it takes auto or torch here, because NUMBA_DISABLE_JIT is set"):
            accelerate(network, engine="numba", device=torch.device("cpu"))


@pytest.mark.fault("kernels that cannot be compiled", "the compiling process fails", "one line that says what to do")
def test_kernels_that_cannot_be_compiled(monkeypatch):
    from drilldown.engine import cache

    def compiles(dtype):
        raise cache._NotCachedError

    failure = subprocess.CompletedProcess([], 1, stderr="Traceback …\nOSError: [Errno 28] No space left on device\n")
    monkeypatch.setattr(cache, "call_every_kernel", compiles)
    monkeypatch.setattr(cache.subprocess, "run", lambda *command, **settings: failure)
    with pytest.raises(EngineError) as told:
        cache.load_kernels.__wrapped__(torch.float32)
    assert str(told.value) == (
        "the training kernels cannot be compiled (exit status 1: OSError: [Errno 28] No space left on device); "
        "engine=torch trains without them"
    )


@pytest.mark.fault(
    "a read-only folder for training states", "DRILLDOWN_CHECKPOINTS leads there", "one line that says what to set"
)
def test_training_states_that_cannot_be_saved(store, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER_VARIABLE, str(LOCKED))
    code, line = refused(capsys, "step2", "--dataset", "digits", "--epochs", "1")
    (run,) = store.search_runs(["0"])
    assert (code, run.info.status) == (1, "FAILED")
    assert line.startswith(f"nothing can be saved in {LOCKED / run.info.run_id} (")
    assert line.endswith(f"; set {FOLDER_VARIABLE} to a folder that takes files")


@pytest.mark.fault(
    "a read-only working directory", "no .processes can be made there", "locks lie in a temporary folder of the user's"
)
def test_locks_of_a_process_in_a_read_only_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "LIVENESS_FOLDER", LOCKED)
    monkeypatch.setattr(process.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("MLFLOW_RUN_ID", "a-run")
    process.liveness_lock.cache_clear()
    try:
        folder = tmp_path / f"drilldown-{os.getuid()}"
        lock = process.liveness_lock()
        assert lock.endswith(f":{folder / 'a-run'}")
        assert (folder.stat().st_mode & 0o777, process.is_gone(lock)) == (0o700, False)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        import mlflow

        mlflow.set_tracking_uri("http://127.0.0.1:9")
        with store_lock("a-model"):
            assert list(folder.glob("*.a-model.lock"))
    finally:
        process.liveness_lock.cache_clear()


def test_a_temporary_folder_of_another_user_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "LIVENESS_FOLDER", LOCKED)
    monkeypatch.setattr(process.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / "theirs").mkdir()
    (tmp_path / f"drilldown-{os.getuid()}").symlink_to(tmp_path / "theirs")
    with pytest.raises(PermissionError, match="belongs to another user"):
        process.lock_folder()
    process.liveness_lock.cache_clear()
    assert process.liveness_lock() is None
    process.liveness_lock.cache_clear()
