"""Atomic writing of files."""

import os
from pathlib import Path


def atomic_write(file: Path, content: bytes | memoryview) -> None:
    """Write a file, and its folder: a reader sees all of it or none, and a failed write leaves nothing behind."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name("unfinished")
    try:
        with unfinished.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
