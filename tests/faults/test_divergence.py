"""A training whose loss becomes infinite or NaN."""

import pytest

from tests.test_cli import refused, run_status


@pytest.mark.fault(
    "diverging training", "`lr=1e6`", "it stops and names epoch and update; run FAILED, nothing registered"
)
@pytest.mark.parametrize("step", [pytest.param("step1", marks=pytest.mark.long), "step2"])
def test_diverging_training(step, store, capsys):
    code, line = refused(capsys, step, "--dataset", "digits", "--lr", "1e6", "--epochs", "3", "--threads", "1")
    assert code == 1
    assert line.startswith("training diverged: the loss of epoch 1, update ")
    assert run_status(store) == [(f"{step} seed 0", "FAILED")]
    assert store.search_registered_models() == []
