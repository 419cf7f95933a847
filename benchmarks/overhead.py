"""A run's fixed overhead, everything besides training, and the time that the command line takes to start.

The overhead is that of `mlflow run . -e step4` in a temporary folder and store, read from the times in the store. The
run is short and has no target, so that it exports, draws, registers and verifies its model, too.

Another checkout, of this edition or of the first one (`src.run`), can be measured in turn with this one.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import click
import mlflow

from drilldown.learning import data
from drilldown.steps import ROOT
from tests.support.programs import with_programs

EPOCHS = 5  # as many as the gate judges
# Prints the CPU time (user and system, all threads, no child processes) of this process when the first epoch begins,
# and ends the process. An epoch begins with torch.randperm, the order of its images.
CPU_TIME = """
import os, runpy, sys, time, torch

def first_epoch(*args, **kwargs):
    print(time.process_time(), flush=True)
    os._exit(0)

torch.randperm = first_epoch
module = sys.argv.pop(1)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""

# The same for PyTorch, MLflow and an open run alone: no command can begin to train in less.
PACKAGES_ALONE = """
import time, torch, mlflow
with mlflow.start_run():
    mlflow.log_param("name", "value")
    print(time.process_time())
"""


@dataclass(frozen=True)
class Checkout:
    """A checkout of this project, and how to start its command line."""

    name: str
    root: Path
    module: str
    import_path: Path

    @classmethod
    def at(cls, name: str, root: Path) -> "Checkout":
        """Describe the checkout in this folder."""
        for module, file, import_path in (
            ("drilldown", root / "src" / "drilldown" / "__main__.py", root / "src"),
            ("src.run", root / "src" / "run.py", root),
        ):
            if file.exists():
                return cls(name, root, module, import_path)
        raise click.BadParameter(f"{root} is no checkout of this project", param_hint="--checkout")

    def commit(self) -> str | None:
        """Return the commit that is checked out."""
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=self.root, capture_output=True, text=True)
        return found.stdout.strip() or None


def measure(repeats: int, checkout: Path | None = None) -> dict:
    """Measure this checkout, in turn with the other one if there is one, and print the figures."""
    data.load("mnist")  # if there is none, it is said here, and not by a run that fails
    this = Checkout.at("this checkout", ROOT)
    checkouts = [this, Checkout.at(f"checkout {checkout}", checkout)] if checkout else [this]
    for each in checkouts:  # not counted: it compiles what is not compiled yet, and fills the file cache
        time_start_up(each)
    overheads = {each: [] for each in checkouts}
    start_ups = {each: [] for each in checkouts}
    for _ in range(repeats):
        for each in checkouts:
            start_ups[each].append(time_start_up(each))
            overheads[each].append(time_run(each))
    found = {each: summarize(each, overheads[each], start_ups[each]) for each in checkouts}
    others = [{"commit": each.commit()} | found[each] for each in checkouts[1:]]
    return found[this] | {"other_checkout": others[0] if others else None}


def summarize(
    checkout: Checkout, overheads: Sequence[Mapping[str, float]], start_ups: Sequence[Mapping[str, float]]
) -> dict:
    """Return the medians and the repeated measurements of a checkout, and print the medians."""
    click.echo(f" {checkout.name}:")
    parts = {name: median(parts[name] for parts in overheads) for name in overheads[0]}
    totals = [sum(parts.values()) for parts in overheads]
    for name, seconds in parts.items():
        click.echo(f"  {seconds:5.1f} s  {name}")
    click.echo(f"overhead_seconds: {median(totals):.1f} s of a run (median of {len(totals)})")
    start_up = {}
    for name in start_ups[0]:
        repeated = [measured[name] for measured in start_ups]
        start_up[name] = {"median": median(repeated), "repeats": repeated}
        click.echo(f"  {median(repeated):6.2f} s  {name}")
    return {
        "overhead_seconds": {"median": median(totals), "repeats": totals, "parts": parts},
        "start_up": start_up,
    }


def time_start_up(checkout: Checkout) -> dict[str, float]:
    """Measure the command line once: seconds by what is measured."""
    command = ["-m", checkout.module]
    training = ["step4", "--dataset", "mnist", "--epochs", str(EPOCHS)]
    return {
        "help_seconds": wall_seconds(checkout, [*command, "--help"], exit_code=0),
        "refused_parameter_seconds": wall_seconds(checkout, [*command, "step4", "--epochs", "abc"], exit_code=2),
        "cpu_seconds_until_first_epoch": cpu_seconds_until_first_epoch(checkout, training),
        "cpu_seconds_of_packages_alone": cpu_seconds(checkout, ["-c", PACKAGES_ALONE]),
    }


def wall_seconds(checkout: Checkout, arguments: Sequence[str], exit_code: int) -> float:
    """Return how long Python takes to run with these arguments; it must end with the exit code."""
    started = time.perf_counter()
    _python(checkout, arguments, exit_code)
    return time.perf_counter() - started


def cpu_seconds_until_first_epoch(checkout: Checkout, arguments: Sequence[str]) -> float:
    """Return the CPU time of the command line's process, without its children, from its start until training begins."""
    return cpu_seconds(checkout, ["-c", CPU_TIME, checkout.module, *arguments])


def cpu_seconds(checkout: Checkout, arguments: Sequence[str]) -> float:
    """Return the CPU time that a Python program prints in its last line."""
    return float(_python(checkout, arguments, exit_code=0, with_store=True).stdout.split()[-1])


def _python(
    checkout: Checkout, arguments: Sequence[str], exit_code: int, with_store: bool = False
) -> subprocess.CompletedProcess:
    """Run Python with the checkout's modules, in a temporary folder with a store of its own."""
    with tempfile.TemporaryDirectory() as folder:
        environment = _environment(folder) | {"PYTHONPATH": str(checkout.import_path)}
        if with_store:
            _create_store(environment, folder)
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != exit_code:
        raise click.ClickException(f"{checkout.name}: {arguments} ended with {done.returncode}: {done.stderr}")
    return done


def time_run(checkout: Checkout) -> dict[str, float]:
    """Run step 4 once by `mlflow run`; return the seconds of each part of its overhead."""
    with tempfile.TemporaryDirectory() as folder:
        environment = _environment(folder)
        client = _create_store(environment, folder)
        command = ["mlflow", "run", str(checkout.root), "-e", "step4", "--env-manager", "local"]
        parameters = ["-P", "dataset=mnist", "-P", f"epochs={EPOCHS}", "-P", "target=0"]
        started = time.time()
        done = subprocess.run([*command, *parameters], env=environment, capture_output=True, text=True)
        ended = time.time()
        if done.returncode:
            raise click.ClickException(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
        (version,) = client.search_model_versions("name = 'mnist-cnn'")
        tracked = client.get_run(version.run_id)
        epochs = client.get_metric_history(version.run_id, "epoch_seconds")
        training = sum(entry.value for entry in epochs)
        first, last = (pick(entry.timestamp for entry in epochs) / 1000 for pick in (min, max))
        begun = first - epochs[0].value
        opened, closed = tracked.info.start_time / 1000, tracked.info.end_time / 1000
        registered = version.creation_timestamp / 1000
        return {
            "start of mlflow run": opened - started,
            "imports, data, logging before training": begun - opened,
            "logging and saved states between epochs": last - begun - training,
            "figures, export of the model, logging after training": registered - last,
            "registration and verification": closed - registered,
            "end of the processes": ended - closed,
        }


def _create_store(environment: Mapping[str, str], folder: str) -> mlflow.MlflowClient:
    """Create the database with an experiment, which `make store` does before the first run."""
    client = mlflow.MlflowClient(environment["MLFLOW_TRACKING_URI"])
    client.create_experiment("overhead", artifact_location=f"{folder}/artifacts")
    return client


def _environment(folder: str) -> dict[str, str]:
    """Return the environment of a command: this interpreter's programs, a store in the folder, no import path."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return with_programs(kept) | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
        "MLFLOW_EXPERIMENT_NAME": "overhead",
    }
