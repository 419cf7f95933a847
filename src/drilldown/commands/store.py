"""Show what the store has, and mend it: close a run whose machine is gone, tell it that its folder has moved."""

from __future__ import annotations

import functools

import click

from drilldown.commands.command import command, on_a_store
from drilldown.registry import status
from drilldown.tracking import places, runs, search, store


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


@on_a_store
def close(run: str) -> None:
    """Close an open run whose machine is gone, and the open runs nested in it."""
    runs.name_opened("close", {"kind": "close", "closes": run})
    for name in store.close_by_hand(run):
        click.echo(f"closed as KILLED: {name}")


@functools.partial(command, connect=store.connect_to_read, needs="")
def relocate(old: str, new: str) -> None:
    """Change the store's addresses of a folder that has moved."""
    before, after, count, copy = places.relocate(old, new)
    runs.name_opened("relocate", {"kind": "relocate"})
    click.echo(f"{count:,} addresses lead to {after} now, no more to {before}; the database as it was: {copy}")
    places.check_files()
