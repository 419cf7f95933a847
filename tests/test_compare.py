"""The comparison shows the finished runs that belong together, and says what is missing."""

import base64
import io
import re
from html.parser import HTMLParser

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from src.learning.recipe import Target
from src.lifecycle import compare, report, tracking

TABLE = """----------------------------------------------------------------
        Layer (type)               Output Shape         Param #
================================================================
            Conv2d-1            [-1, 4, 26, 26]              36
       BatchNorm2d-2            [-1, 4, 26, 26]               8
            Conv2d-3            [-1, 8, 24, 24]             288
================================================================
"""


def finished_run(step, seed, accuracies, *, dataset="mnist", validation=0, gate="failed", layers=TABLE, **recipe):
    """A run as a step leaves it behind; returns its id."""
    with mlflow.start_run() as run:
        tags = {
            "step": step,
            "dataset.digest": f"of {dataset}",
            "machine": "2 × CPU",
            "versions.torch": "2",
            "gate": gate,
        }
        mlflow.set_tags(tags | {"mlflow.source.git.commit": "c0ffee", "recipe.digest": f"of seed {seed}"})
        recipe = {"lr": 0.01, "epochs": len(accuracies)} | recipe
        mlflow.log_params({f"recipe.{name}": value for name, value in recipe.items()})
        mlflow.log_params({"run.seed": seed, "run.dataset": dataset, "run.validation": validation, "run.threads": 2})
        mlflow.log_params({"run.device": "cpu", "target.accuracy": 99.4, "target.last": 5})
        mlflow.log_metric("parameters", 1000 * int(step[-1]))
        mlflow.log_text(layers, "model_summary.txt")
        for epoch, accuracy in enumerate(accuracies, start=1):
            values = {"train_accuracy": accuracy - 1, "test_accuracy": accuracy, "epoch_seconds": 2.0}
            mlflow.log_metrics(values, step=epoch)
    return run.info.run_id


def collect(step, like=None, **recipe):
    return compare.collect(step, "of mnist", like=like, recipe=recipe or {"lr": 0.7})


def accuracies(entry):
    return {run["seed"]: run["test_accuracy"] for run in entry.record["runs"]}


def test_the_newest_run_of_each_seed_that_is_like_the_newest(store):
    finished_run("step2", 0, [90.0, 91.0])
    finished_run("step2", 1, [92.0, 93.0], gate="passed")
    finished_run("step2", 2, [1.0, 1.0], lr=0.5)  # another recipe
    finished_run("step2", 3, [1.0])  # another length
    finished_run("step2", 4, [1.0, 1.0], dataset="digits")
    finished_run("step2", 5, [1.0, 1.0], validation=5000)
    finished_run("step3", 6, [1.0, 1.0])
    unfinished = finished_run("step2", 7, [1.0, 1.0])
    store.set_terminated(unfinished, "KILLED")
    finished_run("step2", 0, [94.0, 95.0])
    entry = collect("step2")
    assert accuracies(entry) == {0: [94.0, 95.0], 1: [92.0, 93.0]}
    assert (entry.passed, entry.left_out, entry.target) == (1, 3, Target(99.4))
    assert entry.machines == {"2 × CPU"}
    assert entry.layers == {"Conv2d": 2, "BatchNorm2d": 1}


def test_the_runs_like_a_given_one(store):
    wanted = finished_run("step2", 0, [90.0, 91.0])
    finished_run("step2", 0, [1.0], lr=0.5)
    assert accuracies(collect("step2", wanted)) == {0: [90.0, 91.0]}
    assert accuracies(collect("step2")) == {0: [1.0]}


def test_the_steps_own_recipe_goes_first(store):
    finished_run("step2", 0, [90.0, 91.0])
    finished_run("step2", 0, [94.0, 95.0])
    finished_run("step2", 0, [1.0], lr=0.5)  # a trial
    assert accuracies(collect("step2", lr=0.01, epochs=2)) == {0: [94.0, 95.0]}
    assert accuracies(collect("step2", lr=0.01, epochs=3)) == {0: [1.0]}  # there is none of it


def test_no_run(store):
    assert collect("step1") is None
    assert compare.newest("auto") is None
    finished_run("step1", 0, [90.0], validation=5000)
    assert compare.newest("mnist") is None
    on_digits = finished_run("step1", 0, [90.0], dataset="digits")
    assert compare.newest("auto").info.run_id == on_digits
    on_mnist = finished_run("step1", 0, [90.0])
    finished_run("step1", 0, [90.0], dataset="digits")
    assert compare.newest("auto").info.run_id == on_mnist


@pytest.fixture
def entries(store):
    finished_run("step2", 0, [99.0, 99.5, 99.5, 99.3, 99.4, 99.5])
    finished_run("step2", 1, [99.0, 99.5, 99.5, 99.4, 99.4, 99.7], gate="passed")
    deeper = TABLE.replace("BatchNorm2d-2", "Dropout-2")
    finished_run("step4", 0, [98.0, 98.5], lr=0.02, layers=deeper)
    return {step: collect(step) for step in ("step1", "step2", "step4")}


def test_a_row_a_step(entries):
    rows = compare.rows(entries, "mnist")
    assert len({tuple(row) for row in rows}) == 1  # the same headings
    assert [row["step"] for row in rows] == ["step1", "step2", "step4"]
    assert rows[0]["final test accuracy (%)"] == "no finished run"
    assert (rows[0]["published best (%)"], rows[0]["published epochs at 99.4 %"]) == ("99.36", "0")
    assert rows[1] == {
        "step": "step2",
        "parameters": "2,000",
        "seeds": "2",
        "epochs": "6",
        "final test accuracy (%)": "99.60 ± 0.14",
        "best epoch (%)": "99.60 ± 0.14",
        "lowest of the last epochs (%)": "99.35 ± 0.07",
        "epochs at target": "4.5 ± 0.7",
        "target (%)": "99.4",
        "gate passed": "1 of 2",
        "seconds an epoch": "2.0",
        "published best (%)": "98.63",
        "published epochs at 99.4 %": "0",
        "changes from the step before": "–",
    }
    assert rows[2]["changes from the step before"] == (
        "parameters 2,000 → 4,000; -1 BatchNorm2d; +1 Dropout; epochs 6 → 2; lr 0.01 → 0.02"
    )
    assert compare.line(rows[0]) == "step1: no finished run"
    assert "2,000 parameters, final 99.60 ± 0.14 %" in compare.line(rows[1])


def test_the_study_knew_mnist_alone(entries):
    assert {row["published best (%)"] for row in compare.rows(entries, "digits")} == {"–"}


def test_numbers(entries):
    numbers = compare.numbers(entries, compare.rows(entries, "mnist")).set_index("step")
    assert list(numbers.index) == ["step1", "step2", "step4"]
    assert numbers.loc["step1", "published best (%)"] == "99.36"
    assert numbers.loc["step1", "seeds"] == 0
    assert np.isnan(numbers.loc["step1", "final_accuracy_mean"])
    assert "lr 0.01 → 0.02" in numbers.loc["step4", "changes from the step before"]
    assert numbers.loc["step2", "final_accuracy_mean"] == pytest.approx(99.6)
    assert numbers.loc["step2", "final_accuracy_std"] == pytest.approx(np.std([99.5, 99.7], ddof=1))
    assert numbers.loc["step2", "streak_accuracy_mean"] == pytest.approx(99.35)
    assert numbers.loc["step2", "training_seconds_mean"] == 12
    assert (numbers.loc["step2", "seeds"], numbers.loc["step2", "passed"]) == (2, 1)
    assert np.isnan(numbers.loc["step4", "final_accuracy_std"])  # of one


class Page(HTMLParser):
    """The cells, headings and pictures of a page."""

    def __init__(self, page):
        super().__init__()
        self.cells, self.sources, self.inside = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.inside = tag in ("td", "th")
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.cells.append(data)


def test_the_page_needs_no_other_file(entries):
    rows = compare.rows(entries, "mnist")
    rows[0]["step"] = "<script>step1</script>"
    figure = compare.figure(entries)
    page = Page(compare.page(rows, ["a < b"], figure))
    assert page.cells == [*rows[0], *(value for row in rows for value in row.values())]
    (source,) = page.sources
    picture = base64.b64decode(source.removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(picture)).size[0] > 1000
    assert "a &lt; b" in compare.page(rows, ["a < b"], figure)


def test_what_a_reader_must_know(entries, store):
    notes = "\n".join(compare.notes(entries, "mnist", {}))
    assert "step1 is missing here: it has no finished run on mnist." in notes
    assert "step1 is missing here: its run failed: no." in compare.notes(entries, "mnist", {"step1": "no"})
    assert "left out" not in notes
    finished_run("step4", 0, [99.0])
    assert "step4: other runs left out, older or of another code or recipe: 1." in "\n".join(
        compare.notes({"step4": collect("step4")}, "mnist", {})
    )


def test_it_is_kept_on_the_run(entries, store):
    rows, notes, figure = compare.rows(entries, "mnist"), ["a note"], compare.figure(entries)
    with tracking.run("compare", {}) as run_id:
        pages = compare.markdown(rows, notes), compare.page(rows, notes, figure)
        tracking.log_comparison("mnist", *pages, compare.numbers(entries, rows), figure)
    assert store.get_run(run_id).data.tags["compare"] == "mnist"
    kept = {file.path for file in store.list_artifacts(run_id)}
    assert kept == {"compare.md", "compare.html", "compare.csv", "compare.png"}
    text = mlflow.artifacts.load_text(f"runs:/{run_id}/compare.md")
    assert report.table(rows) in text
    assert re.findall(r"!\[.*\]\((.*)\)", text) == ["compare.png"]
    table = pd.read_csv(io.StringIO(mlflow.artifacts.load_text(f"runs:/{run_id}/compare.csv")))
    assert list(table["step"]) == ["step1", "step2", "step4"]


def test_nothing_at_all(store):
    entries = dict.fromkeys(("step1", "step2"))
    rows = compare.rows(entries, "digits")
    assert list(compare.numbers(entries, rows)["seeds"]) == [0, 0]
    assert "no finished run" in compare.page(rows, [], compare.figure(entries))
