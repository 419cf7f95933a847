"""Train: one step, a step with many seeds, every step."""

from __future__ import annotations

from dataclasses import replace

import click

from drilldown import training
from drilldown.commands.command import command
from drilldown.commands.compare import log_comparison
from drilldown.commands.nested import cluster_parameters, connect_workers, continue_hint
from drilldown.errors import PermissionMissingError
from drilldown.experiments import compare, nested, repeat, worker
from drilldown.experiments.schedule import NestedRuns
from drilldown.learning.data import Dataset
from drilldown.options import TrainOptions
from drilldown.registry import finished
from drilldown.reporting import plots
from drilldown.steps import STEP_NAMES, load_step
from drilldown.tracking import invocation, runs, search


@command
def train_step(name: str, options: TrainOptions, resume: str) -> None:
    """Train one step, or resume an unfinished run of it: track it, judge it, register its model if it passes."""
    training.train_run(name, options, resume=resume)


@command
def repeat_step(
    step: str,
    seeds: int,
    jobs: int | None,
    options: TrainOptions,
    reuse: bool,
    experiment: str,
    register: int | None,
    cluster: str = "",
    gpus: int = 0,
) -> None:
    """Train a step with many seeds, each in a nested run, and log the spread of their figures.

    The model of the seed `register` is registered if every seed has passed the gate.
    """
    if register is not None:
        repeat.check_register(register, seeds, options)
    experiments = search.experiments(experiment)
    given = {} if register is None else {"register": register}
    given |= {} if jobs is None else {"jobs": jobs}
    with (
        connect_workers(cluster, gpus) as workers,
        runs.run(f"repeat {step}", {"kind": "repeat"}) as parent,
        continue_hint(
            "repeat", options, experiment, step=step, seeds=seeds, **given, **cluster_parameters(cluster, gpus)
        ),
    ):
        dataset = training.load_dataset(options)
        if register is not None:
            training.warn_of_missing_permission(dataset)
        goal = options.goal(load_step(step).target, dataset)
        reuse_from = experiments | search.experiments() if reuse else {}  # those of now: a stopped repeat goes on
        trainings = [(step, replace(options, seed=seed)) for seed in range(seeds)]
        nested_runs = NestedRuns(parent, dataset, options, jobs, workers)
        outcomes = list(nested_runs.train(trainings, quiet=True, reuse_from=reuse_from))
        summary = repeat.summarize(step, outcomes, goal, dataset.split)
        curves = {run.seed: run.accuracies for run in summary.runs if run.error is None}
        figure = plots.seeds(curves, goal.accuracy, repeat.caption(summary, dataset, parent), dataset.split, goal.last)
        runs.log_repeat(summary.as_dict(), summary.metrics(), figure)
        click.echo(repeat.summary_lines(summary))
        nested.check(outcomes)
        use = _register_seed(summary, register, dataset)
        commands = [*use, *training.how_to_compare(dataset)]
        training.say(invocation.next_steps(("seeds.png", "repeat.json"), commands))


def _register_seed(summary: repeat.RepeatSummary, seed: int | None, dataset: Dataset) -> list[str]:
    """Register the model of the seed if every seed has passed the gate; returns how to use it."""
    if seed is None:
        return []
    if not summary.all_passed:
        click.echo(f"nothing registered: not every seed passed the gate, so seed {seed} is not registered")
        return []
    run_id = summary.runs[seed].run_id
    try:
        registration = finished.register_run(run_id, dataset, summary.tags())
    except PermissionMissingError as error:
        training.say_not_registered(run_id, error)
        return []
    training.say_registered(registration)
    return training.how_to_use(registration.name)


@command
def train_all(options: TrainOptions, reuse: bool, experiment: str, cluster: str = "", gpus: int = 0) -> None:
    """Train every step with one seed, each in a nested run, and compare them."""
    experiments = search.experiments(experiment)
    with (
        connect_workers(cluster, gpus) as workers,
        runs.run("all", {"kind": "all"}) as parent,
        continue_hint("all", options, experiment, **cluster_parameters(cluster, gpus)),
    ):
        experiments = experiments | search.experiments()  # reused runs, and those of now
        reuse_from = experiments if reuse else {}
        dataset = training.load_dataset(options)
        trainings = [(step, options) for step in STEP_NAMES]
        nested_runs = NestedRuns(parent, dataset, options, None if workers else 1, workers)
        outcomes = list(nested_runs.train(trainings, quiet=False, reuse_from=reuse_from, register=True))
        trained = {outcome.step: outcome.run_id for outcome in outcomes if outcome.error is None}
        entries = dict.fromkeys(STEP_NAMES) | {
            step: compare.collect(step, dataset.name, dataset.digest, experiments, like=run_id)
            for step, run_id in trained.items()
        }
        failed = {outcome.step: outcome.error for outcome in outcomes if outcome.error}
        log_comparison(parent, entries, dataset.name, failed)
        nested.check(outcomes)


@command
def work(dataset: str) -> None:
    """Train what standard input asks for: a process of `repeat`, `tune` or `all`."""
    worker.work(dataset)
