"""The steps are those of the study, to the number, and MLproject has each of them."""

import os
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
import yaml

from drilldown import steps
from drilldown.errors import StepError
from drilldown.learning.recipe import Recipe, Target
from drilldown.reporting import report
from drilldown.steps import ROOT, STEP_NAMES, load_step
from tests.support.project import copy_project

PARAMETERS = {"step1": 6_379_786, "step2": 12_584, "step3": 11_924}
PUBLISHED_STEP3 = """
Conv2d 4 26 36, BatchNorm2d 4 26 8, ReLU 4 26 0, Conv2d 8 24 288, BatchNorm2d 8 24 16, ReLU 8 24 0,
Conv2d 16 24 128, MaxPool2d 16 12 0,
Conv2d 32 10 4608, BatchNorm2d 32 10 64, ReLU 32 10 0, Dropout 32 10 0,
Conv2d 16 10 512, BatchNorm2d 16 10 32, ReLU 16 10 0, Dropout 16 10 0,
Conv2d 16 8 2304, BatchNorm2d 16 8 32, ReLU 16 8 0, Dropout 16 8 0,
Conv2d 16 6 2304, BatchNorm2d 16 6 32, ReLU 16 6 0, Conv2d 10 4 1440, BatchNorm2d 10 4 20, ReLU 10 4 0,
AvgPool2d 10 1 0, Conv2d 10 1 100
"""  # layer, channels, side, parameters


def test_all_four_are_found():
    assert {"step1", "step2", "step3", "step4"} <= set(STEP_NAMES)


@pytest.mark.parametrize("name", STEP_NAMES)
def test_a_step_has_a_network_a_recipe_a_target_and_a_docstring(name):
    step = load_step(name)
    assert isinstance(step.recipe, Recipe)
    assert isinstance(step.target, Target)
    assert set(report.sections(step.docstring)) == {"Title", *report.SECTIONS}
    network = step.network().eval()
    assert network(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == PARAMETERS.get(name, count)
    assert count <= (step.target.max_parameters or count)


def test_step4_keeps_its_limits():
    step = load_step("step4")
    assert step.target == Target(max_epochs=15, max_parameters=7_999)
    assert step.recipe.epochs <= 15


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("step1", Recipe(epochs=20, batch_size=128, lr=0.01, momentum=0.9)),
        ("step2", Recipe(epochs=20, batch_size=128, lr=0.01, momentum=0.9)),
        ("step3", Recipe(epochs=20, batch_size=64, lr=0.01, momentum=0.9, rotation=7)),
    ],
)
def test_the_recipes_are_those_of_the_study(name, recipe):
    assert load_step(name).recipe == recipe


def test_step3_has_the_published_layer_table():
    from drilldown.tracking.export import layer_table

    lines = layer_table(load_step("step3").network()).splitlines()
    rows = [line.replace("[-1, ", "").replace("]", "").replace(",", "").split() for line in lines if "[-1" in line]
    found = [
        (layer.partition("-")[0], int(channels), int(side), int(count)) for layer, channels, side, _, count in rows
    ]
    published = [entry.split() for entry in PUBLISHED_STEP3.replace("\n", " ").split(",")]
    assert found == [(layer, int(channels), int(side), int(count)) for layer, channels, side, count in published]
    assert [row[0].partition("-")[2] for row in rows] == [str(number) for number in range(1, 29)]
    assert "Total params: 11,924" in lines


def test_the_layer_table_leaves_the_network_and_the_random_numbers_unchanged():
    from drilldown.tracking.export import layer_table

    network = load_step("step3").network().train()
    before = [tensor.clone() for tensor in network.state_dict().values()]
    random = torch.get_rng_state()
    layer_table(network)
    assert torch.equal(torch.get_rng_state(), random)
    assert network.training
    for tensor, old in zip(network.state_dict().values(), before, strict=True):
        assert torch.equal(tensor, old)


def test_mlproject_and_the_steps_folder_agree():
    entry_points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    defaults = {
        name: entry["parameters"]["step"]["default"]
        for name, entry in entry_points.items()
        if "step" in entry["parameters"] and name not in ("repeat", "tune")
    }
    assert defaults == {**{name: name for name in STEP_NAMES}, "main": "step4"}
    for name in defaults:
        declared = set(entry_points[name]["parameters"]) - {"step"}
        assert entry_points[name]["command"] == entry_points["step1"]["command"]
        for parameter in declared:
            assert f"--{parameter} {{{parameter}}}" in entry_points[name]["command"]


def test_the_command_line_takes_what_mlproject_declares():
    from drilldown.cli import cli

    entry_points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    for name in (*STEP_NAMES, "repeat", "tune", "predict"):
        declared = entry_points[name]["parameters"]
        options = {option.name: option for option in cli.commands[name].params}
        assert set(options) == set(declared) - ({"step"} if name in STEP_NAMES else set())
        for parameter in options:
            assert f"--{parameter} {{{parameter}}}" in entry_points[name]["command"]
        for parameter, option in options.items():
            assert option.required or str(declared[parameter]["default"]) == str(option.default)


@pytest.mark.parametrize("name", STEP_NAMES)
def test_the_result_in_the_docstring_is_the_measured_one(name):
    from drilldown.experiments import records

    step, record = load_step(name), records.read(name)
    result = report.sections(step.docstring)["Result"]
    if record is None:
        assert result.startswith("not measured in full yet")
    else:
        assert result == records.sentence(record)
        assert record["recipe"] == asdict(step.recipe)


def test_a_new_step_needs_only_its_file(tmp_path):
    """CONTRIBUTING says so; an entry in MLproject serves `mlflow run`."""
    folder = copy_project(tmp_path)
    (folder / "steps" / "another.py").write_text((folder / "steps" / "step4.py").read_text())
    shown = subprocess.run(
        [sys.executable, "-m", "drilldown", "another", "--help"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "src")},
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    assert "Train another" in shown.stdout


LOAD_BROKEN = """
import sys
from drilldown.steps import load_step
for _ in range(2):
    try:
        load_step("broken")
    except ZeroDivisionError:
        print("its own error")
print(load_step("step2").network.__module__, "steps.broken" in sys.modules)
"""


@pytest.mark.slow
def test_a_step_that_cannot_be_imported_raises_its_own_error(tmp_path):
    folder = copy_project(tmp_path / "project")
    (folder / "steps" / "broken.py").write_text("1 / 0\n")
    done = subprocess.run(
        [sys.executable, "-c", LOAD_BROKEN],
        cwd=tmp_path,  # steps are found from any folder
        env=os.environ | {"PYTHONPATH": str(folder / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["its own error", "its own error", "steps.step2 False"]


@pytest.mark.parametrize(
    ("source", "attribute"),
    [
        ("", "Network"),
        ("Network = 3", "Network"),
        ("def Network(): ...\nRECIPE = {'lr': 0.1}", "RECIPE"),
        ("from drilldown.learning.recipe import Recipe\ndef Network(): ...\nRECIPE = Recipe()", "TARGET"),
    ],
)
def test_a_step_without_one_of_its_parts_is_refused(tmp_path, monkeypatch, source, attribute):
    (tmp_path / "partial.py").write_text(source)
    monkeypatch.setattr(steps, "FOLDER", tmp_path)
    monkeypatch.delitem(sys.modules, "steps.partial", raising=False)
    with pytest.raises(StepError, match=rf"steps/partial\.py declares no {attribute}: a step has one, as in "):
        load_step("partial")
    del sys.modules["steps.partial"]


LIGHT = ("steps", "choices", "errors", "messages", "process", "hardware", "learning.recipe")


def test_start_up_imports_no_heavy_package():
    names = ", ".join(f"drilldown.{name}" for name in LIGHT)
    code = f"import sys, {names}; print(sorted(sys.modules.keys() & {{'torch', 'numpy', 'mlflow', 'sklearn'}}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
