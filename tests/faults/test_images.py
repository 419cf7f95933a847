"""Unusual and damaged image files: each is refused or predicted by name, and the others are predicted."""

import contextlib
import io
import os
import random
import resource
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from drilldown.__main__ import main
from drilldown.errors import ParameterError
from drilldown.inference import framing, predict
from drilldown.inference.files import find_images
from drilldown.inference.reader import Answer, Reader
from drilldown.messages import printable
from tests.support.pictures import Brightest, on_canvas


@pytest.fixture
def picture(digits):
    return on_canvas(digits.test_images[0].numpy(), zoom=2)


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG file with a valid header and this data as its pixels."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(data)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def saved(picture: Image.Image, kind: str, **settings) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


def predict_files(path) -> tuple[dict[str, Answer], dict[str, str]]:
    """Return the answers and the reasons of the refusals for a folder or a file, by file name."""
    files, _ = find_images(path)
    answers = list(Reader(Brightest()).read(files))
    assert [answer.source for answer in answers] == [printable(str(file)) for file in files]
    assert all((answer.framed is None) == (answer.refusal is not None) for answer in answers)
    answered = {Path(answer.source).name: answer for answer in answers if answer.refusal is None}
    return answered, {Path(answer.source).name: answer.refusal for answer in answers if answer.refusal is not None}


def refused_files(picture: Image.Image) -> dict[str, tuple[bytes, str]]:
    good, large = saved(picture, "PNG"), saved(picture, "BMP")
    large = large[:18] + struct.pack("<II", 9000, 9000) + large[26:]
    line = np.zeros((5000, 1), np.uint8)
    line[1000:2000] = 255
    return {
        "empty.png": (b"", "cannot identify image file"),
        "text.png": (b"not a picture", "cannot identify image file"),
        "svg.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot identify image file"),
        "program.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify image file"),
        "truncated.png": (good[: len(good) // 2], "truncated"),
        "truncated.jpg": (saved(picture, "JPEG")[:-200], "truncated"),
        "header.png": (good[:33], "cannot identify image file"),
        "no_pixels.png": (png(0, 0), "cannot identify image file"),
        "bomb.png": (png(20_000, 20_000), "400000000 pixels"),
        "small_bomb.png": (png(13_000, 13_000), "169000000 pixels"),
        "huge.png": (png(2**31 - 1, 2**31 - 1), "pixels"),
        "hollow.png": (png(9000, 9000), "truncated"),
        "hollow.bmp": (large, "truncated"),
        "endless.gif": (saved(picture, "GIF")[:20], "it has 8,589,934,592 bytes: at most 100,000,000 are read"),
        "white.png": (saved(Image.new("L", (40, 40), 255), "PNG"), "it is of one colour"),
        "dot.png": (saved(Image.new("L", (1, 1), 255), "PNG"), "it is of one colour"),
        "line.png": (saved(Image.fromarray(line), "PNG"), "nothing is written here"),
        "across.png": (saved(Image.fromarray(line.T), "PNG"), "nothing is written here"),
        "nan.tiff": (saved(Image.fromarray(np.full((40, 40), np.nan, np.float32)), "TIFF"), "not numbers"),
    }


def predicted_files(picture: Image.Image) -> dict[str, bytes]:
    gray, color = np.asarray(picture), picture.convert("RGB")
    palette = picture.convert("P")
    return {
        "good.png": saved(picture, "PNG"),
        "cmyk.jpg": saved(color.convert("CMYK"), "JPEG"),
        "cmyk.tiff": saved(color.convert("CMYK"), "TIFF"),
        "animated.gif": saved(picture, "GIF", save_all=True, append_images=[Image.new("L", picture.size)] * 3),
        "animated.png": saved(picture, "PNG", save_all=True, append_images=[Image.new("L", picture.size)] * 3),
        "pages.tiff": saved(picture, "TIFF", save_all=True, append_images=[Image.new("L", (9, 9))]),
        "sixteen.png": saved(Image.fromarray(gray.astype(np.uint16) * 257), "PNG"),
        "twelve.tiff": saved(Image.fromarray((255 - gray).astype(np.uint16) * 16), "TIFF"),
        "float.tiff": saved(Image.fromarray((255 - gray).astype(np.float32) / 255), "TIFF"),
        "palette.png": saved(palette, "PNG", transparency=bytes(range(256))),
        "no_exif.jpg": saved(picture, "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"),
        "jpeg.png": saved(picture, "JPEG"),
        "line\nbreak.png": saved(picture, "PNG"),
        "zażółć 数字 😀.png": saved(picture, "PNG"),
        "$x^$.png": saved(picture, "PNG"),
        os.fsdecode(b"not \xff utf-8.png"): saved(picture, "PNG"),
    }


@pytest.mark.fault(
    "unusual image file in a folder",
    "empty, text, truncated, huge, 0×0, decompression bombs, CMYK, animated, 16 bit, NaN, unusual names and more",
    "refused or predicted, by name; the other files are predicted",
)
def test_unusual_files(tmp_path, picture, record_property):
    expected, good = refused_files(picture), predicted_files(picture)
    for name, content in {**{name: content for name, (content, _) in expected.items()}, **good}.items():
        (tmp_path / name).write_bytes(content)
    os.truncate(tmp_path / "endless.gif", 2**33)  # zeros that take no disk space; PIL would read them all
    predictions, refused = predict_files(tmp_path)
    assert sorted(refused) == sorted(expected)
    for name, (_, reason) in expected.items():
        assert reason in refused[name]
        assert "\n" not in refused[name]
    assert sorted(predictions) == sorted(printable(name) for name in good)
    record_property("times", len(expected) + len(good))


@pytest.mark.fault(
    "name of an image, but not a file",
    "a folder, a pipe, links: broken, circular, to a device, to other folders",
    "refused by name, at once; a link within the folder is followed",
)
def test_names_of_images_that_are_not_files(tmp_path, picture, record_property):
    folder, outside = tmp_path / "folder", tmp_path / "outside.png"
    folder.mkdir()
    picture.save(outside)
    picture.save(folder / "good.png")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    links = {"inside": "good.png", "broken": "nothing.png", "outside": outside, "up": "../outside.png"}
    for name, target in {**links, "circle": "circle.png", "device": "/dev/zero"}.items():
        (folder / f"{name}.png").symlink_to(target)
    predictions, refused = predict_files(folder)
    assert set(predictions) == {"good.png", "inside.png"}
    outside_reason = "it is a link that points outside the folder"
    assert refused.pop("broken.png").endswith("No such file or directory: " + repr(str(folder / "nothing.png")))
    assert "Too many levels of symbolic links" in refused.pop("circle.png")
    assert refused == {
        "folder.png": "it is not a file", "pipe.png": "it is not a file",
        "outside.png": outside_reason, "up.png": outside_reason, "device.png": outside_reason,
    }  # fmt: skip
    record_property("times", 8)

    (tmp_path / "elsewhere").symlink_to(folder)
    assert set(predict_files(tmp_path / "elsewhere")[0]) == set(predictions)  # the folder itself may be a link
    assert list(predict_files(folder / "outside.png")[0]) == ["outside.png"]  # and so may a file that the user names
    for name in ("pipe", "broken", "circle", "device"):
        with pytest.raises(ParameterError, match="it takes an image file, or a folder"):
            find_images(folder / f"{name}.png")


@contextlib.contextmanager
def unprivileged():
    """Give up root's permissions for a while: root may read everything."""
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.fault(
    "unreadable images",
    "a file and a folder without permission, a file that cannot be read, impossible paths",
    "refused by name; the other files are predicted",
)
def test_unreadable_files(picture, record_property):
    with tempfile.TemporaryDirectory() as name:  # other users cannot enter tmp_path
        folder = Path(name)
        folder.chmod(0o755)
        for file in ("open.png", "closed.png"):
            picture.save(folder / file)
        (folder / "closed.png").chmod(0)
        (folder / "closed").mkdir(mode=0)
        with unprivileged():
            predictions, refused = predict_files(folder)
            assert list(predictions) == ["open.png"]
            assert list(refused) == ["closed.png"]
            assert "Permission denied" in refused["closed.png"]
            for path in (folder / "closed", folder / "closed" / "a.png"):
                with pytest.raises(ParameterError, match="a folder that can be read .*Permission denied"):
                    find_images(path)
    impossible = ["x" * 5000, "~nobody-of-that-name/a.png", "a\0b"]
    for path in impossible:
        with pytest.raises(ParameterError, match="images is .*: it takes an image file, or a folder"):
            find_images(path)
    if Path("/proc/self/mem").exists():  # it can be opened, but not read
        assert predict_files("/proc/self/mem")[1] == {"mem": "[Errno 5] Input/output error"}
    record_property("times", 4 + len(impossible))


def test_photo_is_rotated_by_its_exif_orientation(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "photo.png", exif=exif)
    assert (framing.read_image(tmp_path / "photo.png") == framing.to_frame(picture)).all()


@pytest.mark.fault(
    "damaged image", "random bytes of each format changed or cut off", "refused by name or predicted; no other effect"
)
def test_damaged_bytes(tmp_path, picture, attempt, record_property):
    rng = random.Random(attempt)
    formats = [
        saved(picture.convert(mode), kind, **settings)
        for kind, mode, settings in (
            ("BMP", "L", {}), ("GIF", "L", {}), ("JPEG", "RGB", {}), ("PNG", "L", {}), ("PNG", "P", {}),
            ("TIFF", "L", {}), ("TIFF", "F", {}), ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        )
    ]  # fmt: skip
    count = 500
    for number in range(count):
        content = bytearray(rng.choice(formats))
        if rng.random() < 0.3:
            del content[rng.randrange(len(content)) :]
        else:
            end = rng.choice([200, len(content)])  # most errors are possible in the header
            for place in rng.sample(range(min(end, len(content))), rng.choice([1, 2, 5, 20])):
                content[place] = rng.randrange(256)
        (tmp_path / f"{number}.png").write_bytes(content)
    predictions, refused = predict_files(tmp_path)
    assert min(len(predictions), len(refused)) > count / 10
    record_property("times", count)


@pytest.mark.slow
@pytest.mark.fault(
    "unusual file names", "line breaks, other scripts, undecodable bytes, formulas", "stored by MLflow and shown"
)
def test_unusual_names_through_the_command(store, tmp_path, picture, monkeypatch, capsys, record_property):
    folder = tmp_path / "images"
    folder.mkdir()
    names = [name for name in predicted_files(picture) if not name.isascii() or "$" in name or "\n" in name]
    for name in names:
        picture.save(folder / name)
        (folder / f"bad {name}").write_bytes(b"")
    monkeypatch.setattr(predict, "load", lambda _: (Brightest(), {}))
    main(["predict", "--images", str(folder)])
    printed = capsys.readouterr()
    (run,) = store.search_runs(["0"])
    assert (run.info.status, run.data.metrics) == (
        "FINISHED",
        {"predicted": len(names), "refused": len(names), "unsure": 0},
    )
    kept = Path(store.download_artifacts(run.info.run_id, ""))
    table = pd.read_csv(kept / "predictions.csv")
    assert set(table["file"]) == {printable(f"{folder}/{good}") for name in names for good in (name, f"bad {name}")}
    assert set(table[table["refusal"].isna()]["file"]) == {printable(f"{folder}/{name}") for name in names}
    for name in names:
        assert printable(f"{folder}/{name} ") in printed.out
        assert f"{printable(f'{folder}/bad {name}')}  left out: cannot identify image file" in printed.err
    record_property("times", 2 * len(names))


@pytest.mark.slow
@pytest.mark.fault("folder with 10,000 files", "digits as PNG", "all are predicted, in bounded memory")
def test_ten_thousand_files(tmp_path, digits):
    pictures = [tmp_path / f"{number:05}.png" for number in range(10_000)]
    count = len(digits.train_images)
    for image, picture in zip(digits.train_images.numpy(), pictures[:count], strict=True):
        Image.fromarray(image).save(picture, compress_level=1)
    for number, picture in enumerate(pictures[count:]):
        picture.hardlink_to(pictures[number % count])
    before = peak_memory()
    files, _ = find_images(tmp_path)
    answers = list(Reader(Brightest()).read(files))
    assert [answer.source for answer in answers] == [str(file) for file in files]
    assert all(answer.refusal is None for answer in answers)
    assert peak_memory() - before < 100 * 2**20


def peak_memory() -> int:
    """Peak resident memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
