"""Records come from finished runs only; the documentation and the docstrings come from the records."""

import json
from dataclasses import asdict, replace
from functools import partial

import pytest

from drilldown.errors import RecordError
from drilldown.experiments import records
from drilldown.learning.recipe import Recipe
from drilldown.steps import ROOT, STEP_NAMES
from tests.experiments.finished import finished_run

RECIPE = Recipe(epochs=2)
write = partial(records.write, experiments=["0"])  # the test's store has one experiment


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "FOLDER", tmp_path)
    return tmp_path


def seeds(file):
    return [run["seed"] for run in json.loads(file.read_text())["runs"]]


def test_the_newest_finished_full_run_of_each_seed(store, folder):
    finished_run("step2", 1, [98.0, 98.5])
    finished_run("step2", 0, [97.0, 97.5])
    finished_run("step2", 0, [99.0, 99.5])  # newer
    finished_run("step2", 2, [1.0, 1.0], status="FAILED")
    finished_run("step2", 3, [1.0, 1.0], dataset="digits")
    finished_run("step2", 4, [1.0, 1.0], validation=5000)
    finished_run("step2", 5, [1.0])  # shorter
    file, left_out = write("step2", RECIPE, epochs=2)
    record = json.loads(file.read_text())
    assert (file, left_out) == (folder / "step2.json", 1)
    assert record == {
        "step": "step2",
        "parameters": 2000,
        "dataset_digest": "of mnist",
        "recipe": asdict(RECIPE),
        "versions": {"torch": "2"},
        "machine": "2 × CPU",
        "threads": 2,
        "code": "a",
        "commit": "c0ffee",
        "runs": [
            {"seed": 0, "train_accuracy": [98.0, 98.5], "test_accuracy": [99.0, 99.5], "seconds": [2.0, 4.0]},
            {"seed": 1, "train_accuracy": [97.0, 97.5], "test_accuracy": [98.0, 98.5], "seconds": [2.0, 4.0]},
        ],
    }
    assert records.read("step2") == record


def test_a_short_run_never_takes_the_name_of_a_full_one(store, folder):
    finished_run("step2", 0, [98.0, 98.5])
    assert write("step2", replace(RECIPE, epochs=20), epochs=2)[0].name == "step2-2-epochs.json"
    assert records.read("step2") is None


@pytest.mark.slow
def test_fewer_seeds_or_another_recipe_do_not_replace_a_record_unless_forced(store, folder):
    finished_run("step2", 0, [98.0, 98.5])
    finished_run("step2", 1, [98.0, 98.5])
    file, _ = write("step2", RECIPE, epochs=2)
    finished_run("step2", 0, [99.0, 99.5], code="b")
    before = file.read_bytes()
    with pytest.raises(RecordError, match=r"it has 2 seeds, and the store has 1; --force true replaces it"):
        write("step2", RECIPE, epochs=2)
    finished_run("step2", 0, [99.0, 99.5], lr=0.5)
    finished_run("step2", 1, [99.0, 99.5], lr=0.5)
    with pytest.raises(RecordError, match="it differs in recipe; --force true"):
        write("step2", replace(RECIPE, lr=0.5), epochs=2)
    assert file.read_bytes() == before
    assert write("step2", RECIPE, epochs=2, force=True) == (file, 2)
    assert seeds(file) == [0]


@pytest.mark.slow
def test_runs_of_other_code_or_with_another_recipe_are_left_out(store, folder):
    finished_run("step2", 0, [98.0], code="b")
    finished_run("step2", 1, [98.0], code="b")
    finished_run("step2", 1, [98.5])
    finished_run("step2", 2, [98.5], commit="another, in which this code is the same")
    finished_run("step2", 3, [98.0], lr=0.02)  # the newest
    file, left_out = write("step2", replace(RECIPE, epochs=1), epochs=1)
    assert seeds(file) == [1, 2]
    assert left_out == 2


def test_runs_of_another_engine_are_left_out(store, folder):
    finished_run("step2", 0, [98.0], engine="torch")
    finished_run("step2", 1, [98.0], version_0_1=True)  # logged no engine
    finished_run("step2", 2, [98.5])
    file, left_out = write("step2", replace(RECIPE, epochs=1), epochs=1)
    assert seeds(file) == [2]
    assert left_out == 2


def test_runs_of_version_0_1_are_recorded_with_the_recipe_names_of_today(store, folder):
    recipe = Recipe(epochs=1, schedule="one-cycle", warmup_fraction=0.3, ema_epochs=0.5, translate=0.02)
    finished_run("step2", 0, [98.0], version_0_1=True, **asdict(recipe))
    finished_run("step2", 1, [98.0], version_0_1=True, **asdict(recipe))
    file, left_out = write("step2", recipe, epochs=1)
    record = json.loads(file.read_text())
    assert (seeds(file), left_out) == ([0, 1], 0)
    assert record["recipe"] == asdict(recipe)
    assert (record["dataset_digest"], record["versions"], record["machine"]) == ("of mnist", {"torch": "2"}, "2 × CPU")


def test_records_of_version_0_1_are_read_with_the_recipe_names_of_today():
    stored = json.loads((ROOT / "results" / "step4-torch.json").read_text())
    assert {"rise", "step_epochs", "averaging", "shift"} <= stored["recipe"].keys()
    record = records.read("step4-torch")
    assert Recipe(**record["recipe"]).translate == stored["recipe"]["shift"]
    assert record["runs"] == stored["runs"]


def test_nothing_to_record(store, folder):
    with pytest.raises(
        RecordError, match="the experiment has no finished MNIST run of it with its recipe and 20 epochs"
    ):
        write("step2", RECIPE, epochs=20)


def test_figures():
    runs = [{"test_accuracy": [99.0, 99.4, 99.5, 99.6, 99.4, 99.5], "seconds": [1, 2, 3, 4, 5, 6]}]
    record = {"parameters": 1234, "machine": "m", "threads": 1, "versions": {"torch": "2"}, "runs": runs}
    figures = records.figures(record)
    assert (figures["final"], figures["best"], figures["min_last_k"], figures["at_target"]) == (
        "99.50",
        "99.60",
        "99.40",
        "5",
    )
    runs.append({"test_accuracy": [99.0, 99.4, 99.5, 99.6, 99.4, 99.7], "seconds": [1, 2, 3, 4, 5, 6]})
    assert records.figures(record)["final"] == "99.60 ± 0.14"
    assert records.figures(record)["seconds"] == "3.5"
    assert records.sentence(record) == (
        "99.60 ± 0.14 % of the test images at the end, best epoch 99.65 ± 0.07 %, lowest of the last five "
        "99.40 ± 0.00 %, 5.0 ± 0.0 of 6 epochs at or above 99.4 %; 2 seeds, 3.5 s an epoch by 1 thread on m, torch 2."
    )


def test_consistency():
    runs = [{"test_accuracy": [99.0, *[99.4] * 5]}, {"test_accuracy": [99.0, 99.39, *[99.5] * 4]}]
    record = {"parameters": 1234, "runs": runs}
    assert records.num_passed(record) == 1
    assert records.consistency(record).startswith("gate passed by 1 of 2 seeds: 50%, 95 % interval from 9% to")


def test_a_step_without_a_record_is_in_the_tables(store, folder):
    assert "| step2 | – | not run in full yet | – |" in records.table(["step2"])
    assert "| step2 | – | – | not run in full yet |" in records.full_table(["step2"])


def test_the_tables_of_the_documentation_are_the_records():
    readme, results = (" ".join((ROOT / name).read_text().split()) for name in ("README.md", "docs/results.md"))
    assert " ".join(records.table(STEP_NAMES).split()) in readme
    assert " ".join(records.full_table(STEP_NAMES).split()) in results
    assert records.consistency(records.read("step4")) in results


def test_the_documentation_has_the_results_of_the_smaller_network():
    record, text = records.read("step4-separable-32"), (ROOT / "docs" / "results.md").read_text()
    figures = records.figures(record)
    assert records.consistency(record).startswith(f"gate passed by {figures['seeds']} of {figures['seeds']} seeds")
    (row,) = (line for line in text.splitlines() if "`step4-separable-32.json`" in line)
    cells = [cell.strip() for cell in row.split("|")]
    assert {figures["parameters"], figures["final"], figures["min_last_k"]} <= set(cells)


@pytest.mark.parametrize("name", STEP_NAMES)
def test_a_record_consists_of_full_runs(name):
    record = records.read(name)
    if record is None:
        pytest.skip(f"results/{name}.json is not there: {name} has not been run in full")
    for run in record["runs"]:
        for key in ("train_accuracy", "test_accuracy", "seconds"):
            assert len(run[key]) == record["recipe"]["epochs"]
