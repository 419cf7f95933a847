"""The command line, `python -m src.run step4 --seed 0`: it checks what was given and wires the parts together."""

import contextlib
import importlib
import logging
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType

import click
from mlflow.exceptions import MlflowException
from tqdm import tqdm

from src.learning import data, train
from src.learning.evaluate import evaluate
from src.learning.recipe import ParameterError, check
from src.lifecycle import gate, predict, records, registry, report, tracking

STEPS = tuple(sorted(file.stem for file in (Path(__file__).parents[1] / "steps").glob("*.py")))


class Number(click.ParamType):
    """A number within bounds; where it may be empty, None stands for the default."""

    def __init__(self, *, whole: bool = False, empty: bool = True, **bounds: float):
        self.name = "whole number" if whole else "number"
        self.whole, self.empty, self.bounds = whole, empty, bounds

    def convert(self, value, param, ctx):
        if value is None or (value == "" and self.empty):
            return None
        with contextlib.suppress(ValueError):  # check() says what is wrong with it
            value = int(value) if self.whole else float(value)
        check(param.name, value, whole=self.whole, **self.bounds)
        return value


def option(name: str, *, default: str = "", help: str, **settings):
    """An option by the name that `mlflow run -P` knows it by."""
    if not settings.get("required"):
        settings |= {"default": default, "show_default": bool(default)}
    return click.option(f"--{name}", name, help=help, **settings)


@click.group(context_settings={"max_content_width": 120})
def cli():
    """Train a step, or use what was trained. `mlflow run . -e STEP -P name=value` calls these same commands."""


def training_command(name: str) -> click.Command:
    """The command that trains one step."""

    @click.command(name, help=f"Train {name}.")
    @option("seed", default="0", type=Number(whole=True, empty=False, low=0, high=2**32 - 1), help="of all randomness")
    @option("dataset", default="auto", type=click.Choice(data.DATASETS), help="what to train on")
    @option("data_dir", help="where MNIST is kept  [default: the user's cache folder]")
    @option("epochs", type=Number(whole=True, low=1), help="passes over the training images  [default: the recipe's]")
    @option("batch_size", type=Number(whole=True, low=1), help="images an update  [default: the recipe's]")
    @option("lr", type=Number(above=0), help="(peak) learning rate  [default: the recipe's]")
    @option(
        "validation", default="0", type=Number(whole=True, empty=False, low=0), help="training images to measure on"
    )
    @option("device", default="auto", type=click.Choice(("auto", "cpu", "cuda")), help="where to compute")
    @option("threads", type=Number(whole=True, low=1, high=1024), help="CPU threads  [default: all cores]")
    @option("target", type=Number(low=0, high=100), help="accuracy in percent  [default: the dataset's]")
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
    tracking.connect()
    with tracking.run("predict", {}):
        loaded = predict.load(model)
        predictions, refused = predict.predict(loaded, files)
        tracking.log_predictions([asdict(row) for row in predictions], refused, model, loaded.metadata)
        for row in predictions:
            second = f"then {row.second_digit}  {row.second_probability:7.2%}"
            click.echo(f"{row.file}  {row.digit}  {row.probability:7.2%}   {second}")
        for file, reason in refused.items():
            click.echo(f"{file}  left out: {reason}", err=True)
        if not predictions:
            raise predict.PredictError("none of the files could be read")


@cli.command("record", help="Write results/STEP.json from the finished MNIST runs in the store.")
@option("step", required=True, type=click.Choice(STEPS), help="whose runs")
@option("epochs", type=Number(whole=True, low=1), help="length of the runs  [default: the recipe's]")
def record_results(step: str, epochs: int | None) -> None:
    tracking.connect()
    full = importlib.import_module(f"steps.{step}").RECIPE.epochs
    click.echo(records.write(step, epochs or full, full))


def train_step(
    name: str, *, seed, dataset, data_dir, epochs, batch_size, lr, validation, device, threads, target
) -> None:
    """Train one step and see it through: track, judge, and register what passes."""
    step = importlib.import_module(f"steps.{name}")
    given = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
    recipe = replace(step.RECIPE, **{field: value for field, value in given.items() if value is not None})
    chosen = train.prepare(seed, device, threads)
    tracking.connect()
    with tracking.run(f"{name} seed {seed}", {"step": name}) as run_id:
        loaded = data.load(dataset, data_dir or None).hold_out(validation)
        goal = replace(step.TARGET, accuracy=loaded.target_accuracy if target is None else target)
        training = train.start(step.Network(), recipe, loaded, seed, chosen)
        tracking.log_start(
            classifier=training.classifier, recipe=recipe, target=goal, dataset=loaded, seed=seed, device=chosen
        )
        click.echo(
            f"{name}, seed {seed}: {training.classifier.parameters_count:,} parameters, {loaded.name}, "
            f"{recipe.epochs} epochs on {chosen.type}"
        )
        for row in train.fit(training, recipe, loaded):
            tracking.log_epoch(row)
            tqdm.write(report.epoch_line(row, recipe.epochs, loaded.split))
        finish(step, name, seed, run_id, training, loaded, goal)


def finish(
    step: ModuleType, name: str, seed: int, run_id: str, training: train.Training, loaded: data.Dataset, goal
) -> None:
    """What follows the last epoch."""
    classifier, history = training.result, training.history
    images = loaded.test_images.to(classifier.mean.device)
    evaluation = evaluate(classifier, images, loaded.test_labels.to(images.device))
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
        click.echo(f"registered {registration.name} version {registration.version} as {role}: {registration.reason}")
    else:
        click.echo("nothing registered")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error is one line on standard error, and an exit code that is not 0."""
    try:
        cli.main(arguments, standalone_mode=False)
    except click.NoSuchOption as error:
        takes = ", ".join(parameter.name for parameter in error.ctx.command.params)
        fail(2, f"{error.option_name.lstrip('-')} is no parameter of {error.ctx.info_name}: it takes {takes}")
    except click.ClickException as error:
        fail(2, error.format_message())
    except ParameterError as error:
        fail(2, str(error))
    except (
        data.DataError,
        predict.PredictError,
        records.RecordError,
        train.DivergedError,
        registry.VerificationError,
        MlflowException,
    ) as error:
        fail(1, str(error))
    except (KeyboardInterrupt, click.Abort):
        fail(130, "interrupted")


def fail(code: int, message: str) -> None:
    message = " ".join(message.split())
    click.echo(f"error: {message}", err=True)
    tracking.note_error(message)
    sys.exit(code)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    main()
