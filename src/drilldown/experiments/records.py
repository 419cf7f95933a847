"""Recorded results: written from the store's finished runs to results/STEP.json, and read for the documentation."""

from __future__ import annotations

import ast
import contextlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import mlflow
from mlflow.entities import Run

from drilldown.errors import RecordError
from drilldown.learning.files import atomic_write
from drilldown.learning.recipe import Goal, Recipe
from drilldown.reporting import gate, report
from drilldown.reporting.statistics import format_spread, pass_rate, summarize
from drilldown.steps import ROOT
from drilldown.tracking import tags
from drilldown.tracking.search import finished_runs

Record = Mapping[str, Any]  # as in results/STEP.json

FOLDER = ROOT / "results"
STUDY = FOLDER / "study.json"
KIND = ("parameters", "dataset_digest", "recipe")  # what the runs of a record and of the one that replaces it share
GOAL = Goal(accuracy=99.4)  # on MNIST; the records' runs are compared with it
# Recipe fields of version 0.1, and their names since. Its records and runs are still read.
RENAMED = {
    "rise": "warmup_fraction",
    "step_epochs": "lr_step_epochs",
    "averaging": "ema_epochs",
    "shift": "translate",
}


def write(
    step: str, recipe: Recipe, epochs: int, experiments: Collection[str], force: bool = False
) -> tuple[Path, int]:
    """Record the step's finished MNIST runs with this recipe and number of epochs; the newest run of each seed.

    Leaves out runs that differ from the newest in code, data, versions, engine, machine or threads, and older runs of
    the same seed. Returns the file and the number of runs left out. If `epochs` is not the recipe's, the file name says
    so. Raises RecordError if there is no such run, or, without `force`, if the file has more seeds or another network,
    recipe or dataset.
    """
    wanted = replace(recipe, epochs=epochs)
    found = [run for run in finished_runs(experiments, step=step, dataset="mnist") if has_recipe(run, wanted)]
    if not found:
        raise RecordError(
            f"step is {step!r}: the experiment has no finished MNIST run of it with its recipe and {epochs} epochs"
        )
    kind = _kind(step, found[0])
    newest: dict[int, Run] = {}
    for run in found:
        if _kind(step, run) == kind:
            newest.setdefault(int(run.data.params["run.seed"]), run)
    record = from_runs(step, newest)
    file = FOLDER / (f"{step}.json" if epochs == recipe.epochs else f"{step}-{epochs}-epochs.json")
    if not force and file.exists():
        _check_replaceable(file, record)
    atomic_write(file, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    return file, len(found) - len(newest)


def _check_replaceable(file: Path, record: Record) -> None:
    """Raise RecordError if the record is not as good as the one in the file, or not of the same kind."""
    kept = _read(file)
    if len(kept["runs"]) > len(record["runs"]):
        reason = f"it has {len(kept['runs'])} seeds, and the store has {len(record['runs'])}"
    elif differences := [name for name in KIND if kept[name] != record[name]]:
        reason = f"it differs in {', '.join(differences).replace('_', ' ')}"
    else:
        return
    raise RecordError(f"{file} stays as it is: {reason}; --force true replaces it")


def from_runs(step: str, runs: Mapping[int, Run]) -> dict[str, Any]:
    """The record of the step's runs, by seed; all but the measurements is taken from the first run."""
    head = _head(step, next(iter(runs.values())))
    return {**head, "runs": [_measurements(seed, runs[seed]) for seed in sorted(runs)]}


def params(run: Run) -> dict[str, str]:
    """The run's parameters; the recipe's have today's names."""
    renamed = {f"recipe.{old}": f"recipe.{new}" for old, new in RENAMED.items()}
    return {renamed.get(name, name): value for name, value in run.data.params.items()}


def has_recipe(run: Run, recipe: Recipe) -> bool:
    """Whether the run was trained with this recipe."""
    wanted = {f"recipe.{name}": str(value) for name, value in asdict(recipe).items()}
    return wanted.items() <= params(run).items()


def _kind(step: str, run: Run) -> dict[str, Any]:
    """What the runs of one record have in common. Commits may differ, as most leave the weights unchanged."""
    return _head(step, run) | {"commit": None, "engine": run.data.params.get("run.engine")}


def _head(step: str, run: Run) -> dict[str, Any]:
    ours, given = tags.ours(run.data.tags), params(run)
    recipe = {name.removeprefix("recipe."): _value(text) for name, text in given.items() if name.startswith("recipe.")}
    return {
        "step": step,
        "parameters": int(run.data.metrics["parameters"]),
        "dataset_digest": ours["dataset.digest"],
        "recipe": dict(sorted(recipe.items())),
        "versions": {
            name.removeprefix("versions."): ours[name] for name in sorted(ours) if name.startswith("versions.")
        },
        "machine": ours["machine"],
        "threads": int(given["run.threads"]),
        "code": ours.get("code.digest"),
        "commit": run.data.tags.get("mlflow.source.git.commit"),  # none outside a clone
    }


def _value(text: str) -> object:
    """A parameter's value; MLflow stores its text."""
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    return text


def _measurements(seed: int, run: Run) -> dict[str, Any]:
    client = mlflow.MlflowClient()
    names = {"train_accuracy": "train_accuracy", "test_accuracy": "test_accuracy", "seconds": "epoch_seconds"}
    histories = {key: client.get_metric_history(run.info.run_id, metric) for key, metric in names.items()}
    rows = {key: sorted(history, key=lambda entry: entry.step) for key, history in histories.items()}
    return {"seed": seed} | {key: [round(entry.value, 4) for entry in history] for key, history in rows.items()}


def read(step: str) -> dict[str, Any] | None:
    """The step's record of full runs, if there is one; its recipe's fields have today's names."""
    file = FOLDER / f"{step}.json"
    return _read(file) if file.exists() else None


def _read(file: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(file.read_text())
    recipe = {RENAMED.get(name, name): value for name, value in record["recipe"].items()}
    return record | {"recipe": dict(sorted(recipe.items()))}


def figures(record: Record, goal: Goal = GOAL) -> dict[str, str]:
    """A record's figures as text: percentages have two decimals; mean ± standard deviation over the seeds."""
    summaries = [summarize(run["test_accuracy"], goal) for run in record["runs"]]
    seconds = [value for run in record["runs"] for value in run["seconds"]]
    return {
        "seeds": str(len(summaries)),
        "parameters": f"{record['parameters']:,}",
        "epochs": str(len(record["runs"][0]["test_accuracy"])),
        "final": format_spread([summary.final_accuracy for summary in summaries]),
        "best": format_spread([summary.best_accuracy for summary in summaries]),
        "min_last_k": format_spread([summary.min_accuracy_last_k for summary in summaries]),
        # One count is a whole number; the mean of several has a decimal.
        "at_target": format_spread([summary.epochs_at_target for summary in summaries], int(len(summaries) > 1)),
        "seconds": f"{median(seconds):.1f}",
        "machine": record["machine"],
        "threads": f"{record['threads']} thread{'s' if record['threads'] != 1 else ''}",
    }


def num_passed(record: Record, goal: Goal = GOAL) -> int:
    """The number of seeds that pass the gate."""
    return sum(gate.judge(run["test_accuracy"], "test", record["parameters"], goal).passed for run in record["runs"])


def consistency(record: Record, goal: Goal = GOAL) -> str:
    """How many of the seeds pass the gate, in words."""
    return str(pass_rate(num_passed(record, goal), len(record["runs"])))


def sentence(record: Record) -> str:
    """A record in one sentence, for the step's docstring."""
    figure = figures(record)
    seeds = f"{figure['seeds']} seed{'s' if figure['seeds'] != '1' else ''}"
    return (
        f"{figure['final']} % of the test images at the end, best epoch {figure['best']} %, lowest of the last five "
        f"{figure['min_last_k']} %, {figure['at_target']} of {figure['epochs']} epochs at or above 99.4 %; {seeds}, "
        f"{figure['seconds']} s an epoch by {figure['threads']} on {figure['machine']}, "
        f"torch {record['versions']['torch']}."
    )


def table(steps: Sequence[str]) -> str:
    """The README's table of results, one row per step."""
    rows = []
    for step in steps:
        row = {"step": step, "parameters": "–", "test accuracy (%)": "not run in full yet", "gate passed": "–"}
        if record := read(step):
            ours = figures(record)
            row |= {
                "parameters": ours["parameters"],
                "test accuracy (%)": ours["final"],
                "gate passed": f"{num_passed(record)} of {ours['seeds']}",
            }
        rows.append(row)
    return report.table(rows)


def full_table(steps: Sequence[str]) -> str:
    """All figures of the records, one row per step, beside the figures that the study published."""
    headings = {
        "parameters": "parameters",
        "epochs": "epochs",
        "final test accuracy": "final",
        "best epoch": "best",
        "lowest of the last five": "min_last_k",
        "epochs ≥ 99.4 %": "at_target",
        "seeds": "seeds",
    }
    missing = {"final": "not run in full yet", "seeds": "0"}
    rows = []
    for step in steps:
        ours = figures(record) if (record := read(step)) else missing
        published = study(step)
        rows.append(
            {"step": step}
            | {heading: ours.get(figure, "–") for heading, figure in headings.items()}
            | {"the study's best": str(published.get("best_test_accuracy", "–"))}
            | {"the study's epochs ≥ 99.4 %": str(published.get("epochs_at_target", "–"))}
        )
    return report.table(rows)


def study(step: str) -> dict[str, float]:
    """What the original study stated about the step (on MNIST); empty if it has no such step."""
    steps: dict[str, Any] = json.loads(STUDY.read_text())["steps"]
    stated: dict[str, float] = steps.get(step, {}).get("stated", {})
    return stated
