"""The line by which a stopped run is resumed works as it is printed, by make and by `mlflow run`.

tests/faults/test_server.py tries the one of `python -m drilldown`.
"""

import os
import re
import signal

import mlflow
import pytest

from tests.support.programs import wait_until
from tests.support.project import Project

pytestmark = pytest.mark.slow
OPTIONS = "-P dataset=digits -P epochs=12"
STARTS = {
    "make": ("MLFLOW_EXPERIMENT_NAME='my runs' make step4 ARGS=\"OPTIONS -P data_dir='my data'\"", "mlflow.db"),
    "mlflow run": (
        "MLFLOW_TRACKING_URI=sqlite:///other.db mlflow run . -e step4 --env-manager local "
        "--experiment-name 'my runs' OPTIONS",
        "other.db",
    ),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    project = Project(tmp_path_factory.mktemp("my project"))
    project.link_environment()
    del project.environment["MLFLOW_EXPERIMENT_NAME"]
    return project


@pytest.mark.parametrize("how", STARTS)
def test_a_stopped_run_is_resumed_by_the_line_that_it_prints(project, how):
    line, database = STARTS[how]
    log = project.folder / "run.log"
    known = {*project.folder.glob("checkpoints/*")}

    def first_epoch():
        assert process.poll() is None, log.read_text()
        return next(
            (file.parent for file in project.folder.glob("checkpoints/*/epoch-*.pt") if file.parent not in known), None
        )

    with log.open("w") as output:
        process = project.start("bash", "-c", line.replace("OPTIONS", OPTIONS), stdout=output, stderr=output)
        run_id = wait_until(first_epoch, seconds=200, for_what="an epoch").name
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) != 0
    (hint,) = re.findall(r"^to resume it: (.*)$", log.read_text(), flags=re.M)
    assert how in hint
    assert ("data_dir" in hint) is (how == "make")
    done = project.command("bash", "-c", hint)
    assert done.returncode == 0, done.stderr
    assert "resumes after epoch" in done.stdout
    client = mlflow.MlflowClient(f"sqlite:///{project.folder / database}")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    experiments = {found.experiment_id: found.name for found in client.search_experiments()}
    of = {experiments[found.info.experiment_id] for found in client.search_runs([*experiments])}
    assert of == {"my runs"}  # also the run that `mlflow run` opens for the resumption
