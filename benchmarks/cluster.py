"""How much sooner two workers of a cluster train than one, what the cluster costs, and how much its server takes.

`python -m benchmarks.cluster` starts an MLflow server, a scheduler and workers of one core each, and measures:

- `repeat -P seeds=8 -P epochs=3` with one worker and with two, and without a cluster by two processes (`jobs=2`);
- how many metric rows a second the server takes, from several clients at a time. An epoch is one request of seven rows.

The figures go to results/cluster.json.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import click
import torch
from mlflow import MlflowClient
from mlflow.entities import Metric

from benchmarks.errors import one_line_errors
from drilldown.hardware import processor_name
from drilldown.learning import data
from drilldown.steps import ROOT
from drilldown.tracking import store
from drilldown.tracking.provenance import code_digest, versions
from tests.support.programs import BIN, free_port, server, wait_until, with_programs

RESULT = ROOT / "results" / "cluster.json"
ROWS = 7  # of an epoch
CLIENTS = (1, 8, 32)
SECONDS = 10  # of each measurement of the server


@contextlib.contextmanager
def workers(count: int, folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """Start a scheduler and workers, each on a core of its own; yields the scheduler's address."""
    from distributed import Client

    address, cores = f"tcp://127.0.0.1:{free_port()}", sorted(os.sched_getaffinity(0))
    if len(cores) < count:
        raise click.ClickException(f"{count} workers of one core each take {count} cores, and there are {len(cores)}")
    scheduler = ["scheduler", "--host", "127.0.0.1", "--port", address.rpartition(":")[2], "--no-dashboard"]
    worker = ["worker", address, "--nworkers", "1", "--nthreads", "1", "--host", "127.0.0.1", "--no-dashboard"]
    with contextlib.ExitStack() as closing, (folder / "dask.log").open("ab") as log:
        for number, arguments in enumerate([scheduler, *[worker] * count]):
            home = folder / f"{count}-{number}"
            home.mkdir(exist_ok=True)
            core = cores[number - 1]
            process = subprocess.Popen(
                [BIN / "dask", *arguments],
                cwd=home,
                env=environment,
                stdout=log,
                stderr=log,
                preexec_fn=None if number == 0 else lambda core=core: os.sched_setaffinity(0, {core}),
            )
            closing.callback(process.wait)
            closing.callback(process.terminate)
        with Client(address, timeout=60, set_as_default=False) as client:
            joined = lambda: len(client.scheduler_info()["workers"]) == count  # noqa: E731
            wait_until(joined, seconds=60, for_what=f"{count} workers")
        yield address


def seconds(folder: Path, environment: dict[str, str], *parameters: str) -> float:
    """Repeat step 4 over eight seeds; returns how long that took."""
    command = [sys.executable, "-m", "drilldown", "repeat", "--dataset", "mnist", "--seeds", "8", "--epochs", "3"]
    started = time.perf_counter()
    done = subprocess.run(
        [*command, "--threads", "1", "--reuse", "false", *parameters],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise click.ClickException(f"{parameters} ended with {done.returncode}: {done.stderr}")
    return time.perf_counter() - started


def rows_a_second(uri: str, clients: int) -> float:
    """How many metric rows a second the server takes from so many clients at a time, in requests like an epoch's."""
    client = MlflowClient(uri)
    runs = [client.create_run("0").info.run_id for _ in range(clients)]
    end = time.monotonic() + SECONDS

    def log(run_id: str) -> int:
        requests = 0
        while time.monotonic() < end:
            metrics = [Metric(f"metric_{row}", requests, int(time.time() * 1000), requests) for row in range(ROWS)]
            MlflowClient(uri).log_batch(run_id, metrics=metrics)
            requests += 1
        return requests

    with ThreadPoolExecutor(clients) as threads:
        total = sum(threads.map(log, runs))
    for run_id in runs:
        client.set_terminated(run_id)
    return total * ROWS / SECONDS


@click.command()
@click.option("--repeats", type=click.IntRange(min=1), default=1, show_default=True, help="of each measurement")
@click.option("--tracking-uri", help="of a server that runs already  [default: one with SQLite is started]")
@click.option("--keep/--no-keep", default=True, show_default=True, help="write results/cluster.json")
def main(repeats: int, tracking_uri: str | None, keep: bool) -> None:
    """Measure a cluster on this machine."""
    machine = processor_name(torch.device("cpu"))
    click.echo(f"{machine}, load {os.getloadavg()[0]:.1f}: the figures are valid only if nothing else runs")
    with one_line_errors(), contextlib.ExitStack() as closing:
        data.load("mnist")  # if there is none, it is said here
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory()))
        environment = with_programs(os.environ) | {
            "PYTHONPATH": str(ROOT / "src"),
            "DASK_CONFIG": str(ROOT / "dask.yaml"),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        uri = tracking_uri
        if not uri:
            command = [str(BIN / "mlflow"), "server", "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
            command += ["--artifacts-destination", str(folder / "artifacts")]
            uri = f"http://127.0.0.1:{closing.enter_context(server(command, environment))}"
        environment["MLFLOW_TRACKING_URI"] = uri
        measured: dict[str, list[float]] = {"one worker": [], "two workers": [], "two processes, no cluster": []}
        for _ in range(repeats):
            for count, name in ((1, "one worker"), (2, "two workers")):
                with workers(count, folder, environment) as address:
                    measured[name].append(seconds(folder, environment, "--cluster", address))
            measured["two processes, no cluster"].append(seconds(folder, environment, "--jobs", "2"))
        middle = {name: median(repeated) for name, repeated in measured.items()}
        for name, value in middle.items():
            click.echo(f"{value:6.1f} s  {name}")
        speed_up = middle["one worker"] / middle["two workers"]
        cost = middle["two workers"] / middle["two processes, no cluster"] - 1
        click.echo(f"two workers against one: {speed_up:.2f} times as fast; the cluster costs {cost:.1%}")
        rows = {clients: rows_a_second(uri, clients) for clients in CLIENTS}
        for clients, value in rows.items():
            click.echo(f"{value:6.0f} metric rows a second from {clients} clients")
    if keep:
        facts = {"machine": machine, "versions": versions(), "code": code_digest("step4")}
        found = {"seconds": measured, "speed_up": speed_up, "cost": cost, "rows_a_second": rows}
        RESULT.write_text(json.dumps(found | facts, indent=1) + "\n")
        click.echo(f"written to {RESULT}")


if __name__ == "__main__":
    store.quiet_mlflow()
    main()
