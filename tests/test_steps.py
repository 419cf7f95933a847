"""The steps are the study's, to the number, and MLproject knows every one of them."""

import importlib
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
import yaml
from conftest import ROOT, copy_project

from src.commands import STEPS, cli
from src.learning.recipe import Recipe, Target
from src.lifecycle import records, report, tracking

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


def step(name):
    return importlib.import_module(f"steps.{name}")


def test_all_are_here():
    assert {"step1", "step2", "step3", "step4"} <= set(STEPS)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_has_a_network_a_recipe_a_target_and_a_docstring(name):
    module = step(name)
    assert isinstance(module.RECIPE, Recipe)
    assert isinstance(module.TARGET, Target)
    assert set(report.sections(module)) == {"Title", *report.SECTIONS}
    network = module.Network().eval()
    assert network(torch.zeros(3, 1, 28, 28)).shape == (3, 10)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == PARAMETERS.get(name, count)
    assert count <= (module.TARGET.max_parameters or count)


def test_step4_holds_its_limits():
    assert Target(max_epochs=15, max_parameters=7_999) == step("step4").TARGET
    assert step("step4").RECIPE.epochs <= 15


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("step1", Recipe(epochs=20, batch_size=128, lr=0.01, momentum=0.9)),
        ("step2", Recipe(epochs=20, batch_size=128, lr=0.01, momentum=0.9)),
        ("step3", Recipe(epochs=20, batch_size=64, lr=0.01, momentum=0.9, rotation=7)),
    ],
)
def test_the_recipes_of_the_study(name, recipe):
    assert recipe == step(name).RECIPE


def test_step3_has_the_published_layer_table():
    lines = tracking.layer_table(step("step3").Network()).splitlines()
    rows = [line.replace("[-1, ", "").replace("]", "").replace(",", "").split() for line in lines if "[-1" in line]
    found = [
        (layer.partition("-")[0], int(channels), int(side), int(count)) for layer, channels, side, _, count in rows
    ]
    published = [entry.split() for entry in PUBLISHED_STEP3.replace("\n", " ").split(",")]
    assert found == [(layer, int(channels), int(side), int(count)) for layer, channels, side, count in published]
    assert [row[0].partition("-")[2] for row in rows] == [str(number) for number in range(1, 29)]
    assert "Total params: 11,924" in lines


def test_the_layer_table_leaves_the_network_and_the_random_numbers_alone():
    network = step("step3").Network().train()
    before = [tensor.clone() for tensor in network.state_dict().values()]
    state = torch.get_rng_state()
    tracking.layer_table(network)
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training
    for tensor, old in zip(network.state_dict().values(), before, strict=True):
        assert torch.equal(tensor, old)


def test_mlproject_and_the_steps_folder_agree():
    entry_points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    trained = {
        name: entry["parameters"]["step"]["default"]
        for name, entry in entry_points.items()
        if "step" in entry["parameters"] and name != "repeat"
    }
    assert trained == {**{name: name for name in STEPS}, "main": "step4"}
    for name in trained:
        declared = set(entry_points[name]["parameters"]) - {"step"}
        assert entry_points[name]["command"] == entry_points["step1"]["command"]
        for parameter in declared:
            assert f"--{parameter} {{{parameter}}}" in entry_points[name]["command"]


def test_the_command_line_takes_what_mlproject_declares():
    entry_points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    for name in (*STEPS, "repeat", "predict"):
        declared = entry_points[name]["parameters"]
        options = {option.name: option for option in cli.commands[name].params}
        assert set(options) == set(declared) - ({"step"} if name in STEPS else set())
        for parameter in options:
            assert f"--{parameter} {{{parameter}}}" in entry_points[name]["command"]
        for parameter, option in options.items():
            assert option.required or str(declared[parameter]["default"]) == str(option.default)


@pytest.mark.parametrize("name", STEPS)
def test_the_result_in_the_docstring_is_the_measured_one(name):
    result, record = report.sections(step(name))["Result"], records.read(name)
    if record is None:
        assert result.startswith("not measured in full yet")
    else:
        assert result == records.sentence(record)
        assert record["recipe"] == asdict(step(name).RECIPE)


def test_another_step_is_one_file_and_one_entry(tmp_path):
    """As CONTRIBUTING says: nothing else has to be told of it."""
    folder = copy_project(tmp_path)
    (folder / "steps" / "another.py").write_text((folder / "steps" / "step4.py").read_text())
    shown = subprocess.run(
        [sys.executable, "-m", "src.run", "another", "--help"], cwd=folder, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert "Train another." in shown.stdout
