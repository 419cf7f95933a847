"""The only module that writes MLflow runs."""

import contextlib
import copy
import errno
import io
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

import mlflow
import mlflow.data
import numpy as np
import pandas as pd
import torch
import torchsummary
from matplotlib.figure import Figure
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from packaging.requirements import Requirement

from src import process
from src.learning.classifier import Classifier
from src.learning.data import Dataset
from src.learning.evaluate import Evaluation
from src.learning.recipe import ParameterError, Recipe, Target
from src.lifecycle import plots, store
from src.lifecycle.gate import Verdict, summarise
from src.lifecycle.provenance import ROOT, machine

REQUIREMENTS = ROOT / "requirements.txt"
MODEL_PACKAGES = ("mlflow", "numpy", "torch")  # what a registered model needs to answer
SIGNATURE = ModelSignature(
    inputs=Schema([TensorSpec(np.dtype("uint8"), (-1, 28, 28))]),
    outputs=Schema([TensorSpec(np.dtype("float32"), (-1, 10))]),
)


@contextlib.contextmanager
def run(name: str, tags: Mapping[str, str], resume: str | None = None) -> Iterator[str]:
    """A run that ends FINISHED, KILLED or FAILED, as it truly did; yields its id.

    Under `mlflow run` it is the run that MLflow has opened already; `resume` opens an earlier one instead, and the one
    that `mlflow run` has opened says so. Raises StoreError when the run cannot be closed.
    """
    client = mlflow.MlflowClient()
    if resume:
        for tag, sign in _process().items():  # before it is RUNNING: with its old sign it would be closed
            client.set_tag(resume, tag, sign)
    if resume and (opened := os.environ.get("MLFLOW_RUN_ID")):
        client.set_tag(opened, "mlflow.runName", f"resume of {name}")
        client.set_tag(opened, "resumes", resume)
    try:
        active = mlflow.start_run(resume, tags={"mlflow.runName": name, **tags, **_process()})
        if "error" in active.data.tags:  # it was closed before, and goes on
            client.delete_tag(active.info.run_id, "error")
        with _room(active.info.artifact_uri):
            yield active.info.run_id
        mlflow.end_run()
    except BaseException as error:
        if open_run := mlflow.active_run():  # left open, MLflow would end it as FINISHED
            _end_early(open_run.info.run_id, error)
        raise


@contextlib.contextmanager
def _room(artifacts: str) -> Iterator[None]:
    """Say where there was too little room for a file: the system's own error does not."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise store.StoreError(
            f"a file of the run cannot be written to {artifacts}, or to {tempfile.gettempdir()} where it is made "
            f"({error.strerror})"
        ) from error


def _process() -> dict[str, str]:
    """The tag by which others see whether the process of a run lives."""
    sign = process.sign()
    return {"process": sign} if sign else {}


def _end_early(run_id: str, error: BaseException) -> None:
    killed = isinstance(error, KeyboardInterrupt | SystemExit)
    store.note_error(getattr(error, "reason", None) or store.explain(error) or type(error).__name__, run_id)
    try:
        with store.impatient():
            mlflow.end_run("KILLED" if killed else "FAILED")
    except MlflowException as unclosed:
        raise store.StoreError(
            f"the store {mlflow.get_tracking_uri()} is out of reach, and run {run_id} stays open in it until anything "
            f"of this project runs again ({store.explain(unclosed)})"
        ) from error


def log_start(
    same: Mapping[str, str],
    classifier: Classifier,
    recipe: Recipe,
    target: Target,
    dataset: Dataset,
    seed: int,
    device: torch.device,
) -> None:
    """What is known before training: parameters, dataset, layer table, and its fingerprint (`same`) and machine."""
    mlflow.log_params({f"recipe.{name}": value for name, value in asdict(recipe).items()})
    mlflow.log_params({f"target.{name}": value for name, value in asdict(target).items()})
    validation = len(dataset.test_images) if dataset.split == "validation" else 0
    mlflow.log_params({"run.seed": seed, "run.dataset": dataset.name, "run.validation": validation})
    mlflow.log_params({"run.device": device.type, "run.threads": torch.get_num_threads()})
    mlflow.set_tags({**same, "machine": machine(device)})
    log_dataset(dataset)
    mlflow.log_text(layer_table(classifier.network), "model_summary.txt")
    mlflow.log_metric("parameters", classifier.parameters_count)


def log_dataset(dataset: Dataset) -> None:
    """The images that the run learns from and is measured on."""
    for context, images, labels in (
        ("training", dataset.train_images, dataset.train_labels),
        (dataset.split, dataset.test_images, dataset.test_labels),
    ):
        # The digest is the whole dataset's: MLflow's own looks at the first 10,000 values alone.
        entry = mlflow.data.from_numpy(
            images.numpy(),
            targets=labels.numpy(),
            source=dataset.source,
            name=f"{dataset.name} {context}",
            digest=dataset.digest,
        )
        with store.turn("datasets"):  # of two runs that bring the same one at once, MLflow would refuse one
            mlflow.log_input(entry, context=context)


def log_epoch(row: Mapping[str, float]) -> None:
    """An epoch's row, at step = epoch."""
    mlflow.log_metrics({name: value for name, value in row.items() if name != "epoch"}, step=int(row["epoch"]))


def logged_epochs(run_id: str) -> set[int]:
    """The epochs whose rows the store has."""
    return {entry.step for entry in mlflow.MlflowClient().get_metric_history(run_id, "epoch_seconds")}


def settings(run_id: str, step: str) -> dict[str, object]:
    """What an unfinished run of the step was given, as the step's parameters: so that it can go on.

    Raises ParameterError when there is nothing to go on with.
    """
    refusal = f"resume is {run_id!r}: it takes the id of an unfinished run of {step}, and "
    try:
        found = mlflow.get_run(run_id)
    except MlflowException as error:
        raise ParameterError(f"{refusal}the store says: {error.message}") from None
    if found.data.tags.get("step") != step:
        raise ParameterError(f"{refusal}that is a run of {found.data.tags.get('step', 'no step')}")
    if found.info.status == "FINISHED":
        raise ParameterError(f"{refusal}that run is finished")
    sign = found.data.tags.get("process")
    lives = sign and sign != process.sign() and not process.is_elsewhere(sign)  # it would have been closed otherwise
    if found.info.status == "RUNNING" and lives:
        raise ParameterError(f"{refusal}that run is being trained by another process")
    kinds = {
        "run": {"seed": int, "dataset": str, "validation": int, "device": str, "threads": int},
        "recipe": {"epochs": int, "batch_size": int, "lr": float},
    }
    stored = found.data.params
    try:
        given = {
            field: kind(stored[f"{group}.{field}"]) for group, fields in kinds.items() for field, kind in fields.items()
        }
        return {**given, "target": float(stored["target.accuracy"])}
    except KeyError as missing:
        raise ParameterError(f"{refusal}that run ended before it had logged {missing}") from None


def check_same(run_id: str, same: Mapping[str, str]) -> None:
    """Raise ParameterError unless the run was begun with this fingerprint."""
    tags = mlflow.get_run(run_id).data.tags
    for name, value in same.items():
        if tags.get(name) != value:
            raise ParameterError(
                f"resume is {run_id!r}: it takes a run of the same code, recipe, data and versions, and that run's "
                f"{name} is {tags.get(name)}, now it is {value}"
            )


def find_same(same: Mapping[str, str]) -> Run | None:
    """The newest finished run with this fingerprint, if there is one."""
    clauses = [f"tags.`{name}` = '{value}'" for name, value in same.items()]
    found = mlflow.search_runs(
        filter_string=" and ".join([*clauses, "attributes.status = 'FINISHED'"]),
        order_by=["attributes.start_time DESC"],
        max_results=1,
        search_all_experiments=True,
        output_format="list",
    )
    return found[0] if found else None


def metric_names(split: str) -> dict[str, str]:
    """The metrics that the figures of a whole run are logged as.

    A figure of the validation slice must never pass for one of the test set.
    """
    of_split = "" if split == "test" else f"{split}_"
    return {
        "final_accuracy": f"final_{split}_accuracy",
        "best_accuracy": f"best_{split}_accuracy",
        "epochs_at_target": f"{of_split}epochs_at_target",
        "streak_accuracy": f"{of_split}streak_accuracy",
    }


def log_end(
    *,
    classifier: Classifier,
    history: Sequence[Mapping[str, float]],
    evaluation: Evaluation,
    verdict: Verdict,
    target: Target,
    dataset: Dataset,
    report: str,
) -> ModelInfo:
    """What training came to: figures, pictures, report, verdict and the model, with the figures linked to it."""
    split = dataset.split
    mlflow.log_text(pd.DataFrame(history).to_csv(index=False), "history.csv")
    mlflow.log_figure(plots.curves(history, target.accuracy, split), "curves.png")
    mlflow.log_figure(plots.confusion_matrix(evaluation.confusion()), "confusion_matrix.png")
    wrong = evaluation.mistakes()[:40]
    mistakes = plots.mistakes(
        dataset.test_images[wrong].numpy(),
        evaluation.labels[wrong].tolist(),
        evaluation.predictions[wrong].tolist(),
        evaluation.probabilities[wrong].amax(1).tolist(),
    )
    mlflow.log_figure(mistakes, "mistakes.png")
    mlflow.log_text(report, "report.md")
    mlflow.set_tag("mlflow.note.content", report)  # what the UI shows as the run's description
    mlflow.log_dict({**asdict(verdict), "target": asdict(target)}, "gate.json")
    mlflow.set_tags({"gate": "passed" if verdict.passed else "failed", "gate.reason": "; ".join(verdict.reasons)})
    model = log_model(classifier, dataset)
    figures = summarise([row[f"{split}_accuracy"] for row in history], target)
    named = {name: figures[figure] for figure, name in metric_names(split).items()}
    named["parameters"] = classifier.parameters_count
    mlflow.log_metrics(named, step=len(history), model_id=model.model_id)
    return model


def log_repeat(summary: Mapping[str, object], figure: Figure) -> None:
    """What many seeds came to: the spread of each figure, the pass rate if there is one, and every seed by itself."""
    mlflow.log_dict(dict(summary), "repeat.json")
    mlflow.log_figure(figure, "seeds.png")
    spreads = {f"{name}_{part}": value for name, parts in summary["spread"].items() for part, value in parts.items()}
    counts = {name: summary[name] for name in ("seeds", "passed", "failed") if name in summary}
    rates = {}
    if "pass_rate" in summary:
        rates = dict(zip(("pass_rate", "pass_rate_low", "pass_rate_high"), summary["pass_rate"], strict=True))
    mlflow.log_metrics({**spreads, **counts, **rates})


def note_reused(run_ids: Sequence[str]) -> None:
    """Which earlier runs stand in for runs nested in the active one."""
    if run_ids:
        mlflow.set_tag("reused", " ".join(run_ids))


def log_comparison(dataset: str, markdown: str, page: str, numbers: pd.DataFrame, figure: Figure) -> None:
    """The steps side by side, for every kind of reader."""
    mlflow.set_tag("compare", dataset)
    mlflow.log_text(markdown, "compare.md")
    mlflow.set_tag("mlflow.note.content", markdown)
    mlflow.log_text(page, "compare.html")
    mlflow.log_text(numbers.to_csv(index=False), "compare.csv")
    mlflow.log_figure(figure, "compare.png")


def open_nested(parent: str, name: str) -> str:
    """Open a run under the parent for another process to take over (by MLFLOW_RUN_ID); returns its id."""
    client = mlflow.MlflowClient()
    found = client.get_run(parent)
    inherited = {
        key: value for key, value in found.data.tags.items() if key.startswith(("mlflow.source.", "mlflow.user"))
    }
    tags = {**inherited, **_process(), MLFLOW_PARENT_RUN_ID: parent}
    return client.create_run(found.info.experiment_id, tags=tags, run_name=name).info.run_id


def log_predictions(
    rows: Sequence[Mapping[str, object]], refused: Mapping[str, str], sheet: Figure, lineage: Mapping[str, str]
) -> None:
    """The answers as a table and as a picture, the files left out with their reasons, and which model answered."""
    mlflow.set_tags(lineage)
    mlflow.log_text(pd.DataFrame(rows).to_csv(index=False), "predictions.csv")
    mlflow.log_figure(sheet, "contact_sheet.png")
    mlflow.log_dict(dict(refused), "refused.json")
    mlflow.log_metrics({"predicted": len(rows), "refused": len(refused)})


def log_model(classifier: Classifier, dataset: Dataset) -> ModelInfo:
    """Export the classifier: on the CPU, without pickle, for any number of images."""
    model = copy.deepcopy(classifier).cpu().eval()  # in training mode dropout would be exported too
    return mlflow.pytorch.log_model(
        model,
        name="model",
        serialization_format="pt2",
        signature=SIGNATURE,
        input_example=dataset.test_images[:2].numpy(),  # with one image, MLflow would fix the number at one
        pip_requirements=model_requirements(),
    )


def model_requirements() -> list[str]:
    """The pins of requirements.txt that a registered model needs, for this Python and platform."""
    lines = [
        line for line in REQUIREMENTS.read_text().splitlines() if "==" in line and not line.lstrip().startswith("#")
    ]
    requirements = [Requirement(line) for line in lines]
    return [
        f"{requirement.name}{requirement.specifier}"
        for requirement in requirements
        if requirement.name in MODEL_PACKAGES and (requirement.marker is None or requirement.marker.evaluate())
    ]


def layer_table(network: torch.nn.Module) -> str:
    """torchsummary's table of the network, which is left as it was."""
    twin = copy.deepcopy(network).cpu().eval()
    table = io.StringIO()
    with torch.random.fork_rng(), contextlib.redirect_stdout(table):
        torchsummary.summary(twin, (1, 28, 28), device="cpu")
    return table.getvalue()
