"""Prediction: every file gets its own answer, or the reason why it was refused."""

import pytest
from PIL import Image

from drilldown.errors import ParameterError
from drilldown.inference import predict
from drilldown.inference.framing import to_frame
from tests.support.pictures import Brightest
from tests.support.registered import register, verify_in_process
from tests.support.tracked import track


def test_each_answer_belongs_to_its_file_and_unreadable_files_are_named(tmp_path, digits, monkeypatch):
    monkeypatch.setattr(predict, "BATCH_SIZE", 3)
    for number in range(8):
        Image.fromarray(digits.test_images[number].numpy()).save(tmp_path / f"{number}.png")
    (tmp_path / "2b.png").write_text("not a picture")
    (tmp_path / "3b.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("ignored")
    files = predict.find_images(tmp_path)
    predictions, images, refused = predict.predict(Brightest(), files)
    assert [row.file for row in predictions] == [str(tmp_path / f"{number}.png") for number in range(8)]
    assert sorted(refused) == [str(tmp_path / "2b.png"), str(tmp_path / "3b.png")]
    assert len(images) == len(predictions)
    for number, row in enumerate(predictions):
        frame = to_frame(Image.fromarray(digits.test_images[number].numpy()))
        assert (images[number] == frame).all()
        probabilities = Brightest().predict(frame[None])[0]
        assert (row.digit, row.probability) == (7, pytest.approx(probabilities[7]))
        assert row.second_digit != 7
        assert row.second_probability < row.probability


def test_table_for_the_screen():
    rows = [predict.Prediction(f"{number:03}.png", number % 10, 0.9, 3, 0.05) for number in range(120)]
    lines = predict.table(rows[:2]).splitlines()
    assert lines[1:] == ["000.png      0      90.00 %    3 (5.00 %)", "001.png      1      90.00 %    3 (5.00 %)"]
    assert lines[0].split("  ")[0].strip() == "file"
    certain = predict.table([predict.Prediction("0.png", 0, 1 - 1e-7, 3, 1e-7)])
    assert certain.splitlines()[1] == "0.png      0    > 99.99 %  3 (< 0.01 %)"
    many = predict.table(rows).splitlines()
    assert len(many) == 102
    assert many[-1] == "… and 20 more, in predictions.csv"


def test_no_image_to_predict(tmp_path):
    with pytest.raises(ParameterError, match="images is .*nowhere.*: it takes an image file, or a folder"):
        predict.find_images(tmp_path / "nowhere")
    with pytest.raises(ParameterError, match="it takes a folder with files that end in .bmp"):
        predict.find_images(tmp_path)


@pytest.mark.parametrize("uri", ["models:/mnist-cnn@first", "models:/mnist-cnn/1", "models:/mnist-cnn", "nowhere"])
def test_a_model_that_does_not_exist(store, uri):
    with pytest.raises(ParameterError, match=f"model is '{uri}': it takes the URI of a model in this store"):
        predict.load(uri)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*filesystem model registry")
def test_every_uri_of_a_registered_model_identifies_its_version(store, trained, digits, monkeypatch):
    verify_in_process(monkeypatch)
    tracked = track(trained, digits)
    register(tracked, digits)
    run_id, _, model, evaluation = tracked
    images, expected = digits.test_images.numpy(), evaluation.predictions.numpy()
    identity = {"model.id": model.model_id, "model.run_id": run_id}
    version = {"model.name": "digits-cnn", "model.version": "1", "dataset.digest": digits.digest}
    for uri in ("models:/digits-cnn@champion", "models:/digits-cnn/1", "models:/digits-cnn/latest"):
        loaded, tags = predict.load(uri)
        assert len(tags.pop("model.digest")) == 64
        assert tags == {"model": uri, **identity, **version}
        assert (loaded.predict(images).argmax(1) == expected).all()
    assert predict.load(model.model_uri)[1] == {"model": model.model_uri, **identity}  # it is not a version
