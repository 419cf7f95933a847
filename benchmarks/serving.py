"""How fast step 4's model answers: in plain PyTorch, through MLflow's pyfunc, and over HTTP.

The registered model divides the images of a call into small batches; "one batch" is the same model without that.
The weights are random: they do not influence the time.
"""

import http.client
import json
import os
import tempfile
import time
from collections.abc import Callable
from statistics import median

import click
import mlflow
import numpy as np
import torch

from drilldown.learning import data
from drilldown.learning.classifier import Classifier
from drilldown.steps import load_step
from drilldown.tracking import export
from tests.support.programs import server

BATCHES = (1, 64, 1024)
SECONDS = 2.0  # of each measurement


def measure(repeats: int) -> dict:
    """Time each way to ask the model, in turn, and print images and calls per second."""
    dataset = data.load("digits")
    images = np.resize(dataset.test_images.numpy(), (max(BATCHES), 28, 28))
    classifier = Classifier(load_step("step4").network(), 0.13, 0.31).eval()
    before = mlflow.get_tracking_uri()
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/mlflow.db"
        mlflow.set_tracking_uri(store)
        try:
            experiment = mlflow.create_experiment("serving", artifact_location=f"{folder}/artifacts")
            with mlflow.start_run(experiment_id=experiment):
                uri = export.log_model(classifier, dataset, "model").model_uri
            command = ["mlflow", "models", "serve", "--model-uri", uri, "--env-manager", "local"]
            with server(command, os.environ | {"MLFLOW_TRACKING_URI": store}) as port:
                loaded = mlflow.pyfunc.load_model(uri)
                whole = mlflow.pyfunc.load_model(uri, model_config={"batch_size": max(BATCHES)})
                ways = {  # each measurement opens its own connection: the server closes an idle one
                    "PyTorch": lambda: _torch(classifier),
                    "pyfunc": lambda: loaded.predict,
                    "pyfunc, one batch": lambda: whole.predict,
                    "HTTP": lambda: _http(port),
                }
                rates = {way: {batch: [] for batch in BATCHES} for way in ways}
                for _ in range(repeats):
                    for way, connect in ways.items():
                        for batch in BATCHES:
                            rates[way][batch].append(_calls_per_second(connect(), images[:batch]))
        finally:
            mlflow.set_tracking_uri(before)
    measured = {}
    for way, by_batch in rates.items():
        measured[way] = {}
        for batch, repeated in by_batch.items():
            rate = median(repeated)
            measured[way][str(batch)] = {"calls_a_second": {"median": rate, "repeats": repeated}}
            click.echo(
                f"  {way:17} calls of {batch:5,} images: {rate * batch:9,.0f} images per second, "
                f"{rate:7,.1f} calls per second, {1000 / rate:7.2f} ms per call"
            )
    divided, undivided = (rates[way][max(BATCHES)] for way in ("pyfunc", "pyfunc, one batch"))
    ratios = [rate / other for rate, other in zip(divided, undivided, strict=True)]
    click.echo(f"  {max(BATCHES):,} images in one call: {median(ratios):.2f} times as fast as in one batch")
    return {"serving": measured}


def _torch(classifier: Classifier) -> Callable:
    def ask(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return classifier(torch.from_numpy(images)).numpy()

    return ask


def _http(port: int) -> Callable:
    """Ask over one open connection; the time includes writing and reading JSON, as for any client."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(images: np.ndarray) -> np.ndarray:
        body = json.dumps({"instances": images.tolist()})
        connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
        return np.array(json.load(connection.getresponse())["predictions"])

    return ask


def _calls_per_second(ask: Callable, images: np.ndarray) -> float:
    ask(images)  # the first call is slower
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < SECONDS:
        ask(images)
        calls += 1
    return calls / elapsed
