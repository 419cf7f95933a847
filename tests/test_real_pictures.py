"""Measuring pictures as people make them: the pictures, and folders of one's own."""

import io
import json

import numpy as np
import pytest
from mlflow.models import Model
from PIL import Image

from benchmarks import pictures, real
from drilldown.errors import ParameterError
from drilldown.inference.reader import Reader


class SumModel:
    """A model whose digit is the number of rows with ink, modulo ten."""

    metadata = Model()

    def predict(self, images: np.ndarray) -> np.ndarray:
        return np.eye(10, dtype=np.float32)[(images.max(2) > 0).sum(1) % 10]


def made(kind: pictures.Kind, image: np.ndarray, seed: int) -> bytes:
    generator = np.random.default_rng(seed)
    return pictures.picture(kind, [pictures.center_line(kind.strokes, image, 4, generator)], generator)


@pytest.mark.slow
def test_made_pictures_are_seeded_and_have_the_size_of_their_kind(digits):
    image = digits.test_images[0].numpy()
    for kind in real.KINDS[:: len(real.KINDS) // 24]:
        files = [made(kind, image, seed) for seed in (0, 0, 1)]
        assert files[0] == files[1]
        assert files[0] != files[2]
        with Image.open(io.BytesIO(files[0])) as picture:
            assert max(picture.size) == kind.size
            assert picture.format == ("JPEG" if kind.camera == "photographed" else "PNG")


def test_center_lines_are_thin_and_inside_the_strokes(digits):
    for image in digits.test_images[:5].numpy():
        line = pictures.thin(image)
        strokes = np.asarray(Image.fromarray(image).resize(line.shape, Image.Resampling.BICUBIC)) > 100
        assert 0 < line.sum() < strokes.sum() / 2
        assert (line & strokes).sum() > 0.95 * line.sum()


def test_a_folder_is_measured_by_kind_and_writer(tmp_path):
    for name, height in {
        "photos/0_writer01_a.png": 20,  # 20 rows of ink: the model says 0
        "photos/0_writer01_b.png": 20,
        "photos/3_writer02_a.png": 20,
        "scans/0.png": 20,
        "scans/notes.png": 20,  # no digit in its name
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture = Image.new("L", (60, 60), 255)
        picture.paste(0, (25, 10, 31, 10 + height))
        picture.save(tmp_path / name)
    (tmp_path / "scans" / "7.png").write_bytes(b"")  # refused counts as wrong
    found = real.measure_folder(Reader(SumModel()), tmp_path)
    counts = {
        kind: {name: (share["right"], share["pictures"]) for name, share in values.items()}
        for kind, values in found.items()
    }
    assert counts == {
        "photos": {"all": (2, 3), "writer01": (2, 2), "writer02": (0, 1)},
        "scans": {"all": (1, 2)},
        "all": {"all": (3, 5)},
    }
    assert (found["scans"]["all"]["refused"], found["scans"]["all"]["sure_right"]) == (1, 1)
    assert json.loads(json.dumps(found)) == found
    assert found["photos"]["all"]["low"] < 2 / 3 < found["photos"]["all"]["high"]
    with pytest.raises(ParameterError, match="named after their digit"):
        real.measure_folder(Reader(SumModel()), tmp_path / "empty")


@pytest.mark.slow
def test_what_is_not_one_digit_is_measured(digits):
    found = real.measure_others(Reader(SumModel()), digits.test_images.numpy(), digits.test_labels.numpy(), 3, seed=0)
    assert {kind: list(values) for kind, values in found.items()} == {
        "nothing written, refused": list(pictures.PAPERS),
        "several digits, refused": ["2", "3", "4"],
        "no digit, above 90 %": list(pictures.OTHERS),
        "no digit, above 90 % and sure": list(pictures.OTHERS),
    }
    assert {figures["pictures"] for values in found.values() for figures in values.values()} == {3}
    assert sum(figures["right"] for figures in found["nothing written, refused"].values()) >= 20  # of 24
    assert sum(figures["right"] for figures in found["several digits, refused"].values()) >= 7  # of 9
    assert all(figures["right"] >= 1 for figures in found["no digit, above 90 %"].values())  # this model is always sure
