"""Registered models whose files were altered, or which were deleted by hand."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from PIL import Image

from drilldown.__main__ import main
from drilldown.errors import ChampionError
from drilldown.registry import registry
from tests.support.project import ROOT
from tests.support.registered import aliases, register, verify_in_process
from tests.support.tracked import track
from tests.test_cli import refused, run_status

pytestmark = pytest.mark.slow
CHAMPION = "models:/digits-cnn@champion"


@pytest.fixture
def image(tmp_path, digits):
    Image.fromarray(digits.test_images[0].numpy()).save(tmp_path / "digit.png")
    return str(tmp_path / "digit.png")


@pytest.fixture
def champion(store, trained, digits, monkeypatch):
    """The folder with the files of version 1, the champion."""
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # as the command sets it
    verify_in_process(monkeypatch)
    return make_champion(trained, digits, "1")


def make_champion(trained, digits, version: str) -> Path:
    done = register(track(trained, digits), digits, parameters=1000 - int(version))  # smaller is better
    assert (done.version, done.champion) == (version, True)
    return Path(mlflow.artifacts.download_artifacts(f"models:/digits-cnn/{version}"))


def flip_bit(file: Path, place: int) -> None:
    """Flip the lowest bit of the byte at this place."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.fault(
    "altered model files",
    "the lowest bit of one weight flipped, which changes no prediction",
    "`promote`, `rollback` and `predict` refuse the model: one line, exit code 1",
)
def test_flipped_bit_of_a_weight(champion, store, image, trained, digits, capsys, record_property):
    make_champion(trained, digits, "2")
    images, weights = digits.test_images.numpy(), trained.eval_model.network.layers[1].weight.detach().numpy().tobytes()
    before = mlflow.pyfunc.load_model("models:/digits-cnn/1").predict(images)
    exported = champion / "data" / "model.pt2"
    assert exported.read_bytes().count(weights) == 1
    flip_bit(exported, exported.read_bytes().index(weights))
    after = mlflow.pyfunc.load_model("models:/digits-cnn/1").predict(images)
    assert (after.argmax(1) == before.argmax(1)).all()  # its accuracy does not show it
    capsys.readouterr()  # discard what MLflow printed
    commands = [
        ["promote", "--version", "1", "--model", "digits-cnn", "--force", "true"],
        ["rollback", "--model", "digits-cnn"],
        ["predict", "--images", image, "--model", "models:/digits-cnn/1"],
    ]
    for command in commands:
        code, line = refused(capsys, *command)
        assert code == 1
        assert "digits-cnn version 1 was altered: the SHA-256 of its files is " in line
    assert line.endswith("restore its files, or go back to an earlier champion (rollback)")
    assert aliases(store)["champion"] == "2"
    assert [status for _, status in run_status(store)][:3] == ["FAILED"] * 3
    record_property("times", len(commands))


@pytest.mark.fault(
    "altered model files",
    "the champion's files changed, renamed, truncated, removed, or a file added",
    "`predict` refuses the model, and names what is gone; nothing replaces an altered champion, except with `force`",
)
def test_altered_champion(champion, store, image, trained, digits, capsys, record_property):
    folder = make_champion(trained, digits, "2")
    kept = shutil.copytree(folder, folder.with_name("kept"))
    exported, description = folder / "data" / "model.pt2", folder / "MLmodel"
    altered, gone = (
        "digits-cnn version 2 was altered: the SHA-256 of its files is ",
        "of digits-cnn version 2 are gone: ",
    )
    alterations = [
        (lambda: exported.unlink(), f"files {gone}there is no data/model.pt2 in {folder};"),
        (lambda: exported.write_bytes(exported.read_bytes()[:-100]), altered),
        (lambda: exported.rename(exported.with_name("2")), f"files {gone}there is no data/model.pt2 in {folder};"),
        (lambda: description.write_text(description.read_text() + "\n"), altered),
        (lambda: (folder / "sitecustomize.py").write_text("print('loaded')"), altered),
        (lambda: shutil.rmtree(folder), f"the files {gone}there is no folder {folder};"),
    ]
    capsys.readouterr()  # discard what MLflow printed
    for alter, said in alterations:
        alter()
        code, line = refused(capsys, "predict", "--images", image, "--model", CHAMPION)
        assert code == 1
        assert line.startswith(f"model is {CHAMPION!r}: {said}")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(kept, folder)
    main(["predict", "--images", image, "--model", CHAMPION])  # with its original files, it answers
    flip_bit(exported, 1000)
    with pytest.raises(ChampionError, match="version 2 stays champion, uncompared: .* version 2 was altered"):
        registry.promote("digits-cnn", "1", digits, why="a test")
    assert registry.promote("digits-cnn", "1", digits, why="a test", force=True).champion
    record_property("times", len(alterations) + 1)


@pytest.mark.fault(
    "champion deleted by hand",
    "its alias, its version, the whole registered model",
    "`predict`, `promote` and `rollback` say in one line what is missing",
)
def test_deleted_champion(champion, store, image, capsys, record_property):
    predict = ["predict", "--images", image, "--model", CHAMPION]
    promote, roll_back = ["promote", "--version", "1", "--model", "digits-cnn"], ["rollback", "--model", "digits-cnn"]
    no_alias = f"model is '{CHAMPION}': digits-cnn has no champion; to train one: "
    no_version = "version is '1': it takes a version of digits-cnn, which has none"
    no_model = "model is 'digits-cnn': it takes a registered model, and there is none yet"
    deletions = [
        (lambda: store.delete_registered_model_alias("digits-cnn", "champion"), [(predict, 2, no_alias)]),
        (lambda: store.delete_model_version("digits-cnn", "1"), [(predict, 2, no_alias), (promote, 2, no_version)]),
        (
            lambda: store.delete_registered_model("digits-cnn"),
            [
                (predict, 2, no_alias),
                (promote, 2, no_model),
                (roll_back, 2, no_model),
            ],
        ),
    ]
    for delete, answers in deletions:
        delete()
        for command, code, message in answers:
            found, line = refused(capsys, *command)
            assert (found, message in line) == (code, True), line
    record_property("times", len(deletions))


@pytest.mark.long
@pytest.mark.fault(
    "pickle forbidden", "`MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false` in a new process", "the champion predicts"
)
def test_champion_predicts_without_pickle(champion, image, tmp_path):
    settings = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "drilldown", "predict", "--images", image, "--model", CHAMPION]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "digit.png" in done.stdout
