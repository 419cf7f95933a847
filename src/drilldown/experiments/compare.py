"""The steps side by side, from the finished runs in the store: a table, a figure and a page."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from mlflow.entities import Run

from drilldown.experiments import records
from drilldown.learning.recipe import Goal, Recipe
from drilldown.reporting import plots, report
from drilldown.reporting.statistics import summarize
from drilldown.tracking import tags
from drilldown.tracking.search import finished_runs

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Parameters and tags in which runs must agree to be compared as seeds of one configuration.
SAME = re.compile(
    r"recipe\.(?!digest)|target\.|run\.(dataset|validation|device|engine)|code\.digest|dataset\.digest|versions\."
)


@dataclass(frozen=True)
class Entry:
    """A step's runs that differ only in their seed; the newest run of each seed."""

    step: str
    record: records.Record
    goal: Goal
    passed: int  # number of runs that passed the gate
    layers: Counter[str]  # number of layers of each type
    machines: frozenset[str]
    left_out: int  # other finished runs of the step on this dataset


def newest(dataset: str, experiments: Collection[str]) -> Run | None:
    """The newest finished run on the dataset in these experiments; "auto" is MNIST if it has a run, else the digits."""
    if dataset == "auto":
        return newest("mnist", experiments) or newest("digits", experiments)
    return next(iter(finished_runs(experiments, dataset=dataset)), None)


def dataset_of(run: Run) -> tuple[str, str]:
    """Name and digest of the dataset that the run used."""
    return run.data.params["run.dataset"], tags.ours(run.data.tags)["dataset.digest"]


def collect(
    step: str, digest: str, experiments: Collection[str], *, like: str | None = None, recipe: Recipe | None = None
) -> Entry | None:
    """The step's finished runs in these experiments, on the dataset with this digest, or None if there is none.

    All of them agree in code, recipe, target, device, engine and versions with one run: `like` (a run's id) if given,
    otherwise the newest with this `recipe` (the step's own), otherwise the newest.
    """
    if not (found := finished_runs(experiments, step=step, digest=digest)):
        return None
    with_recipe = [run for run in found if recipe and records.has_recipe(run, recipe)]
    model = mlflow.get_run(like) if like else (with_recipe or found)[0]
    alike = [run for run in found if _kind(run) == _kind(model)]
    by_seed = {int(run.data.params["run.seed"]): run for run in reversed(alike)}
    of_seeds = [tags.ours(run.data.tags) for run in by_seed.values()]
    summary = mlflow.artifacts.load_text(f"runs:/{model.info.run_id}/model_summary.txt")
    return Entry(
        step,
        records.from_runs(step, by_seed),
        Goal(float(model.data.params["target.accuracy"]), int(model.data.params["target.last"])),
        passed=sum(ours["gate"] == "passed" for ours in of_seeds),
        layers=Counter(re.findall(r"^ *(\w+)-\d+ ", summary, flags=re.M)),
        machines=frozenset(ours["machine"] for ours in of_seeds),
        left_out=len(found) - len(by_seed),
    )


def _kind(run: Run) -> dict[str, str]:
    described = records.params(run) | tags.ours(run.data.tags)
    return {name: value for name, value in described.items() if SAME.match(name)}


def changes(before: Entry | None, after: Entry | None) -> str:
    """The differences between two steps in words: parameters, layers, recipe."""
    if before is None or after is None:
        return "–"
    words = [f"parameters {before.record['parameters']:,} → {after.record['parameters']:,}"]
    for layer in sorted(before.layers | after.layers):
        if difference := after.layers[layer] - before.layers[layer]:
            words.append(f"{difference:+d} {layer}")
    old, new = before.record["recipe"], after.record["recipe"]
    words += [f"{name} {_short(old.get(name))} → {_short(new[name])}" for name in new if old.get(name) != new[name]]
    return "; ".join(words)


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


HEADINGS = {
    "parameters": "parameters",
    "seeds": "seeds",
    "epochs": "epochs",
    "final test accuracy (%)": "final",
    "best epoch (%)": "best",
    "lowest of the last epochs (%)": "min_last_k",
    "epochs at target": "at_target",
    "target (%)": "target",
    "gate passed": "passed",
    "seconds an epoch": "seconds",
}
WORDS = ("published best (%)", "published epochs at 99.4 %", "changes from the step before")


def rows(entries: Mapping[str, Entry | None], dataset: str) -> list[dict[str, str]]:
    """The table as text, one row per step; a step without a run is shown as missing."""
    table: list[dict[str, str]] = []
    before: Entry | None = None
    for step, entry in entries.items():
        ours = {"final": "no finished run", "seeds": "0"}
        if entry:
            ours = records.figures(entry.record, entry.goal)
            ours["target"] = f"{entry.goal.accuracy:g}"
            ours["passed"] = f"{entry.passed} of {ours['seeds']}"
        published = records.study(step) if dataset == "mnist" else {}  # the study used MNIST only
        words = (
            str(published.get("best_test_accuracy", "–")),
            str(published.get("epochs_at_target", "–")),
            changes(before, entry),
        )
        figures = {heading: ours.get(figure, "–") for heading, figure in HEADINGS.items()}
        table.append({"step": step} | figures | dict(zip(WORDS, words, strict=True)))
        before = entry
    return table


def numbers(entries: Mapping[str, Entry | None], table: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """The table as numbers: means and standard deviations over the seeds, and the columns that are words."""
    import pandas as pd

    lines = []
    for entry, row in zip(entries.values(), table, strict=True):
        line: dict[str, object] = {"step": row["step"], "seeds": 0}
        if entry:
            runs = entry.record["runs"]
            figures = pd.DataFrame(
                asdict(summarize(run["test_accuracy"], entry.goal)) | {"training_seconds": sum(run["seconds"])}
                for run in runs
            )
            line |= {"parameters": entry.record["parameters"], "seeds": len(runs), "passed": entry.passed}
            line |= {"target": entry.goal.accuracy, "epochs": len(runs[0]["seconds"])}
            for name, column in figures.items():
                line |= {f"{name}_mean": column.mean(), f"{name}_std": column.std()}
        lines.append(line | {name: row[name].replace("–", "") for name in WORDS})
    return pd.DataFrame(lines)


def notes(entries: Mapping[str, Entry | None], dataset: str, failed: Mapping[str, str]) -> list[str]:
    """Notes below the table, in sentences; `failed` has the error of each step whose run failed this time."""
    sentences = [
        f"Dataset: {dataset}; accuracies are percent of its test images, with several seeds mean ± standard deviation."
    ]
    for step, entry in entries.items():
        if entry is None:
            why = f"its run failed: {failed[step]}" if step in failed else f"it has no finished run on {dataset}"
            sentences.append(f"{step} is missing here: {why}.")
        else:
            if entry.left_out:
                sentences.append(
                    f"{step}: other runs left out, older or of another code, recipe or engine: {entry.left_out}."
                )
            torch = entry.record["versions"].get("torch", "?")
            sentences.append(f"{step}: {', '.join(sorted(entry.machines))}, torch {torch}.")
    return sentences


SHOWN = ("step", "parameters", "seeds", "final test accuracy (%)", "lowest of the last epochs (%)", "gate passed")


def screen(table: Sequence[Mapping[str, str]]) -> str:
    """The most important columns of the table, for the screen."""
    return report.columns([{heading: row[heading] for heading in SHOWN} for row in table])


def caption(entries: Mapping[str, Entry | None], dataset: str, source: str) -> plots.Caption:
    """What identifies the figure and the page; `source` says where they come from."""
    present = ", ".join(step for step, entry in entries.items() if entry)
    return plots.Caption(f"The steps side by side on {dataset}", f"{present or 'no step'}; {source}")


def figure(entries: Mapping[str, Entry | None], caption: plots.Caption) -> Figure:
    """Accuracy against parameters, and the curves of all runs."""
    present = {step: entry for step, entry in entries.items() if entry}
    return plots.steps(
        {step: entry.record["parameters"] for step, entry in present.items()},
        {step: [run["test_accuracy"] for run in entry.record["runs"]] for step, entry in present.items()},
        sorted({entry.goal.accuracy for entry in present.values()}),
        caption,
    )


def description(table: Sequence[Mapping[str, str]], notes: Sequence[str]) -> str:
    """The comparison as a list, for the run's page in MLflow: that shows neither pictures nor space between cells."""
    figures = (*HEADINGS, WORDS[-1])
    lines = [
        f"**{row['step']}**: "
        + (
            "no finished run"
            if row["seeds"] == "0"
            else ", ".join(f"{name} {row[name]}" for name in figures if row[name] != "–")
        )
        for row in table
    ]
    return "".join(f"- {line}\n" for line in (*lines, *notes)) + "\nThe whole comparison is in compare.html.\n"


def markdown(table: Sequence[Mapping[str, str]], notes: Sequence[str]) -> str:
    """The comparison as Markdown, with its figure in compare.png."""
    items = "".join(f"- {note}\n" for note in notes)
    return f"# The steps side by side\n\n{report.table(table)}\n![Accuracy of the steps](compare.png)\n\n{items}"


def page(table: Sequence[Mapping[str, str]], notes: Sequence[str], figure: Figure, caption: plots.Caption) -> str:
    """The comparison as one HTML page that needs no other file."""
    from jinja2 import Environment, FileSystemLoader

    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=200)
    template = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True).get_template("compare.html")
    picture = base64.b64encode(png.getvalue()).decode()
    return template.render(table=table, notes=notes, caption=caption, picture=picture)
