"""What each command does: train, resume and finish a run; train many; compare; change the champion; predict; show."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import click
from tqdm import tqdm

from drilldown import hardware, process, training
from drilldown.choices import DATASETS, FIRST_CONFIRMED_SEED
from drilldown.engine import accelerate
from drilldown.errors import (
    CompareError,
    ParameterError,
    PermissionMissingError,
    PredictError,
    RegistryError,
    TuneError,
)
from drilldown.experiments import compare, confirm, nested, records, repeat, space, status, study, tune, worker
from drilldown.experiments.schedule import NestedRuns
from drilldown.inference import predict
from drilldown.inference.files import find_images
from drilldown.inference.framing import thumbnail
from drilldown.inference.reader import Answer, Reader
from drilldown.learning import data
from drilldown.messages import one_line, printable
from drilldown.options import TrainOptions, TuneOptions
from drilldown.registry import finished, registry
from drilldown.registry.champion import champion_history, dataset_of, explain_no_champion, get_champion
from drilldown.reporting import plots
from drilldown.reporting.report import columns
from drilldown.steps import STEP_NAMES, load_step
from drilldown.tracking import invocation, places, runs, search, store, switches, tags

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from drilldown.experiments.cluster import Cluster

SLICES = 12  # by default, a search measures on a twelfth of the training images: 5,000 of MNIST's
MAX_SHEET = 80  # answers on the contact sheet of a prediction
P = ParamSpec("P")


def command(
    function: Callable[P, None], *, connect: Callable[[], None] = store.connect, needs: str = "files"
) -> Callable[P, None]:
    """Connect a command to the store, and turn errors of MLflow and of memory into errors of one line.

    Args:
        function: what the command does.
        connect: opens the store.
        needs: "files" if the store's files must be where it says; "store" if there must also be a store; or "".
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        store.quiet_mlflow()
        hardware.keep_to_quota()
        with training.explained_errors():
            switches.settle()
            places.check_address()
            if needs == "store":
                places.check_store()
            connect()
            if needs:
                places.check_files()
            function(*args, **kwargs)

    return run


on_a_store = functools.partial(command, needs="store")  # a command that uses what was trained


@command
def train_step(name: str, options: TrainOptions, resume: str) -> None:
    """Train one step, or resume an unfinished run of it: track it, judge it, register its model if it passes."""
    training.train_run(name, options, run_id=resume or None, resume=bool(resume))


@contextlib.contextmanager
def _continue_hint(entry_point: str, options: TrainOptions, experiment: str, **given: object) -> Iterator[None]:
    """Say how to go on with several trainings that were stopped."""
    defaults = TrainOptions()
    given |= {name: value for name, value in asdict(options).items() if value != getattr(defaults, name)}
    given |= {"experiment": experiment} if experiment else {}
    hint = invocation.command(entry_point, **given)
    try:
        yield
    except process.Stopped:
        click.echo(f"to go on, reusing the finished runs: {hint}")
        raise


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
        _workers(cluster, gpus) as workers,
        runs.run(f"repeat {step}", {"kind": "repeat"}) as parent,
        _continue_hint("repeat", options, experiment, step=step, seeds=seeds, **given, **_cluster(cluster, gpus)),
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


def _register_seed(summary: repeat.RepeatSummary, seed: int | None, dataset: data.Dataset) -> list[str]:
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


def _workers(cluster: str, gpus: int) -> contextlib.AbstractContextManager[Cluster | None]:
    """The cluster at this address; None without an address: then this machine trains."""
    if not cluster:
        if gpus:
            raise ParameterError(f"gpus is {gpus}: it takes a cluster; without one, device=auto finds the GPU")
        return contextlib.nullcontext()
    from drilldown.experiments.cluster import connect  # it takes a second

    return connect(cluster, gpus)


def _cluster(address: str, gpus: int) -> dict[str, object]:
    """The parameters of a cluster, for a command that goes on with this one."""
    return {name: value for name, value in (("cluster", address), ("gpus", gpus)) if value}


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
        _workers(cluster, gpus) as workers,
        runs.run(f"tune {step}", {"kind": "tune", "step": step}) as parent,
        _continue_hint("tune", hinted, "", step=step, **kept, **_cluster(cluster, gpus)),
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


@command
def train_all(options: TrainOptions, reuse: bool, experiment: str, cluster: str = "", gpus: int = 0) -> None:
    """Train every step with one seed, each in a nested run, and compare them."""
    experiments = search.experiments(experiment)
    with (
        _workers(cluster, gpus) as workers,
        runs.run("all", {"kind": "all"}) as parent,
        _continue_hint("all", options, experiment, **_cluster(cluster, gpus)),
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
        _log_comparison(parent, entries, dataset.name, failed)
        nested.check(outcomes)


@command
def work(dataset: str) -> None:
    """Train what standard input asks for: a process of `repeat`, `tune` or `all`."""
    worker.work(dataset)


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
        _log_comparison(run_id, entries, name, {})


def _log_comparison(
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
def register(run_id: str, dataset: str, data_dir: str) -> None:
    """Register the model of a finished run, with all the checks of a run that registers its model itself."""
    with runs.run("register", {"kind": "register", "registers": run_id}):
        run = finished.find_run(run_id)
        location = dataset or tags.ours(run.data.tags).get("dataset.location", run.data.params["run.dataset"])
        registration = finished.register_run(run_id, data.load(location, data_dir or None))
        training.say_registered(registration)
        training.say(invocation.next_steps((), training.how_to_use(registration.name), registration.name))


@on_a_store
def promote(version: str, *, force: bool, model: str, why: str, dataset: str, data_dir: str) -> None:
    """Make a version the champion by hand, with the checks of every promotion."""
    with runs.run(f"promote {model}", {"kind": "promote", "promote": model}):
        measured_on = _load_measured_on(model, version, dataset, data_dir)
        _show_change(model, registry.promote(model, version, measured_on, why=why, force=force))


@on_a_store
def roll_back(*, model: str, why: str, dataset: str, data_dir: str) -> None:
    """Make the previous champion the champion again."""
    with runs.run(f"rollback {model}", {"kind": "rollback", "rollback": model}):
        measured_on = _load_measured_on(model, None, dataset, data_dir)
        _show_change(model, registry.roll_back(model, measured_on, why=why))


def _load_measured_on(model: str, version: str | None, dataset: str, data_dir: str) -> data.Dataset:
    """Load the data that a registered model was measured on, from where it was, or from where the user says it is."""
    location = registry.dataset_location(model, version)
    if not dataset and location not in DATASETS and not Path(location).exists():
        raise ParameterError(
            f"dataset is not given, and {location}, on which {model} was measured, is gone: it takes the path where "
            "the data is now"
        )
    return data.load(dataset or location, data_dir or None)


def _show_change(model: str, done: registry.Registration) -> None:
    """Print the champion's history. Raises RegistryError when the champion was not changed."""
    training.say(done.details)
    for entry in champion_history(model):
        click.echo(entry)
    if not done.champion:
        raise RegistryError(f"{model} version {done.version} stays challenger: {done.reason}")
    click.echo(f"{model} version {done.version} is champion: {done.reason}")
    training.say(invocation.next_steps((), training.how_to_use(model), model))


@on_a_store
def predict_images(images: str, model: str, several: bool, labels: str, recursive: bool) -> None:
    """Classify image files by a registered model, and log the answers."""
    files, left_out = find_images(images, recursive)
    with runs.run("predict", {"kind": "predict"}) as run_id:
        loaded, lineage = predict.load(model)
        reader = Reader(loaded, several=several)
        if several and labels:
            raise ParameterError(f"labels is {labels!r}: it takes nothing with several=true, as a file has one label")
        known = predict.read_labels(labels, files, reader.classes or predict.DIGITS) if labels else []
        reading = reader.read(files)
        answers = list(tqdm(reading, total=len(files), unit="image", desc="predicting", leave=False, disable=None))
        answered = [answer for answer in answers if answer.refusal is None]
        refused = {answer.source: answer.refusal for answer in answers if answer.refusal is not None}
        refused |= {printable(str(folder)): reason for folder, reason in left_out.items()}
        metrics: dict[str, float] = {
            "predicted": len(answered),
            "refused": len(refused),
            "unsure": sum(answer.unsure for answer in answered),
        }
        name = lineage.get("model.name")
        answered_by = f"{name} version {lineage['model.version']}" if name else model
        details = f"{answered_by}, run {run_id[:8]}"
        figures = {"contact_sheet.png": _contact_sheet(files, answers, details)}
        if known:
            compared, confidences, right = predict.compare(answers, dict(zip(map(str, files), known, strict=True)))
            metrics |= compared
            caption = plots.Caption("calibration of the answers", f"{len(right):,} labelled pictures, {details}")
            figures["calibration.png"] = plots.reliability(confidences, right, caption)
        runs.log_predictions([answer.as_row() for answer in answers], refused, metrics, figures, lineage)
        if answered:
            click.echo(predict.table(answered))
        for file, reason in refused.items():
            click.echo(f"{file}  left out: {reason}", err=True)
        if known:
            click.echo(predict.accuracy_line(metrics))
        if not answered:
            raise PredictError("none of the files has a digit that could be read")
        training.say(invocation.next_steps((*figures, "predictions.csv")))


def _contact_sheet(files: Sequence[Path], answers: Sequence[Answer], details: str) -> Figure:
    """The first pictures, what the model saw of them, and the answers."""
    paths = {printable(str(file)): file for file in files}
    shown = answers[:MAX_SHEET]
    cells = [
        plots.Cell(
            thumbnail(paths[answer.source], plots.CELL),
            answer.framed,
            f"{Path(answer.source).name}\n{textwrap.fill(answer.in_words(), plots.CELL_TEXT)}",
            "refused" if answer.refusal else "unsure" if answer.unsure else "",
        )
        for answer in shown
    ]
    return plots.answers(
        cells, plots.Caption(f"{len(shown)} of {len(answers):,} answers: picture, and what the model saw", details)
    )


@on_a_store
def serve(model: str, port: int) -> None:
    """Serve the champion over HTTP until Ctrl-C: MLflow's own server, with the endpoint for pictures beside it."""
    from drilldown.inference import http, serving

    if get_champion(model) is None:
        raise RegistryError(explain_no_champion(model, invocation.serve_command))
    app = serving.create_app(f"models:/{model}@champion")
    with http.listen("127.0.0.1", port) as listening:
        click.echo(f"serving {model} on http://127.0.0.1:{port} until Ctrl-C")
        if dataset_of(model) in DATASETS:  # the request holds a digit
            for path, kind, name in (("invocations", "application/json", "two.json"), ("read", "image/png", "two.png")):
                request = shlex.quote(f"@{os.path.relpath(training.IMAGES / name)}")
                header = f"--header 'Content-Type: {kind}' --data-binary {request}"
                click.echo(f"ask it: curl --silent http://127.0.0.1:{port}/{path} {header}")
        http.serve(app, listening)


@on_a_store
def draw(model: str, host: str, port: int) -> None:
    """Serve the page to draw on until Ctrl-C; under `mlflow run`, its run says so."""
    from drilldown.inference import http
    from drilldown.inference.current import CurrentChampion
    from drilldown.web import server

    with runs.run("draw", {"kind": "draw"}) if process.OPENED_RUN else contextlib.nullcontext():
        if get_champion(model) is None:
            raise RegistryError(explain_no_champion(model, lambda other: invocation.command("draw", model=other)))
        champion = CurrentChampion(model)
        with http.listen(host, port) as listening:
            page, version = server.page_address(listening, host), champion.get().version
            click.echo(f"draw on {page} until Ctrl-C; {model} version {version} answers")
            if not server.is_local(listening):
                click.echo(f"warning: whoever reaches port {port} of this machine may use the page", err=True)
            http.serve(server.create_app(champion, host), listening)


@on_a_store
def record_results(name: str, epochs: int | None, force: bool, experiment: str) -> None:
    """Write results/STEP.json from the finished MNIST runs in the store."""
    recipe = load_step(name).recipe
    file, left_out = records.write(name, recipe, epochs or recipe.epochs, search.experiments(experiment), force)
    click.echo(f"{file}: the newest run of each seed; left out: {left_out}")
    click.echo("next:   make docs")


@on_a_store
def close(run: str) -> None:
    """Close an open run whose machine is gone, and the open runs nested in it."""
    runs.name_opened("close", {"kind": "close", "closes": run})
    for name in store.close_by_hand(run):
        click.echo(f"closed as KILLED: {name}")


@functools.partial(command, connect=store.connect_to_read, needs="")
def show_status(model: str, experiment: str) -> None:
    """Show the registered models and the unfinished runs; nothing is written to the store."""
    if not store.exists():
        click.echo(status.nothing_yet())
        return
    if missing := places.missing_files():
        click.echo(f"warning: {missing}", err=True)
    experiments = search.experiments(experiment)
    runs.name_opened("status", {"kind": "status"})
    click.echo(status.overview(model, experiments))


@functools.partial(command, connect=store.connect_to_read, needs="")
def relocate(old: str, new: str) -> None:
    """Change the store's addresses of a folder that has moved."""
    before, after, count, copy = places.relocate(old, new)
    runs.name_opened("relocate", {"kind": "relocate"})
    click.echo(f"{count:,} addresses lead to {after} now, no more to {before}; the database as it was: {copy}")
    places.check_files()
