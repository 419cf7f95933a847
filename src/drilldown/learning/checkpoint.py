"""Saved training states, from which a killed run resumes bit for bit; the last two epochs are kept."""

import hashlib
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from drilldown.errors import CheckpointError, ParameterError
from drilldown.learning.files import atomic_write
from drilldown.learning.train import EpochMetrics, TrainState

DIGEST_SIZE = hashlib.sha256().digest_size
FOLDER_VARIABLE = "DRILLDOWN_CHECKPOINTS"  # may name the folder for the states of all runs
KEPT = 2  # if the newest is damaged, the one before it takes its place


@contextmanager
def lock(folder: Path, fresh: bool = True) -> Iterator[None]:
    """Keep other processes from training into `folder`; the system releases the lock however this process ends.

    Raises: ParameterError when another process has the lock, CheckpointError when the folder cannot be written, or when
    `fresh` is False and the folder has no state.
    """
    if not fresh and not exists(folder):
        raise CheckpointError(f"there is no saved state in {folder}")
    file_lock = FileLock(folder / "lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file_lock.acquire()
    except Timeout:
        raise ParameterError(f"resume is {folder.name!r}: that run is being trained by another process") from None
    except OSError as error:
        raise CheckpointError(
            f"nothing can be saved in {folder} ({error.strerror}); set {FOLDER_VARIABLE} to a folder that takes files"
        ) from error
    try:
        yield
    finally:
        file_lock.release()


def clear(folder: Path) -> None:
    """Remove the states of a finished run; files that cannot be removed stay."""
    shutil.rmtree(folder, ignore_errors=True)


def exists(folder: Path) -> bool:
    """Tell whether the folder has a saved state."""
    return bool(_newest_first(folder))


def save(state: TrainState, folder: Path) -> None:
    """Write the state after the last finished epoch to `folder`, atomically.

    Raises CheckpointError when it cannot be written; earlier states are kept.
    """
    content = io.BytesIO()  # first to memory: on a full disk torch.save raises errors that do not say so
    torch.save(
        {name: part.state_dict() for name, part in _parts(state).items()}
        | {
            "history": [asdict(metrics) for metrics in state.history],
            "generator": state.generator.get_state(),
            "random": torch.get_rng_state(),  # dropout draws from torch's global generators
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        },
        content,
    )
    file = folder / f"epoch-{len(state.history):04}.pt"
    try:
        atomic_write(file, hashlib.sha256(content.getbuffer()).digest() + content.getbuffer())
    except OSError as error:
        hint = f"; resume={folder.name} goes on from the state before it" if exists(folder) else ""
        raise CheckpointError(
            f"the state after epoch {len(state.history)} cannot be saved as {file} ({error.strerror}){hint}"
        ) from error
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()


def restore(state: TrainState, folder: Path) -> list[str]:
    """Bring a new state to the newest undamaged one in `folder`, history and random numbers included.

    Returns: a sentence about each damaged file that was skipped. Raises CheckpointError when every file is damaged.
    """
    damaged, device = [], state.classifier.mean.device
    for file in _newest_first(folder):
        try:
            saved = torch.load(io.BytesIO(_read_checked(file)), map_location=device, weights_only=True)
        except (OSError, ValueError) as error:
            damaged.append(f"{file} is damaged: {error}")
            continue
        for name, part in _parts(state).items():
            part.load_state_dict(saved[name])
        state.history[:] = [EpochMetrics(**metrics) for metrics in saved["history"]]
        state.generator.set_state(saved["generator"].cpu())
        torch.set_rng_state(saved["random"].cpu())
        if device.type == "cuda":
            torch.cuda.set_rng_state_all([random.cpu() for random in saved["random_cuda"]])
        return damaged
    raise CheckpointError("; ".join(damaged) or f"there is no saved state in {folder}")


def _parts(state: TrainState) -> dict[str, Any]:
    parts = {
        "classifier": state.classifier,
        "optimizer": state.optimizer,
        "scheduler": state.scheduler,
        "average": state.average,
    }
    return {name: part for name, part in parts.items() if part is not None}


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*.pt"), reverse=True)


def _read_checked(file: Path) -> memoryview:
    """Return a file's content, which follows its SHA-256; raise ValueError when the two do not match."""
    whole = memoryview(file.read_bytes())
    digest, content = whole[:DIGEST_SIZE], whole[DIGEST_SIZE:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its SHA-256 is not the one that it was written with")
    return content
