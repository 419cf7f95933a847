"""Framing: pictures of every kind end in MNIST's format."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps

from drilldown.errors import PredictError
from drilldown.inference.framing import find_writing, is_framed, read_image, stroke_width, to_frame
from tests.support.pictures import digit, on_canvas


def drawn(width: float = 12, size: tuple[int, int] = (300, 240), at: tuple[int, int] = (150, 120), zoom: float = 1):
    """Ink of a "4" drawn with straight strokes of that width, float64 (H, W), from 0 to 1; `at` is its middle."""
    lines = [((10, -60), (-40, 15)), ((-40, 15), (40, 15)), ((15, -20), (15, 60))]
    ink = Image.new("L", (size[0] * 4, size[1] * 4))
    pen = ImageDraw.Draw(ink)
    for line in lines:
        places = [tuple(4 * (zoom * value + middle) for value, middle in zip(point, at, strict=True)) for point in line]
        pen.line(places, fill=255, width=max(1, round(4 * width)))
    return np.asarray(ink.resize(size, Image.Resampling.BOX)) / 255


def on(paper: np.ndarray, ink: np.ndarray, darkness: float = 0.7) -> Image.Image:
    """A picture of ink on paper that reflects so much light, from 0 to 1."""
    return Image.fromarray((255 * paper * (1 - darkness * ink)).clip(0, 255).astype(np.uint8))


def likeness(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two frames; the second may be shifted by a pixel."""
    shifts = [np.roll(second, (down, right), (0, 1)) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    return max(np.corrcoef(first.ravel(), shifted.ravel())[0, 1] for shifted in shifts)


PLAIN = np.full((240, 300), 0.9)
ROWS, COLUMNS = np.mgrid[-1:1:240j, -1:1:300j]


def ruled(page: np.ndarray, darkness: float, both: bool) -> np.ndarray:
    page = page.copy()
    page[5::40] *= 1 - darkness
    if both:
        page[:, 12::40] *= 1 - darkness
    return page


def framed(page: np.ndarray) -> np.ndarray:
    page = page.copy()
    page[:12] = page[-9:] = 0.1
    page[:, :15] = page[:, -6:] = 0.1
    return page


def noisy(page: np.ndarray) -> np.ndarray:
    return page + np.random.default_rng(0).normal(0, 0.04, page.shape)


PAGES = {
    "light falls off": PLAIN * (0.75 + 0.25 * COLUMNS),
    "shadow with an edge": PLAIN * np.where(COLUMNS + 0.3 * ROWS > 0.1, 0.7, 1),
    "dark corners": PLAIN * (1 - 0.85 * ((ROWS**2 + COLUMNS**2) / 2) ** 1.5),
    "one dark corner": PLAIN * (1 - 0.8 / (1 + np.exp(-12 * (ROWS + COLUMNS - 1.4)))),
    "lined": ruled(PLAIN, 0.2, both=False),
    "squared": ruled(PLAIN, 0.2, both=True),
    "dark frame": framed(PLAIN),
    "noise": noisy(PLAIN),
    "noise, lined, light falls off": noisy(ruled(PLAIN, 0.2, both=False) * (0.8 + 0.2 * ROWS)),
}


@pytest.mark.parametrize("page", PAGES)
def test_what_is_on_the_page_besides_the_digit_does_not_matter(page):
    reference = to_frame(on(PLAIN, drawn()))
    assert likeness(reference, to_frame(on(PAGES[page], drawn()))) > 0.9


@pytest.mark.parametrize("width", [0.5, 1, 2, 4])
def test_thin_strokes_become_bright_and_wide_enough(width):
    frame = to_frame(on(np.ones((800, 1050)), drawn(width, size=(1050, 800), at=(500, 380), zoom=4), darkness=1))
    assert frame.max() == 255
    assert 2 <= stroke_width(frame > 127) <= 4
    assert likeness(frame, to_frame(on(PLAIN, drawn()))) > 0.75


def test_specks_and_lines_far_from_the_digit_are_left_out():
    ink = drawn()
    ink[200:206, 20:26] = 1
    ink[:, 285:288] = 1  # a margin from top to bottom
    assert likeness(to_frame(on(PLAIN, drawn())), to_frame(on(PLAIN, ink))) > 0.99


def test_parts_near_the_digit_belong_to_it():
    ink = drawn()
    ink[128:140] = 0  # cuts the digit in three
    writing = find_writing(on(PLAIN, ink))
    assert len(writing.digit) == 3
    rows = np.flatnonzero(writing.mask.any(1)) * 240 / writing.mask.shape[0]
    assert np.ptp(rows) > 110


def test_a_small_digit_in_a_large_picture_is_looked_at_closer():
    reference = to_frame(on(PLAIN, drawn()))
    page = np.full((1500, 2000), 0.9)
    small = drawn(12, size=(2000, 1500), at=(1700, 1200))
    assert likeness(reference, to_frame(on(page, small))) > 0.95


@pytest.mark.slow
@given(
    place=st.tuples(st.integers(60, 240), st.integers(75, 165)),
    zoom=st.floats(0.6, 1),
    darkness=st.floats(0.3, 0.95),
    light_ink=st.booleans(),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_place_scale_strength_and_polarity_leave_the_frame_as_it_is(place, zoom, darkness, light_ink):
    picture = on(PLAIN, drawn(12 * zoom, at=place, zoom=zoom), darkness)
    if light_ink:
        picture = ImageOps.invert(picture)
    assert likeness(to_frame(on(PLAIN, drawn())), to_frame(picture)) > 0.93


@pytest.mark.slow
@pytest.mark.mnist
def test_mnist_images_stay_as_they_are(mnist):
    images = mnist.test_images[:500].numpy()
    frames = np.stack([to_frame(Image.fromarray(image)) for image in images])
    inverted = np.stack([to_frame(Image.fromarray(255 - image)) for image in images])
    same = (frames == images).all((1, 2))
    assert same.mean() > 0.98  # the others' center of mass is elsewhere
    assert ((inverted == images).all((1, 2)) == same).all()
    assert all(likeness(frame, image) > 0.8 for frame, image in zip(frames, images, strict=True))


def test_only_pictures_in_mnists_format_stay_as_they_are(digits):
    image = to_frame(on_canvas(digit(digits, 5)))
    assert is_framed(image)
    assert not is_framed(np.roll(image, 3, axis=1))
    assert not is_framed(image // 2)
    assert not is_framed(np.maximum(image, 1))


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
    with pytest.raises(PredictError, match="nothing is written here: it is of one colour"):
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
