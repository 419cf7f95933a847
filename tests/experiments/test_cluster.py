"""A cluster of two workers, a tracking server, and what becomes of trainings when a worker or the command is killed."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import psutil
import pytest

from drilldown.commands.train import repeat_step
from drilldown.errors import ClusterError, ParameterError
from drilldown.experiments import cluster, remote
from drilldown.tracking import store as stores
from drilldown.tracking.tags import ours
from tests.support.programs import BIN, free_port, server, wait_until, with_programs
from tests.support.project import Project

STEP = ("--step", "step4", "--dataset", "digits", "--target", "20", "--threads", "1", "--reuse", "false")
EPOCHS = 10
KEPT = "states/epoch-0003.pt"


@pytest.mark.slow
def test_a_store_of_this_machine_is_refused(store):
    with pytest.raises(ParameterError, match="it takes a store that all machines reach, and MLFLOW_TRACKING_URI is 's"):
        cluster.connect("tcp://127.0.0.1:9", 0).__enter__()


def test_gpus_are_for_a_cluster(store):
    with pytest.raises(ParameterError, match="gpus is 1: it takes a cluster"):
        repeat_step.__wrapped__("step4", 2, None, None, True, "", None, gpus=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "reason"),
    [("tcp://127.0.0.1:9", "no scheduler answers there within 1 s"), ("carrier://pigeon", "unknown address scheme")],
)
def test_no_scheduler_answers(monkeypatch, address, reason):
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "http://127.0.0.1:9")
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    with pytest.raises(ClusterError, match=f"cluster is {address!r}: {reason}"):
        cluster.connect(address, 0).__enter__()


def test_another_version_is_named():
    mine = remote.version()
    remote.check_version(mine, "tcp://there:1", dict(mine))
    expected = f"the worker tcp://there:1 has another version: code is abc there and {mine['code']} here"
    with pytest.raises(ClusterError, match=expected):
        remote.check_version(mine, "tcp://there:1", mine | {"code": "abc"})
    assert remote.host("tcp://10.0.0.1:4711") == "10.0.0.1"


class Machines:
    """A scheduler, two workers in folders of their own, and an MLflow server; all run the same copy of the project."""

    def __init__(self, folder):
        self.project, self.port = Project(folder / "project"), free_port()
        self.folder, self.address = folder, f"tcp://127.0.0.1:{self.port}"
        self.workers, self.commands, self.earlier = {}, [], set()

    @contextlib.contextmanager
    def started(self):
        with contextlib.ExitStack() as closing:
            database = f"sqlite:///{self.folder / 'server.db'}"
            command = [BIN / "mlflow", "server", "--workers", "1", "--backend-store-uri", database]
            command += ["--artifacts-destination", str(self.folder / "artifacts")]
            environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            port = closing.enter_context(server(command, environment))
            self.project.tracking_uri = self.project.environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
            closing.callback(self.stop)
            scheduler = ("scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard")
            self.workers["scheduler"] = self.start("scheduler", *scheduler)
            for name in ("one", "two"):
                self.start_worker(name)
            yield self

    def start(self, name, *arguments):
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        environment = with_programs(os.environ) | {
            "PYTHONPATH": str(self.project.folder / "src"),
            "DASK_CONFIG": str(self.project.folder / "dask.yaml"),
            "DRILLDOWN_CHECKPOINTS": str(folder / "checkpoints"),  # no machine has the states of another
        }
        with (folder / "log").open("ab") as log:
            return subprocess.Popen(
                [BIN / "dask", *arguments], cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def start_worker(self, name):
        arguments = ("worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1")
        self.workers[name] = self.start(name, *arguments)

    def stop(self):
        for process in self.workers.values():
            process.kill()
            process.wait()

    def repeat(self, seeds, epochs):
        self.earlier = {run.info.run_id for run in self.project.runs()}
        command = (sys.executable, "-m", "drilldown", "repeat", *STEP, "--cluster", self.address)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.commands.append(self.project.start(*command, "--seeds", str(seeds), "--epochs", str(epochs), **pipes))
        return self.commands[-1]

    def end_commands(self):
        """End what a failed test has left running."""
        for process in self.commands:
            with process:  # closes its pipes
                process.kill()
        self.commands.clear()

    def trainings(self):
        """The nested runs of the repetition that was started last, by seed."""
        runs = [run for run in self.project.runs() if run.info.run_id not in self.earlier]
        return {int(run.info.run_name.rpartition(" ")[2]): run for run in runs if "mlflow.parentRunId" in run.data.tags}

    def worker_of(self, run):
        """The worker whose process trains the run; None before it has taken the run over."""
        folder = Path(ours(run.data.tags)["process"].partition(":")[2]).parent.parent
        return folder.name if folder.parent == self.folder else None

    def processes(self):
        """The processes that the workers have started."""
        found = []
        for name, process in self.workers.items():
            if name != "scheduler" and process.poll() is None:
                found += psutil.Process(process.pid).children()
        return [process for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]

    def kept(self, run):
        client = self.project.client()
        return any(file.path == KEPT for file in client.list_artifacts(run.info.run_id, "states"))

    def wait_for_training(self, seeds):
        """Wait until workers train these seeds, and the store has a state of each."""

        def training():
            found = self.trainings()
            return all(seed in found and self.worker_of(found[seed]) and self.kept(found[seed]) for seed in seeds)

        wait_until(training, seconds=240, for_what=f"a kept state of each of the seeds {seeds}")
        return self.trainings()


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    with Machines(tmp_path_factory.mktemp("cluster")).started() as machines:
        yield machines


@pytest.fixture
def ready(machines, monkeypatch):
    """The machines, with both workers running, and this process a client of the server."""
    for name in ("one", "two"):
        if machines.workers[name].poll() is not None:
            machines.start_worker(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", machines.project.tracking_uri)
    mlflow.set_tracking_uri(machines.project.tracking_uri)
    yield machines
    machines.end_commands()
    mlflow.set_tracking_uri(None)


def metrics_logged_twice(client, run):
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return [name for name, history in histories.items() if len({entry.step for entry in history}) != len(history)]


@pytest.mark.fault("cluster that cannot train", "no worker with a GPU; workers with other code", "one line; no run")
@pytest.mark.slow
@pytest.mark.servers
def test_a_cluster_that_cannot_train_is_refused(ready):
    def refused(gpus):
        with pytest.raises(ClusterError) as error, cluster.connect(ready.address, gpus):
            pass
        return str(error.value)

    wait_until(lambda: "no worker has a GPU, and gpus is 1" in refused(1), seconds=60, for_what="a worker")
    file, mine = ready.project.folder / "src/drilldown/choices.py", remote.version()["code"]
    text = file.read_text()
    file.write_text(f"{text}# changed\n")  # in the checkout that the workers run
    try:
        assert re.search(
            f"has another version: code is [0-9a-f]{{20}} there and {mine} here; start it from", refused(0)
        )
    finally:
        file.write_text(text)


@pytest.mark.fault(
    "worker killed",
    "SIGKILL to a Dask worker in the middle of a seed",
    "the seed finishes on another worker with every metric once; no process is left",
)
@pytest.mark.slow
@pytest.mark.servers
def test_a_killed_worker_loses_no_seed_and_no_epoch(ready):
    process = ready.repeat(seeds=3, epochs=EPOCHS)
    lost = ready.wait_for_training([0])[0]
    worker = ready.workers[ready.worker_of(lost)]
    children = psutil.Process(worker.pid).children()
    assert len(children) == 1
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    psutil.wait_procs(children, timeout=30)
    assert not children[0].is_running()
    stdout, stderr = process.communicate(timeout=500)
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    client, trained = ready.project.client(), ready.trainings()
    assert {seed: run.info.status for seed, run in trained.items()} == dict.fromkeys(range(3), "FINISHED")
    for run in trained.values():
        history = client.get_metric_history(run.info.run_id, "train_loss")
        assert [entry.step for entry in history] == list(range(1, EPOCHS + 1))
        assert metrics_logged_twice(client, run) == []
        assert "error" not in ours(run.data.tags)
        assert not ready.kept(run)  # a finished run needs no state
    again = ours(trained[0].data.tags)
    assert (trained[0].info.run_id, again["attempt"]) == (lost.info.run_id, "2")
    assert int(again["attempt.after_epoch"]) >= 3
    assert ours(trained[2].data.tags)["attempt"] == "1"
    parent = client.get_run(again["mlflow.parentRunId"])
    kept = json.loads(Path(client.download_artifacts(parent.info.run_id, "repeat.json")).read_text())
    assert (parent.info.status, kept["failed"], len(kept["runs"])) == ("FINISHED", 0, 3)
    assert "step4 seed 2: final " in stdout


@pytest.mark.fault(
    "worker killed twice",
    "SIGKILL to both Dask workers that train a seed",
    "the seed is reported failed; the others finish",
)
@pytest.mark.slow
@pytest.mark.servers
def test_a_seed_that_is_lost_twice_is_reported_and_the_others_go_on(ready):
    process = ready.repeat(seeds=2, epochs=EPOCHS)
    for attempt in ("1", "2"):

        def worker(attempt=attempt):
            run = ready.trainings().get(0)
            on = ready.worker_of(run) if run and ours(run.data.tags).get("attempt") == attempt else None
            return on if on and ready.workers[on].poll() is None else None

        ready.wait_for_training([0])
        name = wait_until(worker, seconds=120, for_what=f"attempt {attempt}")
        ready.workers[name].send_signal(signal.SIGKILL)
        ready.workers[name].wait()
        ready.start_worker(name)
    stdout, stderr = process.communicate(timeout=500)
    assert process.returncode == 1
    assert "step4 seed 0: failed: its worker was lost 2 times" in stdout
    assert stderr.splitlines()[-1] == (
        "error: 1 of 2 runs failed, the first of them step4 seed 0: its worker was lost 2 times"
    )
    wait_until(lambda: ready.trainings()[0].info.status == "KILLED", seconds=30, for_what="the end of the lost run")
    assert ready.trainings()[1].info.status == "FINISHED"


@pytest.mark.fault(
    "command of a cluster ends", "SIGINT or SIGKILL to it", "the trainings end within seconds; their runs are KILLED"
)
@pytest.mark.slow
@pytest.mark.servers
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_command_is_killed_and_nothing_is_left(ready, number):
    process = ready.repeat(seeds=3, epochs=200)
    trained = ready.wait_for_training([0, 1])
    assert len(ready.processes()) == 2
    process.send_signal(number)
    began = time.monotonic()
    wait_until(lambda: not ready.processes(), seconds=30, for_what="the end of the trainings")
    stdout, stderr = process.communicate(timeout=30)
    ended = {run.info.run_id: ready.project.client().get_run(run.info.run_id) for run in trained.values()}
    assert {run.info.status for run in ended.values()} == {"KILLED"}
    print(f"signal {number}: nothing is left after {time.monotonic() - began:.1f} s")
    if number == signal.SIGINT:
        assert process.returncode == 128 + number
        assert "Traceback" not in stderr
        assert f"--cluster {ready.address}" in stdout.splitlines()[-1]
    else:
        stores.close_abandoned()  # as every command does: nobody else could close the command's own run
    assert [run.info.run_name for run in ready.project.runs() if run.info.status == "RUNNING"] == []
