"""What each command does: train, resume and finish a run; train many; compare; change the champion; predict; show."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import click
import torch
from mlflow.exceptions import MlflowException
from tqdm import tqdm

from drilldown import hardware, process
from drilldown.choices import DATASETS, DEFAULT_MODEL
from drilldown.engine import accelerate
from drilldown.errors import (
    CheckpointError,
    CompareError,
    DrilldownError,
    ParameterError,
    PredictError,
    RegistryError,
    StoreError,
)
from drilldown.experiments import compare, nested, records, repeat, status
from drilldown.experiments.progress import Progress
from drilldown.inference import predict
from drilldown.inference.framing import thumbnail
from drilldown.inference.reader import Answer, Reader
from drilldown.learning import checkpoint, data, train
from drilldown.learning.evaluate import evaluate
from drilldown.learning.recipe import Goal
from drilldown.messages import printable
from drilldown.options import TrainOptions
from drilldown.registry import registry
from drilldown.registry.champion import champion_history, dataset_of, explain_no_champion, get_champion
from drilldown.registry.verify import Verifier
from drilldown.reporting import gate, plots, report
from drilldown.steps import ROOT, STEP_NAMES, Step, load_step
from drilldown.tracking import invocation, provenance, runs, search, store

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECKPOINTS = Path("checkpoints")
IMAGES = ROOT / "docs" / "digits"  # to try a model on
MAX_SHEET = 80  # answers on the contact sheet of a prediction
DIGITS = tuple("0123456789")
P = ParamSpec("P")


def command(function: Callable[P, None], connect: Callable[[], None] = store.connect) -> Callable[P, None]:
    """Connect a command to the store, and turn errors of MLflow and of memory into errors of one line."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        store.quiet_mlflow()
        try:
            connect()
            function(*args, **kwargs)
        except MlflowException as error:
            raise StoreError(store.explain(error)) from error
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            raise DrilldownError(f"out of memory: {error}; in training, a smaller batch_size needs less") from error

    return run


@command
def train_step(name: str, options: TrainOptions, resume: str) -> None:
    """Train one step, or resume an unfinished run of it: track it, judge it, register its model if it passes."""
    step = load_step(name)
    if resume:
        options = runs.resume_options(resume, name, options)
    recipe = options.recipe(step.recipe)
    device = train.prepare(options.seed, options.device, options.threads)
    network = step.network()
    acceleration = accelerate(network, engine=options.engine, device=device)
    tags = {"kind": "train", "step": name}
    with contextlib.ExitStack() as stack:
        if resume:  # all that could forbid it is checked before the run is changed
            dataset = _load_dataset(options)
            tags["dataset.location"] = dataset.location  # it may have moved since
            fingerprint = _fingerprint(step, options, dataset, device, acceleration.engine)
            runs.check_fingerprint(resume, fingerprint)
            stack.enter_context(checkpoint.lock(CHECKPOINTS / resume, fresh=False))
        run_id = stack.enter_context(runs.run(f"{name} seed {options.seed}", tags, resume or None))
        folder = CHECKPOINTS / run_id
        if not resume:
            stack.enter_context(checkpoint.lock(folder))
            dataset = _load_dataset(options)
            runs.check_dataset(run_id, dataset)
            fingerprint = _fingerprint(step, options, dataset, device, acceleration.engine)
        stack.enter_context(_resume_hint(name, run_id, folder, options))
        state = train.init_state(network, recipe, dataset, options.seed, device)
        goal = options.goal(step.target, dataset)
        click.echo(
            f"{name}, seed {options.seed}: {state.classifier.num_parameters:,} parameters, {dataset.name}, "
            f"{recipe.epochs} epochs on {device.type}"
        )
        if dataset.is_own:
            click.echo(dataset)
        if acceleration.reason:
            click.echo(f"engine: torch, because {acceleration.reason}")
        logged = set()
        if resume:
            logged = _restore(state, folder, run_id, dataset.split)
        else:
            runs.log_start(fingerprint, state, recipe, goal, dataset, options, acceleration.engine)
        verifier = stack.enter_context(Verifier())
        for row in train.fit(state, recipe, dataset, acceleration.engine):
            checkpoint.save(state, folder)  # first: if logging fails, `resume` logs this epoch from the saved state
            if row.epoch not in logged:  # after a damaged state, an epoch that was logged is trained again
                runs.log_epoch(row, dataset.split)
            tqdm.write(report.epoch_line(row, recipe.epochs, dataset.split))
            if row.epoch == recipe.epochs - 1 and gate.can_pass(state.accuracies, dataset.split, goal):
                verifier.start()  # its imports take seconds
        _finish(step, options.seed, run_id, state, dataset, goal, verifier)
    checkpoint.clear(folder)


def _load_dataset(options: TrainOptions) -> data.Dataset:
    return data.load(options.dataset, options.data_dir or None).hold_out(options.validation)


def _fingerprint(
    step: Step, options: TrainOptions, dataset: data.Dataset, device: torch.device, engine: str
) -> dict[str, str]:
    """What makes the result of a training."""
    return provenance.fingerprint(
        step.name,
        recipe=options.recipe(step.recipe),
        goal=options.goal(step.target, dataset),
        dataset=dataset,
        seed=options.seed,
        device=device,
        engine=engine,
    )


@contextlib.contextmanager
def _resume_hint(name: str, run_id: str, folder: Path, options: TrainOptions) -> Iterator[None]:
    """Say how to resume a run that was stopped, or whose store or disk failed."""
    given = {"data_dir": options.data_dir} if options.data_dir else {}  # the run keeps everything else
    hint = invocation.command(name, resume=run_id, **given)  # now, as the store may not answer then
    try:
        yield
    except (process.Stopped, MlflowException, CheckpointError, OSError):
        if checkpoint.exists(folder):
            click.echo(f"to resume it: {hint}")
        raise


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


def _restore(state: train.TrainState, folder: Path, run_id: str, split: str) -> set[int]:
    """Restore the saved state of a run; returns the epochs that the store has."""
    for damage in checkpoint.restore(state, folder):
        click.echo(f"warning: {damage}; the state before it is used", err=True)
    logged = runs.logged_epochs(run_id)
    for row in state.history:
        if row.epoch not in logged:
            runs.log_epoch(row, split)
    click.echo(f"resumes after epoch {len(state.history)}")
    return logged


def _finish(
    step: Step,
    seed: int,
    run_id: str,
    state: train.TrainState,
    dataset: data.Dataset,
    goal: Goal,
    verifier: Verifier,
) -> None:
    """Judge the trained model, log it, and register it if it passed."""
    history, split = state.history, dataset.split
    verdict = gate.judge(state.accuracies, split, state.classifier.num_parameters, goal)
    classifier = state.eval_model.cpu()  # the exported model runs on the CPU, so it is judged there
    evaluation = evaluate(classifier, dataset.test_images, dataset.test_labels)
    if verdict.passed:
        verifier.start()  # unless it runs already; meanwhile this process draws and exports
    text = report.markdown(step.docstring, seed, history, verdict, goal, split)
    model = runs.log_end(state, evaluation, verdict, goal, dataset, text, f"{step.name}-seed{seed}")
    click.echo(report.verdict_lines(verdict))
    files = ("report.md", "curves.png", "mistakes.png")
    comparison = _comparison(dataset)
    if not verdict.passed:
        click.echo("nothing registered")
        _say(invocation.next_steps(files, comparison))
        return
    registration = registry.register(model, run_id, step.name, verdict, evaluation, dataset, verifier)
    role = "champion" if registration.champion else "challenger"
    _say(registration.details)
    click.echo(f"registered {registration.name} version {registration.version} as {role}: {registration.reason}")
    _say(invocation.next_steps(files, [*_use(registration.name), *comparison], registration.name))


def _use(model: str) -> list[str]:
    """How to use the model's champion."""
    given = {} if model == DEFAULT_MODEL else {"model": f"models:/{model}@champion"}
    images = os.path.relpath(IMAGES) if dataset_of(model) in DATASETS else "PICTURES"  # of the user's own data
    return [invocation.serve_command(model), invocation.command("predict", images=images, **given)]


def _comparison(dataset: data.Dataset) -> list[str]:
    """How to compare a run with others, if it was measured on the test images."""
    given = {"dataset": dataset.name} if dataset.is_own else {}
    return [invocation.command("compare", **given)] if dataset.split == "test" else []


def _say(text: str) -> None:
    """Print the text, unless it is empty."""
    if text:
        click.echo(text)


@command
def repeat_step(step: str, seeds: int, jobs: int, options: TrainOptions, reuse: bool, experiment: str) -> None:
    """Train a step with many seeds, each in a nested run, and log the spread of their figures."""
    experiments = search.experiments(experiment)
    with (
        runs.run(f"repeat {step}", {"kind": "repeat"}) as parent,
        _continue_hint("repeat", options, experiment, step=step, seeds=seeds, jobs=jobs),
    ):
        dataset = _load_dataset(options)
        goal = options.goal(load_step(step).target, dataset)
        reuse_from = experiments | search.experiments() if reuse else {}  # those of now: a stopped repeat goes on
        tasks = [(step, seed) for seed in range(seeds)]
        outcomes = list(_train_nested(tasks, dataset, parent, options, jobs=jobs, quiet=True, reuse_from=reuse_from))
        summary = repeat.summarize(step, outcomes, goal, dataset.split)
        curves = {run.seed: run.accuracies for run in summary.runs if run.error is None}
        figure = plots.seeds(curves, goal.accuracy, repeat.caption(summary, dataset, parent), dataset.split, goal.last)
        runs.log_repeat(summary.as_dict(), summary.metrics(), figure)
        click.echo(repeat.summary_lines(summary))
        _say(invocation.next_steps(("seeds.png", "repeat.json"), _comparison(dataset)))
        nested.check(outcomes)


@command
def train_all(options: TrainOptions, reuse: bool, experiment: str) -> None:
    """Train every step with one seed, each in a nested run, and compare them."""
    experiments = search.experiments(experiment)
    with (
        runs.run("all", {"kind": "all"}) as parent,
        _continue_hint("all", options, experiment),
    ):
        experiments = experiments | search.experiments()  # reused runs, and those of now
        reuse_from = experiments if reuse else {}
        dataset = _load_dataset(options)
        tasks = [(step, options.seed) for step in STEP_NAMES]
        outcomes = list(_train_nested(tasks, dataset, parent, options, jobs=1, quiet=False, reuse_from=reuse_from))
        trained = {outcome.step: outcome.run_id for outcome in outcomes if outcome.error is None}
        entries = dict.fromkeys(STEP_NAMES) | {
            step: compare.collect(step, dataset.name, dataset.digest, experiments, like=run_id)
            for step, run_id in trained.items()
        }
        failed = {outcome.step: outcome.error for outcome in outcomes if outcome.error}
        _log_comparison(parent, entries, dataset.name, failed)
        nested.check(outcomes)


def _train_nested(
    tasks: Sequence[tuple[str, int]],
    dataset: data.Dataset,
    parent: str,
    options: TrainOptions,
    *,
    jobs: int,
    quiet: bool,
    reuse_from: Collection[str],
) -> Iterator[nested.Outcome]:
    """Train each (step, seed) in a run nested in the parent, or reuse a finished one; print a line for each.

    `reuse_from` are the ids of the experiments whose finished runs may be reused.
    """
    device = hardware.select_device(options.device)
    goals: dict[str, Goal] = {}
    lengths: dict[str, int] = {}  # in epochs
    missing, reused = [], []
    for name, seed in tasks:
        try:
            step = load_step(name)
            engine = accelerate(step.network(), engine=options.engine, device=device).engine
        except ParameterError:  # of the user, for all steps
            raise
        except Exception as error:  # a broken step must not stop the others
            outcome = nested.Outcome(name, seed, "", error=f"{type(error).__name__}: {error}")
            click.echo(nested.outcome_line(outcome, None))
            yield outcome
            continue
        goal = goals[name] = options.goal(step.target, dataset)
        fingerprint = _fingerprint(step, replace(options, seed=seed), dataset, device, engine)
        if found := search.find_reusable(reuse_from, name, seed, fingerprint):
            outcome = nested.Outcome.from_run(name, seed, found.info.run_id, dataset.split, reused=True)
            reused.append(found.info.run_id)
            click.echo(nested.outcome_line(outcome, goal))
            yield outcome
        else:
            missing.append((name, seed))
            lengths[nested.task_name(name, seed)] = options.recipe(step.recipe).epochs
    runs.note_reused(reused)
    threads = options.threads or max(1, hardware.cores() // min(jobs, len(missing) or 1))
    # Dataset and device are decided here, once for all of them.
    decided = replace(options, dataset=dataset.location, device=device.type, threads=threads)
    with Progress(lengths) as progress:
        for outcome in nested.train(
            missing, decided, jobs=jobs, parent=parent, dataset=dataset, progress=progress, quiet=quiet
        ):
            tqdm.write(nested.outcome_line(outcome, goals[outcome.step]))
            yield outcome


@command
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
    _say(invocation.next_steps(("compare.html", "compare.png", "compare.csv")))


@command
def promote(version: str, *, force: bool, model: str, why: str, dataset: str, data_dir: str) -> None:
    """Make a version the champion by hand, with the checks of every promotion."""
    with runs.run(f"promote {model}", {"kind": "promote", "promote": model}):
        measured_on = _load_measured_on(model, version, dataset, data_dir)
        _show_change(model, registry.promote(model, version, measured_on, why=why, force=force))


@command
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
    _say(done.details)
    for entry in champion_history(model):
        click.echo(entry)
    if not done.champion:
        raise RegistryError(f"{model} version {done.version} stays challenger: {done.reason}")
    click.echo(f"{model} version {done.version} is champion: {done.reason}")
    _say(invocation.next_steps((), _use(model), model))


@command
def predict_images(images: str, model: str, several: bool, labels: str) -> None:
    """Classify image files by a registered model, and log the answers."""
    files = predict.find_images(images)
    with runs.run("predict", {"kind": "predict"}) as run_id:
        loaded, lineage = predict.load(model)
        reader = Reader(loaded, several=several)
        if several and labels:
            raise ParameterError(f"labels is {labels!r}: it takes nothing with several=true, as a file has one label")
        known = predict.read_labels(labels, files, reader.classes or DIGITS) if labels else []
        reading = reader.read(files)
        answers = list(tqdm(reading, total=len(files), unit="image", desc="predicting", leave=False, disable=None))
        answered = [answer for answer in answers if answer.refusal is None]
        refused = {answer.source: answer.refusal for answer in answers if answer.refusal is not None}
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
        _say(invocation.next_steps((*figures, "predictions.csv")))


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


@command
def serve(model: str, port: int) -> None:
    """Serve the champion over HTTP until Ctrl-C: MLflow's own server, with the endpoint for pictures beside it."""
    from drilldown.inference import serving

    if get_champion(model) is None:
        raise RegistryError(explain_no_champion(model, invocation.serve_command))
    app = serving.create_app(f"models:/{model}@champion")
    click.echo(f"serving {model} on http://127.0.0.1:{port} until Ctrl-C")
    if dataset_of(model) in DATASETS:  # the request holds a digit
        for path, kind, name in (("invocations", "application/json", "two.json"), ("read", "image/png", "two.png")):
            request = shlex.quote(f"@{os.path.relpath(IMAGES / name)}")
            header = f"--header 'Content-Type: {kind}' --data-binary {request}"
            click.echo(f"ask it: curl --silent http://127.0.0.1:{port}/{path} {header}")
    serving.run(app, port)


@command
def draw(model: str, host: str, port: int) -> None:
    """Serve the page to draw on until Ctrl-C; under `mlflow run`, its run says so."""
    from drilldown.inference.current import CurrentChampion
    from drilldown.web import server

    with runs.run("draw", {"kind": "draw"}) if process.OPENED_RUN else contextlib.nullcontext():
        if get_champion(model) is None:
            raise RegistryError(explain_no_champion(model, lambda other: invocation.command("draw", model=other)))
        champion = CurrentChampion(model)
        with server.listen(host, port) as listening:
            page, version = server.page_address(listening, host), champion.get().version
            click.echo(f"draw on {page} until Ctrl-C; {model} version {version} answers")
            if not server.is_local(listening):
                click.echo(f"warning: whoever reaches port {port} of this machine may use the page", err=True)
            server.serve(server.create_app(champion, host), listening)


@command
def record_results(name: str, epochs: int | None, force: bool, experiment: str) -> None:
    """Write results/STEP.json from the finished MNIST runs in the store."""
    recipe = load_step(name).recipe
    file, left_out = records.write(name, recipe, epochs or recipe.epochs, search.experiments(experiment), force)
    click.echo(f"{file}: the newest run of each seed; left out: {left_out}")
    click.echo("next:   make docs")


@functools.partial(command, connect=store.connect_to_read)
def show_status(model: str, experiment: str) -> None:
    """Show the registered models and the unfinished runs; nothing is written to the store."""
    if not store.exists():
        click.echo(status.nothing_yet())
        return
    experiments = search.experiments(experiment)
    runs.name_opened("status", {"kind": "status"})
    click.echo(status.overview(model, experiments, CHECKPOINTS))
