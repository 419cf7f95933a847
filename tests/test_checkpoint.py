"""A training that goes on from its saved state ends with the weights of one that was never interrupted."""

import errno
import os

import pytest
import torch
from conftest import SMALL_RECIPE, Small, train_small

from src.learning import checkpoint, files, train


def begin(dataset, seed=0):
    device = train.prepare(seed, "cpu")
    return train.start(Small(), SMALL_RECIPE, dataset, seed, device)


def train_until(epoch, dataset, folder):
    """Train so many epochs, each of them saved."""
    training = begin(dataset)
    for row in train.fit(training, SMALL_RECIPE, dataset):
        checkpoint.save(training, folder)
        if row["epoch"] == epoch:
            return training
    return training


def without_times(history):
    return [
        {name: value for name, value in row.items() if name not in ("epoch_seconds", "images_per_second")}
        for row in history
    ]


@pytest.mark.parametrize("epoch", [1, 3, 4])
def test_it_goes_on_bit_for_bit(epoch, digits, tmp_path):
    train_until(epoch, digits, tmp_path)
    torch.rand(7)  # another process's random numbers are elsewhere
    training = begin(digits, seed=99)
    assert checkpoint.restore(training, tmp_path) == []
    assert len(training.history) == epoch
    rows = list(train.fit(training, SMALL_RECIPE, digits))
    assert [row["epoch"] for row in rows] == list(range(epoch + 1, SMALL_RECIPE.epochs + 1))
    whole = train_small(digits)
    for name, value in whole.result.state_dict().items():
        assert torch.equal(value, training.result.state_dict()[name]), name
    assert without_times(training.history) == without_times(whole.history)


def test_the_last_two_are_kept(digits, tmp_path):
    train_until(4, digits, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["epoch-0003.pt", "epoch-0004.pt"]


@pytest.mark.parametrize("damage", ["flipped at its start", "flipped", "flipped at its end", "cut", "empty"])
def test_a_damaged_state_gives_way_to_the_one_before(damage, digits, tmp_path):
    train_until(3, digits, tmp_path)
    file = tmp_path / "epoch-0003.pt"
    content = bytearray(file.read_bytes())
    places = {"flipped at its start": 40, "flipped": len(content) // 2, "flipped at its end": -60}
    if damage in places:
        content[places[damage]] ^= 1
    length = {"cut": len(content) // 2, "empty": 0}.get(damage, len(content))
    file.write_bytes(content[:length])
    training = begin(digits)
    (sentence,) = checkpoint.restore(training, tmp_path)
    assert sentence.startswith(f"{file} is damaged: ")
    assert len(training.history) == 2


def test_nothing_to_go_on_from(digits, tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="there is no saved state in"):
        checkpoint.restore(begin(digits), tmp_path)


def test_a_save_that_is_cut_off_leaves_the_one_before(digits, tmp_path, monkeypatch):
    training = train_until(2, digits, tmp_path)
    training.history.append({})

    def cut_off(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", cut_off)
    with pytest.raises(checkpoint.CheckpointError, match=r"epoch 3 cannot be saved as .*epoch-0003.pt \(No space left"):
        checkpoint.save(training, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["epoch-0001.pt", "epoch-0002.pt"]
    assert checkpoint.restore(begin(digits), tmp_path) == []


def test_a_training_that_went_well_is_not_spoiled_by_what_it_cannot_clear_away(tmp_path):
    checkpoint.clear(tmp_path / "it is gone already")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(checkpoint.CheckpointError, match=r"nothing can be saved in .*file/run \(Not a directory\)"),
        checkpoint.hold(tmp_path / "file" / "run"),
    ):
        pass
