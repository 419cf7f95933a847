"""How fast the registered model answers: plain PyTorch, MLflow's pyfunc, and HTTP, with step 4's network.

The weights do not matter to the time: they are fresh ones.
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

from benchmarks.programs import server
from src.learning import data
from src.learning.classifier import Classifier
from src.lifecycle import tracking
from steps.step4 import Network

BATCHES = (1, 64, 1024)
SECONDS = 2.0  # of each measurement


def measure(repeats: int) -> dict:
    """Time each way to an answer, in turns, and print images and requests a second."""
    dataset = data.load("digits")
    images = np.resize(dataset.test_images.numpy(), (max(BATCHES), 28, 28))
    classifier = Classifier(Network(), 0.13, 0.31).eval()
    before = mlflow.get_tracking_uri()
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/mlflow.db"
        mlflow.set_tracking_uri(store)
        try:
            experiment = mlflow.create_experiment("serving", artifact_location=f"{folder}/artifacts")
            with mlflow.start_run(experiment_id=experiment):
                uri = tracking.log_model(classifier, dataset).model_uri
            command = ["mlflow", "models", "serve", "--model-uri", uri, "--env-manager", "local"]
            with server(command, os.environ | {"MLFLOW_TRACKING_URI": store}) as port:
                loaded = mlflow.pyfunc.load_model(uri)
                ways = {  # a way begins anew for each measurement: a server closes a connection that rests
                    "PyTorch": lambda: _torch(classifier),
                    "pyfunc": lambda: loaded.predict,
                    "HTTP": lambda: _http(port),
                }
                rates = {way: {batch: [] for batch in BATCHES} for way in ways}
                for _ in range(repeats):
                    for way, begin in ways.items():
                        for batch in BATCHES:
                            rates[way][batch].append(_calls_a_second(begin(), images[:batch]))
        finally:
            mlflow.set_tracking_uri(before)
    found = {}
    for way, of_batches in rates.items():
        found[way] = {}
        for batch, repeated in of_batches.items():
            rate = median(repeated)
            found[way][str(batch)] = {"calls_a_second": {"median": rate, "repeats": repeated}}
            click.echo(
                f"  {way:8} batches of {batch:5,}: {rate * batch:9,.0f} images a second, {rate:7,.1f} calls a second, "
                f"{1000 / rate:7.2f} ms a call"
            )
    return {"serving": found}


def _torch(classifier: Classifier) -> Callable:
    def ask(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return classifier(torch.from_numpy(images)).numpy()

    return ask


def _http(port: int) -> Callable:
    """One connection, kept open; writing and reading JSON is part of the time, as it is for any client."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(images: np.ndarray) -> np.ndarray:
        body = json.dumps({"instances": images.tolist()})
        connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
        return np.array(json.load(connection.getresponse())["predictions"])

    return ask


def _calls_a_second(ask: Callable, images: np.ndarray) -> float:
    ask(images)  # the first call is slower
    calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < SECONDS:
        ask(images)
        calls += 1
    return calls / elapsed
