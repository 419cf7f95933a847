"""Folders on small disks of their own, which tests fill or make read-only."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a tmpfs at the folder; skip the test where mounting is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    if not shutil.which("mount"):
        pytest.skip("there is no mount program here")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)  # a database may still be open


def fill(folder: Path, *, leave: int = 0) -> Path:
    """Fill the folder's disk with one file, except `leave` KiB; return the file, whose deletion frees the disk."""
    filling = folder / "filling"
    with filling.open("wb", buffering=0) as file:
        file.write(bytes(max(0, shutil.disk_usage(folder).free - leave * 1024)))
    return filling


def make_read_only(folder: Path) -> None:
    """Remount the folder's disk read-only, also for root."""
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
