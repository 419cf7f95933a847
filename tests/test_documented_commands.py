"""Every command block of the README and of docs/ is run, in order, in a copy of the project.

Trainings are on the digits, and short; `make test` is this very run. `adapt` holds all that the test changes.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from drilldown.steps import ROOT
from tests.support.programs import wait_for
from tests.support.project import Project

pytestmark = pytest.mark.slow

PAGES = ("README.md", "docs/cli.md", "docs/inference.md", "docs/promotion.md", "docs/scaling.md")
BLOCKS = [
    pytest.param(block, id=f"{Path(page).stem}: {block.splitlines()[0][:50]}")
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), flags=re.S)
]
SERVERS = {"make ui": 5000, "make serve": 5001, "mlflow server": 5002}  # they run until they are stopped


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project, set up, where the digits' champion stands in for MNIST's."""
    project = Project(tmp_path_factory.mktemp("documented"))
    shutil.copytree(ROOT / "docs", project.folder / "docs", dirs_exist_ok=True)
    (project.folder / ".venv").mkdir()  # the environment that runs this test
    for entry in ("bin", "lib", "pyvenv.cfg"):
        (project.folder / ".venv" / entry).symlink_to(Path(sys.prefix) / entry)
    (project.folder / ".venv" / ".installed").touch()
    del project.environment["MLFLOW_EXPERIMENT_NAME"]
    project.environment["ARGS"] = "-P dataset=digits"
    trained = project.command("make", "step4")
    assert trained.returncode == 0, trained.stderr
    mlflow.set_tracking_uri(project.tracking_uri)
    client = mlflow.MlflowClient()
    champion = client.get_model_version_by_alias("digits-cnn", "champion")
    client.create_registered_model("mnist-cnn")
    client.create_model_version("mnist-cnn", champion.source, champion.run_id)
    client.set_registered_model_alias("mnist-cnn", "champion", "1")
    return project


@pytest.fixture(scope="module")
def servers():
    """The servers that blocks have started, by port; they are stopped at the end."""
    started = {}
    yield started
    for process in started.values():
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def adapt(block: str) -> str:
    """Change the block so that it can be run within a test."""
    block = re.sub(r"^make (test|all)\b", r"make --dry-run \1", block, flags=re.M)  # test_side_by_side runs them all
    block = re.sub(r"^mlflow server\b", "mlflow server --workers 1", block, flags=re.M)
    block = re.sub(r"^make ui$", 'make ui ARGS="--workers 1"', block, flags=re.M)
    block = re.sub(r'^(make (step3|repeat) ARGS=".*)"$', r'\1 -P dataset=digits -P epochs=2"', block, flags=re.M)
    block = re.sub(r"^make (step\d)$", r'make \1 ARGS="-P dataset=digits"', block, flags=re.M)
    block = block.replace("-P seeds=10", "-P seeds=2").replace("-P dataset=digits -P seed=7", "-P seed=7")
    block = re.sub(r"^(.*mlflow run \. -e (promote|rollback) .*)$", r"\1 -P model=digits-cnn", block, flags=re.M)
    return re.sub(r"^(.*mlflow run \. -e (step\d|repeat) .*)$", r"\1 -P dataset=digits -P epochs=2", block, flags=re.M)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_block(block, project, servers):
    port = next((port for command, port in SERVERS.items() if block.startswith(command)), None)
    if port in servers:  # another page has started it
        return
    log = project.folder / "block.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", adapt(block)],
            cwd=project.folder,
            env={name: value for name, value in project.environment.items() if name != "ARGS"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    if port:
        servers[port] = process
        wait_for(port, process)
    else:
        assert process.wait(timeout=300) == 0, log.read_text()[-3000:]


def test_all_runs_are_in_the_named_experiment(project):
    client = project.client()
    counts = {found.name: len(client.search_runs([found.experiment_id])) for found in client.search_experiments()}
    assert counts.pop("Default") == 0
    assert list(counts) == ["mnist-drilldown"]


def test_the_blocks_are_found():
    commands = [parameters.values[0] for parameters in BLOCKS]
    assert len(commands) >= 15
    assert {port for command in commands for start, port in SERVERS.items() if command.startswith(start)} == {
        *SERVERS.values()
    }
