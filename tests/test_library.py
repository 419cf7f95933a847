"""The package as a library: the documented script runs, and `fit` trains as a run does."""

import inspect
import os
import re
import subprocess
import sys
from dataclasses import replace

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image

import drilldown
from drilldown import __main__
from drilldown.errors import ParameterError, PredictError, StepError, StoreError
from drilldown.steps import ROOT
from drilldown.tracking.store import SHORT_TIMEOUTS
from tests.support.networks import SMALL_RECIPE, SmallNetwork
from tests.support.project import NOWHERE
from tests.support.registered import register, verify_in_process
from tests.support.tracked import track

PAGE = (ROOT / "docs" / "library.md").read_text()
(SCRIPT,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,  # where the page's paths are
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_script_of_the_page(store, warm_start, trained, digits, monkeypatch):
    verify_in_process(monkeypatch)
    tracked = track(trained, digits)
    register(tracked, digits)
    done = run_python(SCRIPT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    epochs = [float(line.split()[2]) for line in lines[:5]]
    assert [line.split(":")[0] for line in lines[:5]] == [f"epoch {number}" for number in range(1, 6)]
    assert epochs[-1] > 90
    assert lines[5:] == [
        f"five epochs: {epochs[-1]:.2f} %", f"champion: {tracked[3].accuracy:.2f} %", "four.png: 4",
    ]  # fmt: skip


@pytest.mark.slow
def test_fit_trains_as_a_run_does(store, digits):
    __main__.main(["step4", "--dataset", "digits", "--epochs", "2", "--seed", "3"])
    (run,) = store.search_runs(["0"])
    step = drilldown.load_step("step4")
    trained = drilldown.fit(step.network, replace(step.recipe, epochs=2), drilldown.load_data("digits"), seed=3)
    for metric in ("train_loss", "test_loss"):
        logged = [entry.value for entry in store.get_metric_history(run.info.run_id, metric)]
        assert [row.named("test")[metric] for row in trained.history] == logged
    evaluation = drilldown.evaluate(trained.eval_model, digits)
    assert evaluation.accuracy == run.data.metrics["final_test_accuracy"]
    assert not trained.eval_model.training


def test_a_network_of_ones_own(digits):
    recipe = replace(SMALL_RECIPE, epochs=1)
    assert drilldown.Recipe(**{"epochs": 1}).epochs == 1
    first, second = (drilldown.fit(SmallNetwork, recipe, digits, seed=5, engine="torch") for _ in range(2))
    for one, other in zip(first.eval_model.parameters(), second.eval_model.parameters(), strict=True):
        assert torch.equal(one, other)
    held = digits.hold_out(100)
    assert len(drilldown.evaluate(first.eval_model, held).labels) == 100


def test_a_network_that_exists_already_is_refused(digits):
    with pytest.raises(ParameterError, match="network is a SmallNetwork: it takes a class or a function that creates"):
        drilldown.fit(SmallNetwork(), SMALL_RECIPE, digits)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"seed": 2**70},
            "seed is 1180591620717411303424: it takes a whole number at least 0 and at most 4,294,967,295",
        ),
        ({"seed": -1}, "seed is -1: it takes"),
        ({"seed": 0.5}, "seed is 0.5: it takes"),
        ({"threads": -1}, "threads is -1: it takes a whole number at least 1 and at most 1,024"),
        ({"threads": 0}, "threads is 0: it takes"),
        ({"device": "tpu"}, "device is 'tpu': it takes"),
        ({"engine": "jax"}, "engine is 'jax': it takes"),
    ],
)
def test_arguments_out_of_bounds_are_refused(given, message, digits):
    with pytest.raises(ParameterError, match=f"^{message}"):
        drilldown.fit(SmallNetwork, SMALL_RECIPE, digits, **given)


def test_a_picture_is_framed_from_a_file_and_from_memory(monkeypatch):
    file = ROOT / "docs" / "digits" / "four.png"
    with Image.open(file) as picture:
        framed = drilldown.frame(picture)
    assert framed.shape == (28, 28)
    assert np.array_equal(drilldown.frame(file), framed)
    assert np.array_equal(drilldown.frame(str(file)), framed)
    monkeypatch.setenv("HOME", str(file.parent))
    assert np.array_equal(drilldown.frame("~/four.png"), framed)


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    content = (ROOT / "docs" / "digits" / "four.png").read_bytes()
    truncated = tmp_path / "truncated.png"
    truncated.write_bytes(content[: len(content) // 2])
    for picture, why in [
        (truncated, ""),
        ("nothere.png", "it is not a file"),
        ("~nobody-of-this-name/four.png", ""),
        ("a\0b.png", ""),
    ]:
        with pytest.raises(PredictError, match=f"^picture is {re.escape(repr(str(picture)))}: {why or '.'}"):
            drilldown.frame(picture)
    with Image.open(truncated) as picture, pytest.raises(PredictError, match="^picture is '<PIL.PngImagePlugin"):
        drilldown.frame(picture)


def test_probabilities_of_zero_have_a_finite_loss(digits):
    class Sure:
        def predict(self, images):
            return np.eye(10, dtype=np.float32)[np.zeros(len(images), int)]

    evaluation = drilldown.evaluate(Sure(), digits)
    assert np.isfinite(evaluation.loss)
    assert evaluation.accuracy == pytest.approx(100 * (digits.test_labels == 0).double().mean().item())


def test_a_champion_that_is_not_there(store):
    with pytest.raises(ParameterError, match="model is 'models:/letters-cnn@champion': letters-cnn has no champion; "):
        drilldown.load_champion("letters-cnn")


def test_without_a_store_none_is_made(store, tmp_path):
    (tmp_path / "mlflow.db").unlink()
    with pytest.raises(
        StoreError, match="^MLFLOW_TRACKING_URI is 'sqlite:.*mlflow.db': no store; a training makes one$"
    ):
        drilldown.load_champion()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_store_that_does_not_answer(store):
    mlflow.set_tracking_uri(NOWHERE)
    with pytest.raises(StoreError, match=f"^MLFLOW_TRACKING_URI is '{NOWHERE}': the store there does not answer"):
        drilldown.load_champion()


@pytest.mark.slow
def test_a_store_that_goes_away(store, monkeypatch):
    monkeypatch.setattr(drilldown.library.store, "connect_to_read", lambda: None)
    mlflow.set_tracking_uri(NOWHERE)
    for name, value in SHORT_TIMEOUTS.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match="Max retries exceeded"):
        drilldown.load_champion()


def test_a_step_that_is_not_there():
    with pytest.raises(StepError, match="step is 'step9': it takes one of step1, step2, step3, step4"):
        drilldown.load_step("step9")


def test_every_name_is_documented_and_typed():
    for name in drilldown.__all__:
        member = getattr(drilldown, name)
        assert member.__doc__
        assert f"| `{name}(" in PAGE
        if inspect.isfunction(member):
            hints = [parameter.annotation for parameter in inspect.signature(member).parameters.values()]
            assert inspect.Parameter.empty not in hints
            assert inspect.signature(member).return_annotation is not inspect.Signature.empty
    assert set(drilldown.__all__) <= set(dir(drilldown))
    with pytest.raises(AttributeError, match="module 'drilldown' has no attribute 'train_everything'"):
        drilldown.train_everything  # noqa: B018


def test_the_import_is_light():
    code = "import sys, drilldown; print(*{'torch', 'mlflow', 'numpy', 'click'} & set(sys.modules))"
    assert run_python(code).stdout.strip() == ""
