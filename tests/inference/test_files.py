"""Every file that looks like a picture is answered, or named with a reason; sub-folders are named or read."""

import numpy as np
import pytest
from PIL import Image, features

from drilldown.errors import ParameterError
from drilldown.inference.files import find_images, format_name, looks_like_picture
from drilldown.inference.framing import read_image

HEIC = b"\0\0\0\x18ftypheic" + bytes(100)


@pytest.fixture
def folder(tmp_path):
    """One PNG among pictures of other kinds, other files, and a folder."""
    picture = Image.fromarray(np.pad(np.zeros((40, 10), np.uint8), 30, constant_values=255))
    picture.save(tmp_path / "seven.png")
    for number in range(3):
        (tmp_path / f"IMG_{number}.HEIC").write_bytes(HEIC)
    for name in ("a.avif", "b.svg", "c.cr2", "d.jxl"):
        (tmp_path / name).write_bytes(b"something")
    picture.save(tmp_path / "scan", "PNG")  # without a suffix
    picture.save(tmp_path / "photo.png.download", "JPEG")
    for name in ("notes.txt", "table.csv", "archive.zip", ".DS_Store"):
        (tmp_path / name).write_bytes(b"PK\3\4 no picture")
    (tmp_path / "more" / "inside").mkdir(parents=True)
    picture.save(tmp_path / "more" / "inside" / "one.png")
    return tmp_path


@pytest.mark.fault(
    "pictures of other formats among PNGs",
    "HEIC, AVIF, SVG, raw files, pictures without a suffix, sub-folders",
    "each is answered, or named with a reason and what to do",
)
def test_what_looks_like_a_picture_is_found(folder):
    files, left_out = find_images(folder)
    assert {file.name for file in files} == {
        "seven.png", "IMG_0.HEIC", "IMG_1.HEIC", "IMG_2.HEIC", "a.avif", "b.svg", "c.cr2", "d.jxl", "scan",
        "photo.png.download",
    }  # fmt: skip
    assert left_out == {folder / "more": "it is a folder: recursive=true reads the pictures in it"}
    for name in ("seven.png", "scan", "photo.png.download"):
        assert read_image(folder / name).shape == (28, 28)
    with pytest.raises(Exception, match="it is in HEIC format, which is not read: save it as PNG or JPEG"):
        read_image(folder / "IMG_0.HEIC")
    with pytest.raises(Exception, match=r"it is none of BMP, .*, WEBP; save it as one of them"):
        read_image(folder / "b.svg")


def test_folders_in_a_folder(folder, tmp_path):
    (folder / "link").symlink_to(folder / "more")
    files, left_out = find_images(folder, recursive=True)
    assert folder / "more" / "inside" / "one.png" in files
    assert left_out == {folder / "link": "it is a link to a folder"}
    with pytest.raises(ParameterError, match="recursive=true looks into its folders, too"):
        find_images(folder / "more")
    assert find_images(folder / "more", recursive=True)[0] == [folder / "more" / "inside" / "one.png"]


@pytest.mark.skipif(not features.check("webp"), reason="this Pillow reads no WebP")
def test_webp_is_read(tmp_path):
    picture = Image.fromarray(np.pad(np.zeros((40, 10), np.uint8), 30, constant_values=255)).convert("RGB")
    picture.save(tmp_path / "seven.webp", lossless=True)
    picture.save(tmp_path / "seven.png")
    (file, other), _ = find_images(tmp_path)
    np.testing.assert_array_equal(read_image(file), read_image(other))
    damaged = tmp_path / "damaged.webp"
    damaged.write_bytes((tmp_path / "seven.webp").read_bytes()[:40])
    with pytest.raises(Exception, match=r"."):
        read_image(damaged)


def test_first_bytes(tmp_path):
    assert format_name(HEIC) == "HEIC"
    assert format_name(b"RIFF\0\0\0\0WAVE") is None
    assert format_name(b"\0\0\0\x18ftypmp42") is None  # a film
    (tmp_path / "empty").touch()
    assert not looks_like_picture(tmp_path / "empty")
    assert not looks_like_picture(tmp_path / "nowhere")
