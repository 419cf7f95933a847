"""Measured records: from the store's finished runs to results/STEP.json, and from there to the README's words."""

import ast
import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, median, stdev

import mlflow
from mlflow.entities import Run

from src.learning.recipe import Recipe, Target
from src.lifecycle import gate, report
from src.lifecycle.provenance import ROOT
from src.lifecycle.repeat import rate_line

FOLDER = ROOT / "results"
STUDY = FOLDER / "study.json"
MNIST = Target(accuracy=99.4)  # what the records are held against


class RecordError(Exception):
    """The store has nothing to record."""


def write(step: str, recipe: Recipe, epochs: int) -> tuple[Path, int]:
    """Record the step's finished MNIST runs with its recipe and that many epochs, the newest of each seed.

    Runs that differ from the newest in code, data, versions, machine or threads are left out; their number is returned
    with the file, and that of older runs of the same seeds in it. Runs shorter than the recipe go into a file that
    says so. Raises RecordError when there is none.
    """
    wanted = {f"recipe.{name}": str(value) for name, value in asdict(replace(recipe, epochs=epochs)).items()}
    found = mlflow.search_runs(
        filter_string=f"tags.step = '{step}' and attributes.status = 'FINISHED' and params.`run.dataset` = 'mnist' "
        "and params.`run.validation` = '0'",
        order_by=["attributes.start_time DESC"],
        search_all_experiments=True,
        output_format="list",
    )
    found = [run for run in found if run.data.params.items() >= wanted.items()]
    if not found:
        raise RecordError(
            f"step is {step!r}: the store has no finished MNIST run of it with its recipe and {epochs} epochs"
        )
    newest, kind = {}, _kind(step, found[0])
    for run in found:
        if _kind(step, run) == kind:
            newest.setdefault(int(run.data.params["run.seed"]), run)
    record = of(step, newest)
    file = FOLDER / (f"{step}.json" if epochs == recipe.epochs else f"{step}-{epochs}-epochs.json")
    file.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return file, len(found) - len(newest)


def _kind(step: str, run: Run) -> dict:
    """What the runs of a record have in common: of the code, what makes the weights, whatever the commit."""
    return _head(step, run) | {"commit": None}


def of(step: str, runs: Mapping[int, Run]) -> dict:
    """The record of the step's runs, by seed; what they have in common is the first one's."""
    head = _head(step, next(iter(runs.values())))
    return {**head, "runs": [_run(seed, runs[seed]) for seed in sorted(runs)]}


def _head(step: str, run: Run) -> dict:
    params, tags = run.data.params, run.data.tags
    recipe = {key.removeprefix("recipe."): _value(text) for key, text in params.items() if key.startswith("recipe.")}
    return {
        "step": step,
        "parameters": int(run.data.metrics["parameters"]),
        "dataset_digest": tags["dataset.digest"],
        "recipe": dict(sorted(recipe.items())),
        "versions": {key.removeprefix("versions."): tags[key] for key in sorted(tags) if key.startswith("versions.")},
        "machine": tags["machine"],
        "threads": int(params["run.threads"]),
        "code": tags.get("code.digest"),
        "commit": tags.get("mlflow.source.git.commit"),  # none outside a clone
    }


def _value(text: str) -> object:
    """A parameter as it was before MLflow made text of it."""
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    return text


def _run(seed: int, run: Run) -> dict:
    client = mlflow.MlflowClient()
    names = {"train_accuracy": "train_accuracy", "test_accuracy": "test_accuracy", "seconds": "epoch_seconds"}
    histories = {key: client.get_metric_history(run.info.run_id, metric) for key, metric in names.items()}
    rows = {key: sorted(history, key=lambda entry: entry.step) for key, history in histories.items()}
    return {"seed": seed} | {key: [round(entry.value, 4) for entry in history] for key, history in rows.items()}


def read(step: str) -> dict | None:
    """The step's full record, if there is one."""
    file = FOLDER / f"{step}.json"
    return json.loads(file.read_text()) if file.exists() else None


def figures(record: Mapping, target: Target = MNIST) -> dict[str, str]:
    """A record's figures as they are printed: percentages with two decimals, mean ± standard deviation over seeds."""
    runs = [gate.summarise(run["test_accuracy"], target) for run in record["runs"]]
    seconds = [value for run in record["runs"] for value in run["seconds"]]
    several = int(len(runs) > 1)  # a count has no decimals, the mean of some has one
    return {
        "n": str(len(runs)),
        "parameters": f"{record['parameters']:,}",
        "epochs": str(len(record["runs"][0]["test_accuracy"])),
        "final": spread([run["final_accuracy"] for run in runs]),
        "best": spread([run["best_accuracy"] for run in runs]),
        "streak": spread([run["streak_accuracy"] for run in runs]),
        "at_target": spread([run["epochs_at_target"] for run in runs], decimals=several),
        "seconds": f"{median(seconds):.1f}",
        "machine": record["machine"],
        "threads": f"{record['threads']} thread{'s' if record['threads'] != 1 else ''}",
    }


def spread(values: list[float], decimals: int = 2) -> str:
    """The mean, and with several values ± their standard deviation."""
    if len(values) == 1:
        return f"{values[0]:.{decimals}f}"
    return f"{mean(values):.{decimals}f} ± {stdev(values):.{decimals}f}"


def consistency(record: Mapping, target: Target = MNIST) -> str:
    """How many of the seeds hold the target over their last five epochs, in words."""
    passed = sum(
        gate.summarise(run["test_accuracy"], target)["streak_accuracy"] >= target.accuracy for run in record["runs"]
    )
    return rate_line(passed, len(record["runs"]))


def sentence(record: Mapping) -> str:
    """A record in one sentence, for the step's docstring."""
    figure = figures(record)
    seeds = f"{figure['n']} seed{'s' if figure['n'] != '1' else ''}"
    return (
        f"{figure['final']} % of the test images at the end, best epoch {figure['best']} %, lowest of the last five "
        f"{figure['streak']} %, {figure['at_target']} of {figure['epochs']} epochs at or above 99.4 %; {seeds}, "
        f"{figure['seconds']} s an epoch by {figure['threads']} on {figure['machine']}, "
        f"torch {record['versions']['torch']}."
    )


def table(steps: tuple[str, ...]) -> str:
    """The README's table of results: a row a step, the study's published figures beside ours."""
    headings = {
        "parameters": "parameters",
        "epochs": "epochs",
        "final test accuracy": "final",
        "best epoch": "best",
        "lowest of the last five": "streak",
        "epochs ≥ 99.4 %": "at_target",
        "seeds": "n",
    }
    missing = {"final": "not run in full yet", "n": "0"}
    rows = []
    for step in steps:
        ours = figures(record) if (record := read(step)) else missing
        row = {"step": step} | {heading: ours.get(figure, "–") for heading, figure in headings.items()}
        theirs = study(step)
        row["the study's best"] = theirs.get("best_test_accuracy", "–")
        row["the study's epochs ≥ 99.4 %"] = theirs.get("epochs_at_target", "–")
        rows.append(row)
    return report.table(rows)


def study(step: str) -> dict[str, float]:
    """What the original study stated of the step (on MNIST); empty where it has no such step."""
    steps = json.loads(STUDY.read_text())["steps"]
    return steps.get(step, {}).get("stated", {})
