"""Compare the finished runs of the steps, and write them down."""

from __future__ import annotations

from collections.abc import Mapping

import click

from drilldown import training
from drilldown.commands.command import on_a_store
from drilldown.errors import CompareError
from drilldown.experiments import compare, records
from drilldown.steps import STEP_NAMES, load_step
from drilldown.tracking import invocation, runs, search


@on_a_store
def compare_steps(dataset: str, experiment: str) -> None:
    """Compare the finished runs of the steps."""
    experiments = search.experiments(experiment)
    with runs.run("compare", {"kind": "compare"}) as run_id:
        if not (newest := compare.newest(dataset, experiments)):
            # Searched again: the experiment that this run goes into may be new.
            looked, there = (", ".join(search.experiments(name).values()) for name in (experiment, search.EVERY))
            raise CompareError(
                f"dataset is {dataset!r}: no finished run to compare in the experiment {looked}; train a step, or look "
                f"into another experiment: all, {there}"
            )
        name, digest = compare.dataset_of(newest)
        recipes = {step: load_step(step).recipe for step in STEP_NAMES}
        entries = {step: compare.collect(step, name, digest, experiments, recipe=recipes[step]) for step in STEP_NAMES}
        log_comparison(run_id, entries, name, {})


def log_comparison(
    run_id: str, entries: Mapping[str, compare.Entry | None], dataset: str, failed: Mapping[str, str]
) -> None:
    """Log the comparison, and print it in short."""
    caption = compare.caption(entries, dataset, f"run {run_id[:8]}")
    table, figure = compare.rows(entries, dataset), compare.figure(entries, caption)
    notes = compare.notes(entries, dataset, failed)
    texts = compare.description(table, notes), compare.markdown(table, notes)
    page = compare.page(table, notes, figure, caption)
    runs.log_comparison(dataset, *texts, page, compare.numbers(entries, table), figure)
    click.echo(compare.screen(table))
    training.say(invocation.next_steps(("compare.html", "compare.png", "compare.csv")))


@on_a_store
def record_results(name: str, epochs: int | None, force: bool, experiment: str) -> None:
    """Write results/STEP.json from the finished MNIST runs in the store."""
    recipe = load_step(name).recipe
    file, left_out = records.write(name, recipe, epochs or recipe.epochs, search.experiments(experiment), force)
    click.echo(f"{file}: the newest run of each seed; left out: {left_out}")
    click.echo("next:   make docs")
