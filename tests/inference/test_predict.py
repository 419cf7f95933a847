"""Prediction: the table of the answers, the labels, and the model that answers."""

from dataclasses import replace

import pytest

from drilldown.errors import ParameterError
from drilldown.inference import predict
from drilldown.inference.files import find_images
from drilldown.inference.reader import Answer
from tests.support.registered import register, verify_in_process
from tests.support.tracked import track


def test_table_for_the_screen():
    rows = [Answer(f"{number:03}.png", None, number % 10, 0.9, 3, 0.05, str(number % 10), "3") for number in range(120)]
    lines = predict.table(rows[:2]).splitlines()
    assert lines[1:] == ["000.png      0      90.00 %    3 (5.00 %)", "001.png      1      90.00 %    3 (5.00 %)"]
    assert lines[0].split("  ")[0].strip() == "file"
    certain = predict.table([Answer("0.png", None, 0, 1 - 1e-7, 3, 1e-7, "0", "3")])
    assert certain.splitlines()[1] == "0.png      0    > 99.99 %  3 (< 0.01 %)"
    many = predict.table(rows).splitlines()
    assert len(many) == 102
    assert many[-1] == "… and 20 more, in predictions.csv"
    doubted = predict.table([replace(rows[0], unsure=True, part=1), replace(rows[1], part=2)]).splitlines()
    assert doubted[0].split() == ["file", "part", "digit", "probability", "second", "guess", "note"]
    assert [line.endswith("unsure") for line in doubted[1:]] == [True, False]


def test_labels_from_names_and_from_a_table(tmp_path):
    files = [tmp_path / name for name in ("7_a.png", "two.png", "0.png")]
    assert predict.read_labels("names", files) == [7, None, 0]
    table = tmp_path / "labels.csv"
    table.write_text(f"file,label,note\ntwo.png,2,\n{files[0]},1,\nanother.png,5,\n")
    assert predict.read_labels(str(table), files) == [1, 2, None]
    assert predict.read_labels(str(table), files[:1], ["zero", "1", "2", "5"]) == [1]
    for text, complaint in (
        ("file,digit\na.png,2\n", "KeyError: 'label'"),
        ("file,label\ntwo.png,two\n", "the label of two.png is 'two', it takes one of 0, 1"),
        ("file,label\nother.png,2\n", "it names none of the 3 files"),
        ("file,label\ntwo.png\n", "it takes names, or a CSV file with the columns file and label"),
    ):
        table.write_text(text)
        with pytest.raises(ParameterError, match=complaint):
            predict.read_labels(str(table), files)
    with pytest.raises(ParameterError, match="labels is .*nowhere.csv.*: it takes names, or a CSV file"):
        predict.read_labels(str(tmp_path / "nowhere.csv"), files)
    with pytest.raises(ParameterError, match="names begin with their digit"):
        predict.read_labels("names", [files[1]])


def test_a_refused_picture_counts_as_wrong():
    answers = [
        Answer("a.png", None, 7, 0.9),
        Answer("b.png", "nothing is written here"),
        Answer("c.png", None, 3, 0.6, unsure=True),
        Answer("d.png", None, 5, 0.8),
    ]
    metrics, confidences, right = predict.compare(answers, {"a.png": 7, "b.png": 1, "c.png": 4, "d.png": None})
    assert metrics == {
        "labelled": 3,
        "accuracy": pytest.approx(100 / 3),
        "sure": 1,
        "sure_accuracy": 100,
        "calibration_error": pytest.approx((0.1 + 0.6) / 2),
    }
    assert (confidences.tolist(), right.tolist()) == ([0.9, 0.6], [True, False])
    assert predict.accuracy_line(metrics) == (
        "right: 33.33 % of 3 labelled pictures, 100.00 % of the 1 that are sure; expected calibration error 0.3500"
    )


def test_no_image_to_predict(tmp_path):
    with pytest.raises(ParameterError, match="images is .*nowhere.*: it takes an image file, or a folder"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(ParameterError, match="it takes a folder with files that end in .bmp"):
        find_images(tmp_path)


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
