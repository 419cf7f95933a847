"""What an unfinished run was started with, and where its training states are: what `resume` goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import mlflow
from mlflow.entities import Run

from drilldown import process
from drilldown.choices import DATASETS
from drilldown.errors import ParameterError
from drilldown.options import TrainOptions
from drilldown.tracking import store
from drilldown.tracking.tags import ours


def resume_options(run_id: str, step: str, given: TrainOptions) -> TrainOptions:
    """The options that an unfinished run of the step was started with.

    Raises: ParameterError when there is nothing to resume, or when the user's options disagree with the run's.
    """
    refusal = f"resume is {run_id!r}: it takes the id of an unfinished run of {step}, and "
    found = store.find_run(run_id, refusal)
    tags = ours(found.data.tags)
    if tags.get("step") != step:
        raise ParameterError(f"{refusal}that is a run of {tags.get('step', 'no step')}")
    if found.info.status == "FINISHED":
        raise ParameterError(f"{refusal}that run is finished")
    lock = tags.get("process")
    # A run of a dead process of this machine would have been closed already.
    is_alive = lock and lock != process.liveness_lock() and not process.is_elsewhere(lock)
    if found.info.status == "RUNNING" and is_alive:
        raise ParameterError(f"{refusal}that run is being trained by another process")
    params = found.data.params
    try:
        stored = {
            "seed": int(params["run.seed"]),
            "dataset": tags.get("dataset.location", params["run.dataset"]),
            "validation": int(params["run.validation"]),
            "device": params["run.device"],
            "threads": int(params["run.threads"]),
            "engine": params["run.engine"],
            "epochs": int(params["recipe.epochs"]),
            "batch_size": int(params["recipe.batch_size"]),
            "lr": float(params["recipe.lr"]),
            "target": float(params["target.accuracy"]),
        }
    except KeyError as missing:
        raise ParameterError(f"{refusal}that run ended before it had logged {missing}") from None
    if given.dataset not in DATASETS:
        stored["dataset"] = given.dataset  # it may lie elsewhere now: `check_fingerprint` compares the digest
    defaults = TrainOptions()
    for name, value in stored.items():
        if getattr(given, name) not in (getattr(defaults, name), value):
            raise ParameterError(f"{name} is {getattr(given, name)!r}: the run that is resumed has {value!r}")
    return replace(given, **stored)  # type: ignore[arg-type]


def checkpoints(run: Run) -> Path:
    """The folder with the training states of a run: where they are written now, or else where they were written."""
    written = ours(run.data.tags).get("checkpoints")
    now, *others = [store.checkpoints() / run.info.run_id, *([Path(written) / run.info.run_id] if written else [])]
    return next((folder for folder in (now, *others) if folder.is_dir()), now)


def check_fingerprint(run_id: str, fingerprint: Mapping[str, str]) -> None:
    """Raise ParameterError unless the run was started with this fingerprint."""
    tags = ours(mlflow.get_run(run_id).data.tags)
    for name, value in fingerprint.items():
        if tags.get(name) != value:
            raise ParameterError(
                f"resume is {run_id!r}: it takes a run of the same code, recipe, data and versions, and that run's "
                f"{name} is {tags.get(name)}, now it is {value}"
            )
