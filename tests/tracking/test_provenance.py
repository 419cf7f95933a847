"""The fingerprint differs between trainings that differ, and only between them."""

from dataclasses import replace

import pytest
import torch

from drilldown.learning.recipe import Goal
from drilldown.tracking import provenance
from tests.support.networks import SMALL_RECIPE

CPU = torch.device("cpu")
GOAL = Goal(accuracy=97.0)


def fingerprint(digits, **changes):
    given = {"recipe": SMALL_RECIPE, "goal": GOAL, "dataset": digits, "seed": 0, "device": CPU, "engine": "numba"}
    return provenance.fingerprint("step4", **{**given, **changes})


def test_the_same_training_has_the_same_fingerprint(digits):
    assert fingerprint(digits) == fingerprint(digits)
    assert fingerprint(digits)["dataset.digest"] == digits.digest
    assert fingerprint(digits)["versions.torch"] == torch.__version__.partition("+")[0]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"recipe": replace(SMALL_RECIPE, lr=0.11)},
        {"goal": replace(GOAL, accuracy=98.0)},
        {"device": torch.device("cuda")},
        {"engine": "torch"},
        {"network": {"width": 9}},
    ],
)
def test_another_training_has_another_fingerprint(digits, change):
    assert fingerprint(digits, **change) != fingerprint(digits)


def test_another_validation_slice_is_another_training(digits):
    assert fingerprint(digits.hold_out(100)) != fingerprint(digits) != fingerprint(digits.hold_out(101))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of a few lines; returns what writes one of its files and gives the new digest of its code."""
    package = tmp_path / "src" / "drilldown"
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "PACKAGE", package)

    def write(file, text):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
        return provenance.code_digest("step1")

    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "step1.py").write_text('"""Result: none."""\nlr = 0.1\n')
    write("src/drilldown/learning/train.py", "def f():\n    return 1\n")
    return write


def test_code_counts_and_words_about_it_do_not(project):
    before = project("steps/step1.py", '"""Result: none."""\nlr = 0.1\n')
    assert project("steps/step1.py", '"""Result: 99 %."""\nlr = 0.1  # why\n') == before
    assert project("steps/step1.py", '"""Result: none."""\nlr = 0.2\n') != before
    assert project("steps/step1.py", '"""Result: none."""\nlr = 0.1\n') == before
    assert project("src/drilldown/learning/train.py", "def f():\n    return 2\n") != before


@pytest.mark.parametrize("file", ["engine/kernels.py", "engine/deep/below.py", "learning/augment.py"])
def test_all_code_that_makes_the_weights_counts_however_deep_it_lies(project, file):
    before = project(f"src/drilldown/{file}", "x = 1\n")
    assert project(f"src/drilldown/{file}", "x = 2\n") != before


def test_the_space_of_a_search_does_not_count(project):
    without = project("steps/step1.py", "lr = 0.1\n")
    space = "from optuna.distributions import FloatDistribution\nlr = 0.1\nSPACE = {'lr': FloatDistribution(0, 1)}\n"
    assert project("steps/step1.py", space) == without
    assert project("steps/step1.py", space.replace("lr = 0.1", "lr = 0.2")) != without


@pytest.mark.parametrize(
    "file",
    [
        *("learning/download.py", "learning/files.py", "learning/own_data.py", "learning/side_by_side.py"),
        *("options.py", "tracking/runs.py"),
    ],
)
def test_code_without_influence_on_the_weights_does_not_count(project, file):
    before = project(f"src/drilldown/{file}", "x = 1\n")
    assert project(f"src/drilldown/{file}", "x = 2\n") == before


def test_the_real_packages_are_in_the_digest():
    for package in provenance.WEIGHT_PACKAGES:
        assert list((provenance.PACKAGE / package).glob("*.py"))
    for module in provenance.NO_INFLUENCE:
        assert (provenance.PACKAGE / "learning" / module).is_file()
