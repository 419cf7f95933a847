"""A training that resumes from a saved state ends with the weights of one that was never interrupted."""

import dataclasses
import errno
import os

import pytest
import torch

from drilldown.errors import CheckpointError
from drilldown.learning import checkpoint, files, train
from tests.support.networks import SMALL_RECIPE, SmallNetwork, train_small


def new_state(dataset, seed=0):
    device = train.prepare(seed, "cpu")
    return train.init_state(SmallNetwork(), SMALL_RECIPE, dataset, seed, device)


def train_until(epoch, dataset, folder, engine="torch"):
    """Train to the end of an epoch, and save the state after each."""
    state = new_state(dataset)
    for metrics in train.fit(state, SMALL_RECIPE, dataset, engine):
        checkpoint.save(state, folder)
        if metrics.epoch == epoch:
            break
    return state


def without_times(history):
    return [dataclasses.replace(metrics, epoch_seconds=0, images_per_second=0) for metrics in history]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "numba"])
@pytest.mark.parametrize("epoch", [1, 3, 4])
def test_it_resumes_bit_for_bit(epoch, engine, digits, tmp_path):
    train_until(epoch, digits, tmp_path, engine)
    torch.rand(7)  # in another process the random numbers are at another point
    state = new_state(digits, seed=99)
    assert checkpoint.restore(state, tmp_path) == []
    assert len(state.history) == epoch
    rest = list(train.fit(state, SMALL_RECIPE, digits, engine))
    assert [metrics.epoch for metrics in rest] == list(range(epoch + 1, SMALL_RECIPE.epochs + 1))
    whole = train_small(digits, engine=engine)
    for name, value in whole.eval_model.state_dict().items():
        assert torch.equal(value, state.eval_model.state_dict()[name]), name
    assert without_times(state.history) == without_times(whole.history)


def test_the_last_two_are_kept(digits, tmp_path):
    train_until(4, digits, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["epoch-0003.pt", "epoch-0004.pt"]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped at its start", "flipped", "flipped at its end", "cut", "empty"])
def test_the_state_before_takes_the_place_of_a_damaged_one(damage, digits, tmp_path):
    train_until(3, digits, tmp_path)
    file = tmp_path / "epoch-0003.pt"
    content = bytearray(file.read_bytes())
    places = {"flipped at its start": 40, "flipped": len(content) // 2, "flipped at its end": -60}
    if damage in places:
        content[places[damage]] ^= 1
    length = {"cut": len(content) // 2, "empty": 0}.get(damage, len(content))
    file.write_bytes(content[:length])
    state = new_state(digits)
    (sentence,) = checkpoint.restore(state, tmp_path)
    assert sentence.startswith(f"{file} is damaged: ")
    assert len(state.history) == 2


def test_no_saved_state(digits, tmp_path):
    with pytest.raises(CheckpointError, match="there is no saved state in"):
        checkpoint.restore(new_state(digits), tmp_path)


def test_a_failed_save_leaves_the_state_before(digits, tmp_path, monkeypatch):
    state = train_until(2, digits, tmp_path)
    state.history.append(state.history[-1])

    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(CheckpointError, match=r"epoch 3 cannot be saved as .*epoch-0003.pt \(No space left"):
        checkpoint.save(state, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["epoch-0001.pt", "epoch-0002.pt"]
    assert checkpoint.restore(new_state(digits), tmp_path) == []


def test_clearing_a_missing_folder_is_no_error(tmp_path):
    checkpoint.clear(tmp_path / "missing")


def test_a_folder_that_cannot_be_created(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CheckpointError, match=r"nothing can be saved in .*file/run \(Not a directory\)"),
        checkpoint.lock(tmp_path / "file" / "run"),
    ):
        pass
