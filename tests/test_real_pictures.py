"""Measuring pictures as people make them: the pictures, and folders of one's own."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import pictures, real
from drilldown.errors import ParameterError


class SumModel:
    """A model whose digit is the number of rows with ink, modulo ten."""

    def predict(self, images: np.ndarray) -> np.ndarray:
        return np.eye(10, dtype=np.float32)[(images.max(2) > 0).sum(1) % 10]


def test_made_pictures_are_seeded_and_have_the_size_of_their_kind(digits):
    image = digits.test_images[0].numpy()
    for kind in real.KINDS[:: len(real.KINDS) // 24]:
        files = [pictures.picture(kind, image, 4, np.random.default_rng(seed)) for seed in (0, 0, 1)]
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
    found = real.measure_folder(SumModel(), tmp_path)
    counts = {
        kind: {name: (share["right"], share["pictures"]) for name, share in values.items()}
        for kind, values in found.items()
    }
    assert counts == {
        "photos": {"all": (2, 3), "writer01": (2, 2), "writer02": (0, 1)},
        "scans": {"all": (1, 2)},
    }
    assert json.loads(json.dumps(found)) == found
    assert found["photos"]["all"]["low"] < 2 / 3 < found["photos"]["all"]["high"]
    with pytest.raises(ParameterError, match="named after their digit"):
        real.measure_folder(SumModel(), tmp_path / "empty")
