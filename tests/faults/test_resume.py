"""A killed run is resumed, and finishes with the weights of an uninterrupted run."""

import random
import sys
import time

import pytest
import torch

from tests.support.programs import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.long]
EPOCHS = 6
TRAIN = [sys.executable, "-m", "drilldown", "step4"]
OPTIONS = ["--dataset", "digits", "--epochs", str(EPOCHS), "--threads", "1"]


@pytest.fixture(scope="module")
def expected(project):
    """The weights of an uninterrupted run."""
    done = project.command(*TRAIN, *OPTIONS)
    assert done.returncode == 0, done.stderr
    return weights(project, project.runs()[0].info.run_id)


def weights(project, run_id):
    """The weights of the model that the run has logged."""
    client = project.client()
    experiment = client.get_run(run_id).info.experiment_id
    (logged,) = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    exported = project.folder / "mlruns" / experiment / "models" / logged.model_id / "artifacts" / "data" / "model.pt2"
    return torch.export.load(exported).state_dict


def kill(project, epoch, delay):
    """Start a training, kill it `delay` seconds after the epoch, and return the folder with its states."""
    known = set((project.folder / "checkpoints").glob("*"))
    process = project.start(*TRAIN, *OPTIONS)

    def saved():
        files = (project.folder / "checkpoints").glob(f"*/epoch-{epoch:04}.pt")
        return [file.parent for file in files if file.parent not in known]

    (folder,) = wait_until(saved, seconds=200, for_what=f"epoch {epoch}")
    time.sleep(delay)
    process.kill()
    process.wait()
    return folder


def assert_resumes(project, run_id, expected):
    done = project.command(*TRAIN, "--resume", run_id)
    assert done.returncode == 0, done.stderr
    found = weights(project, run_id)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    history = project.client().get_metric_history(run_id, "train_loss")
    assert sorted(entry.step for entry in history) == list(range(1, EPOCHS + 1))
    return done


@pytest.mark.fault(
    "SIGKILL between epochs",
    "at a random moment after the first, third or fifth of six epochs",
    "`resume` finishes the same run with bit-identical weights",
)
@pytest.mark.parametrize("epoch", [1, 3, 5])
def test_killed_run_is_resumed(project, expected, epoch, attempt):
    folder = kill(project, epoch, random.Random(f"{epoch} {attempt}").uniform(0, 0.5))
    assert_resumes(project, folder.name, expected)


def flip_bit(file, place):
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "empty": lambda file, rng: file.write_bytes(b""),
    "truncated": lambda file, rng: file.write_bytes(file.read_bytes()[:-100]),
    "bit flipped": lambda file, rng: flip_bit(file, rng.random()),
}


@pytest.mark.fault(
    "damaged training state",
    "the newest one truncated, emptied, or with a bit flipped at a random place",
    "it is skipped with a reason; the state before it gives bit-identical weights",
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_state_is_skipped(project, expected, damage, attempt):
    folder = kill(project, 3, 0)
    newest = max(folder.glob("epoch-*.pt"))
    DAMAGES[damage](newest, random.Random(f"{damage} {attempt}"))
    done = assert_resumes(project, folder.name, expected)
    assert f"{newest.name} is damaged: " in done.stderr
    assert f"resumes after epoch {int(newest.stem[-4:]) - 1}" in done.stdout
