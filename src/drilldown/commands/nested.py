"""What the commands that train nested runs share: the cluster that may train them, and how to go on after a stop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from drilldown import process
from drilldown.errors import ParameterError
from drilldown.options import TrainOptions
from drilldown.tracking import invocation

if TYPE_CHECKING:
    from drilldown.experiments.cluster import Cluster


@contextlib.contextmanager
def continue_hint(entry_point: str, options: TrainOptions, experiment: str, **given: object) -> Iterator[None]:
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


def connect_workers(cluster: str, gpus: int) -> contextlib.AbstractContextManager[Cluster | None]:
    """The cluster at this address; None without an address: then this machine trains."""
    if not cluster:
        if gpus:
            raise ParameterError(f"gpus is {gpus}: it takes a cluster; without one, device=auto finds the GPU")
        return contextlib.nullcontext()
    from drilldown.experiments.cluster import connect  # it takes a second

    return connect(cluster, gpus)


def cluster_parameters(address: str, gpus: int) -> dict[str, object]:
    """The parameters of a cluster, for a command that goes on with this one."""
    return {name: value for name, value in (("cluster", address), ("gpus", gpus)) if value}
