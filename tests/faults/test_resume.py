"""A run that was killed goes on, and ends with the very weights that it would have had."""

import random
import sys
import time

import pytest
import torch

from benchmarks.programs import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.long]
EPOCHS = 6
TRAIN = [sys.executable, "-m", "src.run", "step4"]
GIVEN = ["--dataset", "digits", "--epochs", str(EPOCHS), "--threads", "1"]


@pytest.fixture(scope="module")
def whole(project):
    """The weights of a run that nothing interrupted."""
    done = project.command(*TRAIN, *GIVEN)
    assert done.returncode == 0, done.stderr
    return weights(project, project.runs()[0].info.run_id)


def weights(project, run_id):
    """Those of the model that the run has logged."""
    (logged,) = project.client().search_logged_models(["0"], filter_string=f"source_run_id = '{run_id}'")
    exported = project.folder / "mlruns" / "0" / "models" / logged.model_id / "artifacts" / "data" / "model.pt2"
    return torch.export.load(exported).state_dict


def kill(project, epoch, moment):
    """Start a training, and kill it so many seconds after the epoch; returns the folder with its run's states."""
    known = set((project.folder / "checkpoints").glob("*"))
    process = project.start(*TRAIN, *GIVEN)

    def saved():
        files = (project.folder / "checkpoints").glob(f"*/epoch-{epoch:04}.pt")
        return [file.parent for file in files if file.parent not in known]

    (folder,) = wait_until(saved, seconds=200, for_what=f"epoch {epoch}")
    time.sleep(moment)
    process.kill()
    process.wait()
    return folder


def assert_goes_on(project, run_id, whole):
    done = project.command(*TRAIN, "--resume", run_id)
    assert done.returncode == 0, done.stderr
    found = weights(project, run_id)
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], value) for name, value in whole.items())
    history = project.client().get_metric_history(run_id, "train_loss")
    assert sorted(entry.step for entry in history) == list(range(1, EPOCHS + 1))
    return done


@pytest.mark.fault(
    "SIGKILL between two epochs",
    "at a random moment after the first, third or fifth of six",
    "`resume` ends the same run with the same weights, bit for bit",
)
@pytest.mark.parametrize("epoch", [1, 3, 5])
def test_a_killed_run_goes_on(project, whole, epoch, attempt):
    folder = kill(project, epoch, random.Random(f"{epoch} {attempt}").uniform(0, 0.5))
    assert_goes_on(project, folder.name, whole)


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "empty": lambda file, chance: file.write_bytes(b""),
    "truncated": lambda file, chance: file.write_bytes(file.read_bytes()[:-100]),
    "a bit flipped": lambda file, chance: flip(file, chance.random()),
}


@pytest.mark.fault(
    "a damaged state",
    "the newest is truncated, emptied, or has a bit flipped, at a random place",
    "it is refused with its reason, and the one before it is used: the same weights, bit for bit",
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state(project, whole, damage, attempt):
    folder = kill(project, 3, 0)
    newest = max(folder.glob("epoch-*.pt"))
    DAMAGES[damage](newest, random.Random(f"{damage} {attempt}"))
    done = assert_goes_on(project, folder.name, whole)
    assert f"{newest.name} is damaged: " in done.stderr
    assert f"goes on after epoch {int(newest.stem[-4:]) - 1}" in done.stdout
