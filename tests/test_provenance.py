"""What tells one training from another, and what does not."""

from dataclasses import replace

import pytest
import torch
from conftest import SMALL_RECIPE

from src.learning.recipe import Target
from src.lifecycle import provenance

CPU = torch.device("cpu")
TARGET = Target(accuracy=97.0)


def tags(digits, **changes):
    given = {"recipe": SMALL_RECIPE, "target": TARGET, "dataset": digits, "seed": 0, "device": CPU}
    return provenance.fingerprint("step4", **{**given, **changes})


def test_the_same_training_has_the_same_fingerprint(digits):
    assert tags(digits) == tags(digits)
    assert tags(digits)["dataset.digest"] == digits.digest
    assert tags(digits)["versions.torch"] == torch.__version__.partition("+")[0]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"recipe": replace(SMALL_RECIPE, lr=0.11)},
        {"target": replace(TARGET, accuracy=98.0)},
        {"device": torch.device("cuda")},
    ],
)
def test_every_other_training_has_another(digits, change):
    assert tags(digits, **change) != tags(digits)


def test_a_slice_held_out_is_another_training(digits):
    assert tags(digits.hold_out(100)) != tags(digits) != tags(digits.hold_out(101))


def test_code_counts_and_what_is_said_about_it_does_not(tmp_path, monkeypatch):
    learning = tmp_path / "src" / "learning"
    learning.mkdir(parents=True)
    (tmp_path / "steps").mkdir()
    (learning / "train.py").write_text("def f():\n    return 1\n")
    step = tmp_path / "steps" / "step1.py"
    monkeypatch.setattr(provenance, "ROOT", tmp_path)

    def digest(text):
        step.write_text(text)
        return provenance.code_digest("step1")

    code = digest('"""Result: none."""\nlr = 0.1\n')
    assert digest('"""Result: 99 %."""\nlr = 0.1  # why\n') == code
    assert digest('"""Result: none."""\nlr = 0.2\n') != code
    step.write_text('"""Result: none."""\nlr = 0.1\n')
    (learning / "train.py").write_text("def f():\n    return 2\n")
    assert provenance.code_digest("step1") != code
