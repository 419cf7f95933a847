"""Download of MNIST from its mirrors."""

import errno
import gzip
import hashlib
import os
from collections.abc import Iterable, Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

from filelock import FileLock
from tqdm import tqdm

from drilldown.errors import DataError, ParameterError, UnreachableDataError
from drilldown.learning.files import atomic_write

MIRROR_VARIABLE = "MNIST_MIRROR"
NOT_A_FOLDER = (errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)  # the path is wrong; every other error is the disk's
TIMEOUT = 10  # seconds without an answer of a mirror


def ensure_mnist(folder: Path, files: Iterable[str]) -> Path:
    """Download MNIST unless all of its files are there; one process at a time, each file whole or not at all.

    Returns: the folder with the files, in torchvision's layout.
    Raises: UnreachableDataError when no mirror has the data, ParameterError when the path cannot be a folder, DataError
    when the files cannot be written.
    """
    raw = folder / "MNIST" / "raw"
    wanted = [raw / file for file in files]
    try:
        if _all_exist(wanted):
            return raw  # nothing is written: the folder may be read-only
        from torchvision.datasets import MNIST  # takes seconds

        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "download.lock"):
            if _all_exist(wanted):
                return raw  # another process was faster
            archives = {Path(archive).stem: _fetch(archive, md5, MNIST.mirrors) for archive, md5 in MNIST.resources}
            for name, content in archives.items():
                (raw / name).unlink(missing_ok=True)  # an old copy must not take the space twice
                atomic_write(raw / name, gzip.decompress(content))
    except UnreachableDataError as error:
        raise UnreachableDataError(
            f"dataset: MNIST is not in {folder}, and no mirror gave it ({error}); set {MIRROR_VARIABLE} to a URL that "
            f"has its four .gz files, or use dataset=digits"
        ) from None
    except OSError as error:
        kind = ParameterError if error.errno in NOT_A_FOLDER else DataError
        raise kind(f"data_dir is {folder}: it takes a folder that can be written ({error})") from error
    return raw


def _all_exist(files: Iterable[Path]) -> bool:
    return all(file.exists() for file in files)


def _fetch(archive: str, md5: str, mirrors: Sequence[str]) -> bytes:
    """Download an archive from the first mirror that has it with the right checksum; MNIST_MIRROR comes first."""
    reasons = []
    for mirror in filter(None, [os.environ.get(MIRROR_VARIABLE), *mirrors]):
        url = f"{mirror.rstrip('/')}/{archive}"
        try:
            content = _read(url)
        except (OSError, ValueError, HTTPException) as error:
            reasons.append(" ".join(f"{url}: {error}".split()))
        else:
            if hashlib.md5(content).hexdigest() == md5:
                return content
            reasons.append(f"{url} has a wrong checksum")
    raise UnreachableDataError("; ".join(reasons))


def _read(url: str) -> bytes:
    request = Request(url, headers={"User-Agent": "drilldown"})  # some mirrors refuse Python's own name
    with urlopen(request, timeout=TIMEOUT) as response:
        size = int(response.headers.get("Content-Length", 0))
        with tqdm.wrapattr(response, "read", size, desc=Path(url).name, leave=False, disable=None) as stream:
            return b"".join(iter(lambda: stream.read(2**16), b""))
