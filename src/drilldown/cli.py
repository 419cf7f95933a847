"""The command line: click commands, and errors as one line with an exit code.

A command imports its module of `drilldown.commands`, and with it PyTorch and MLflow, once its options are accepted.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import fields
from typing import Any, NoReturn

import click

from drilldown.choices import DEFAULT_MODEL, FIRST_CONFIRMED_SEED, PRUNERS
from drilldown.errors import DrilldownError
from drilldown.learning.recipe import BOUNDS
from drilldown.messages import one_line, printable
from drilldown.options import (
    DatasetName,
    DatasetType,
    Number,
    TrainOptions,
    TuneOptions,
    cluster_options,
    combine,
    experiment_option,
    jobs_option,
    option,
    reuse_option,
    seed_option,
    training_options,
    validation_option,
)
from drilldown.process import Stopped
from drilldown.steps import STEP_NAMES

MAX_LINE = 2_000  # characters of an error line
chosen_step_option = option("step", default="step4", type=click.Choice(STEP_NAMES), help="what to train")


@click.group(context_settings={"max_content_width": 120})
def cli() -> None:
    """Train a step, or use what was trained. `mlflow run . -e STEP -P name=value` calls the same commands."""


def training_command(name: str) -> click.Command:
    """Make the command that trains one step."""

    @click.command(name, help=f"Train {name}, and register its model if it passes the gate.")
    @seed_option
    @validation_option
    @training_options
    @option("resume", help="id of an unfinished run of this step, to resume it")
    def command(resume: str, **options: Any) -> None:
        from drilldown.commands import train

        train.train_step(name, TrainOptions(**options), resume)

    return command


for _name in STEP_NAMES:
    cli.add_command(training_command(_name))


@cli.command("all", help="Train every step, and compare them.")
@seed_option
@reuse_option
@experiment_option
@cluster_options
@training_options
def train_all(reuse: bool, experiment: str, cluster: str, gpus: int, **options: Any) -> None:
    from drilldown.commands import train

    train.train_all(TrainOptions(**options), reuse, experiment, cluster, gpus)


@cli.command("repeat", help="Train a step with many seeds.")
@chosen_step_option
@option("seeds", default="10", type=Number(whole=True, optional=False, low=1), help="how many seeds, from 0 on")
@jobs_option
@option(
    "register",
    type=Number(**BOUNDS["seed"]),
    help="seed whose model is registered if every seed passes the gate  [default: none]",
)
@reuse_option
@experiment_option
@cluster_options
@validation_option
@training_options
def repeat(
    step: str,
    seeds: int,
    jobs: int | None,
    reuse: bool,
    experiment: str,
    register: int | None,
    cluster: str,
    gpus: int,
    **options: Any,
) -> None:
    from drilldown.commands import train

    train.repeat_step(step, seeds, jobs, TrainOptions(**options), reuse, experiment, register, cluster, gpus)


@cli.command("tune", help="Search for a better recipe of a step, and confirm it over fresh seeds; registers nothing.")
@chosen_step_option
@option("trials", default="20", type=Number(whole=True, optional=False, low=1), help="how many trials the search has")
@jobs_option
@option(
    "validation",
    type=Number(whole=True, low=1, high=999_999),
    help="measure on this many training images  [default: a twelfth of them, 5,000 of MNIST's]",
)
@option(
    "seeds_per_trial",
    default="1",
    type=Number(whole=True, optional=False, low=1, high=FIRST_CONFIRMED_SEED),
    help="how many seeds each trial is trained with",
)
@option(
    "max_parameters",
    type=Number(whole=True, low=1, high=10**12),
    help="train no network with more parameters  [default: the step's]",
)
@option("pruner", default="none", type=click.Choice(PRUNERS), help="what ends a trial that is behind the others")
@option(
    "confirm",
    default="3",
    type=Number(whole=True, optional=False, low=0, high=100),
    help="how many of the best trials are compared with the step's own recipe",
)
@option(
    "confirm_seeds",
    default="8",
    type=Number(whole=True, optional=False, low=2, high=100),
    help="with how many fresh seeds each",
)
@option("storage", help="database of the studies, as postgresql://…  [default: studies.db beside the store]")
@cluster_options
@option(
    "seed",
    default="0",
    type=Number(whole=True, optional=False, low=0, high=BOUNDS["seed"]["high"] - 2 * FIRST_CONFIRMED_SEED),
    help="seed of the search and of every trial",
)
@training_options
def tune(step: str, jobs: int | None, validation: int | None, cluster: str, gpus: int, **options: Any) -> None:
    from drilldown.commands import tune

    tune_options = TuneOptions(**{field.name: options.pop(field.name) for field in fields(TuneOptions)})
    tune.tune_step(step, jobs, validation, TrainOptions(**options), tune_options, cluster, gpus)


@cli.command("register", help="Register the model of a finished run that passed the gate.")
@option("run", required=True, help="id of the run")
@option("dataset", type=DatasetType(), help="path of the run's data, if it has moved")
@option("data_dir", help="folder that holds MNIST  [default: the user's cache folder]")
def register(run: str, dataset: str, data_dir: str) -> None:
    from drilldown.commands import champion

    champion.register(run, dataset, data_dir)


@cli.command("work", help="Train what standard input asks for; `repeat`, `tune` and `all` start it.", hidden=True)
@option("dataset", help="file with the dataset")
def work(dataset: str) -> None:
    from drilldown.commands import train

    train.work(dataset)


@cli.command("compare", help="Show the finished runs of the steps side by side.")
@option(
    "dataset",
    default="auto",
    type=DatasetName(),
    help="dataset of the runs, by name; auto: MNIST, or else the digits, or else the newest",
)
@experiment_option
def compare(dataset: str, experiment: str) -> None:
    from drilldown.commands import compare

    compare.compare_steps(dataset, experiment)


@cli.command("status", help="Show champions and unfinished runs.")
@option("model", default="all", help="the registered model")
@experiment_option
def status(model: str, experiment: str) -> None:
    from drilldown.commands import store

    store.show_status(model, experiment)


@cli.command("close", help="Close a run that is open though its machine is gone.")
@option("run", required=True, help="id of the run; the open runs nested in it are closed, too")
def close(run: str) -> None:
    from drilldown.commands import store

    store.close(run)


model_option = option("model", default=DEFAULT_MODEL, help="the registered model")
champion_options = combine(
    model_option,
    option("why", default="by hand", help="the reason, kept in the champion's history"),
    option("dataset", type=DatasetType(), help="path of the model's data, if it has moved"),
    option("data_dir", help="folder that holds MNIST  [default: the user's cache folder]"),
)


@cli.command("promote", help="Make a registered version the champion.")
@option("version", required=True, help="the version's number, or challenger: the newest challenger")
@option("force", default="false", type=click.BOOL, help="overrule the comparison with the champion, no other check")
@champion_options
def promote(version: str, force: bool, **given: str) -> None:
    from drilldown.commands import champion

    champion.promote(version, force=force, **given)


@cli.command("rollback", help="Make the previous champion the champion again.")
@champion_options
def roll_back(**given: str) -> None:
    from drilldown.commands import champion

    champion.roll_back(**given)


@cli.command("relocate", help="Tell the store that the folder with its files has moved.")
@option("old", help="the folder before  [default: what is gone]")
@option("new", help="the folder now  [default: where the same files lie beside the database]")
def relocate(old: str, new: str) -> None:
    from drilldown.commands import store

    store.relocate(old, new)


@cli.command("predict", help="Classify image files.")
@option("images", required=True, help="an image file, or a folder of image files")
@option("model", default=f"models:/{DEFAULT_MODEL}@champion", help="URI of the model that answers")
@option("several", default="false", type=click.BOOL, help="read each digit of a picture, from left to right")
@option("labels", help="CSV file with the columns file and label, or names: a file's name begins with its label")
@option("recursive", default="false", type=click.BOOL, help="read the folders in the folder, too")
def predict(images: str, model: str, several: bool, labels: str, recursive: bool) -> None:
    from drilldown.commands import pictures

    pictures.predict_images(images, model, several, labels, recursive)


@cli.command("serve", help="Serve the champion over HTTP, until Ctrl-C.")
@model_option
@option("port", default="5001", type=Number(whole=True, optional=False, low=1, high=65_535), help="port of the server")
def serve(model: str, port: int) -> None:
    from drilldown.commands import pictures

    pictures.serve(model, port)


@cli.command("draw", help="Serve a page to draw digits on, which the champion reads, until Ctrl-C.")
@model_option
@option("host", default="127.0.0.1", help="address to listen on; 0.0.0.0: every one of this machine")
@option("port", default="5004", type=Number(whole=True, optional=False, low=1, high=65_535), help="port of the page")
def draw(model: str, host: str, port: int) -> None:
    from drilldown.commands import pictures

    pictures.draw(model, host, port)


@cli.command("record", help="Write results/STEP.json from finished runs.")
@option("step", required=True, type=click.Choice(STEP_NAMES), help="step of the runs")
@option("epochs", type=Number(whole=True, low=1), help="length of the runs  [default: the recipe's]")
@option("force", default="false", type=click.BOOL, help="overwrite even a record that has more seeds or another recipe")
@experiment_option
def record(step: str, epochs: int | None, force: bool, experiment: str) -> None:
    from drilldown.commands import compare

    compare.record_results(step, epochs, force, experiment)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; an error is one line on standard error, and an exit code other than 0."""
    try:
        cli.main(arguments, standalone_mode=False)
    except click.NoSuchOption as error:
        command = error.ctx.command if error.ctx else cli
        takes = ", ".join(str(parameter.name) for parameter in command.params) or f"one of {', '.join(cli.commands)}"
        fail(2, f"{error.option_name.lstrip('-')} is no parameter of {command.name or 'drilldown'}: it takes {takes}")
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        fail(2, error.format_message())
    except DrilldownError as error:
        fail(error.exit_code, str(error))
    except OSError as error:
        fail(1, str(error))
    except Stopped as stop:
        fail(stop.code, stop.reason)
    except (KeyboardInterrupt, click.Abort):
        fail(130, "interrupted")
    except Exception as error:  # a mistake here or in a step's file: its traceback says where
        _note(printable(one_line(f"{type(error).__name__}: {error}")))
        raise


def fail(code: int | str | None, message: str) -> NoReturn:
    """Print the error as one line, keep it on the run that `mlflow run` opened, and exit."""
    message = printable(one_line(message))
    if len(message) > MAX_LINE:
        message = f"{message[: MAX_LINE // 2]} … {message[-MAX_LINE // 2 :]}"
    click.echo(f"error: {message}", err=True)
    _note(message)
    sys.exit(code)


def _note(message: str) -> None:
    if "MLFLOW_RUN_ID" in os.environ:  # only then does an error need MLflow, which takes seconds to import
        with contextlib.suppress(Exception):  # a signal may have left packages half imported
            from drilldown.tracking import store

            store.quiet_mlflow()
            store.note_error(message)
