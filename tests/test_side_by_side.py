"""All four steps in one go, their comparison, and MLflow's UI with them in a real browser."""

import re
from html import unescape
from pathlib import Path
from urllib.parse import quote

import pytest

from drilldown.steps import STEP_NAMES
from drilldown.tracking.tags import ours
from tests.support.browser import needs_chromium, open_page
from tests.support.own_data import mirrored, write_npz
from tests.support.programs import server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def few(project, digits):
    """A file with a few of the digits: an epoch of step 1 on all of them takes a quarter of a minute."""
    counts = {"train": 256, "test": 100}
    arrays = {key: array[: counts[key[2:]]] for key, array in mirrored(digits).items()}
    return write_npz(project.folder / "few.npz", arrays)


@pytest.fixture(scope="module")
def trained(project, few):
    """All steps on few digits, an epoch each."""
    done = project.mlflow_run("all", dataset=few, epochs=1, target=90)
    assert done.returncode == 0, done.stderr
    return done


def newest(project, name):
    return next(run for run in project.runs() if run.info.run_name == name)


def comparison(project, run):
    return Path(project.client().download_artifacts(run.info.run_id, "compare.md")).read_text()


def test_all_are_nested_and_compared(project, trained):
    parent = newest(project, "all")
    assert parent.info.status == "FINISHED"
    nested = [run for run in project.runs() if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert [run.info.run_name for run in nested] == [f"{step} seed 0" for step in reversed(STEP_NAMES)]
    assert {run.info.status for run in nested} == {"FINISHED"}
    kept = {file.path for file in project.client().list_artifacts(parent.info.run_id)}
    assert kept == {"compare.md", "compare.html", "compare.csv", "compare.png"}
    table = comparison(project, parent)
    for run in nested:
        step, accuracy = ours(run.data.tags)["step"], run.data.metrics["final_test_accuracy"]
        assert f"| {step} | {run.data.metrics['parameters']:,.0f} | 1 | 1 | {accuracy:.2f} |" in table
        shown = next(line for line in trained.stdout.splitlines() if line.startswith(f"{step}  "))
        assert shown.split()[:4] == [step, f"{run.data.metrics['parameters']:,.0f}", "1", f"{accuracy:.2f}"]
    assert trained.stdout.count("epoch  1/1") == len(STEP_NAMES)  # what the steps print is shown


def test_again_they_are_reused_and_one_that_fails_is_missing(project, few, trained):
    step2 = project.folder / "steps" / "step2.py"
    text = step2.read_text()
    step2.write_text(text + "\n\nNetwork.forward = lambda self, images: 1 / 0\n")
    done = project.mlflow_run("all", dataset=few, epochs=1, target=90)
    step2.write_text(text)
    assert done.returncode != 0
    others = [step for step in STEP_NAMES if step != "step2"]
    assert [line.split(":")[0] for line in done.stdout.splitlines() if line.endswith("(reused)")] == [
        f"{step} seed 0" for step in others
    ]
    message = f"1 of {len(STEP_NAMES)} runs failed, the first of them step2 seed 0: ZeroDivisionError: division by zero"
    assert f"error: {message}" in done.stderr
    parent = newest(project, "all")
    assert (parent.info.status, ours(parent.data.tags)["error"]) == ("FAILED", message)
    assert re.search("^step2 +– +0 +no finished run", done.stdout, flags=re.M)
    assert "in <lambda>" in done.stderr  # the whole of what it said
    assert "step2 is missing here: its run failed: ZeroDivisionError: division by zero." in comparison(project, parent)
    assert len(ours(parent.data.tags)["reused"].split()) == len(others)
    assert "| step2 | – | 0 | – | no finished run |" in comparison(project, parent)
    failed = newest(project, "step2 seed 0")
    assert (failed.info.status, failed.data.tags["mlflow.parentRunId"]) == ("FAILED", parent.info.run_id)


def test_a_step_that_cannot_be_imported_fails_alone(project, few, trained):
    broken = project.folder / "steps" / "broken.py"
    broken.write_text("import this_is_nowhere\n")
    done = project.mlflow_run("all", dataset=few, epochs=1, target=90)
    broken.unlink()
    assert done.returncode != 0
    assert done.stdout.count("(reused)") == len(STEP_NAMES)
    message = (
        f"1 of {len(STEP_NAMES) + 1} runs failed, the first of them broken seed 0: ModuleNotFoundError: No module named"
    )
    assert message in done.stderr


def test_compare_by_itself(project, trained):
    done = project.mlflow_run("compare")
    assert done.returncode == 0, done.stderr
    assert re.search("^step4 +7,364 +1 ", done.stdout, flags=re.M)
    run = newest(project, "compare")
    assert ours(run.data.tags)["compare"] == "few"  # there is no run on MNIST, nor on all digits
    table = comparison(project, run)  # of the newest finished runs, as at first
    assert "missing" not in table
    assert table == comparison(project, [run for run in project.runs() if run.info.run_name == "all"][-1])


def shown(url: str, until: str) -> str:
    """The text of the page, once its scripts have shown this part of it."""
    with open_page(url, 2400, 1600, until) as page:
        content = page.content()
    return " ".join(unescape(re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", content, flags=re.S)).split())


@needs_chromium
def test_the_ui_shows_them_side_by_side(project, trained):
    runs = [run for run in project.runs() if ours(run.data.tags).get("step") and run.info.status == "FINISHED"]
    assert sorted(ours(run.data.tags)["step"] for run in runs) == list(STEP_NAMES)
    ids = quote("[" + ",".join(f'"{run.info.run_id}"' for run in runs) + "]")
    (experiment,) = {run.info.experiment_id for run in runs}
    command = ["mlflow", "ui", "--workers", "1", "--backend-store-uri", project.tracking_uri]
    with server(command, project.environment) as port:
        page = f"http://127.0.0.1:{port}/#/compare-runs?runs={ids}&experiments=[%22{experiment}%22]"
        text = shown(page, until="final_test_accuracy")
    for run in runs:
        assert run.info.run_name in text
        for name in ("recipe.lr", "recipe.batch_size", "recipe.schedule"):
            assert f" {name} " in text
            assert f" {run.data.params[name]} " in text
        for name, shown_as in (("parameters", "{:.0f}"), ("final_test_accuracy", "{:.4g}")):
            assert f" {name} " in text
            assert f" {shown_as.format(run.data.metrics[name])} " in text
