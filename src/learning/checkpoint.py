"""Everything that a killed run needs to go on exactly: written whole or not at all, the last two epochs kept."""

import hashlib
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from src.learning.files import write_whole
from src.learning.recipe import ParameterError
from src.learning.train import Training

DIGEST_SIZE = hashlib.sha256().digest_size
KEPT = 2  # should the newest be damaged, the one before takes its place


class CheckpointError(Exception):
    """A state cannot be saved, or there is none to go on from."""


@contextmanager
def hold(folder: Path, fresh: bool = True) -> Iterator[None]:
    """Keep other processes from training into `folder`; the system lets go of it when this one ends, however it ends.

    Raises: ParameterError when another process has it, CheckpointError when the folder cannot be written, or when it
    is not `fresh` and has no state.
    """
    if not fresh and not exists(folder):
        raise CheckpointError(f"there is no saved state in {folder}")
    lock = FileLock(folder / "lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ParameterError(f"resume is {folder.name!r}: that run is being trained by another process") from None
    except OSError as error:
        raise CheckpointError(f"nothing can be saved in {folder} ({error.strerror})") from error
    try:
        yield
    finally:
        lock.release()


def clear(folder: Path) -> None:
    """Remove what was saved, once all went well and the run is closed; what is left of it harms nobody."""
    shutil.rmtree(folder, ignore_errors=True)


def exists(folder: Path) -> bool:
    """Whether a state was saved in the folder."""
    return bool(_newest_first(folder))


def save(training: Training, folder: Path) -> None:
    """Write the state after the last finished epoch to `folder`; a reader never sees half of it.

    Raises CheckpointError when it cannot be written; the states before it are kept.
    """
    state = {name: part.state_dict() for name, part in _parts(training).items()} | {
        "history": training.history,
        "generator": training.generator.get_state(),
        "random": torch.get_rng_state(),  # dropout draws from torch's own generators
        "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    content = io.BytesIO()  # written to a full disk, torch reports anything but that
    torch.save(state, content)
    file = folder / f"epoch-{len(training.history):04}.pt"
    try:
        write_whole(file, hashlib.sha256(content.getbuffer()).digest() + content.getbuffer())
    except OSError as error:
        kept = f"; resume={folder.name} goes on from the state before it" if _newest_first(folder) else ""
        raise CheckpointError(
            f"the state after epoch {len(training.history)} cannot be saved as {file} ({error.strerror}){kept}"
        ) from error
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()


def restore(training: Training, folder: Path) -> list[str]:
    """Bring a fresh training to the newest state in `folder` that is whole, its history and randomness included.

    Returns a sentence on each damaged file that was passed over. Raises CheckpointError when no file is whole.
    """
    damaged, device = [], training.classifier.mean.device
    for file in _newest_first(folder):
        try:
            state = torch.load(io.BytesIO(_content(file)), map_location=device, weights_only=True)
        except (OSError, ValueError) as error:
            damaged.append(f"{file} is damaged: {error}")
            continue
        for name, part in _parts(training).items():
            part.load_state_dict(state[name])
        training.history[:] = state["history"]
        training.generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["random"].cpu())
        if device.type == "cuda":
            torch.cuda.set_rng_state_all([random.cpu() for random in state["random_cuda"]])
        return damaged
    raise CheckpointError("; ".join(damaged) or f"there is no saved state in {folder}")


def _parts(training: Training) -> dict:
    parts = {
        "classifier": training.classifier,
        "optimizer": training.optimizer,
        "scheduler": training.scheduler,
        "average": training.average,
    }
    return {name: part for name, part in parts.items() if part is not None}


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*.pt"), reverse=True)


def _content(file: Path) -> memoryview:
    """What was saved, which follows its SHA-256; raises ValueError when it is not what was written."""
    whole = memoryview(file.read_bytes())
    digest, content = whole[:DIGEST_SIZE], whole[DIGEST_SIZE:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its SHA-256 is not the one that it was written with")
    return content
