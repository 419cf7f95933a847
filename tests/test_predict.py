"""Image files, whatever they look like, end in MNIST's frame, and the answers belong to their files."""

import numpy as np
import pytest
from PIL import Image

from src.learning.recipe import ParameterError
from src.lifecycle import predict


def digit(digits, number):
    """The first image of that digit, uint8 (28, 28)."""
    return digits.test_images[digits.test_labels == number][0].numpy()


def on_canvas(image, *, size=(90, 60), at=(40, 5), zoom=1, background=0):
    """The image somewhere on a larger canvas."""
    large = Image.fromarray(image).resize((28 * zoom, 28 * zoom), Image.Resampling.BICUBIC)
    canvas = Image.new("L", size, background)
    canvas.paste(large, at)
    return canvas


@pytest.mark.mnist
def test_an_mnist_image_is_in_its_frame_already(mnist):
    images = mnist.test_images[:500].numpy()
    frames = np.stack([predict.to_frame(Image.fromarray(image)) for image in images])
    change = np.abs(frames.astype(int) - images).max((1, 2))
    assert (change <= 3).mean() > 0.9  # a few have a faint outer row or column, and are cropped closer
    assert all(
        np.corrcoef(frame.ravel(), image.ravel())[0, 1] > 0.8 for frame, image in zip(frames, images, strict=True)
    )


def test_place_size_polarity_and_mode_do_not_matter(digits):
    image = digit(digits, 5)
    reference = predict.to_frame(Image.fromarray(image)).astype(float)
    grey = on_canvas(image)
    alpha = Image.new("RGBA", (90, 60), (0, 0, 0, 0))
    alpha.putalpha(grey)  # black ink on nothing
    white = Image.new("RGBA", (90, 60), (255, 255, 255, 0))
    white.putalpha(grey)
    variants = {
        "off centre": grey,
        "dark on light": Image.fromarray(255 - np.asarray(grey)),
        "colour": Image.merge("RGB", [grey] * 3),
        "alpha": alpha,
        "alpha, white ink": white,
        "16 bit": Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
        "large": on_canvas(image, size=(400, 300), at=(100, 30), zoom=8),
        "palette": grey.convert("P"),
        "bilevel": grey.point(lambda value: 255 * (value > 127)).convert("1"),
    }
    for name, picture in variants.items():
        frame = predict.to_frame(picture)
        assert frame.shape == (28, 28)
        assert frame.dtype == np.uint8
        alike = np.corrcoef(frame.ravel(), reference.ravel())[0, 1]
        assert alike > (0.85 if name == "bilevel" else 0.97), (name, alike)


def test_the_frame_is_mnists(digits):
    for number in range(10):
        frame = predict.to_frame(on_canvas(digit(digits, number), zoom=2))
        rows, columns = np.nonzero(frame)
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
        assert frame.max() >= 240
        mass = (frame.sum(1) @ np.arange(28) / frame.sum(), frame.sum(0) @ np.arange(28) / frame.sum())
        assert np.abs(np.array(mass) - 14).max() <= 0.51


def test_a_picture_of_one_colour_is_refused():
    for colour in (0, 127, 255):
        with pytest.raises(predict.PredictError, match="there is no digit in it"):
            predict.to_frame(Image.new("L", (30, 30), colour))


def test_a_dot_and_a_line_are_no_trouble():
    for size in ((1, 1), (1, 30), (30, 1)):
        canvas = Image.new("L", (40, 40))
        canvas.paste(255, (5, 5, 5 + size[0], 5 + size[1]))
        assert predict.to_frame(canvas).max() == 255


class Brightest:
    """A model that says 7 to all, the surer the brighter."""

    def predict(self, images):
        assert images.dtype == np.uint8
        sure = images.reshape(len(images), -1).mean(1, dtype=np.float32) / 255
        probabilities = np.repeat(((1 - sure) / 10)[:, None], 10, axis=1).astype(np.float32)
        probabilities[:, 7] += sure
        return probabilities


def test_each_answer_belongs_to_its_file_and_the_unreadable_are_named(tmp_path, digits, monkeypatch):
    monkeypatch.setattr(predict, "BATCH", 3)
    for number in range(8):
        Image.fromarray(digits.test_images[number].numpy()).save(tmp_path / f"{number}.png")
    (tmp_path / "2b.png").write_text("not a picture")
    (tmp_path / "3b.png").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("left alone")
    files = predict.find_images(tmp_path)
    predictions, seen, refused = predict.predict(Brightest(), files)
    assert [row.file for row in predictions] == [str(tmp_path / f"{number}.png") for number in range(8)]
    assert sorted(refused) == [str(tmp_path / "2b.png"), str(tmp_path / "3b.png")]
    assert len(seen) == len(predictions)
    for number, row in enumerate(predictions):
        frame = predict.to_frame(Image.fromarray(digits.test_images[number].numpy()))
        assert (seen[number] == frame).all()
        alone = Brightest().predict(frame[None])[0]
        assert (row.digit, row.probability) == (7, pytest.approx(alone[7]))
        assert row.second_digit != 7
        assert row.second_probability < row.probability


def test_the_table_for_the_screen():
    rows = [predict.Prediction(f"{number:03}.png", number % 10, 0.9, 3, 0.05) for number in range(120)]
    lines = predict.table(rows[:2]).splitlines()
    assert lines[1:] == ["000.png      0       90.00%  3 (5.00%)", "001.png      1       90.00%  3 (5.00%)"]
    assert lines[0].split("  ")[0].strip() == "file"
    many = predict.table(rows).splitlines()
    assert len(many) == 102
    assert many[-1] == "… and 20 more, in predictions.csv"


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tiff", "gif"])
def test_formats(suffix, tmp_path, digits):
    picture = on_canvas(digit(digits, 4), zoom=2)
    file = tmp_path / f"four.{suffix}"
    if suffix == "gif":  # the first frame counts
        picture.save(file, save_all=True, append_images=[Image.new("L", picture.size)])
    else:
        picture.save(file)
    _, (frame,), refused = predict.predict(Brightest(), predict.find_images(file))
    assert not refused
    assert np.corrcoef(frame.ravel(), predict.to_frame(picture).ravel())[0, 1] > 0.98


def test_nothing_to_predict_from(tmp_path):
    with pytest.raises(ParameterError, match="images is .*nowhere.*: it takes an image file, or a folder"):
        predict.find_images(tmp_path / "nowhere")
    with pytest.raises(ParameterError, match="it takes a folder with files that end in .bmp"):
        predict.find_images(tmp_path)


def test_a_model_that_is_not_there(store):
    with pytest.raises(ParameterError, match="model is 'models:/mnist-cnn@champion': it takes the URI of a model"):
        predict.load("models:/mnist-cnn@champion")
