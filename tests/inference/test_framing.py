"""Framing: pictures of every kind end in MNIST's format."""

import numpy as np
import pytest
from PIL import Image

from drilldown.errors import PredictError
from drilldown.inference.framing import read_image, to_frame
from tests.support.pictures import digit, on_canvas


@pytest.mark.mnist
def test_mnist_images_stay_nearly_as_they_are(mnist):
    images = mnist.test_images[:500].numpy()
    frames = np.stack([to_frame(Image.fromarray(image)) for image in images])
    change = np.abs(frames.astype(int) - images).max((1, 2))
    assert (change <= 3).mean() > 0.9  # a few have a faint outer row or column, and are cropped closer
    assert all(
        np.corrcoef(frame.ravel(), image.ravel())[0, 1] > 0.8 for frame, image in zip(frames, images, strict=True)
    )


def test_place_size_polarity_and_mode_do_not_matter(digits):
    image = digit(digits, 5)
    reference = to_frame(Image.fromarray(image)).astype(float)
    gray = on_canvas(image)
    alpha = Image.new("RGBA", (90, 60), (0, 0, 0, 0))
    alpha.putalpha(gray)  # black ink on a transparent background
    white = Image.new("RGBA", (90, 60), (255, 255, 255, 0))
    white.putalpha(gray)
    variants = {
        "off center": gray,
        "dark on light": Image.fromarray(255 - np.asarray(gray)),
        "color": Image.merge("RGB", [gray] * 3),
        "alpha": alpha,
        "alpha, white ink": white,
        "16 bit": Image.fromarray(np.asarray(gray).astype(np.uint16) * 257),
        "large": on_canvas(image, size=(400, 300), at=(100, 30), zoom=8),
        "palette": gray.convert("P"),
        "bilevel": gray.point(lambda value: 255 * (value > 127)).convert("1"),
    }
    for name, picture in variants.items():
        frame = to_frame(picture)
        assert frame.shape == (28, 28)
        assert frame.dtype == np.uint8
        correlation = np.corrcoef(frame.ravel(), reference.ravel())[0, 1]
        assert correlation > (0.85 if name == "bilevel" else 0.97), (name, correlation)


def test_size_brightness_and_center_are_those_of_mnist(digits):
    for number in range(10):
        frame = to_frame(on_canvas(digit(digits, number), zoom=2))
        rows, columns = np.nonzero(frame)
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
        assert frame.max() >= 240
        center = (frame.sum(1) @ np.arange(28) / frame.sum(), frame.sum(0) @ np.arange(28) / frame.sum())
        assert np.abs(np.array(center) - 14).max() <= 0.51


@pytest.mark.parametrize("gray", [0, 127, 255])
def test_a_picture_of_one_color_is_refused(gray):
    with pytest.raises(PredictError, match="there is no digit in it"):
        to_frame(Image.new("L", (30, 30), gray))


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (30, 1)])
def test_a_dot_and_a_line_are_accepted(size):
    canvas = Image.new("L", (40, 40))
    canvas.paste(255, (5, 5, 5 + size[0], 5 + size[1]))
    assert to_frame(canvas).max() == 255


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tiff", "gif"])
def test_file_formats(suffix, tmp_path, digits):
    picture = on_canvas(digit(digits, 4), zoom=2)
    file = tmp_path / f"four.{suffix}"
    if suffix == "gif":  # the first frame counts
        picture.save(file, save_all=True, append_images=[Image.new("L", picture.size)])
    else:
        picture.save(file)
    assert np.corrcoef(read_image(file).ravel(), to_frame(picture).ravel())[0, 1] > 0.98
