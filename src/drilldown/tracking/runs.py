"""MLflow runs: open, fill and close them; the only module that writes them."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models.model import ModelInfo
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from drilldown import hardware, process
from drilldown.errors import DataError, StoreError
from drilldown.learning.calibration import Calibration, calibrate
from drilldown.learning.data import Dataset
from drilldown.learning.evaluate import Evaluation
from drilldown.learning.recipe import Goal, Recipe
from drilldown.learning.train import EpochMetrics, TrainState
from drilldown.messages import without_password
from drilldown.options import TrainOptions
from drilldown.reporting import plots
from drilldown.reporting.gate import Verdict
from drilldown.reporting.statistics import calibration_error, summarize
from drilldown.tracking import export, store
from drilldown.tracking.tags import PREFIX, ours, packed, prefixed

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from mlflow.data.numpy_dataset import NumpyDataset

MAX_TAG = 5_000  # characters; MLflow cuts longer ones off, or its database refuses them
MAX_MISTAKES = 40  # images on mistakes.png


@contextlib.contextmanager
def run(name: str, tags: Mapping[str, str], run_id: str | None = None, *, resume: bool = False) -> Iterator[str]:
    """Open a run that ends FINISHED, KILLED or FAILED, as it truly did; yields its id.

    Under `mlflow run` it is the run that MLflow has opened already. `run_id` names another one: this process takes it
    over from the process that opened it, or, with `resume`, goes on with it, and the run of `mlflow run` refers to it.
    One of the tags is `kind`, by which runs are told apart.

    Raises: StoreError when the run cannot be closed.
    """
    client = mlflow.MlflowClient()
    if run_id:
        mlflow.set_experiment(experiment_id=client.get_run(run_id).info.experiment_id)  # wherever the run lies
        for tag, value in prefixed(_liveness()).items():  # while it still names a dead process, others would close it
            client.set_tag(run_id, tag, value)
    if run_id and resume:
        name_opened(f"resume of {name}", {"kind": "resume", "resumes": run_id})
    try:
        active = mlflow.start_run(run_id, tags=prefixed({"mlflow.runName": name, **tags, **_liveness()}))
        store.describe_experiment(active.info.experiment_id)
        if f"{PREFIX}error" in active.data.tags:  # of its end before it was resumed
            client.delete_tag(active.info.run_id, f"{PREFIX}error")
        with _explain_disk_full(active.info.artifact_uri):
            yield active.info.run_id
        mlflow.end_run()
    except BaseException as error:
        if open_run := mlflow.active_run():  # MLflow would end it as FINISHED
            _end_early(open_run.info.run_id, error)
        elif run_id and isinstance(error, process.Stopped):  # while it took the run over, which may be open now
            with contextlib.suppress(MlflowException), store.short_timeouts():
                store.close_run(run_id, "KILLED", error.reason)
        raise


def name_opened(name: str, tags: Mapping[str, str]) -> None:
    """Name the run that `mlflow run` opened for a command that opens none itself; under other programs, do nothing."""
    if run_id := os.environ.get("MLFLOW_RUN_ID"):
        for tag, value in prefixed({"mlflow.runName": name, **tags}).items():
            mlflow.MlflowClient().set_tag(run_id, tag, value)


@contextlib.contextmanager
def _explain_disk_full(artifacts: str) -> Iterator[None]:
    """Say which folder has no room: the system's error does not."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise StoreError(
            f"a file of the run cannot be written to {artifacts}, or to the temporary folder {tempfile.gettempdir()} "
            f"({error.strerror})"
        ) from error


def _liveness() -> dict[str, str]:
    """The tag by which others see whether the process of a run is alive."""
    lock = process.liveness_lock()
    return {"process": lock} if lock else {}


def _end_early(run_id: str, error: BaseException) -> None:
    killed = isinstance(error, KeyboardInterrupt | SystemExit)
    reason = getattr(error, "reason", None) or (store.explain(error) if isinstance(error, Exception) else str(error))
    store.note_error(reason or type(error).__name__, run_id)
    try:
        with store.short_timeouts():
            mlflow.end_run("KILLED" if killed else "FAILED")
    except MlflowException as unclosed:
        uri = without_password(mlflow.get_tracking_uri())
        raise StoreError(
            f"the store {uri} is out of reach, and run {run_id} stays open until a command of this project reaches the "
            f"store again ({store.explain(unclosed)})"
        ) from error


def set_tags(tags: Mapping[str, str]) -> None:
    """Set tags of the active run."""
    mlflow.set_tags(prefixed(tags))


def log_start(
    fingerprint: Mapping[str, str],
    state: TrainState,
    recipe: Recipe,
    goal: Goal,
    dataset: Dataset,
    options: TrainOptions,
    engine: str,
) -> None:
    """Log what is known before training: parameters, dataset, layer table, fingerprint and machine."""
    device = state.classifier.mean.device
    mlflow.log_params(
        {f"recipe.{name}": value for name, value in asdict(recipe).items()}
        | {f"target.{name}": value for name, value in asdict(goal).items()}
        | {
            "run.seed": options.seed,
            "run.dataset": dataset.name,
            "run.validation": len(dataset.test_images) if dataset.split == "validation" else 0,
            "run.device": device.type,
            "run.threads": torch.get_num_threads(),
            "run.engine": engine,
        }
        | {f"network.{name}": value for name, value in options.network_fields.items()}
    )
    tags = packed("fingerprint", fingerprint) | {"dataset.location": dataset.location}
    set_tags({**tags, "machine": hardware.processor_name(device)})
    log_dataset(dataset)
    mlflow.log_text(export.layer_table(state.classifier.network), "model_summary.txt")
    mlflow.log_metric("parameters", state.classifier.num_parameters)


def log_dataset(dataset: Dataset) -> None:
    """Log the images that the run learns from and the images that it is measured on."""
    for context in ("training", dataset.split):
        entry = _entry(dataset, context)
        store.beside_others(partial(mlflow.log_input, entry, context=context))


def _entry(dataset: Dataset, context: str) -> NumpyDataset:
    """The training images, or those of the dataset's split, as MLflow describes them."""
    from mlflow.data.numpy_dataset import from_numpy
    from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]  # it is made at run time

    # Given a path as text, MLflow warns that it could be several kinds of source.
    source = LocalArtifactDatasetSource(dataset.source) if dataset.is_own else dataset.source
    is_training = context == "training"
    return from_numpy(
        (dataset.train_images if is_training else dataset.test_images).numpy(),
        targets=(dataset.train_labels if is_training else dataset.test_labels).numpy(),
        source=source,
        name=f"{dataset.name} {context}",
        digest=dataset.digest,  # of the whole dataset: MLflow's own covers the first 10,000 values
    )


def log_epoch(row: EpochMetrics, split: str) -> None:
    """Log an epoch's metrics at step = epoch."""
    metrics = row.named(split)
    del metrics["epoch"]
    mlflow.log_metrics(metrics, step=row.epoch)


def ask_to_stop(run_id: str, reason: str) -> None:
    """Ask the process that trains the run to stop after the epoch that it trains now."""
    mlflow.MlflowClient().set_tag(run_id, f"{PREFIX}stop", reason)


def stop_asked(run_id: str) -> str | None:
    """Why the training of this run should stop; None if it should go on."""
    return ours(mlflow.get_run(run_id).data.tags).get("stop")


def log_pruned(reason: str) -> None:
    """Say that the training of the active run was stopped early: the run has what was logged until then."""
    set_tags({"pruned": reason})


def logged_epochs(run_id: str) -> set[int]:
    """The epochs that the store has."""
    return {entry.step for entry in mlflow.MlflowClient().get_metric_history(run_id, "epoch_seconds")}


def is_finished(run_id: str) -> bool:
    """Whether the run has ended well."""
    return bool(mlflow.get_run(run_id).info.status == "FINISHED")


def check_dataset(run_id: str, dataset: Dataset) -> None:
    """Raise DataError when the run was opened for other data: a file may change between two trainings of `repeat`."""
    digest = ours(mlflow.get_run(run_id).data.tags).get("dataset.digest", dataset.digest)
    if digest != dataset.digest:
        raise DataError(f"dataset: {dataset.location} has changed: its digest was {digest} and is {dataset.digest}")


def metric_names(split: str) -> dict[str, str]:
    """The metric's name for each field of AccuracySummary.

    A figure of the validation slice never takes the name of a figure of the test set.
    """
    of_split = "" if split == "test" else f"{split}_"
    return {
        "final_accuracy": f"final_{split}_accuracy",
        "best_accuracy": f"best_{split}_accuracy",
        "epochs_at_target": f"{of_split}epochs_at_target",
        "min_accuracy_last_k": f"{of_split}min_accuracy_last_k",
    }


def log_end(
    state: TrainState,
    evaluation: Evaluation,
    verdict: Verdict,
    goal: Goal,
    dataset: Dataset,
    report: str,
    model_name: str,
) -> ModelInfo:
    """Log what training came to: figures, pictures, report, verdict, and the model with its figures."""
    import pandas as pd

    split, history = dataset.split, state.history
    mlflow.log_text(pd.DataFrame([row.named(split) for row in history]).to_csv(index=False), "history.csv")
    calibration = calibrate(state.eval_model, dataset)
    _log_figures(history, evaluation, goal, dataset, calibration)
    mlflow.log_text(report, "report.md")
    mlflow.log_dict({**asdict(verdict), "target": asdict(goal)}, "gate.json")
    reason = "; ".join(verdict.reasons)
    description = {"mlflow.note.content": report}  # the UI shows it as the run's description
    set_tags({"gate": "passed" if verdict.passed else "failed", "gate.reason": reason} | description)
    kept = {
        "predictions.digest": export.predictions_digest(evaluation.predictions.numpy()),
        "calibration": calibration.as_metadata(),
    }
    model = export.log_model(state.eval_model, dataset, model_name, kept)
    figures = asdict(summarize(state.accuracies, goal))
    metrics = {name: figures[field] for field, name in metric_names(split).items()}
    confidences, right = _confidences(evaluation, calibration)
    metrics[f"{split}_calibration_error"] = calibration_error(confidences, right)
    mlflow.log_metrics(metrics, step=len(history), model_id=model.model_id, dataset=_entry(dataset, split))
    return model


def _confidences(evaluation: Evaluation, calibration: Calibration) -> tuple[np.ndarray, np.ndarray]:
    """The probability of each answer, as `predict` would say it, and whether it is right."""
    probabilities = calibration.temper(evaluation.probabilities.numpy())
    return probabilities.max(1), (evaluation.predictions == evaluation.labels).numpy()


def _log_figures(
    history: Sequence[EpochMetrics], evaluation: Evaluation, goal: Goal, dataset: Dataset, calibration: Calibration
) -> None:
    """Log the figures of a training; each names its run."""
    active = mlflow.active_run()
    assert active is not None
    name, run_id, split = active.info.run_name, active.info.run_id, dataset.split
    measured = f"{evaluation.accuracy:.2f} % of {len(evaluation.labels):,} {dataset.name} {split} images"

    def caption(what: str) -> plots.Caption:
        return plots.Caption(f"{name}: {what}", f"{measured}, run {run_id[:8]}")

    every = evaluation.mistakes()
    wrong = every[:MAX_MISTAKES]
    mistakes = plots.mistakes(
        dataset.test_images[wrong].numpy(),
        dataset.names(evaluation.labels[wrong]),
        dataset.names(evaluation.predictions[wrong]),
        evaluation.probabilities[wrong].amax(1).tolist(),
        caption(f"{len(wrong)} of {len(every):,} mistakes, most confident first"),
    )
    matrix = plots.confusion_matrix(evaluation.confusion(), caption("confusion matrix"), dataset.classes)
    mlflow.log_figure(plots.curves(history, goal.accuracy, caption("accuracy and loss"), split), "curves.png")
    mlflow.log_figure(matrix, "confusion_matrix.png")
    mlflow.log_figure(mistakes, "mistakes.png")
    reliability = plots.reliability(*_confidences(evaluation, calibration), caption("calibration"))
    mlflow.log_figure(reliability, "calibration.png")


def log_repeat(summary: Mapping[str, object], metrics: Mapping[str, float], figure: Figure) -> None:
    """Log what many seeds came to: the whole summary, its metrics, and a figure."""
    mlflow.log_dict(dict(summary), "repeat.json")
    mlflow.log_figure(figure, "seeds.png")
    mlflow.log_metrics(dict(metrics))


def log_search(
    page: str,
    trials: pd.DataFrame,
    pareto: pd.DataFrame,
    recipe: str,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
) -> None:
    """Log what a search came to: a page, all trials, the front of parameters and accuracy, and the recipe as source."""
    mlflow.log_text(page, "tune.html")
    mlflow.log_text(trials.to_csv(index=False), "trials.csv")
    mlflow.log_text(pareto.to_csv(index=False), "pareto.csv")
    mlflow.log_text(recipe, "recommended.py")
    mlflow.log_metrics(dict(metrics))
    set_tags(tags)


def note_reused(run_ids: Sequence[str]) -> None:
    """Name the earlier runs that stand in for nested runs of the active one."""
    if run_ids:
        shown = run_ids[: MAX_TAG // (len(run_ids[0]) + 1) - 1]
        more = [f"… and {len(run_ids) - len(shown)} more"] if len(shown) < len(run_ids) else []
        set_tags({"reused": " ".join([*shown, *more])})


def log_comparison(
    dataset: str, description: str, markdown: str, page: str, numbers: pd.DataFrame, figure: Figure
) -> None:
    """Log the comparison of the steps as Markdown, HTML, CSV and picture, and describe the run."""
    set_tags({"compare": dataset, "mlflow.note.content": description})
    mlflow.log_text(markdown, "compare.md")
    mlflow.log_text(page, "compare.html")
    mlflow.log_text(numbers.to_csv(index=False), "compare.csv")
    mlflow.log_figure(figure, "compare.png")


def open_nested(parent: str, name: str, dataset: Dataset) -> str:
    """Open a run under the parent, for another process to take over (by MLFLOW_RUN_ID) and to train on the dataset.

    Returns its id.
    """
    client = mlflow.MlflowClient()
    found = client.get_run(parent)
    inherited = {
        key: value for key, value in found.data.tags.items() if key.startswith(("mlflow.source.", "mlflow.user"))
    }
    kind = {"kind": "train"} | packed("fingerprint", {"dataset.digest": dataset.digest})
    tags = prefixed({**inherited, **_liveness(), **kind, MLFLOW_PARENT_RUN_ID: parent})
    return str(client.create_run(found.info.experiment_id, tags=tags, run_name=name).info.run_id)


def log_predictions(
    rows: Sequence[Mapping[str, object]],
    refused: Mapping[str, str],
    metrics: Mapping[str, float],
    figures: Mapping[str, Figure],
    lineage: Mapping[str, str],
) -> None:
    """Log the answers as a table and as figures, the refused files with reasons, and the model that answered."""
    import pandas as pd

    digests = {name: value for name, value in lineage.items() if name.endswith(".digest")}
    set_tags({name: value for name, value in lineage.items() if name not in digests} | packed("fingerprint", digests))
    mlflow.log_text(pd.DataFrame(rows).to_csv(index=False), "predictions.csv")
    for name, figure in figures.items():
        mlflow.log_figure(figure, name)
    mlflow.log_dict(dict(refused), "refused.json")
    mlflow.log_metrics(dict(metrics))
