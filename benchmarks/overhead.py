"""Where the time of a run goes that is not training: `mlflow run . -e step4`, in a folder and a store of its own.

The run is short and has no target, so that it goes all the way: export, pictures, registration, verification. Where
the time went is read from what the store knows of it.
"""

import os
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median

import click
import mlflow

from benchmarks.programs import with_programs
from src.learning import data

ROOT = Path(__file__).parents[1]
EPOCHS = 5  # the gate wants five


def measure(repeats: int) -> dict:
    """Run it so many times, and print the parts."""
    data.load("mnist")  # where it cannot be had, that is said here, and not by a run that fails
    found = [run() for _ in range(repeats)]
    parts = {name: median(parts[name] for parts in found) for name in found[0]}
    totals = [sum(parts.values()) for parts in found]
    for name, seconds in parts.items():
        click.echo(f"  {seconds:5.1f} s  {name}")
    click.echo(f"overhead_seconds: {median(totals):.1f} s a run that is not training (median of {repeats})")
    return {"overhead_seconds": {"median": median(totals), "repeats": totals, "parts": parts}}


def run() -> dict[str, float]:
    """Seconds of each part of one run."""
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/mlflow.db"
        environment = with_programs(os.environ | {"MLFLOW_TRACKING_URI": store})
        client = mlflow.MlflowClient(store)
        client.create_experiment("overhead", artifact_location=f"{folder}/artifacts")  # makes the database, too
        command = ["mlflow", "run", str(ROOT), "-e", "step4", "--env-manager", "local", "--experiment-name", "overhead"]
        parameters = ["-P", "dataset=mnist", "-P", f"epochs={EPOCHS}", "-P", "target=0"]
        started = time.time()
        subprocess.run([*command, *parameters], env=environment, check=True, capture_output=True)
        ended = time.time()
        (version,) = client.search_model_versions("name = 'mnist-cnn'")
        tracked = client.get_run(version.run_id)
        epochs = client.get_metric_history(version.run_id, "epoch_seconds")
        training = sum(entry.value for entry in epochs)
        first, last = (pick(entry.timestamp for entry in epochs) / 1000 for pick in (min, max))
        begun = first - epochs[0].value
        opened, closed = tracked.info.start_time / 1000, tracked.info.end_time / 1000
        registered = version.creation_timestamp / 1000
        return {
            "mlflow run starts": opened - started,
            "imports, data, what is logged before training": begun - opened,
            "logging and state between epochs": last - begun - training,
            "pictures, export of the model, what is logged after training": registered - last,
            "registration, verification in a fresh process": closed - registered,
            "the end": ended - closed,
        }
