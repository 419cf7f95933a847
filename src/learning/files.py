"""Files that are written whole or not at all."""

import os
from pathlib import Path


def write_whole(file: Path, content: bytes | memoryview) -> None:
    """Write a file, its folder included: nobody ever sees half of it, and a disk that it fills up is freed again."""
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
