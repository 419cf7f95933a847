"""One training as an MLflow run: train or resume it, judge the model, and register it if it passed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import mlflow
import torch
from mlflow.exceptions import MlflowException
from tqdm import tqdm

from drilldown import process
from drilldown.choices import DATASETS, DEFAULT_MODEL
from drilldown.engine import accelerate
from drilldown.errors import CheckpointError, DrilldownError, PermissionMissingError, StoreError
from drilldown.learning import checkpoint, data, side_by_side, train
from drilldown.learning.evaluate import Evaluation, evaluate
from drilldown.learning.recipe import Goal, Recipe
from drilldown.options import TrainOptions
from drilldown.registry import registry
from drilldown.registry.champion import dataset_of, missing_permission, model_name
from drilldown.registry.verify import Verifier
from drilldown.reporting import gate, report
from drilldown.steps import ROOT, Step, load_step
from drilldown.tracking import attempts, invocation, provenance, runs, store
from drilldown.tracking.resume import check_fingerprint, checkpoints, resume_options

KEEP_EPOCHS = 3  # on a cluster, between two states that are kept in the store
IMAGES = ROOT / "docs" / "digits"  # to try a model on


@dataclass(frozen=True)
class Task:
    """A training in a run that is open already: what is asked of a worker."""

    step: str
    options: TrainOptions
    run_id: str
    register: bool = False  # whether the model is registered if it passes the gate
    on_cluster: bool = False  # its worker may be lost, and another one go on

    @property
    def name(self) -> str:
        """The name of the training, and of its run."""
        return run_name(self.step, self.options.seed, self.options.trial)


def run_name(step: str, seed: int, trial: int | None = None) -> str:
    """The name of a training, and of its run."""
    return f"{step} seed {seed}" if trial is None else f"{step} trial {trial} seed {seed}"


def run_tags(step: str, options: TrainOptions) -> dict[str, str]:
    """The tags that say what a run trains."""
    search = {} if options.trial is None else {"study": options.study, "trial": str(options.trial)}
    return {"kind": "train", "step": step, **search}


@contextlib.contextmanager
def explained_errors() -> Iterator[None]:
    """Turn errors of MLflow and of memory into errors of one line."""
    try:
        yield
    except MlflowException as error:
        raise StoreError(store.explain(error)) from error
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise DrilldownError(f"out of memory: {error}; in training, a smaller batch_size needs less") from error


def train_task(task: Task, dataset: data.Dataset) -> None:
    """Train a task in its run."""
    attempt = 0
    if task.on_cluster:
        if runs.is_finished(task.run_id):
            return  # its worker was lost before it could say so
        attempt = attempts.begin(task.run_id)
    train_run(task.step, task.options, run_id=task.run_id, dataset=dataset, register=task.register, attempt=attempt)


def train_run(
    name: str,
    options: TrainOptions,
    *,
    run_id: str | None = None,
    resume: str = "",
    dataset: data.Dataset | None = None,
    register: bool = True,
    attempt: int = 0,
) -> None:
    """Train one step in a run: track it, judge it, and register its model if it passes.

    Args:
        name: of the step.
        options: what the user gave.
        run_id: of a run that is open already; by default a new one is opened.
        resume: id of an unfinished run, to continue it from its saved state; without `run_id` and `dataset`.
        dataset: what the options stand for, if it is loaded already.
        register: whether a model that passes the gate is registered.
        attempt: on a cluster, the number of this attempt. States are then kept in the store, from which the second
            attempt goes on, if there is one; else it begins again, and logs what is missing.
    """
    step = load_step(name)
    if resume:
        options = resume_options(resume, name, options)
    recipe = options.recipe(step.recipe)
    device = train.prepare(options.seed, options.device, options.threads)
    network = step.network(**options.network_fields)
    acceleration = accelerate(network, engine=options.engine, device=device)
    fingerprint_of = partial(find_fingerprint, step, options, device=device, engine=acceleration.engine)
    if resume:
        opening = _reopen_run(name, options, resume, fingerprint_of)
    else:
        opening = _open_run(name, options, run_id, dataset)
    with contextlib.ExitStack() as stack:
        run_id, folder, dataset = stack.enter_context(opening)
        stack.enter_context(_resume_hint(name, run_id, folder, options))
        state = train.init_state(network, recipe, dataset, options.seed, device)
        goal = options.goal(step.target, dataset)
        _announce(name, options.seed, state, recipe, dataset, acceleration.reason)
        logged = set()
        if resume:
            logged = _restore(state, folder, run_id, dataset.split)
        elif attempt > 1:
            logged = _take_over(state, folder, run_id, dataset.split)
        if not (resume or (attempt > 1 and attempts.has_started())):
            runs.log_start(fingerprint_of(dataset), state, recipe, goal, dataset, options, acceleration.engine)
        if register:
            warn_of_missing_permission(dataset)
        verifier = stack.enter_context(Verifier())
        for row in train.fit(state, recipe, dataset, acceleration.engine):
            if options.trial is None:  # a trial that was stopped is trained again
                checkpoint.save(state, folder)  # first: if logging fails, `resume` logs this epoch from the saved state
            if attempt:
                process.check_parent()  # if its worker is lost, another one logs this epoch
            if row.epoch not in logged:  # after a damaged state, an epoch that was logged is trained again
                runs.log_epoch(row, dataset.split)
            if attempt and options.trial is None and row.epoch % KEEP_EPOCHS == 0 and row.epoch < recipe.epochs:
                attempts.keep_state(max(folder.glob("epoch-*.pt")))
            tqdm.write(report.epoch_line(row, recipe.epochs, dataset.split))
            can_pass = register and gate.can_pass(state.accuracies, dataset.split, goal)
            if row.epoch == recipe.epochs - 1 and can_pass:
                verifier.start()  # its imports take seconds
            if options.trial is not None and row.epoch < recipe.epochs and (reason := runs.stop_asked(run_id)):
                runs.log_pruned(reason)
                break
        else:
            _finish(step, options.seed, run_id, state, dataset, goal, verifier, register)
            if attempt:
                attempts.drop_states(run_id)
    checkpoint.clear(folder)


@contextlib.contextmanager
def _open_run(
    name: str, options: TrainOptions, run_id: str | None, dataset: data.Dataset | None
) -> Iterator[tuple[str, Path, data.Dataset]]:
    """Open a run, or take over the one that is named; yields its id, the folder for its states, and the data."""
    tags = run_tags(name, options) | {"checkpoints": str(store.checkpoints().absolute())}
    with runs.run(run_name(name, options.seed, options.trial), tags, run_id) as opened_id:
        folder = store.checkpoints() / opened_id
        with checkpoint.lock(folder):
            dataset = dataset or load_dataset(options)
            runs.check_dataset(opened_id, dataset)
            yield opened_id, folder, dataset


@contextlib.contextmanager
def _reopen_run(
    name: str, options: TrainOptions, run_id: str, fingerprint_of: Callable[[data.Dataset], dict[str, str]]
) -> Iterator[tuple[str, Path, data.Dataset]]:
    """Open an unfinished run again; yields its id, the folder with its states, and the data.

    Everything is checked before the run is changed. `fingerprint_of` gives the current fingerprint for a dataset.
    """
    dataset = load_dataset(options)
    check_fingerprint(run_id, fingerprint_of(dataset))
    folder = checkpoints(mlflow.get_run(run_id))
    with checkpoint.lock(folder, fresh=False):
        # Data and states may have moved since the run was stopped.
        locations = {"dataset.location": dataset.location, "checkpoints": str(folder.parent.absolute())}
        tags = run_tags(name, options) | locations
        with runs.run(run_name(name, options.seed, options.trial), tags, run_id, resume=True):
            yield run_id, folder, dataset


def _announce(
    name: str, seed: int, state: train.TrainState, recipe: Recipe, dataset: data.Dataset, reason: str | None
) -> None:
    """Say what is trained, and why engine=auto chose torch, if it did."""
    click.echo(
        f"{name}, seed {seed}: {state.classifier.num_parameters:,} parameters, {dataset.name}, "
        f"{recipe.epochs} epochs on {state.classifier.mean.device.type}"
    )
    if dataset.is_own:
        click.echo(dataset)
    if reason:
        click.echo(f"engine: torch, because {reason}")


def train_together(
    tasks: Sequence[Task], dataset: data.Dataset | None, ended: Callable[[Task, Exception | None], None]
) -> None:
    """Train the same step with several seeds at the same time, on one CUDA device; `ended` is told of each.

    The runs are filled when their trainings are over. No state is saved: these trainings take seconds.
    """
    name, options = tasks[0].step, tasks[0].options
    step, dataset = load_step(name), dataset or load_dataset(options)
    recipe, goal, device = options.recipe(step.recipe), options.goal(step.target, dataset), torch.device("cuda")
    by_seed = {task.options.seed: task for task in tasks}
    network = partial(step.network, **options.network_fields)
    for trained in side_by_side.fit_side_by_side(network, recipe, dataset, list(by_seed)):
        task, failure = by_seed[trained.seed], None
        tags = run_tags(name, task.options)
        try:
            with explained_errors(), runs.run(task.name, tags, task.run_id), Verifier() as verifier:
                runs.check_dataset(task.run_id, dataset)
                fingerprint = find_fingerprint(step, task.options, dataset, device, "torch")
                runs.log_start(fingerprint, trained.state, recipe, goal, dataset, task.options, "torch")
                for row in trained.state.history:
                    runs.log_epoch(row, dataset.split)
                if trained.error:
                    raise trained.error
                _finish(step, trained.seed, task.run_id, trained.state, dataset, goal, verifier, task.register)
        except DrilldownError as error:
            failure = error
        ended(task, failure)


def load_dataset(options: TrainOptions) -> data.Dataset:
    """Load what the options stand for, without the real test images if a validation slice is asked for."""
    return data.load(options.dataset, options.data_dir or None).hold_out(options.validation)


def find_fingerprint(
    step: Step, options: TrainOptions, dataset: data.Dataset, device: torch.device, engine: str
) -> dict[str, str]:
    """What makes the result of a training."""
    return provenance.fingerprint(
        step.name,
        recipe=options.recipe(step.recipe),
        network=options.network_fields,
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


def _take_over(state: train.TrainState, folder: Path, run_id: str, split: str) -> set[int]:
    """Go on from the newest state of a lost worker, in this folder or in the store; returns the epochs that are logged.

    Without such a state the training begins again.
    """
    if not checkpoint.exists(folder):
        attempts.fetch_states(run_id, folder)
    try:
        logged = _restore(state, folder, run_id, split)
        runs.set_tags({"attempt.after_epoch": str(len(state.history))})
        return logged
    except CheckpointError:
        return runs.logged_epochs(run_id)


def _finish(
    step: Step,
    seed: int,
    run_id: str,
    state: train.TrainState,
    dataset: data.Dataset,
    goal: Goal,
    verifier: Verifier,
    register: bool,
) -> None:
    """Judge the trained model, log it, and register it if it passed and `register` is true."""
    history, split = state.history, dataset.split
    verdict = gate.judge(state.accuracies, split, state.classifier.num_parameters, goal)
    evaluation = _evaluate_on_cpu(state, dataset)
    if verdict.passed and register:
        verifier.start()  # unless it runs already; meanwhile this process draws and exports
    text = report.markdown(step.docstring, seed, history, verdict, goal, split)
    model = runs.log_end(state, evaluation, verdict, goal, dataset, text, f"{step.name}-seed{seed}")
    click.echo(report.verdict_lines(verdict))
    files = ("report.md", "curves.png", "mistakes.png")
    comparison = how_to_compare(dataset)
    if not (verdict.passed and register):
        click.echo("nothing registered")
        say(invocation.next_steps(files, comparison))
        return
    try:
        registration = registry.register(model, run_id, step.name, verdict, evaluation.accuracy, dataset, verifier)
    except PermissionMissingError as error:
        runs.set_tags({"not.registered": str(error)})
        say_not_registered(run_id, error)
        say(invocation.next_steps(files, comparison))
        return
    say_registered(registration)
    say(invocation.next_steps(files, [*how_to_use(registration.name), *comparison], registration.name))


def _evaluate_on_cpu(state: train.TrainState, dataset: data.Dataset) -> Evaluation:
    """Evaluate the trained model on the CPU, where its exported model runs; after a training there, this is done."""
    if state.evaluation and state.classifier.mean.device.type == "cpu":
        return state.evaluation
    return evaluate(state.eval_model.cpu(), dataset.test_images, dataset.test_labels)


def warn_of_missing_permission(dataset: data.Dataset) -> None:
    """Say before training that its model cannot be registered, where that can be known."""
    if dataset.split == "test" and (missing := missing_permission(model_name(dataset.name))):
        click.echo(f"warning: {missing}: the result will be kept, and not registered", err=True)


def say_not_registered(run_id: str, error: PermissionMissingError) -> None:
    """Say how to register the model of a run later."""
    click.echo(f"not registered: {error}; to register it then: {invocation.command('register', run=run_id)}")


def say_registered(registration: registry.Registration) -> None:
    """Say what the registration came to."""
    role = "champion" if registration.champion else "challenger"
    say(registration.details)
    click.echo(f"registered {registration.name} version {registration.version} as {role}: {registration.reason}")


def how_to_use(model: str) -> list[str]:
    """How to use the model's champion."""
    given = {} if model == DEFAULT_MODEL else {"model": f"models:/{model}@champion"}
    images = os.path.relpath(IMAGES) if dataset_of(model) in DATASETS else "PICTURES"  # of the user's own data
    return [invocation.serve_command(model), invocation.command("predict", images=images, **given)]


def how_to_compare(dataset: data.Dataset) -> list[str]:
    """How to compare a run with others, if it was measured on the test images."""
    given = {"dataset": dataset.name} if dataset.is_own else {}
    return [invocation.command("compare", **given)] if dataset.split == "test" else []


def say(text: str) -> None:
    """Print the text, unless it is empty."""
    if text:
        click.echo(text)
