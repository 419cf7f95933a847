"""Whole lifecycles through `mlflow run`, in a copy of the project, as a user has them."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image

from benchmarks import written
from drilldown.tracking.tags import ours
from tests.support.programs import wait_until
from tests.support.project import Project, finds_processes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(project):
    """Step 4 on the digits, on a folder that has no store yet."""
    done = project.mlflow_run("step4", dataset="digits")
    assert done.returncode == 0, done.stderr
    return done


def test_train_gate_register_verify(project, trained):
    assert "gate passed" in trained.stdout
    assert "registered digits-cnn version 1 as champion" in trained.stdout
    (run,) = project.runs()
    assert (run.info.run_name, run.info.status) == ("step4 seed 0", "FINISHED")
    assert run.data.params["dataset"] == "digits"  # as it was given
    assert run.data.params["recipe.batch_size"] == "128"  # as it was resolved
    assert run.data.metrics["epochs_at_target"] >= 5
    client = project.client()
    artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"model_summary.txt", "history.csv", "curves.png", "confusion_matrix.png", "mistakes.png", "report.md",
            "gate.json"} <= artifacts  # fmt: skip
    aliases = client.get_registered_model("digits-cnn").aliases
    assert {alias: str(version) for alias, version in aliases.items()} == {"challenger": "1", "champion": "1"}
    mlflow.set_tracking_uri(project.tracking_uri)
    found = mlflow.search_logged_models(
        [run.info.experiment_id], filter_string="metrics.min_accuracy_last_k >= 97", output_format="list"
    )
    assert len(found) == 1
    assert found[0].source_run_id == run.info.run_id


def test_the_champion_answers_from_any_folder(project, trained, tmp_path, digits):
    """A process that points at the store, in another folder, without this project on its path, and without pickle."""
    np.save(tmp_path / "images.npy", digits.test_images.numpy())
    code = """
import sys, numpy, mlflow.pyfunc
assert not any(name.startswith(("drilldown", "steps")) for name in sys.modules)
model = mlflow.pyfunc.load_model("models:/digits-cnn@champion")
numpy.save("answers.npy", model.predict(numpy.load("images.npy")))
"""
    settings = {"MLFLOW_TRACKING_URI": project.tracking_uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        cwd=tmp_path,
        env=project.environment | settings,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower()
    answers = np.load(tmp_path / "answers.npy")
    assert answers.shape == (360, 10)
    accuracy = 100 * (answers.argmax(1) == digits.test_labels.numpy()).mean()
    (run,) = (run for run in project.runs() if run.info.run_name == "step4 seed 0")
    assert accuracy == pytest.approx(run.data.metrics["final_test_accuracy"])


def test_predict_labels_image_files(project, trained, tmp_path, digits):
    folder = tmp_path / "it's a folder; with spaces"
    folder.mkdir()
    for number in range(12):
        Image.fromarray(255 - digits.test_images[number].numpy()).save(folder / f"{number:02}.png")
    done = project.mlflow_run("predict", images=folder, model="models:/digits-cnn@champion")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if str(folder) in line]
    answers = [int(line.split(".png")[1].split()[0]) for line in lines]
    right = sum(guess == label for guess, label in zip(answers, digits.test_labels[:12].tolist(), strict=True))
    assert right >= 11
    run = project.runs()[0]
    assert (run.info.run_name, run.info.status) == ("predict", "FINISHED")
    assert run.data.metrics["predicted"] == 12
    assert ours(run.data.tags)["model"] == "models:/digits-cnn@champion"


def test_a_missed_target_is_a_finished_run_with_nothing_registered(project, trained):
    done = project.mlflow_run("step2", dataset="digits", epochs=2, seed=5)
    assert done.returncode == 0, done.stderr
    assert "gate failed" in done.stdout
    assert "nothing registered" in done.stdout
    run = project.runs()[0]
    assert (run.info.run_name, run.info.status) == ("step2 seed 5", "FINISHED")
    assert ours(run.data.tags)["gate"] == "failed"
    assert "in each of the last 5; 2 epochs: at least 5 are needed" in ours(run.data.tags)["gate.reason"]
    kept = json.loads(Path(project.client().download_artifacts(run.info.run_id, "gate.json")).read_text())
    assert kept["passed"] is False
    assert len(project.client().search_model_versions("name = 'digits-cnn'")) == 1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"epochs": "abc"}, "error: epochs is 'abc': it takes a whole number at least 1"),
        ({"nonsense": "1"}, "error: nonsense is no parameter of step4: it takes seed, validation, dataset"),
    ],
)
def test_a_bad_parameter_is_a_failed_run(project, trained, parameters, message):
    done = project.mlflow_run("step4", **parameters)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    run = project.runs()[0]
    assert run.info.status == "FAILED"
    assert message in f"error: {ours(run.data.tags)['error']}"


@finds_processes
def test_a_killed_run_is_resumed_and_ends_as_an_uninterrupted_one(project, trained):
    command = (sys.executable, "-m", "drilldown", "step4", "--dataset", "digits", "--seed", "0")
    process = project.start(*command, cold=False)
    checkpoints = project.folder / "checkpoints"
    trainer = project.wait_for_process("step4 seed 0")
    wait_until(lambda: list(checkpoints.glob("*/epoch-0004.pt")), seconds=120, for_what="the fourth epoch")
    os.kill(trainer, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL  # in the middle of its training
    (state,) = checkpoints.iterdir()
    done = project.mlflow_run("step4", resume=state.name)
    assert done.returncode == 0, done.stderr
    assert "resumes after epoch" in done.stdout
    (whole,) = (  # the one that `trained` made: only `mlflow run` logs the dataset that was asked for
        run
        for run in project.runs()
        if (run.info.run_name, run.data.params.get("dataset")) == ("step4 seed 0", "digits")
    )
    client = project.client()
    assert client.get_run(state.name).info.status == "FINISHED"
    for metric in ("train_loss", "test_loss", "learning_rate"):
        histories = [
            {entry.step: entry.value for entry in client.get_metric_history(run_id, metric)}
            for run_id in (state.name, whole.info.run_id)
        ]
        assert histories[0] == histories[1]
    assert not state.exists()


def test_an_environment_built_from_nothing_but_conda_yaml(tmp_path):
    """The whole lifecycle once more, in a folder and an environment of its own.

    The environment is built by an entry point that does nothing, so that it can borrow bytecode before the training.
    """
    project = Project(tmp_path / "project")
    project.environment["MLFLOW_ENV_ROOT"] = str(tmp_path / "environments")
    with (project.folder / "MLproject").open("a") as entry_points:
        entry_points.write("  environment:\n    command: 'true'\n")
    built = project.mlflow_run("environment", env_manager="uv")
    assert built.returncode == 0, built.stderr[-3000:]
    (packages,) = {folder.parent for folder in (tmp_path / "environments").rglob("torchsummary")}
    share_bytecode(packages)
    with project.cold():
        done = project.mlflow_run("step4", env_manager="uv", dataset="digits", seed=1, epochs=5, target=0)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "registered digits-cnn version 1 as champion" in done.stdout
    run, _ = project.runs()  # and that of the entry point that does nothing
    assert (run.info.run_name, run.info.status) == ("step4 seed 1", "FINISHED")


def share_bytecode(packages: Path) -> None:
    """Lend an environment the bytecode of this one; Python uses it where it belongs to the same source.

    To compile the files of PyTorch and MLflow that a training imports takes half a minute.
    """
    here = Path(sysconfig.get_path("purelib"))
    for bytecode in here.rglob("__pycache__/*.pyc"):
        lent = packages / bytecode.relative_to(here)
        if lent.parent.parent.is_dir() and not lent.exists():
            lent.parent.mkdir(exist_ok=True)
            lent.symlink_to(bytecode)


@pytest.mark.mnist
def test_an_epoch_of_step4_on_mnist(mnist, project):
    done = project.mlflow_run("step4", dataset="mnist", epochs=1)
    assert done.returncode == 0, done.stderr
    run = project.runs()[0]
    assert run.data.metrics["final_test_accuracy"] >= 98.5
    assert ours(run.data.tags)["gate"] == "failed"  # one epoch is not five
    assert run.data.params["run.dataset"] == "mnist"
    mlflow.set_tracking_uri(project.tracking_uri)
    model = mlflow.pyfunc.load_model(f"models:/{run.outputs.model_outputs[0].model_id}")
    images, labels = mnist.test_images[:1000].numpy(), mnist.test_labels[:1000].numpy()
    found = written.accuracies(model, images, labels, written.KINDS)
    assert found["as files"] >= 0.99 * found["as they are"]  # whatever their size, polarity, place and format
