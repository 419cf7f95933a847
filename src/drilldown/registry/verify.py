"""Verification: a fresh process loads registered models as users do, and must find the accuracy that was logged."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model

from drilldown.errors import RegistryError, VerificationError
from drilldown.learning.data import Dataset
from drilldown.learning.evaluate import BATCH_SIZE, percent
from drilldown.registry import integrity
from drilldown.registry.promotion import Candidate
from drilldown.tracking.export import predictions_digest
from drilldown.tracking.tags import ours

SCRIPT = Path(__file__).with_name("isolated_predict.py")


class Verifier:
    """A fresh process that predicts with registered models; it cannot import this project, nor read a pickle.

    A context manager: on exit the process ends. If this process is killed, the other one sees the end of its input,
    and ends too.
    """

    _process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def start(self) -> None:
        """Start the process, unless it runs already. Its imports take seconds: start it before it is needed."""
        if self._process:
            return
        settings = {
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),  # as many as evaluate() has
            "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait would take the cores from this process
            # Keep freed memory, as hardware.keep_freed_memory does; every version of glibc takes these values.
            "MALLOC_MMAP_THRESHOLD_": str(2**25),
            "MALLOC_TRIM_THRESHOLD_": str(2**30),
        }
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process); a pipe could fill up
        self._process = subprocess.Popen(
            [sys.executable, "-I", SCRIPT, str(BATCH_SIZE)],  # -I: without this folder and PYTHONPATH
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | settings,
        )
        # A training that still runs comes first.
        niceness = os.getpriority(os.PRIO_PROCESS, 0) + 5
        os.setpriority(os.PRIO_PROCESS, self._process.pid, niceness)

    def predict(self, model_folders: Sequence[Path], images: np.ndarray) -> np.ndarray:
        """Return the digits (models, N) that each model predicts for uint8 images (N, 28, 28).

        Raises: VerificationError when a model cannot be loaded, or fails.
        """
        self.start()
        with tempfile.TemporaryDirectory() as folder:
            images_file, answers_file = Path(folder) / "images.npy", Path(folder) / "answers.npy"
            np.save(images_file, images)
            models = [str(model) for model in model_folders]
            error = self._send({"images": str(images_file), "answers": str(answers_file), "models": models})
            if error is not None:
                raise VerificationError(error)
            answers: np.ndarray = np.load(answers_file)
            return answers

    def _send(self, request: dict[str, object]) -> str | None:
        """Send a request and wait for the reply: None, or what went wrong."""
        assert self._process
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            reply = self._process.stdout.readline()
        except BrokenPipeError:
            reply = b""
        if not reply:
            return self._explain_end()
        try:
            error: str | None = json.loads(reply)
        except ValueError:  # a library printed it while it was imported
            return f"the verifying process replied {reply!r}"
        return error

    def _explain_end(self) -> str:
        """Say how the process ended by itself; the next request starts another one."""
        assert self._process
        status = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        self._end()
        return ": ".join([f"the verifying process ended with exit status {status}", *lines[-1:]])

    def _end(self) -> None:
        if self._process:
            with self._log, self._process:  # leaving it closes the pipes and waits for the end
                self._process.kill()
            self._process = None


def verify(versions: Sequence[ModelVersion], dataset: Dataset, verifier: Verifier) -> list[Candidate]:
    """Predict the whole test set with each of the versions, in the verifier's process.

    Raises: VerificationError unless each version has the files that were registered, and predicts for every image what
    the trained network predicted; RegistryError when one was measured on other data, or its registration was
    interrupted.
    """
    for version in versions:
        _check_tags(version, dataset)
    verifier.start()
    images, labels = dataset.test_images.numpy(), dataset.test_labels.numpy()
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(folder) / f"{version.name} version {version.version}" for version in versions]
        for version, copy in zip(versions, copies, strict=True):
            copy.mkdir()
            integrity.fetch(version, copy)
        expected = [(Model.load(str(copy)).metadata or {}).get("predictions.digest") for copy in copies]
        predictions = verifier.predict(copies, images)
    candidates = []
    for version, row, digest in zip(versions, predictions, expected, strict=True):
        tags = ours(version.tags)
        found, logged = percent((row == labels).sum(), len(labels)), float(tags["test_accuracy"])
        if found != logged:
            raise VerificationError(
                f"{version.name} version {version.version} has {found:.2f} % when reloaded, and had {logged:.2f} % "
                "when logged"
            )
        if digest not in (None, predictions_digest(row)):  # models of earlier versions have none
            raise VerificationError(
                f"{version.name} version {version.version} predicts other classes for some images when reloaded than "
                "the trained network did"
            )
        candidates.append(Candidate(str(version.version), int(tags["parameters"]), row))
    return candidates


def _check_tags(version: ModelVersion, dataset: Dataset) -> None:
    name, tags = f"{version.name} version {version.version}", ours(version.tags)
    for tag in ("dataset.digest", "parameters", "test_accuracy"):
        if tag not in tags:
            raise RegistryError(f"{name} was not registered to the end: it has no {tag}")
    if (digest := tags["dataset.digest"]) != dataset.digest:
        raise RegistryError(
            f"{name} was measured on other data than this: its dataset digest is {digest}, that of {dataset.name} is "
            f"{dataset.digest}"
        )
