"""The command line: it checks what was given and wires the parts together."""

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import click
import torch
from mlflow.exceptions import MlflowException
from tqdm import tqdm

from src import process
from src.learning import checkpoint, data, train
from src.learning.evaluate import evaluate
from src.learning.recipe import ParameterError, Recipe, Target
from src.lifecycle import (
    compare,
    gate,
    nested,
    plots,
    predict,
    provenance,
    records,
    registry,
    repeat,
    report,
    store,
    tracking,
)
from src.lifecycle.messages import one_line, printable
from src.options import DEFAULTS, Number, option, reuse_option, seed_option, training_options, validation_option

CHECKPOINTS = Path("checkpoints")
LINE = 2_000  # characters of an error's
SHEET = 80  # images on the contact sheet of a prediction
MODELS = {registry.model_name(name): name for name in data.DATASETS if name != "auto"}
STEPS = tuple(sorted(file.stem for file in (Path(__file__).parents[1] / "steps").glob("*.py")))


@click.group(context_settings={"max_content_width": 120})
def cli():
    """Train a step, or use what was trained. `mlflow run . -e STEP -P name=value` calls these same commands."""


def training_command(name: str) -> click.Command:
    """The command that trains one step."""

    @click.command(name, help=f"Train {name}.")
    @seed_option
    @validation_option
    @training_options
    @option("resume", help="id of an unfinished run to go on with")
    def command(**given):
        train_step(name, **given)

    return command


for name in STEPS:
    cli.add_command(training_command(name))


@cli.command("predict", help="Label image files.")
@option("images", required=True, help="an image file, or a folder with image files")
@option("model", default="models:/mnist-cnn@champion", help="URI of the model to ask")
def predict_images(images: str, model: str) -> None:
    files = predict.find_images(images)
    store.connect()
    with tracking.run("predict", {}):
        loaded, lineage = predict.load(model)
        predictions, seen, refused = predict.predict(loaded, files)
        shown = predictions[:SHEET]
        sheet = plots.sheet(
            seen[:SHEET],
            [f"{Path(row.file).name[-18:]}\n{row.digit} ({row.probability:.0%})" for row in shown],
            f"{len(shown)} of {len(predictions):,} images, as the model saw them",
        )
        tracking.log_predictions([asdict(row) for row in predictions], refused, sheet, lineage)
        if predictions:
            click.echo(predict.table(predictions))
        for file, reason in refused.items():
            click.echo(f"{file}  left out: {reason}", err=True)
        if not predictions:
            raise predict.PredictError("none of the files could be read")


@cli.command("repeat", help="Train a step over many seeds, and report how often it reaches its target.")
@option("step", default="step4", type=click.Choice(STEPS), help="what to train")
@option("seeds", default="10", type=Number(whole=True, empty=False, low=1), help="how many, from 0 on")
@option("jobs", default="1", type=Number(whole=True, empty=False, low=1), help="how many at a time")
@reuse_option
@validation_option
@training_options
def repeat_step(step: str, seeds: int, jobs: int, **given) -> None:
    store.connect()
    with tracking.run(f"repeat {step}", {"repeat": step}) as parent:
        loaded = dataset_of(given)
        goal = target_of(load_step(step), loaded, given)
        tasks = [(step, seed) for seed in range(seeds)]
        outcomes = list(train_nested(tasks, loaded, parent, jobs=jobs, quiet=True, given=given))
        summary = repeat.summarise(step, outcomes, goal, loaded.split)
        curves = {run["seed"]: run["accuracies"] for run in summary["runs"] if run["error"] is None}
        tracking.log_repeat(summary, plots.seeds(curves, goal.accuracy, loaded.split))
        click.echo(repeat.summary_lines(summary))
        nested.check(outcomes)


@cli.command("all", help="Train every step, and compare them.")
@seed_option
@reuse_option
@training_options
def all_steps(seed: int, **given) -> None:
    store.connect()
    given |= {"validation": 0}
    with tracking.run("all", {"all": " ".join(STEPS)}) as parent:
        loaded = dataset_of(given)
        tasks = [(step, seed) for step in STEPS]
        outcomes = list(train_nested(tasks, loaded, parent, jobs=1, quiet=False, given=given))
        made = {outcome.step: outcome.run_id for outcome in outcomes if outcome.error is None}
        entries = {
            step: compare.collect(step, loaded.digest, like=made[step]) if step in made else None for step in STEPS
        }
        log_comparison(entries, loaded.name, {outcome.step: outcome.error for outcome in outcomes if outcome.error})
        nested.check(outcomes)


@cli.command("compare", help="Show the finished runs of the steps side by side.")
@option("dataset", default="auto", type=click.Choice(data.DATASETS), help="whose runs; auto: MNIST's, if there are any")
def compare_steps(dataset: str) -> None:
    store.connect()
    with tracking.run("compare", {}):
        if not (newest := compare.newest(dataset)):
            raise compare.CompareError(
                f"dataset is {dataset!r}: the store has no finished run to compare; train a step"
            )
        name, digest = newest.data.params["run.dataset"], newest.data.tags["dataset.digest"]
        recipes = {step: asdict(load_step(step).RECIPE) for step in STEPS}
        log_comparison({step: compare.collect(step, digest, recipe=recipes[step]) for step in STEPS}, name, {})


def log_comparison(entries: Mapping[str, compare.Entry | None], dataset: str, failed: Mapping[str, str]) -> None:
    """Leave the comparison on the run, and show it in short."""
    table, figure = compare.rows(entries, dataset), compare.figure(entries)
    said = compare.notes(entries, dataset, failed)
    pages = compare.markdown(table, said), compare.page(table, said, figure)
    tracking.log_comparison(dataset, *pages, compare.numbers(entries, table), figure)
    for row in table:
        click.echo(compare.line(row))


def train_nested(
    tasks: Sequence[tuple[str, int]], loaded: data.Dataset, parent: str, *, jobs: int, quiet: bool, given: Mapping
) -> Iterator[nested.Outcome]:
    """Train each (step, seed) in a run nested in the parent, or reuse a finished run of it; a line for each."""
    device = train.prepare(0, given["device"], None)
    goals, missing, reused = {}, [], []
    for step, seed in tasks:
        try:
            module = load_step(step)
        except Exception as error:  # whatever is wrong with its file, the other steps can do without it
            outcome = nested.Outcome(step, seed, "", error=f"{type(error).__name__}: {error}")
            click.echo(nested.outcome_line(outcome, Target()))
            yield outcome
            continue
        goal = goals[step] = target_of(module, loaded, given)
        same = provenance.fingerprint(
            step, recipe=recipe_of(module, given), target=goal, dataset=loaded, seed=seed, device=device
        )
        if given["reuse"] and (found := tracking.find_same(same)):
            outcome = nested.Outcome.of(step, seed, found.info.run_id, loaded.split, reused=True)
            reused.append(found.info.run_id)
            click.echo(nested.outcome_line(outcome, goal))
            yield outcome
        else:
            missing.append((step, seed))
    tracking.note_reused(reused)
    parameters = {name: "" if value is None else value for name, value in given.items() if name != "reuse"} | {
        "dataset": loaded.name,  # auto is decided once
        "device": device.type,
        "threads": given["threads"] or max(1, train.cores() // min(jobs, len(missing) or 1)),
    }
    running = nested.train(missing, parameters, jobs=jobs, parent=parent, split=loaded.split, quiet=quiet)
    for outcome in tqdm(running, total=len(missing), unit="run", disable=None):
        tqdm.write(nested.outcome_line(outcome, goals[outcome.step]))
        yield outcome


def champion_options(command):
    """The parameters that promotion and rollback share."""
    for decorate in (
        option("data_dir", help="where MNIST is kept  [default: the user's cache folder]"),
        option("why", default="by hand", help="for the audit trail"),
        option("model", default="mnist-cnn", type=click.Choice(MODELS), help="the registered model"),
    ):
        command = decorate(command)
    return command


@cli.command("promote", help="Make a registered version the champion, if the checks of every promotion allow it.")
@option("version", required=True, help="the version's number")
@option("force", default="false", type=click.BOOL, help="overrule the comparison with the champion, no other check")
@champion_options
def promote(version: str, force: bool, **given) -> None:
    change_champion("promote", lambda loaded, why: registry.promote(version, loaded, why=why, force=force), **given)


@cli.command("rollback", help="Make the champion before the champion again.")
@champion_options
def roll_back(**given) -> None:
    change_champion("rollback", lambda loaded, why: registry.roll_back(loaded, why=why), **given)


def change_champion(
    name: str, change: Callable[[data.Dataset, str], registry.Registration], model: str, data_dir: str, why: str
) -> None:
    """Change the champion of a model by hand, in a run of its own, and show the audit trail."""
    store.connect()
    with tracking.run(f"{name} {model}", {name: model}):
        done = change(data.load(MODELS[model], data_dir or None), why)
        click.echo(done.details)
        for entry in registry.trail(model):
            click.echo(entry)
        if not done.champion:
            raise registry.RegistryError(f"{model} version {done.version} stays challenger: {done.reason}")
        click.echo(f"{model} version {done.version} is champion: {done.reason}")


@cli.command("record", help="Write results/STEP.json from the finished MNIST runs in the store.")
@option("step", required=True, type=click.Choice(STEPS), help="whose runs")
@option("epochs", type=Number(whole=True, low=1), help="length of the runs  [default: the recipe's]")
def record_results(step: str, epochs: int | None) -> None:
    store.connect()
    recipe = load_step(step).RECIPE
    file, left_out = records.write(step, recipe, epochs or recipe.epochs)
    click.echo(f"{file}: the newest run of each seed; left out: {left_out}")


def train_step(name: str, *, resume: str, **given) -> None:
    """Train one step, or go on with it, and see it through: track, judge, and register what passes."""
    store.connect()
    step = load_step(name)
    if resume:
        given = taken_over(resume, name, given)
    recipe, seed = recipe_of(step, given), given["seed"]
    device = train.prepare(seed, given["device"], given["threads"])

    def fingerprint(loaded: data.Dataset, goal: Target) -> dict[str, str]:
        return provenance.fingerprint(name, recipe=recipe, target=goal, dataset=loaded, seed=seed, device=device)

    with contextlib.ExitStack() as stack:
        if resume:  # what speaks against it is found before the run is touched
            loaded = dataset_of(given)
            tracking.check_same(resume, fingerprint(loaded, target_of(step, loaded, given)))
            stack.enter_context(checkpoint.hold(CHECKPOINTS / resume, fresh=False))
        run_id = stack.enter_context(tracking.run(f"{name} seed {seed}", {"step": name}, resume or None))
        state = CHECKPOINTS / run_id
        if not resume:
            stack.enter_context(checkpoint.hold(state))
            loaded = dataset_of(given)
        stack.enter_context(resumable(name, run_id, state))
        goal = target_of(step, loaded, given)
        training = train.start(step.Network(), recipe, loaded, seed, device)
        click.echo(
            f"{name}, seed {seed}: {training.classifier.parameters_count:,} parameters, {loaded.name}, "
            f"{recipe.epochs} epochs on {device.type}"
        )
        logged = set()
        if resume:
            logged = go_on(training, state, run_id)
        else:
            same = fingerprint(loaded, goal)
            tracking.log_start(same, training.classifier, recipe, goal, loaded, seed, device)
        for row in train.fit(training, recipe, loaded):
            checkpoint.save(training, state)  # before the store hears of it: what it has missed is logged on resume
            if row["epoch"] not in logged:  # after a damaged state, an epoch is trained once more
                tracking.log_epoch(row)
            tqdm.write(report.epoch_line(row, recipe.epochs, loaded.split))
        finish(step, name, seed, run_id, training, loaded, goal)
    checkpoint.clear(state)


@contextlib.contextmanager
def resumable(name: str, run_id: str, state: Path) -> Iterator[None]:
    """Say how to go on with a run that was stopped, or whose store or disk failed."""
    try:
        yield
    except (process.Stopped, MlflowException, checkpoint.CheckpointError, OSError):
        if checkpoint.exists(state):
            click.echo(f"to go on: mlflow run . -e {name} -P resume={run_id}")
        raise


def load_step(name: str) -> ModuleType:
    return importlib.import_module(f"steps.{name}")


def recipe_of(step: ModuleType, given: Mapping) -> Recipe:
    """The step's recipe, with what the user gave in its place."""
    fields = {field: given[field] for field in ("epochs", "batch_size", "lr")}
    return replace(step.RECIPE, **{field: value for field, value in fields.items() if value is not None})


def dataset_of(given: Mapping) -> data.Dataset:
    """The dataset as the user wants it."""
    return data.load(given["dataset"], given["data_dir"] or None).hold_out(given["validation"])


def target_of(step: ModuleType, loaded: data.Dataset, given: Mapping) -> Target:
    """What a model of the step must reach on the dataset."""
    accuracy = loaded.target_accuracy if given["target"] is None else given["target"]
    return replace(step.TARGET, accuracy=accuracy)


def taken_over(run_id: str, name: str, given: Mapping) -> dict:
    """The parameters of the run that is resumed; what the user gave besides must agree with them."""
    stored = tracking.settings(run_id, name)
    for field, value in stored.items():
        if given[field] not in (DEFAULTS.get(field), value):
            raise ParameterError(f"{field} is {given[field]!r}: the run that is resumed has {value!r}")
    return {**given, **stored}


def go_on(training: train.Training, state: Path, run_id: str) -> set[int]:
    """Bring a fresh training to where the run's own one ended; returns the epochs that the store has."""
    for damage in checkpoint.restore(training, state):
        click.echo(f"warning: {damage}; the state before it is used", err=True)
    logged = tracking.logged_epochs(run_id)
    for row in training.history:
        if row["epoch"] not in logged:
            tracking.log_epoch(row)
    click.echo(f"goes on after epoch {len(training.history)}")
    return logged


def finish(
    step: ModuleType, name: str, seed: int, run_id: str, training: train.Training, loaded: data.Dataset, goal
) -> None:
    """What follows the last epoch."""
    classifier, history = training.result.cpu(), training.history  # where its export will answer
    evaluation = evaluate(classifier, loaded.test_images, loaded.test_labels)
    verdict = gate.judge(history, classifier.parameters_count, goal)
    model = tracking.log_end(
        classifier=classifier,
        history=history,
        evaluation=evaluation,
        verdict=verdict,
        target=goal,
        dataset=loaded,
        report=report.markdown(step, seed, history, verdict, goal, loaded.split),
    )
    click.echo(report.verdict_lines(verdict))
    if verdict.passed:
        registration = registry.register(model, run_id, name, verdict, evaluation, loaded)
        role = "champion" if registration.champion else "challenger"
        click.echo(registration.details)
        click.echo(f"registered {registration.name} version {registration.version} as {role}: {registration.reason}")
    else:
        click.echo("nothing registered")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error is one line on standard error, and an exit code that is not 0."""
    store.hush()
    try:
        cli.main(arguments, standalone_mode=False)
    except click.NoSuchOption as error:
        takes = ", ".join(parameter.name for parameter in error.ctx.command.params)
        fail(2, f"{error.option_name.lstrip('-')} is no parameter of {error.ctx.info_name}: it takes {takes}")
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        fail(2, error.format_message())
    except ParameterError as error:
        fail(2, str(error))
    except (
        data.DataError,
        predict.PredictError,
        checkpoint.CheckpointError,
        compare.CompareError,
        records.RecordError,
        nested.NestedError,
        train.DivergedError,
        registry.RegistryError,
        store.StoreError,
        OSError,
    ) as error:
        fail(1, str(error))
    except MlflowException as error:
        fail(1, store.explain(error))
    except process.Stopped as stop:
        fail(stop.code, stop.reason)
    except (KeyboardInterrupt, click.Abort):
        fail(130, "interrupted")
    except (MemoryError, RuntimeError) as error:  # after click.Abort, which is one
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        fail(1, f"there is not enough memory: {error}; in training, a smaller batch_size takes less")


def fail(code: int, message: str) -> None:
    message = printable(one_line(message))
    if len(message) > LINE:
        message = f"{message[: LINE // 2]} … {message[-LINE // 2 :]}"
    click.echo(f"error: {message}", err=True)
    store.note_error(message)
    sys.exit(code)
