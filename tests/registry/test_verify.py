"""The verifier's process: isolation, protocol, lifetime, and agreement with the evaluation."""

import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.models import infer_signature
from torch import nn

from drilldown.engine import accelerate
from drilldown.errors import VerificationError
from drilldown.learning.classifier import Classifier
from drilldown.learning.evaluate import evaluate
from drilldown.process import Stopped
from drilldown.registry.verify import Verifier
from drilldown.steps import STEP_NAMES, load_step
from drilldown.tracking.export import log_model
from tests.support import warm
from tests.support.programs import wait_until

pytestmark = pytest.mark.slow

# Predicts the digit in each image's first pixel. 100 is an image that it cannot predict, 200 one that it crashes on.
SCRIPTED_MODEL = """
import os, sys
import mlflow
import numpy as np

class FirstPixel(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        print("a library prints this")
        os.write(1, b"and this\\n")
        for name in ("drilldown", "drilldown.errors", "src", "steps"):
            try:
                __import__(name)
            except ImportError:
                continue
            raise RuntimeError(f"{name} can be imported")
        if os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] != "false":
            raise RuntimeError("pickle is allowed")
        digits = model_input[:, 0, 0]
        if 100 in digits:
            raise ValueError("it is no digit,\\nbut 100")
        if 200 in digits:
            print("about to crash", file=sys.stderr, flush=True)
            os._exit(3)
        return np.eye(10, dtype=np.float32)[digits]

mlflow.models.set_model(FirstPixel())
"""


@pytest.fixture
def scripted(tmp_path, monkeypatch):
    """The folder of a model that is a script, and so needs no pickle."""
    script, folder = tmp_path / "scripted_model.py", tmp_path / "first pixel"
    script.write_text(SCRIPTED_MODEL)
    images, answers = np.zeros((2, 28, 28), np.uint8), np.zeros((2, 10), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow recommends type hints and an example
        mlflow.pyfunc.save_model(
            folder, python_model=str(script), signature=infer_signature(images, answers), pip_requirements=[]
        )
    monkeypatch.chdir(Path(__file__).parents[2])  # a place from which the project could be imported
    monkeypatch.setenv("PYTHONPATH", "src")
    return folder


def images_of(*digits):
    images = np.zeros((len(digits), 28, 28), np.uint8)
    images[:, 0, 0] = digits
    return images


def test_one_isolated_process_answers_every_request(scripted, tmp_path):
    with Verifier() as verifier:
        verifier.start()
        process = verifier._process
        verifier.start()
        assert verifier._process is process
        assert verifier.predict([scripted], images_of(*range(10))).tolist() == [list(range(10))]
        assert verifier.predict([scripted, scripted], images_of(*[3] * 1201)).tolist() == [[3] * 1201] * 2
        with pytest.raises(VerificationError, match="^it is no digit, but 100$"):
            verifier.predict([scripted], images_of(100))
        with pytest.raises(VerificationError, match="^nowhere cannot be loaded by a fresh process: "):
            verifier.predict([scripted, tmp_path / "nowhere"], images_of(1))
        assert verifier.predict([scripted], images_of(4)).tolist() == [[4]]
        assert verifier._process is process

        with pytest.raises(VerificationError, match="the verifying process ended with exit status 3: about to crash"):
            verifier.predict([scripted], images_of(200))
        verifier.start()
        after_crash = verifier._process
        assert verifier.predict([scripted], images_of(5)).tolist() == [[5]]
    assert process.returncode == 3
    assert after_crash.returncode == -signal.SIGKILL


@pytest.mark.parametrize("error", [Stopped(15, "stopped by SIGTERM"), KeyboardInterrupt(), ValueError()])
def test_the_process_ends_with_the_context(error):
    verifier = Verifier()

    def fail():
        with verifier:
            verifier.start()
            processes.append(verifier._process)
            raise error

    processes = []
    with pytest.raises(type(error)):
        fail()
    assert [process.returncode for process in processes] == [-signal.SIGKILL]
    assert processes[0].stdin.closed
    assert processes[0].stdout.closed


def test_a_signal_interrupts_a_prediction(scripted):
    def stop(number, frame):
        raise Stopped(number, "stopped")

    handler = signal.signal(signal.SIGUSR1, stop)
    try:
        with Verifier() as verifier:
            verifier.start()
            process = verifier._process
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            with pytest.raises(Stopped):
                verifier.predict([scripted], images_of(1))  # the process is still importing
    finally:
        signal.signal(signal.SIGUSR1, handler)
    assert process.returncode == -signal.SIGKILL


def test_the_process_ends_when_its_parent_is_killed(tmp_path):
    program = (
        "import time; from drilldown.registry.verify import Verifier; verifier = Verifier(); verifier.start(); "
        "print(verifier._process.pid, flush=True); time.sleep(600)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([warm.python(), "-c", program], stdout=subprocess.PIPE, env=environment) as parent:
        child = int(parent.stdout.readline())
        assert is_running(child)
        parent.kill()
    wait_until(lambda: not is_running(child), seconds=120, for_what="the end of the verifying process")


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"  # a zombie has ended
    except FileNotFoundError:
        return False


class Centered(nn.Module):
    """An untrained network that predicts every digit, because its mean logits are subtracted."""

    def __init__(self, network, mean_logits):
        super().__init__()
        self.network = network
        self.register_buffer("mean_logits", mean_logits)

    def forward(self, images):
        return self.network(images) - self.mean_logits


def test_verifier_and_evaluation_agree_on_every_image(store, digits):
    """For each step's network: the exported model in the verifier's process, and evaluate() as in training."""
    cases = []
    for name in STEP_NAMES:
        torch.manual_seed(0)
        count = 120 if name == "step1" else 1201  # two whole batches and one image; step 1 is large
        images, labels = digits.train_images[:count], digits.train_labels[:count]
        classifier = Classifier(load_step(name).network(), *digits.moments()).eval()
        with torch.inference_mode():
            mean_logits = classifier.logits(images[:100]).mean(0)
        classifier.network = Centered(classifier.network, mean_logits.clone())
        with mlflow.start_run():
            folder = Path(mlflow.artifacts.download_artifacts(log_model(classifier, digits, name).model_uri))
        predictions = evaluate(classifier, images, labels).predictions
        assert len(predictions.unique()) >= 5
        with accelerate(classifier, engine="torch"):
            assert torch.equal(evaluate(classifier, images, labels).predictions, predictions)
        cases.append((folder, images.numpy(), predictions.tolist()))
    with Verifier() as verifier:
        for folder, images, predictions in cases:
            assert verifier.predict([folder], images).tolist() == [predictions]
