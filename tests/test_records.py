"""Records come from finished runs alone, and the README and the docstrings from the records."""

import json
from dataclasses import asdict, replace

import mlflow
import pytest
from conftest import ROOT

from src.commands import STEPS
from src.learning.recipe import Recipe
from src.lifecycle import records

RECIPE = Recipe(epochs=2)


def finished_run(
    seed, accuracies, *, epochs=None, dataset="mnist", validation=0, status="FINISHED", lr=0.01, code="a", commit="c0"
):
    with mlflow.start_run() as run:
        mlflow.set_tags({"step": "step2", "dataset.digest": "abc", "machine": "2 × CPU", "versions.torch": "2"})
        mlflow.set_tags({"mlflow.source.git.commit": commit, "code.digest": code})
        recipe = replace(RECIPE, lr=lr, epochs=epochs or len(accuracies))
        mlflow.log_params({f"recipe.{name}": value for name, value in asdict(recipe).items()})
        mlflow.log_params({"run.seed": seed, "run.dataset": dataset, "run.validation": validation, "run.threads": 2})
        mlflow.log_metric("parameters", 12_584)
        for epoch, accuracy in enumerate(accuracies, start=1):
            values = {"train_accuracy": accuracy - 1, "test_accuracy": accuracy, "epoch_seconds": 2.0 * epoch}
            mlflow.log_metrics(values, step=epoch)
    mlflow.MlflowClient().set_terminated(run.info.run_id, status)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    return tmp_path


def test_the_newest_finished_full_run_of_each_seed(store, folder):
    finished_run(1, [98.0, 98.5])
    finished_run(0, [97.0, 97.5])
    finished_run(0, [99.0, 99.5])  # newer
    finished_run(2, [1.0, 1.0], status="FAILED")
    finished_run(3, [1.0, 1.0], dataset="digits")
    finished_run(4, [1.0, 1.0], validation=5000)
    finished_run(5, [1.0])  # shorter
    file, left_out = records.write("step2", RECIPE, epochs=2)
    record = json.loads(file.read_text())
    assert (file, left_out) == (folder / "step2.json", 1)
    assert record == {
        "step": "step2",
        "parameters": 12_584,
        "dataset_digest": "abc",
        "recipe": asdict(RECIPE),
        "versions": {"torch": "2"},
        "machine": "2 × CPU",
        "threads": 2,
        "code": "a",
        "commit": "c0",
        "runs": [
            {"seed": 0, "train_accuracy": [98.0, 98.5], "test_accuracy": [99.0, 99.5], "seconds": [2.0, 4.0]},
            {"seed": 1, "train_accuracy": [97.0, 97.5], "test_accuracy": [98.0, 98.5], "seconds": [2.0, 4.0]},
        ],
    }
    assert records.read("step2") == record


def test_a_short_run_never_goes_by_the_full_ones_name(store, folder):
    finished_run(0, [98.0, 98.5])
    assert records.write("step2", replace(RECIPE, epochs=20), epochs=2)[0].name == "step2-2-epochs.json"
    assert records.read("step2") is None


def test_runs_of_other_code_or_with_another_recipe_are_left_out(store, folder):
    finished_run(0, [98.0], code="b")
    finished_run(1, [98.0], code="b")
    finished_run(1, [98.5])
    finished_run(2, [98.5], commit="another, in which this code is the same")
    finished_run(3, [98.0], lr=0.02)  # the newest
    file, left_out = records.write("step2", replace(RECIPE, epochs=1), epochs=1)
    assert [run["seed"] for run in json.loads(file.read_text())["runs"]] == [1, 2]
    assert left_out == 2


def test_nothing_to_record(store, folder):
    with pytest.raises(
        records.RecordError, match="the store has no finished MNIST run of it with its recipe and 20 epochs"
    ):
        records.write("step2", RECIPE, epochs=20)


def test_figures():
    runs = [{"test_accuracy": [99.0, 99.4, 99.5, 99.6, 99.4, 99.5], "seconds": [1, 2, 3, 4, 5, 6]}]
    record = {"parameters": 1234, "machine": "m", "threads": 1, "versions": {"torch": "2"}, "runs": runs}
    figures = records.figures(record)
    assert (figures["final"], figures["best"], figures["streak"], figures["at_target"]) == (
        "99.50",
        "99.60",
        "99.40",
        "5",
    )
    runs.append({"test_accuracy": [99.0, 99.4, 99.5, 99.6, 99.4, 99.7], "seconds": [1, 2, 3, 4, 5, 6]})
    assert records.figures(record)["final"] == "99.60 ± 0.14"
    assert records.figures(record)["seconds"] == "3.5"
    assert records.sentence(record).startswith("99.60 ± 0.14 % of the test images at the end")


def test_consistency():
    runs = [{"test_accuracy": [99.0, *[99.4] * 5]}, {"test_accuracy": [99.0, 99.39, *[99.5] * 4]}]
    assert records.consistency({"runs": runs}).startswith("gate passed by 1 of 2 seeds: 50%, 95 % interval from 9% to")


def test_the_table_of_the_readme_is_the_records():
    text = (ROOT / "README.md").read_text()
    assert records.table(STEPS) in text
    assert records.consistency(records.read("step4")) in " ".join(text.split())


def test_the_readme_says_what_the_smaller_network_did():
    record, text = records.read("step4-separable-32"), " ".join((ROOT / "README.md").read_text().split())
    figures = records.figures(record)
    assert records.consistency(record).startswith(f"gate passed by {figures['n']} of {figures['n']} seeds")
    assert "{parameters} do: the smallest network that held it on the slice".format_map(figures) in text
    assert "({final} % at the end, {streak} % at the lowest of the last five, every seed".format_map(figures) in text


@pytest.mark.parametrize("name", STEPS)
def test_a_record_is_of_full_runs(name):
    record = records.read(name)
    if record is None:
        pytest.skip(f"results/{name}.json is not there: {name} has not been run in full")
    for run in record["runs"]:
        for key in ("train_accuracy", "test_accuracy", "seconds"):
            assert len(run[key]) == record["recipe"]["epochs"]
