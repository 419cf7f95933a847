"""Search for a better recipe of a step, confirm the best ones, and log the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import click

from drilldown import training
from drilldown.choices import FIRST_CONFIRMED_SEED
from drilldown.commands.command import command
from drilldown.commands.nested import cluster_parameters, connect_workers, continue_hint
from drilldown.engine import accelerate
from drilldown.errors import ParameterError, TuneError
from drilldown.experiments import confirm, nested, space, study, tune
from drilldown.experiments.schedule import NestedRuns
from drilldown.learning import data
from drilldown.messages import one_line
from drilldown.options import TrainOptions, TuneOptions
from drilldown.reporting.report import columns
from drilldown.steps import load_step
from drilldown.tracking import invocation, runs, search

SLICES = 12  # by default, a search measures on a twelfth of the training images: 5,000 of MNIST's


@command
def tune_step(
    step: str,
    jobs: int | None,
    validation: int | None,
    options: TrainOptions,
    tune_options: TuneOptions,
    cluster: str = "",
    gpus: int = 0,
) -> None:
    """Search for a better recipe of a step on a validation slice, and confirm the best over fresh seeds.

    The test images are not used, and nothing is registered.
    """
    if tune_options.pruner != "none" and tune_options.seeds_per_trial > 1:
        raise ParameterError(
            f"pruner is {tune_options.pruner!r}: with seeds_per_trial={tune_options.seeds_per_trial} it takes none, "
            "because a pruner compares single trainings"
        )
    kept = {name: value for name, value in asdict(tune_options).items() if value != getattr(TuneOptions(), name)}
    kept |= {"jobs": jobs} if jobs else {}
    kept |= {"storage": one_line(tune_options.storage)} if tune_options.storage else {}  # without its password
    hinted = replace(options, validation=validation or 0)
    with (
        connect_workers(cluster, gpus) as workers,
        runs.run(f"tune {step}", {"kind": "tune", "step": step}) as parent,
        continue_hint("tune", hinted, "", step=step, **kept, **cluster_parameters(cluster, gpus)),
    ):
        whole = data.load(options.dataset, options.data_dir or None)
        dataset = whole.hold_out(validation or max(1, len(whole.train_images) // SLICES))
        del whole  # with the test images
        options = replace(options, validation=len(dataset.test_images))
        storage = tune_options.storage or study.default_storage()
        with study.answering(storage):
            nested_runs = NestedRuns(parent, dataset, options, jobs, workers)
            found = _search(step, nested_runs, tune_options, storage)
            click.echo(tune.screen(found))
            confirmations = _confirm(step, nested_runs, found)
            _log_search(step, options, dataset, found, confirmations)
        training.say(invocation.next_steps(("tune.html", "trials.csv", "recommended.py")))


def _search(name: str, nested_runs: NestedRuns, tune_options: TuneOptions, storage: str) -> study.Search:
    """Train the trials that the study asks for, until there are enough; print a line for each.

    Raises: TuneError when none has finished.
    """
    step, dataset, options, device = load_step(name), nested_runs.dataset, nested_runs.options, nested_runs.device
    cluster = nested_runs.cluster
    limits = {} if tune_options.max_parameters is None else {"max_parameters": tune_options.max_parameters}
    goal = replace(options.goal(step.target, dataset), **limits)
    found_space = space.find_space(step, options)
    engine = accelerate(step.network(), engine=options.engine, device=device).engine
    identity = training.find_fingerprint(step, options, dataset, device, engine) | {
        "space": found_space.as_text(),
        "seeds_per_trial": str(tune_options.seeds_per_trial),
        "max_parameters": str(goal.max_parameters),
    }
    jobs, decided = nested_runs.decide(tune_options.trials * tune_options.seeds_per_trial)
    study.quiet_optuna()
    found = study.open_search(
        step,
        found_space,
        goal,
        replace(options, **decided),
        tune_options,
        storage=storage,
        identity=identity,
        dataset=dataset.name,
        driver=nested_runs.parent,
        jobs=jobs or (cluster.capacity() if cluster else 1),
    )
    title, done = found.study.study_name, len(found.counted())
    runs.set_tags({"study": title, "storage": one_line(storage)})
    click.echo(f"study {title}: {f'goes on after {done} trials' if done else 'new'}, in {one_line(storage)}")
    if found.is_new and found.other:
        click.echo(f"an earlier study of {name} stays as it is, because it is another search: {found.other}")
    epochs = (tune_options.trials - done) * tune_options.seeds_per_trial * options.recipe(step.recipe).epochs
    with tune.SearchProgress(found, max(0, epochs)) as progress:
        for outcome in nested.train(
            found.trainings(), jobs=jobs, parent=nested_runs.parent, dataset=dataset, progress=progress, cluster=cluster
        ):
            found.tell(outcome)
    if not tune.finished(found):
        reasons = (found.facts(trial).get("error") for trial in found.counted())
        raise TuneError(f"none of {len(found.counted())} trials has finished, the first because: {next(reasons, None)}")
    return found


def _confirm(name: str, nested_runs: NestedRuns, found: study.Search) -> list[confirm.Confirmation]:
    """Train the best trials and the step's own recipe over fresh seeds, and compare them."""
    options, tune_options = nested_runs.options, found.tune_options
    candidates = {trial.number: trial.params for trial in tune.candidates(found, tune_options.confirm)}
    if not candidates:
        return []
    first = options.seed + FIRST_CONFIRMED_SEED
    trainings = [
        (name, replace(found.space.apply(options, values), study=found.study.study_name, trial=number, seed=seed))
        for number, values in ({confirm.OWN: found.space.own} | candidates).items()
        for seed in range(first, first + tune_options.confirm_seeds)
    ]
    seeds = tune_options.confirm_seeds
    click.echo(f"confirmation: {len(candidates)} candidates and the step's own recipe, {seeds} fresh seeds")
    outcomes = list(nested_runs.train(trainings, quiet=True, reuse_from=search.experiments()))
    confirmations = confirm.judge(outcomes, list(candidates), found.goal)
    click.echo(columns([confirmation.row() for confirmation in confirmations]))
    click.echo(confirm.verdict(confirmations))
    own = " ".join(outcome.run_id for outcome in outcomes if outcome.trial == confirm.OWN)
    runs.set_tags(
        {f"confirmed.trial-{confirm.OWN}": own}
        | {f"confirmed.trial-{one.trial}": " ".join(one.runs) for one in confirmations}
    )
    return confirmations


def _log_search(
    name: str,
    options: TrainOptions,
    dataset: data.Dataset,
    found: study.Search,
    confirmations: Sequence[confirm.Confirmation],
) -> None:
    """Log the search in its parent run."""
    step, winner = load_step(name), confirm.best(confirmations)
    values = found.study.get_trials(deepcopy=False)[winner.trial].params if winner else found.space.own
    chosen = found.space.apply(options, values)
    where = f"{dataset.name}, validation slice of {len(dataset.test_images):,}, study {found.study.study_name}"
    result = confirm.verdict(confirmations) if confirmations else "not confirmed: the step's own recipe"
    _, front = tune.pareto(found)
    table = tune.numbers(found)
    runs.log_search(
        tune.page(found, confirmations, {"step": name, "data": where}),
        table,
        table[table["trial"].isin([trial.number for trial in front])],
        confirm.source(chosen.recipe(step.recipe), chosen.network_fields, f"tune of {name} on {where}: {result}"),
        tune.metrics(found),
        {"recommended": f"trial {winner.trial}" if winner else "none"},
    )
