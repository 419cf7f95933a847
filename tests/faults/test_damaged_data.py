"""Data files that are damaged, partly downloaded, unreachable or read-only: an error or a repair, never wrong data."""

import gzip
import multiprocessing
import os
import queue
import random
import shutil
import signal
import socket
import struct
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torchvision import datasets

from drilldown.errors import DataError, UnreachableDataError
from drilldown.learning import data, download, files
from tests.faults.small_disk import make_read_only, mounted

pytestmark = pytest.mark.mnist
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES = tuple(data.MNIST_SHA256)
ARCHIVES = dict(datasets.MNIST.resources)  # their MD5
REFUSED = "an error that names the file; once deleted, the file is downloaded again"
REPAIRED = "the partial data are not used; the next load has the right data"


@pytest.fixture(scope="module")
def archives():
    """The four real archives."""
    try:
        return {archive: download._fetch(archive, md5, datasets.MNIST.mirrors) for archive, md5 in ARCHIVES.items()}
    except UnreachableDataError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def original(archives, tmp_path_factory):
    """A folder with the four real files."""
    folder = tmp_path_factory.mktemp("original")
    for archive, content in archives.items():
        files.atomic_write(folder / "MNIST" / "raw" / Path(archive).stem, gzip.decompress(content))
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A data folder of the test. Its files are hard links: replace them, do not write to them."""
    return shutil.copytree(original, tmp_path / "data", copy_function=os.link)


@pytest.fixture
def is_right(original):
    """A function that tells whether a dataset is MNIST as torchvision reads it."""
    train, test = (datasets.MNIST(original, train=train) for train in (True, False))
    right = (train.data, train.targets, test.data, test.targets)
    return lambda loaded: all(map(torch.equal, tensors_of(loaded), right))


def tensors_of(loaded):
    return loaded.train_images, loaded.train_labels, loaded.test_images, loaded.test_labels


def rewrite(file, content):
    file.unlink()
    file.write_bytes(content)


def damage(kind, content, rng):
    """Return a damaged copy of a file's content."""
    if kind == "truncated":
        return content[: rng.randrange(1, len(content))]
    if kind == "bit":
        place, bit = rng.randrange(len(content)), rng.randrange(8)
        return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]
    return b""


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.fault(name, injected, REFUSED))
        for kind, name, injected in (
            ("truncated", "truncated data file", "cut at a random place, each of the four files"),
            ("bit", "bit flip in a data file", "one bit at a random place, each of the four files"),
            ("empty", "empty data file", "each of the four files"),
        )
    ],
)
def test_damaged_file_is_refused(kind, file, folder, attempt):
    damaged = folder / "MNIST" / "raw" / file
    rng = random.Random(f"{kind} {file} {attempt}")
    rewrite(damaged, damage(kind, damaged.read_bytes(), rng))
    for name in ("mnist", "auto"):
        with pytest.raises(DataError, match=f"{file} is damaged: its SHA-256 is .*; delete the file, and"):
            data.load(name, folder)


@pytest.mark.fault("swapped data files", "training and test labels; images and labels", REFUSED)
@pytest.mark.parametrize(
    ("one", "other"), [(TRAIN_LABELS, TEST_LABELS), (TRAIN_IMAGES, TRAIN_LABELS), (TEST_IMAGES, TRAIN_IMAGES)]
)
def test_swapped_files_are_refused(one, other, folder, mirror, is_right):
    raw = folder / "MNIST" / "raw"
    contents = (raw / one).read_bytes(), (raw / other).read_bytes()
    rewrite(raw / one, contents[1])
    rewrite(raw / other, contents[0])
    with pytest.raises(DataError, match=rf"({one}|{other}) is damaged") as refused:
        data.load("mnist", folder)
    next(raw / file for file in (one, other) if file in str(refused.value)).unlink()  # as the message says
    assert is_right(data.load("mnist", folder))  # the other file is repaired, too


class Mirror:
    """A real HTTP server with MNIST's archives: intact under /good/, misbehaving as the test says under /bad/."""

    def __init__(self, archives):
        self.requests = []
        self.misbehave = None  # called with the request's handler and the archive's content
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                place, name = self.path.rsplit("/", 1)
                mirror.requests.append(name)
                if place == "/bad":
                    mirror.misbehave(self, archives[name])
                else:
                    send(self, archives[name])

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # the client is gone: that is what is tested
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def mirror(archives, monkeypatch):
    """The only reachable mirror, used at /good/."""
    mirror = Mirror(archives)
    thread = threading.Thread(target=mirror.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setenv(download.MIRROR_VARIABLE, f"{mirror.address}/good")
    monkeypatch.setattr(datasets.MNIST, "mirrors", [])
    yield mirror
    mirror.server.shutdown()
    mirror.server.server_close()
    thread.join()


def send(handler, content, *, length=None):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(content) if length is None else length))
    handler.end_headers()
    handler.wfile.write(content)


def cut(handler, content):
    send(handler, content[: len(content) // 2], length=len(content))


def reset(handler, content):
    cut(handler, content)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()  # with SO_LINGER 0 the other side gets a reset


MIRRORS = {
    "connection closed in the middle of a file": cut,
    "connection reset in the middle of a file": reset,
    "truncated file": lambda handler, content: send(handler, content[: len(content) // 2]),
    "empty file": lambda handler, content: send(handler, b""),
    "one bit flipped": lambda handler, content: send(handler, damage("bit", content, random.Random(0))),
    "another complete file": lambda handler, content: send(handler, gzip.compress(content[:99])),
    "HTML page instead of the file": lambda handler, content: send(handler, b"<html>Log in first</html>"),
    "HTTP 404": lambda handler, content: handler.send_error(404),
    "HTTP 503": lambda handler, content: handler.send_error(503),
    "no answer": lambda handler, content: threading.Event().wait(1),
    "answer that is not HTTP": lambda handler, content: handler.wfile.write(b"hello"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "misbehave",
    [
        pytest.param(
            misbehave,
            marks=pytest.mark.fault("partial download", f"mirror: {name}", "the next mirror is used, or a clear error"),
            id=name,
        )
        for name, misbehave in MIRRORS.items()
    ],
)
def test_misbehaving_mirror(misbehave, mirror, tmp_path, monkeypatch, is_right):
    mirror.misbehave = misbehave
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    monkeypatch.setenv(download.MIRROR_VARIABLE, f"{mirror.address}/bad")
    with pytest.raises(UnreachableDataError, match=r"no mirror gave it \(http.*train-images.*\); set MNIST_MIRROR to"):
        data.load("mnist", tmp_path)
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] in ([], ["download.lock"])
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{mirror.address}/good/"])
    assert is_right(data.load("mnist", tmp_path))


def load_elsewhere(folder, start, answers):
    """Load MNIST in another process, and send back the labels."""
    torch.set_num_threads(1)  # a fork does not have the parent's threads
    start.wait()
    loaded = data.load("mnist", folder)
    answers.put([tensor.numpy().tobytes() for tensor in tensors_of(loaded)][1::2])


@contextmanager
def processes(count, target, *arguments):
    """Processes that are killed at the end, whatever happens."""
    started = [FORK.Process(target=target, args=arguments) for _ in range(count)]
    for process in started:
        process.start()
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.join()


FORK = multiprocessing.get_context("fork")  # children inherit the test's mirror and patches
DATA_FILES = {f"MNIST/raw/{file}" for file in FILES}


def files_in(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - {"download.lock"}


@pytest.mark.slow
@pytest.mark.fault("partial download", "SIGKILL during the download of each of the four files", REPAIRED)
@pytest.mark.parametrize("archive", ARCHIVES)
def test_killed_while_downloading(archive, mirror, tmp_path, monkeypatch, is_right):
    half_sent, finish = threading.Event(), threading.Event()

    def slow(handler, content):
        if handler.path.endswith(archive):
            cut(handler, content)
            half_sent.set()
            finish.wait()
        else:
            send(handler, content)

    mirror.misbehave = slow
    monkeypatch.setenv(download.MIRROR_VARIABLE, f"{mirror.address}/bad")
    with processes(1, data.load, "mnist", tmp_path) as (process,):
        assert half_sent.wait(30)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    finish.set()
    assert files_in(tmp_path) == set()
    monkeypatch.setenv(download.MIRROR_VARIABLE, f"{mirror.address}/good")
    assert is_right(data.load("mnist", tmp_path))
    assert files_in(tmp_path) == DATA_FILES


@pytest.mark.slow
@pytest.mark.fault("partial download", "SIGKILL during the writing of each of the four files", REPAIRED)
@pytest.mark.parametrize("count", range(4))
def test_killed_while_writing(count, mirror, tmp_path, monkeypatch, is_right):
    written, calls = FORK.Event(), iter(range(4))
    sync = os.fsync

    def stop_at(descriptor):
        sync(descriptor)
        if next(calls) == count:
            written.set()
            signal.pause()

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", stop_at)
        with processes(1, data.load, "mnist", tmp_path) as (process,):
            assert written.wait(30)
            os.kill(process.pid, signal.SIGKILL)
            process.join()
    assert len(files_in(tmp_path) & DATA_FILES) == count
    assert "MNIST/raw/unfinished" in files_in(tmp_path)  # it was killed at the right moment
    assert is_right(data.load("mnist", tmp_path))
    assert files_in(tmp_path) == DATA_FILES


@pytest.mark.slow
@pytest.mark.fault(
    "concurrent downloads", "four processes, one folder", "one download; all four processes have the right data"
)
def test_four_concurrent_loads(mirror, tmp_path, is_right, record_property):
    record_property("times", 4)
    start, answers = FORK.Barrier(4), FORK.Queue()
    with processes(4, load_elsewhere, tmp_path, start, answers):
        got = [answers.get(timeout=60) for _ in range(4)]
    loaded = data.load("mnist", tmp_path)
    assert is_right(loaded)
    assert got == 4 * [[loaded.train_labels.numpy().tobytes(), loaded.test_labels.numpy().tobytes()]]
    assert mirror.requests == list(ARCHIVES)  # each once


@pytest.mark.slow
@pytest.mark.fault("concurrent downloads", "SIGKILL of the process that downloads", "a waiting process takes over")
def test_waiting_process_takes_over_the_download(mirror, tmp_path, monkeypatch, is_right):
    half_sent, finish = threading.Event(), threading.Event()

    def slow_at_first(handler, content):
        if half_sent.is_set():
            send(handler, content)
        else:
            cut(handler, content)
            half_sent.set()
            finish.wait()

    mirror.misbehave = slow_at_first
    monkeypatch.setenv(download.MIRROR_VARIABLE, f"{mirror.address}/bad")
    now, answers = FORK.Event(), FORK.Queue()
    now.set()
    with processes(1, data.load, "mnist", tmp_path) as (first,):
        assert half_sent.wait(30)
        with processes(2, load_elsewhere, tmp_path, now, answers):
            with pytest.raises(queue.Empty):  # they wait
                answers.get(timeout=0.5)
            first.kill()
            got = [answers.get(timeout=60) for _ in range(2)]
    finish.set()
    loaded = data.load("mnist", tmp_path)
    assert is_right(loaded)
    assert got == 2 * [[loaded.train_labels.numpy().tobytes(), loaded.test_labels.numpy().tobytes()]]
    assert mirror.requests == [next(iter(ARCHIVES)), *ARCHIVES]


@pytest.mark.fault("read-only data folder", "complete, on a disk mounted read-only", "it loads; nothing is written")
def test_read_only_complete_folder(mirror, tmp_path, is_right):
    with mounted(tmp_path / "disk", "size=80m") as folder:
        data.load("mnist", folder)
        make_read_only(folder)
        assert is_right(data.load("mnist", folder))


@pytest.mark.fault("read-only data folder", "one file missing, on a disk mounted read-only", "a clear error")
@pytest.mark.parametrize("name", ["mnist", "auto"])
def test_read_only_incomplete_folder(name, mirror, tmp_path):
    with mounted(tmp_path / "disk", "size=80m") as folder:
        data.load("mnist", folder)
        (folder / "MNIST" / "raw" / TEST_LABELS).unlink()
        make_read_only(folder)
        with pytest.raises(DataError, match=f"{folder}: it takes a folder that can be written .*Read-only"):
            data.load(name, folder)


@pytest.mark.fault("data folder that changes", "it disappears after the first file was read", "a clear error")
def test_folder_that_disappears(folder, monkeypatch):
    read = Path.read_bytes

    def read_and_delete(file):
        content = read(file)
        shutil.rmtree(folder)
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_delete)
    with pytest.raises(DataError, match=f"{TRAIN_LABELS} cannot be read .No such file"):
        data.load("mnist", folder)


@pytest.mark.fault("data folder that changes", "each file is replaced after it was read", "the right data")
def test_files_that_change(folder, monkeypatch, is_right):
    read = Path.read_bytes

    def read_and_change(file):
        content = read(file)
        rewrite(file, content[:-1000] + bytes(1000))
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_change)
    loaded = data.load("mnist", folder)
    monkeypatch.undo()
    assert is_right(loaded)
    with pytest.raises(DataError, match="is damaged"):
        data.load("mnist", folder)
