"""Data of the user's own goes through the whole lifecycle, and is never mixed with other data."""

import re
import shutil
from dataclasses import replace

import mlflow
import numpy as np
import pytest
from PIL import Image

from drilldown import __main__, steps, training
from drilldown.commands import train as commands
from drilldown.errors import DrilldownError
from drilldown.experiments import nested, schedule
from drilldown.learning.recipe import Target
from drilldown.tracking.tags import ours
from tests.support.interruption import interrupted_after_an_epoch
from tests.support.own_data import NAMES, mirrored, write_folder, write_npz
from tests.support.registered import verify_in_process

pytestmark = pytest.mark.slow
SHORT = ("--epochs", "5", "--target", "0")  # long enough for the gate


@pytest.fixture(scope="module")
def arrays(digits):
    """The digits in mirror writing."""
    return mirrored(digits)


@pytest.fixture
def folder(tmp_path, arrays):
    """A folder with them and their names."""
    folder = write_folder(tmp_path / "Mirror Writing", arrays, packed=True)
    (folder / "classes.txt").write_text("\n".join(NAMES), encoding="utf-8")
    return folder


@pytest.fixture
def run(capsys, warm_start):
    """Run a command in this process; returns what it printed."""

    def run(*arguments):
        __main__.main(list(map(str, arguments)))
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(capsys, warm_start):
    """Run a command that ends with an error; returns the error's line."""

    def refused(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            __main__.main(list(map(str, arguments)))
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        return line.removeprefix("error: ")

    return refused


def aliases(store, name):
    return {alias: str(version) for alias, version in store.get_registered_model(name).aliases.items()}


def test_a_whole_lifecycle(store, folder, arrays, run, refused, monkeypatch, tmp_path):
    verify_in_process(monkeypatch)
    name = "mirror-writing-cnn"
    first = run("step4", "--dataset", folder, *SHORT, "--lr", "0.001")
    assert "mirror-writing: 1,437 images to train on, 360 test images, 10 classes, digest " in first
    assert f"registered {name} version 1 as champion: there was no champion before" in first
    assert f"registered {name} version 2 as champion: significantly better than" in run(
        "step4", "--dataset", folder, *SHORT
    )
    assert [model.name for model in store.search_registered_models()] == [name]

    # It does not meet the digits, whose images have the same shape.
    assert "registered digits-cnn version 1 as champion: there was no champion before" in run(
        "step4", "--dataset", "digits", *SHORT
    )
    assert aliases(store, name) == {"challenger": "2", "champion": "2"}
    assert re.search(r"^step4 +7,364 ", run("compare", "--dataset", "mirror-writing"), flags=re.M)
    compared = store.search_runs(["0"])[0]
    assert ours(compared.data.tags)["compare"] == "mirror-writing"
    done = run("repeat", "--seeds", "2", "--dataset", folder, *SHORT)
    assert "step4 seed 0: final" in done
    assert done.count("(reused)") == 1
    trained = {
        ours(found.data.tags).get("dataset.digest") for found in store.search_runs(["0"], "params.`run.seed` = '1'")
    }
    assert trained == {ours(store.get_model_version(name, "1").tags)["dataset.digest"]}

    # Its champion answers with the classes' names.
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(8):
        Image.fromarray(arrays["x_test"][number]).save(pictures / f"{number}.png")
    answers = [
        line.split()[1]
        for line in run("predict", "--images", pictures, "--model", f"models:/{name}@champion").splitlines()[:9]
    ]
    assert answers[0] == "class"
    expected = [NAMES[label] for label in arrays["y_test"][:8]]
    assert sum(answer == label for answer, label in zip(answers[1:], expected, strict=True)) >= 7
    model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
    kept = model.metadata.metadata
    assert (kept["dataset"], kept["classes"]) == ("mirror-writing", [*NAMES])
    accuracy = 100 * np.mean(model.predict(arrays["x_test"]).argmax(1) == arrays["y_test"])
    champion = store.get_model_version_by_alias(name, "champion")
    assert accuracy == pytest.approx(float(ours(champion.tags)["test_accuracy"]))

    # A change of the champion needs the data again.
    moved = folder.rename(tmp_path / "elsewhere")
    gone = f"dataset is not given, and {folder}, on which {name} was measured, is gone: it takes the path"
    assert refused("rollback", "--model", name).startswith(gone)
    assert refused("promote", "--version", "1", "--model", name).startswith(gone)
    unknown = refused("promote", "--version", "9", "--model", name, "--dataset", moved)
    assert unknown == f"version is '9': it takes a version of {name}, which has 1, 2"
    other = "was measured on other data than this: its dataset digest is"
    assert other in refused("rollback", "--model", name, "--dataset", "digits")
    assert f"{name} version 1 is champion" in run("rollback", "--model", name, "--dataset", moved)
    moved.rename(folder)
    assert f"{name} version 2 is champion" in run("promote", "--version", "2", "--model", name)


@pytest.mark.parametrize("command", ["step4", "repeat", "all"])
def test_a_target_is_required(command, store, folder, refused, monkeypatch):
    monkeypatch.setattr(training.train, "fit", lambda *_: pytest.fail("it trains"))
    line = refused(command, "--dataset", folder)
    assert line == (
        "target is not given: for mirror-writing, data of your own, it takes the accuracy to reach in percent, as in "
        "target=90"
    )
    assert {found.info.status for found in store.search_runs(["0"])} == {"FAILED"}


@pytest.mark.parametrize("command", ["repeat", "all"])
def test_the_target_of_a_step_is_enough(command, store, folder, refused, monkeypatch):
    def load_step(name):
        return replace(steps.load_step(name), target=Target(accuracy=90.0))

    def train(tasks, *_, **__):
        raise DrilldownError(f"{len(tasks)} to train")

    for module in (commands, schedule):
        monkeypatch.setattr(module, "load_step", load_step)
    monkeypatch.setattr(nested, "train", train)
    assert refused(command, "--dataset", folder) == f"{10 if command == 'repeat' else len(steps.STEP_NAMES)} to train"


def test_fewer_than_ten_classes(store, digits, run, monkeypatch, tmp_path):
    verify_in_process(monkeypatch)
    path = write_npz(tmp_path / "four.npz", mirrored(digits, classes=4))
    assert "4 classes" in run("step2", "--dataset", path, *SHORT)
    assert aliases(store, "four-cnn")["champion"] == "1"


def test_a_run_is_resumed_with_its_data(store, folder, arrays, run, refused, monkeypatch, tmp_path):
    verify_in_process(monkeypatch)
    with interrupted_after_an_epoch():
        refused("step4", "--dataset", folder, *SHORT)
    (begun,) = store.search_runs(["0"])
    resume = ("step4", "--resume", begun.info.run_id)
    moved = folder.rename(tmp_path / "moved")
    assert "does not exist" in refused(*resume)
    write_folder(folder, {**arrays, "y_train": 9 - arrays["y_train"]})
    assert "that run's dataset.digest is" in refused(*resume)
    shutil.rmtree(folder)
    (tmp_path / "other").mkdir()
    moved = moved.rename(tmp_path / "other" / folder.name)
    with interrupted_after_an_epoch():
        refused(*resume, "--dataset", moved)
    assert "resumes after epoch 2" in run(*resume)  # the run knows where its data is now
    assert store.get_run(begun.info.run_id).info.status == "FINISHED"


def test_data_that_changes_under_repeat_changes_nothing(store, arrays, run, monkeypatch, tmp_path):
    path = write_npz(tmp_path / "letters.npz", arrays)
    before = training.data.load(path).digest
    open_nested = nested.runs.open_nested

    def change_and_open(*args):
        write_npz(path, {**arrays, "y_train": 9 - arrays["y_train"]})
        return open_nested(*args)

    monkeypatch.setattr(nested.runs, "open_nested", change_and_open)
    run("repeat", "--seeds", 1, "--dataset", path, *SHORT)
    (trained,) = [found for found in store.search_runs(["0"]) if found.info.run_name == "step4 seed 0"]
    assert (trained.info.status, ours(trained.data.tags)["dataset.digest"]) == ("FINISHED", before)


def test_under_mlflow_run_with_a_path_that_a_shell_would_split(project, arrays):
    folder = "it's a folder; with spaces"  # a relative path starts at the project
    (project.folder / folder).mkdir()
    path = write_npz(project.folder / folder / 'my "letters" $HOME.npz', arrays)
    given = f"{folder}/{path.name}"
    done = project.mlflow_run("step4", dataset=given, epochs=5, target=0)
    assert done.returncode == 0, done.stderr
    assert "registered my-letters-home-cnn version 1 as champion" in done.stdout
    assert f"from {path}" in done.stdout
    done = project.mlflow_run("promote", version=1, model="my-letters-home-cnn", dataset=given)
    assert done.returncode == 0, done.stderr
