"""Data of the user's own: what may be read is read, and all else is refused in one line that says why."""

import gzip
import io
import os
import struct
import zipfile

import numpy as np
import pytest
import torch

from drilldown.choices import dataset_name
from drilldown.errors import DataError, ParameterError
from drilldown.learning import data, idx, own_data
from tests.support.own_data import FILES, NAMES, NPZ_KEYS, mirrored, write_folder, write_npz

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES
RANDOM = np.random.default_rng(0)
SMALL = {  # arrays of a set that is in order
    "x_train": RANDOM.integers(0, 256, (6, 28, 28), np.uint8),
    "y_train": np.arange(6, dtype=np.uint8),
    "x_test": RANDOM.integers(0, 256, (3, 28, 28), np.uint8),
    "y_test": np.arange(3, dtype=np.uint8),
}


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "mirror", SMALL)


def load_npz(tmp_path, **changes):
    return data.load(write_npz(tmp_path / "mirror.npz", SMALL | changes))


def load_file(folder, file, content):
    (folder / file).write_bytes(content)
    return data.load(folder)


@pytest.mark.parametrize("classes", [10, 4])
def test_the_same_set_in_every_format(digits, tmp_path, classes):
    arrays = mirrored(digits, classes)
    paths = [
        write_folder(tmp_path / "plain" / "mirror", arrays),
        write_folder(tmp_path / "packed" / "mirror", arrays, packed=True),
        write_npz(tmp_path / "mirror.npz", arrays),
    ]
    for path in paths:
        loaded = data.load(path)
        assert (loaded.name, loaded.location, loaded.target_accuracy) == ("mirror", str(path), None)
        assert loaded.classes == tuple("0123456789"[:classes])
        assert loaded.digest == data.load(paths[0]).digest != digits.digest
        assert (loaded.train_images.dtype, loaded.train_labels.dtype) == (torch.uint8, torch.int64)
        for tensor, key in zip(
            (loaded.train_images, loaded.train_labels, loaded.test_images, loaded.test_labels), NPZ_KEYS, strict=True
        ):
            assert np.array_equal(tensor.numpy(), arrays[key])


def test_one_pixel_makes_another_digest(tmp_path):
    before = load_npz(tmp_path)
    altered = SMALL["x_test"].copy()
    altered[-1, -1, -1] ^= 1
    assert load_npz(tmp_path, x_test=altered).digest != before.digest


@pytest.mark.slow
@pytest.mark.mnist
def test_mnist_as_a_set_of_ones_own_has_the_digest_of_mnist(mnist, tmp_path):
    arrays = (mnist.train_images, mnist.train_labels, mnist.test_images, mnist.test_labels)
    packed = {key: tensor.numpy() for key, tensor in zip(NPZ_KEYS, arrays, strict=True)}
    np.savez(tmp_path / "mine.npz", **packed)
    loaded = data.load(tmp_path / "mine.npz")
    assert (loaded.name, loaded.digest) == ("mine", mnist.digest)


def test_other_names_of_the_files(folder, tmp_path):
    expected = data.load(folder).digest
    for number, rename in enumerate([
        lambda name: name.replace("-idx", ".idx"),
        lambda name: name if name == "classes.txt" else f"emnist-digits-{name.replace('t10k', 'test')}",
        lambda name: f"raw/{name}",  # torchvision's folder
    ]):  # fmt: skip
        other = tmp_path / str(number) / "mirror"
        (other / "raw").mkdir(parents=True)
        (other / rename("classes.txt")).write_text("a\nb\nc\nd\ne\nf")
        for file in FILES:
            (other / rename(file)).write_bytes((folder / file).read_bytes())
        loaded = data.load(other)
        assert (loaded.name, loaded.digest) == ("mirror", expected)
        assert loaded.classes == tuple("abcdef")


def test_an_unpacked_file_comes_before_its_archive(folder):
    (folder / f"{TRAIN_IMAGES}.gz").write_bytes(b"not read")
    assert len(data.load(folder).train_images) == 6


def test_the_labels_of_qmnist(folder):
    expected = data.load(folder).digest
    for split, old in (("train", TRAIN_LABELS), ("test", TEST_LABELS)):
        labels = np.frombuffer((folder / old).read_bytes()[8:], np.uint8)
        table = np.zeros((len(labels), 8), ">i4")
        table[:, 0], table[:, 1:] = labels, 77
        (folder / old).unlink()
        (folder / f"qmnist-{split}-labels-idx2-int").write_bytes(
            struct.pack(">3I", 0xC02, *table.shape) + table.tobytes()
        )
    assert data.load(folder).digest == expected


def test_integers_of_any_size_and_order_are_labels(tmp_path):
    expected = load_npz(tmp_path)
    labels = SMALL["y_train"].astype(">i8")
    images = np.asfortranarray(SMALL["x_train"])
    loaded = load_npz(tmp_path, y_train=labels, x_train=images)
    assert loaded.digest == expected.digest
    assert torch.equal(loaded.train_images, expected.train_images)


def test_class_names(folder, tmp_path):
    (folder / "classes.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    assert data.load(folder).classes == NAMES
    loaded = load_npz(tmp_path, classes=np.array(NAMES))
    assert loaded.classes == NAMES
    assert loaded.names(torch.tensor([5, 0])) == ["fünf", "null"]
    assert load_npz(tmp_path).names(torch.tensor([5, 8])) == ["5", "8"]  # the set has no class 8


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/fashion", "fashion"),
        ("Fashion.npz", "fashion"),
        ("/a/FashionMNIST/", "fashionmnist"),
        ("it's a set; of letters", "it-s-a-set-of-letters"),
        ("Zeichen é/../Ümlaut.NPZ", "umlaut"),
        ("my.data.v2", "my.data.v2"),
        ("数字", ""),
        ("x" * 300, "x" * 60),
        ("x" * 59 + "-bbb", "x" * 59),
        ("x" * 56 + ".npz-bbb", "x" * 56),
        ("x.npz.npz", "x"),
        ("x.npz-.NPZ", "x"),
        (".npz", "npz"),
    ],
)
def test_the_name_comes_from_the_path(path, name):
    assert dataset_name(path) == dataset_name(name) == name  # `compare` takes the name, too


def test_a_link_keeps_its_own_name(folder, tmp_path):
    (tmp_path / "kuzushiji").symlink_to(folder)
    assert data.load(tmp_path / "kuzushiji").name == "kuzushiji"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mnist", "the name 'mnist' belongs to other data; rename the folder"),
        ("Digits", "the name 'digits' belongs to other data; rename the folder"),
        ("auto", "the name 'auto' belongs to other data"),
        ("数字", "its name has no letter or digit of ASCII; rename the folder"),
    ],
)
def test_a_name_that_a_set_cannot_have(name, why, folder, tmp_path):
    other = folder.rename(tmp_path / name)
    with pytest.raises(ParameterError, match=why):
        data.load(other)


def test_a_path_without_data(folder, tmp_path):
    with pytest.raises(ParameterError, match="dataset is '.*nowhere': it takes auto, mnist, .* does not exist"):
        data.load(tmp_path / "nowhere")
    with pytest.raises(ParameterError, match="train-images-idx3-ubyte': it takes .*this path is neither"):
        data.load(folder / TRAIN_IMAGES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"dataset: .*empty has no {TRAIN_IMAGES}, nor {TRAIN_IMAGES}.gz"):
        data.load(tmp_path / "empty")
    (folder / TEST_LABELS).unlink()
    with pytest.raises(DataError, match=f"dataset: .*mirror has no {TEST_LABELS}, nor {TEST_LABELS}.gz"):
        data.load(folder)
    os.mkfifo(folder / TEST_LABELS)  # reading it would wait for ever
    with pytest.raises(DataError, match=f"has no {TEST_LABELS}"):
        data.load(folder)


def test_two_sets_in_one_folder(folder):
    (folder / "other-train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(DataError, match="has both other-train-images-idx3-ubyte and train-images-idx3-ubyte"):
        data.load(folder)


def header(*sizes, magic=0x803):
    return struct.pack(f">{len(sizes) + 1}I", magic, *sizes)


IMAGES = SMALL["x_train"].tobytes()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"\0\0\x08", "is cut off within its header"),
        (header(6), "is cut off within its header"),
        (b"PK\3\4" * 10, "has the magic number 0x504b0304: IDX images have 0x00000803"),
        (header(6, 28, 28, magic=0xD03) + IMAGES, "has the magic number 0x00000d03"),  # float
        (header(6, 28, 28, magic=0xC03) + 4 * IMAGES, "has values of type >i4: images are uint8"),
        (header(6, magic=0x801) + bytes(6), r"has the shape \(6,\): images have \(N, 28, 28\)"),
        (header(6, 14, 56) + IMAGES, r"has the shape \(6, 14, 56\): images have \(N, 28, 28\)"),
        (header(6, 28, 28) + IMAGES[:-1], "4,704 bytes of values follow: it has 4,703"),
        (header(6, 28, 28) + IMAGES + b"\0", "4,704 bytes of values follow: it has more"),
        (header(5, 28, 28) + IMAGES[:-784], "mirror has 5 train images and 6 train labels"),
        (header(1, 28, 28) + IMAGES[:784], "has 1 images: it takes from 2 to 1,000,000"),
        (header(0, 28, 28), "has 0 images"),
        (header(2**32 - 1, 28, 28) + IMAGES, "has 4,294,967,295 images: it takes from 2"),
        (header(6, 28, 28) + bytes(len(IMAGES)), "has train images that are all of one color: every pixel is 0"),
        (header(6, 28, 28) + bytes([0, 1]) * (len(IMAGES) // 2), "has train images with pixels from 0 to 1"),
    ],
)
def test_images_that_are_not_what_they_say(content, why, folder):
    for file, written in ((TRAIN_IMAGES, content), (f"{TRAIN_IMAGES}.gz", gzip.compress(content))):
        with pytest.raises(DataError, match=f"^dataset: .*{why}") as refused:
            load_file(folder, file, written)
        assert "\n" not in str(refused.value)
        (folder / file).unlink()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (
            header(6, magic=0x801) + bytes([0, 1, 2, 3, 4, 10]),
            "has train labels from 0 to 10: they must be from 0 to 9",
        ),
        (header(5, magic=0x801) + bytes(5), "has 6 train images and 5 train labels"),
        (header(6, 28, 28) + IMAGES, r"labels-idx1-ubyte has the shape \(6, 28, 28\): labels have \(N,\)"),
        (header(6, 8, magic=0xC02) + b"\xff" * 6 * 8 * 4, "has train labels from -1 to -1"),
        (header(6, 2**32 - 1, magic=0xC02), r"has the shape \(6, 4294967295\): labels have \(N,\)"),
    ],
)
def test_labels_that_are_not_what_they_say(content, why, folder):
    with pytest.raises(DataError, match=f"^dataset: .*{why}"):
        load_file(folder, TRAIN_LABELS, content)


def test_a_damaged_archive(folder):
    (folder / TRAIN_IMAGES).unlink()
    whole = gzip.compress(idx.encode(SMALL["x_train"]))
    for content in (whole[:-9], whole[:200], b"\0" * 100, whole[:60] + bytes(50) + whole[110:]):
        with pytest.raises(DataError, match=f"dataset: .*{TRAIN_IMAGES}.gz cannot be read \\("):
            load_file(folder, f"{TRAIN_IMAGES}.gz", content)


def test_an_archive_that_unpacks_to_gigabytes_is_read_only_as_far_as_its_header_says(folder, monkeypatch):
    (folder / TRAIN_IMAGES).unlink()
    bomb = io.BytesIO()
    with gzip.open(bomb, "wb", compresslevel=1) as stream:
        stream.write(header(6, 28, 28))
        for _ in range(64):
            stream.write(bytes(2**20))
    asked = []
    read = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda self, size=-1: asked.append(size) or read(self, size))
    with pytest.raises(DataError, match="it has more"):
        load_file(folder, f"{TRAIN_IMAGES}.gz", bomb.getvalue())
    assert max(asked) == 6 * 784 + 1
    assert min(asked) > 0


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"x_train": SMALL["x_train"] / 255}, "x_train has values of type float64: images are uint8, from 0 to 255"),
        ({"x_train": SMALL["x_train"].astype(np.int64)}, "x_train has values of type int64: images are uint8"),
        ({"x_test": SMALL["x_test"].reshape(3, 784)}, r"x_test has the shape \(3, 784\): images have \(N, 28, 28\)"),
        ({"x_test": SMALL["x_test"][..., None]}, r"x_test has the shape \(3, 28, 28, 1\)"),
        ({"x_test": np.uint8(3)}, r"x_test has the shape \(\)"),
        ({"x_test": SMALL["x_test"][:2]}, "mirror.npz has 2 test images and 3 test labels"),
        ({"y_test": np.array([0, 1, 10])}, "mirror.npz has test labels from 0 to 10: they must be from 0 to 9"),
        ({"y_test": np.array([0, -1, 2])}, "mirror.npz has test labels from -1 to 2"),
        ({"y_test": np.array([0.0, 1.0, 2.0])}, "y_test has values of type float64: labels are whole numbers"),
        ({"y_test": np.eye(10)[:3].astype(int)}, r"y_test has the shape \(3, 10\): labels have \(N,\)"),
        ({"y_test": np.array(["a", "b", "c"])}, "y_test has values of type <U1: labels are whole numbers"),
        ({"y_test": np.array([0, 1, {}], object)}, "y_test has values of type object: labels are whole numbers"),
        ({"classes": np.array(["a"])}, "mirror.npz has 1 class names, and labels up to 5"),
        ({"classes": np.array(["a"] * 6)}, "classes has the class name 'a' twice"),
        ({"classes": np.array([*"abcde", ""])}, "classes has the class name ''"),
        ({"classes": np.array([*"abcde", "f\x1b[2J"])}, r"has the class name 'f\\x1b\[2J'"),
        (
            {"classes": np.array([*"abcdefghijk"])},
            r"has the type <U1 and the shape \(11,\): class names are at most 10",
        ),
        ({"classes": np.array([{}] * 6)}, "classes has the type object"),
        ({"classes": np.array(["a" * 2501, *"bcdef"])}, "classes has the type <U2501"),
    ],
)
def test_an_npz_that_is_not_what_it_says(changes, why, tmp_path):
    with pytest.raises(DataError, match=f"^dataset: .*{why}") as refused:
        load_npz(tmp_path, **changes)
    assert "\n" not in str(refused.value)


class Bomb:
    """Unpickling it would leave a trace."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for key in (*NPZ_KEYS, "classes"):
        np.savez(tmp_path / "bomb.npz", **SMALL | {key: np.array([Bomb()], object)})
        with pytest.raises(DataError, match=f"{key} has .* type object"):
            data.load("bomb.npz")
    assert not (tmp_path / "unpickled").exists()


def npy(array_header, content=b""):
    """An .npy file with any header."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, array_header)
    return stream.getvalue() + content


@pytest.mark.parametrize(
    ("member", "why"),
    [
        (npy({"descr": "|u1", "fortran_order": False, "shape": (10**12, 28, 28)}), "has 1,000,000,000,000 images"),
        (npy({"descr": "|u1", "fortran_order": False, "shape": (6, 28, 28)}, b"x"), "not the 4,704 bytes of that"),
        (npy({"descr": "|u1", "fortran_order": False, "shape": (6, 28, 28)}, bytes(9999)), "not the 4,704 bytes"),
        (b"", "cannot be read"),
        (b"\x93NUMPY\1\0\xff\xff", "cannot be read"),
        (b"\x93NUMPY\7\0", r"has version \(7, 0\) of NumPy's format"),
    ],
)
def test_an_array_that_is_not_what_its_header_says(member, why, tmp_path):
    write_npz(tmp_path / "mirror.npz", {key: SMALL[key] for key in NPZ_KEYS[1:]})
    with zipfile.ZipFile(tmp_path / "mirror.npz", "a") as archive:
        archive.writestr("x_train.npy", member)
    with pytest.raises(DataError, match=f"x_train .*{why}"):
        data.load(tmp_path / "mirror.npz")


def test_a_damaged_npz(tmp_path):
    file = write_npz(tmp_path / "mirror.npz", SMALL)
    whole = file.read_bytes()
    for content in (b"", b"text", whole[:-30], whole[:300] + bytes(40) + whole[340:]):
        file.write_bytes(content)
        with pytest.raises(DataError, match="dataset: .*mirror.npz.* cannot be read"):
            data.load(file)
    write_npz(file, {key: SMALL[key] for key in NPZ_KEYS[:3]})
    with pytest.raises(DataError, match=r"mirror.npz has no array y_test: it takes x_train, y_train, x_test, y_test"):
        data.load(file)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"a\nb\n\nd\ne\nf", "has the class name ''"),
        (b"\n".join(b"%d" % number for number in range(11)), "has 11 class names: it takes at most 10"),
        (b"\xff\xfe", "cannot be read"),
        (b"a" * 41 + b"\nb\nc\nd\ne\nf", "has the class name 'aaa.*: it takes 1 to 40 printable characters"),
    ],
)
def test_names_that_classes_cannot_have(text, why, folder):
    (folder / "classes.txt").write_bytes(text)
    with pytest.raises(DataError, match=f"dataset: .*classes.txt {why}"):
        data.load(folder)


def test_the_limits_leave_room_for_the_known_sets():
    assert own_data.MAX_IMAGES > 240_000  # EMNIST's digits
