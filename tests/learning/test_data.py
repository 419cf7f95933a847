"""Datasets have their known content, and what cannot be loaded is refused with a clear message."""

import gzip
import hashlib
import struct

import pytest
import torch
from torchvision import datasets

from drilldown.errors import DataError, ParameterError
from drilldown.learning import data, download
from tests.support.project import NOWHERE


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch):
    """A mirror folder with four small files in MNIST's format, whose checksums take the place of the real ones."""
    mirror, checksums, md5s = tmp_path / "mirror", {}, []
    mirror.mkdir()
    for name in data.MNIST_SHA256:
        shape = (3, 28, 28) if "images" in name else (3,)
        content = struct.pack(f">{len(shape) + 1}I", 0x800 + len(shape), *shape) + bytes(range(3)) * (
            784 if len(shape) > 1 else 1
        )
        packed = gzip.compress(content, mtime=0)
        (mirror / f"{name}.gz").write_bytes(packed)
        checksums[name] = hashlib.sha256(content).hexdigest()
        md5s.append((f"{name}.gz", hashlib.md5(packed).hexdigest()))
    monkeypatch.setattr(data, "MNIST_SHA256", checksums)
    monkeypatch.setattr(datasets.MNIST, "resources", md5s)
    monkeypatch.setattr(datasets.MNIST, "mirrors", [NOWHERE])
    monkeypatch.setenv(download.MIRROR_VARIABLE, mirror.as_uri())  # without a / at its end
    return mirror


def test_digits(digits):
    assert digits.name == "digits"
    assert digits.train_images.shape == (1437, 28, 28)
    assert digits.test_images.shape == (360, 28, 28)
    assert digits.train_images.dtype == torch.uint8
    assert digits.train_labels.dtype == torch.int64
    assert digits.train_labels.bincount().tolist() == [142, 146, 142, 146, 145, 145, 145, 143, 139, 144]
    assert digits.train_images.amax() == 255
    assert digits.train_images[:, :4].amax() == 0  # the border is empty, as in MNIST
    assert len(digits.digest) == 32


def test_digits_with_another_checksum_are_refused(monkeypatch):
    monkeypatch.setattr(data, "DIGITS_SHA256", "0" * 64)
    with pytest.raises(DataError, match="not the known ones"):
        data.load("digits")


@pytest.mark.mnist
def test_mnist(mnist):
    assert mnist.train_images.shape == (60_000, 28, 28)
    assert mnist.test_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.moments() == pytest.approx((0.1307, 0.3081), abs=5e-5)
    assert mnist.target_accuracy == 99.4


def test_mnist_is_downloaded_once(tiny_mnist, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    loaded = data.load("mnist", folder)
    assert loaded.train_images.shape == (3, 28, 28)
    assert loaded.test_labels.tolist() == [0, 1, 2]
    monkeypatch.setenv(download.MIRROR_VARIABLE, NOWHERE)
    again = data.load("auto", folder)
    assert again.name == "mnist"
    assert again.digest == loaded.digest


def test_the_environment_may_name_the_folder(tiny_mnist, tmp_path, monkeypatch):
    monkeypatch.setenv(data.FOLDER_VARIABLE, str(tmp_path / "elsewhere"))
    data.load("mnist")
    assert (tmp_path / "elsewhere" / "MNIST" / "raw" / "train-images-idx3-ubyte").exists()


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "swap"])
def test_a_damaged_file_is_refused(damage, tiny_mnist, tmp_path):
    folder = tmp_path / "data"
    data.load("mnist", folder)
    file = folder / "MNIST" / "raw" / "train-images-idx3-ubyte"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
    elif damage == "truncate":
        content = content[:-100]
    elif damage == "empty":
        content = b""
    else:
        content = (folder / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").read_bytes()
    file.write_bytes(content)
    for name in ("mnist", "auto"):
        with pytest.raises(DataError, match="train-images-idx3-ubyte is damaged: its SHA-256 is .*, MNIST's is"):
            data.load(name, folder)
    file.unlink()  # the message says so
    assert data.load("mnist", folder).name == "mnist"


def test_files_with_a_wrong_checksum_are_not_kept(tiny_mnist, tmp_path):
    (tiny_mnist / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte.gz has a wrong checksum"):
        data.load("mnist", tmp_path / "data")
    assert [file.name for file in (tmp_path / "data").rglob("*ubyte*")] == []


def test_no_mirror_has_mnist(offline, tmp_path):
    with pytest.raises(DataError, match=r"MNIST is not in .*no mirror gave it .*127.0.0.1.*dataset=digits"):
        data.load("mnist", tmp_path)


def test_auto_falls_back_to_digits_with_the_reason(offline, tmp_path):
    with pytest.warns(UserWarning, match="Training on DIGITS.*NOT on MNIST: .*no mirror gave it"):
        assert data.load("auto", tmp_path).name == "digits"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("mnist", "auto"):  # no fallback: the path is wrong
        with pytest.raises(ParameterError, match="data_dir is .*file/x: it takes a folder that can be written"):
            data.load(name, tmp_path / "file" / "x")


def test_an_unknown_dataset():
    with pytest.raises(
        ValueError, match="dataset is '.*/cifar': it takes auto, mnist, digits, or the path of a folder"
    ):
        data.load("cifar")


def test_the_validation_slice_is_the_end_of_the_training_set(digits):
    held = digits.hold_out(200)
    assert held.split == "validation"
    assert torch.equal(held.test_images, digits.train_images[-200:])
    assert torch.equal(torch.cat([held.train_images, held.test_images]), digits.train_images)
    assert torch.equal(torch.cat([held.train_labels, held.test_labels]), digits.train_labels)
    assert digits.hold_out(0) is digits
    with pytest.raises(ValueError, match="validation is 1437: it takes a whole number from 0 to 1436"):
        digits.hold_out(1437)
