"""Reading: every picture gets its own answer, or the reason why it is refused."""

import dataclasses
import io

import numpy as np
import pytest
from mlflow.models import Model
from PIL import Image

from drilldown.inference import reader
from drilldown.inference.framing import to_frame
from drilldown.inference.reader import Reader
from drilldown.learning.calibration import Calibration
from tests.support.pictures import Brightest, digit, on_canvas


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def in_a_row(*images: np.ndarray) -> Image.Image:
    """Digits side by side, dark on light paper."""
    page = Image.new("L", (90 * len(images) + 40, 140), 230)
    for place, image in enumerate(images):
        page.paste(on_canvas(255 - image, size=(84, 84), at=(0, 0), zoom=3, background=230).point(
            lambda value: min(value, 230)), (20 + 90 * place, 28))  # fmt: skip
    return page


def test_each_answer_belongs_to_its_picture_and_the_others_say_why_not(tmp_path, digits, monkeypatch):
    monkeypatch.setattr(reader, "BATCH_SIZE", 3)
    for number in range(8):
        Image.fromarray(digits.test_images[number].numpy()).save(tmp_path / f"{number}.png")
    (tmp_path / "2b.png").write_text("not a picture")
    (tmp_path / "3b.png").write_bytes(b"")
    files = sorted(tmp_path.iterdir())
    answers = list(Reader(Brightest()).read(files))
    assert [answer.source for answer in answers] == [str(file) for file in files]
    refused = [answer for answer in answers if answer.refusal is not None]
    assert [answer.source for answer in refused] == [str(tmp_path / "2b.png"), str(tmp_path / "3b.png")]
    assert {answer.digit for answer in refused} == {None}
    answered = [answer for answer in answers if answer.refusal is None]
    for number, answer in enumerate(answered):
        frame = to_frame(Image.fromarray(digits.test_images[number].numpy()))
        assert (answer.framed == frame).all()
        probabilities = Brightest().predict(frame[None])[0]
        assert (answer.digit, answer.probability) == (7, pytest.approx(probabilities[7]))
        assert answer.probabilities == pytest.approx(probabilities)
        assert answer.second_digit != 7
        assert answer.second_probability < answer.probability
        assert not answer.unsure
        assert answer.in_words().startswith("7: ")
    assert list(answers[0].as_row())[:4] == ["file", "refusal", "digit", "probability"]


def test_bytes_are_answered_like_files(tmp_path, digits):
    pictures = [on_canvas(digit(digits, number), zoom=2) for number in range(4)]
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file)
    from_files = list(Reader(Brightest()).read(files))
    from_bytes = list(Reader(Brightest()).read([file.read_bytes() for file in files], names=["a", "b", "c", "d"]))
    assert [answer.source for answer in from_bytes] == ["a", "b", "c", "d"]
    for one, other in zip(from_files, from_bytes, strict=True):
        assert (one.framed == other.framed).all()
        assert dataclasses.replace(one, source="", framed=None) == dataclasses.replace(other, source="", framed=None)
    (unnamed,) = Reader(Brightest()).read([b"nothing"])
    assert unnamed.source == "picture 1"
    assert unnamed.refusal.startswith("cannot identify image file")


def test_blank_paper_is_refused():
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[-1:1:240j, -1:1:300j]
    blank = {
        "white": np.full((240, 300), 255.0),
        "noisy": 230 + generator.normal(0, 8, (240, 300)),
        "light falls off": 230 * (0.75 + 0.25 * columns),
        "dark corners": 230 * (1 - 0.85 * ((rows**2 + columns**2) / 2) ** 1.5),
        "shadow": 230 * np.where(columns + 0.3 * rows > 0.1, 0.75, 1) + generator.normal(0, 2, (240, 300)),
    }
    pictures = [png(Image.fromarray(page.clip(0, 255).astype(np.uint8))) for page in blank.values()]
    answers = Reader(Brightest()).read(pictures, names=list(blank))
    assert {answer.source: answer.refusal.partition(":")[0] for answer in answers} == dict.fromkeys(
        blank, "nothing is written here"
    )


def test_several_digits_are_refused_or_read_from_left_to_right(digits):
    images = [digit(digits, number) for number in (4, 7, 0, 3)]
    for count in (2, 3, 4):
        picture = png(in_a_row(*images[:count]))
        (refused,) = Reader(Brightest()).read([picture])
        assert refused.refusal == f"more than one digit: {count} parts"
        parts = list(Reader(Brightest(), several=True).read([picture]))
        assert [part.part for part in parts] == list(range(1, count + 1))
        for part, image in zip(parts, images, strict=False):
            alone = to_frame(in_a_row(image))
            assert np.corrcoef(part.framed.ravel(), alone.ravel())[0, 1] > 0.9
    (one,) = Reader(Brightest(), several=True).read([png(in_a_row(images[0]))])
    assert (one.part, one.refusal) == (1, None)


class Calibrated(Brightest):
    """A model that keeps a temperature and a threshold."""

    metadata = Model(metadata={"calibration": Calibration(0.5, 0.5).as_metadata()})


def test_what_the_version_keeps_sharpens_and_marks_its_answers(digits):
    images = [png(Image.fromarray(digits.test_images[number].numpy())) for number in range(20)]
    plain, calibrated = (list(Reader(model).read(images)) for model in (Brightest(), Calibrated()))
    assert not any(answer.unsure for answer in plain)
    for one, other in zip(plain, calibrated, strict=True):
        squares = np.square(one.probabilities)
        assert other.probabilities == pytest.approx(squares / squares.sum(), rel=1e-4)
        assert other.unsure == (other.probability < 0.5)
    assert 0 < sum(answer.unsure for answer in calibrated) < 20
    doubtful = next(answer for answer in calibrated if answer.unsure)
    assert doubtful.in_words().endswith(" %, unsure")


def test_a_model_of_other_data_answers_with_its_classes_and_sees_its_own_size_as_it_is(digits):
    class Own(Brightest):
        metadata = Model(metadata={"classes": [f"class {number}" for number in range(8)]})

    rows = []
    for number in range(3):
        image = digits.test_images[number].clone()
        image[0] = 255  # framing would crop or invert it
        rows.append(image.numpy())
    pictures = [Image.fromarray(row) for row in rows]
    answers = list(Reader(Own()).read([png(picture) for picture in (*pictures, pictures[0].resize((56, 56)))]))
    assert all((answer.framed == row).all() for answer, row in zip(answers, rows, strict=False))
    assert (answers[3].framed != rows[0]).any()
    assert {(answer.digit, answer.name) for answer in answers} == {(7, "class 7")}
    assert answers[0].second_name == "9"  # the network has ten outputs
