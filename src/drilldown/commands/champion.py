"""Register the model of a finished run, and change the champion."""

from __future__ import annotations

from pathlib import Path

import click

from drilldown import training
from drilldown.choices import DATASETS
from drilldown.commands.command import on_a_store
from drilldown.errors import ParameterError, RegistryError
from drilldown.learning import data
from drilldown.registry import finished, registry
from drilldown.registry.champion import champion_history
from drilldown.tracking import invocation, runs, tags


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
