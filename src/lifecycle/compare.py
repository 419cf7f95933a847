"""The steps side by side, from the finished runs in the store: table, figures, page."""

import base64
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pandas as pd
from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure
from mlflow.entities import Run

from src.learning.recipe import Target
from src.lifecycle import gate, plots, records, report

SAME = re.compile(
    r"recipe\.(?!digest)|target\.|run\.(dataset|validation|device)|code\.digest|dataset\.digest|versions\."
)


class CompareError(Exception):
    """There is nothing to compare."""


@dataclass(frozen=True)
class Entry:
    """A step's runs that agree in all but their seed, the newest of each seed."""

    step: str
    record: Mapping  # as in results/
    target: Target
    passed: int  # of the runs, by the gate
    layers: Counter  # how many of each type
    machines: frozenset[str]
    left_out: int  # other finished runs of the step on this dataset


def newest(dataset: str) -> Run | None:
    """The newest finished run on the dataset (auto: on MNIST if there is one, otherwise on the digits)."""
    if dataset == "auto":
        return newest("mnist") or newest("digits")
    return next(iter(_finished(f"params.`run.dataset` = '{dataset}' and params.`run.validation` = '0'")), None)


def collect(
    step: str, digest: str, *, like: str | None = None, recipe: Mapping[str, object] | None = None
) -> Entry | None:
    """The step's finished runs on the test set of the dataset with this digest, or None where there is none.

    Only runs that agree in code, recipe, target, device and versions: with `like` (a run's id), if it is given,
    otherwise with the newest run of `recipe` (the step's own), and if there is none, with the newest of all.
    """
    condition = f"tags.step = '{step}' and tags.`dataset.digest` = '{digest}' and params.`run.validation` = '0'"
    if not (found := _finished(condition)):
        return None
    own = {f"recipe.{name}": str(value) for name, value in (recipe or {}).items()}
    of_recipe = [run for run in found if own.items() <= run.data.params.items()]
    model = mlflow.get_run(like) if like else (of_recipe or found)[0]
    alike = [run for run in found if _kind(run) == _kind(model)]
    of_seeds = {int(run.data.params["run.seed"]): run for run in reversed(alike)}
    summary = mlflow.artifacts.load_text(f"runs:/{model.info.run_id}/model_summary.txt")
    return Entry(
        step,
        records.of(step, of_seeds),
        Target(float(model.data.params["target.accuracy"]), int(model.data.params["target.last"])),
        passed=sum(run.data.tags["gate"] == "passed" for run in of_seeds.values()),
        layers=Counter(re.findall(r"^ *(\w+)-\d+ ", summary, flags=re.M)),
        machines=frozenset(run.data.tags["machine"] for run in of_seeds.values()),
        left_out=len(found) - len(of_seeds),
    )


def _finished(condition: str) -> list[Run]:
    return mlflow.search_runs(
        filter_string=f"attributes.status = 'FINISHED' and {condition}",
        order_by=["attributes.start_time DESC"],
        search_all_experiments=True,
        output_format="list",
    )


def _kind(run: Run) -> dict[str, str]:
    return {key: value for key, value in (run.data.params | run.data.tags).items() if SAME.match(key)}


def changes(before: Entry | None, after: Entry) -> str:
    """What is different in the step after, in words: parameters, layers, recipe."""
    if before is None:
        return "–"
    words = [f"parameters {before.record['parameters']:,} → {after.record['parameters']:,}"]
    for kind in sorted(before.layers | after.layers):
        if difference := after.layers[kind] - before.layers[kind]:
            words.append(f"{difference:+d} {kind}")
    old, new = before.record["recipe"], after.record["recipe"]
    words += [f"{name} {_short(old.get(name))} → {_short(new[name])}" for name in new if old.get(name) != new[name]]
    return "; ".join(words)


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


HEADINGS = {
    "parameters": "parameters",
    "seeds": "n",
    "epochs": "epochs",
    "final test accuracy (%)": "final",
    "best epoch (%)": "best",
    "lowest of the last epochs (%)": "streak",
    "epochs at target": "at_target",
    "target (%)": "target",
    "gate passed": "passed",
    "seconds an epoch": "seconds",
}


def rows(entries: Mapping[str, Entry | None], dataset: str) -> list[dict[str, str]]:
    """The table, a row a step, its values as text; a step without a run is shown as missing."""
    made, before = [], None
    for step, entry in entries.items():
        ours = {"final": "no finished run", "n": "0"}
        if entry:
            ours = records.figures(entry.record, entry.target)
            ours["target"] = f"{entry.target.accuracy:g}"
            ours["passed"] = f"{entry.passed} of {ours['n']}"
        theirs = records.study(step) if dataset == "mnist" else {}  # the study knew no other dataset
        row = {"step": step} | {heading: ours.get(figure, "–") for heading, figure in HEADINGS.items()}
        row["published best (%)"] = str(theirs.get("best_test_accuracy", "–"))
        row["published epochs at 99.4 %"] = str(theirs.get("epochs_at_target", "–"))
        row["changes from the step before"] = changes(before, entry) if before and entry else "–"
        made.append(row)
        before = entry
    return made


def numbers(entries: Mapping[str, Entry | None], table: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """The table to reckon with: means and standard deviations over the seeds, and what only words can say."""
    made = []
    for entry, row in zip(entries.values(), table, strict=True):
        line = {"step": row["step"], "seeds": 0}
        if entry:
            runs = entry.record["runs"]
            figures = pd.DataFrame(
                gate.summarise(run["test_accuracy"], entry.target) | {"training_seconds": sum(run["seconds"])}
                for run in runs
            )
            line |= {"parameters": entry.record["parameters"], "seeds": len(runs), "passed": entry.passed}
            line |= {"target": entry.target.accuracy, "epochs": len(runs[0]["seconds"])}
            for name, column in figures.items():
                line |= {f"{name}_mean": column.mean(), f"{name}_std": column.std()}
        worded = ("published best (%)", "published epochs at 99.4 %", "changes from the step before")
        made.append(line | {name: row[name].replace("–", "") for name in worded})
    return pd.DataFrame(made)


def notes(entries: Mapping[str, Entry | None], dataset: str, failed: Mapping[str, str]) -> list[str]:
    """What a reader must know of the table, in sentences; `failed`: by step, why it has no run this time."""
    said = [
        f"Dataset: {dataset}; accuracies are percent of its test images, with several seeds mean ± standard deviation."
    ]
    for step, entry in entries.items():
        if entry is None:
            why = f"its run failed: {failed[step]}" if step in failed else f"it has no finished run on {dataset}"
            said.append(f"{step} is missing here: {why}.")
        else:
            if entry.left_out:
                said.append(f"{step}: other runs left out, older or of another code or recipe: {entry.left_out}.")
            torch = entry.record["versions"].get("torch", "?")
            said.append(f"{step}: {', '.join(sorted(entry.machines))}, torch {torch}.")
    return said


def line(row: Mapping[str, str]) -> str:
    """A row of the table for the screen."""
    if row["seeds"] == "0":
        return f"{row['step']}: no finished run"
    return (
        f"{row['step']}: {row['parameters']} parameters, final {row['final test accuracy (%)']} %, "
        f"lowest of the last epochs {row['lowest of the last epochs (%)']} %, gate passed {row['gate passed']}"
    )


def figure(entries: Mapping[str, Entry | None]) -> Figure:
    """Parameters against accuracy, and all curves."""
    present = {step: entry for step, entry in entries.items() if entry}
    return plots.steps(
        {step: entry.record["parameters"] for step, entry in present.items()},
        {step: [run["test_accuracy"] for run in entry.record["runs"]] for step, entry in present.items()},
        sorted({entry.target.accuracy for entry in present.values()}),
    )


def markdown(table: Sequence[Mapping[str, str]], said: Sequence[str]) -> str:
    """The comparison as Markdown, beside its picture."""
    notes = "".join(f"- {note}\n" for note in said)
    return f"# The steps side by side\n\n{report.table(table)}\n![Accuracy of the steps](compare.png)\n\n{notes}"


def page(table: Sequence[Mapping[str, str]], said: Sequence[str], picture: Figure) -> str:
    """The comparison as one HTML page that needs no other file."""
    png = io.BytesIO()
    picture.savefig(png, format="png", dpi=150)
    template = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True).get_template("compare.html")
    return template.render(table=table, notes=said, picture=base64.b64encode(png.getvalue()).decode())
