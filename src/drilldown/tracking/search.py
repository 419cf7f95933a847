"""Find runs in the store: the experiments to look in, finished runs, runs to reuse, unfinished runs."""

import os
from collections.abc import Collection, Mapping

import mlflow
from mlflow.entities import Run

from drilldown.errors import ParameterError
from drilldown.tracking import store
from drilldown.tracking.tags import PREFIX, ours

EVERY = "all"  # as the name of an experiment: all of them


def experiments(name: str = "") -> dict[str, str]:
    """The experiments to look in: their names by their ids.

    Args:
        name: of an experiment; "all" stands for every experiment, "" for the one that this command's runs go into.

    Raises: ParameterError when the store has no such experiment.
    """
    if not name:
        current = store.current_experiment()
        return {current.experiment_id: current.name} if current else {}
    existing = {found.experiment_id: found.name for found in mlflow.search_experiments()}
    if name != EVERY and name not in existing.values():
        names = ", ".join(map(repr, sorted(existing.values())))
        raise ParameterError(f"experiment is {name!r}: it takes all, or an experiment of this store: {names}")
    return {found_id: found for found_id, found in existing.items() if name in (EVERY, found)}


def finished_runs(
    experiments: Collection[str], *, step: str | None = None, dataset: str | None = None, digest: str | None = None
) -> list[Run]:
    """The finished runs of these experiments that were measured on the test images, the newest first.

    Args:
        experiments: their ids.
        step: of this step only.
        dataset: on the dataset with this name only.
        digest: on the dataset with this digest only.
    """
    conditions = ["params.`run.validation` = '0'"]
    if dataset:
        conditions.append(f"params.`run.dataset` = '{dataset}'")
    wanted = {"step": step, "dataset.digest": digest}
    return [
        run
        for run in _search(experiments, "attributes.status = 'FINISHED'", *conditions)
        if all(value is None or ours(run.data.tags).get(tag) == value for tag, value in wanted.items())
    ]


def find_reusable(experiments: Collection[str], step: str, seed: int, fingerprint: Mapping[str, str]) -> Run | None:
    """The newest finished run of the step and the seed with this fingerprint, if these experiments have one."""
    found = _search(
        experiments,
        "attributes.status = 'FINISHED'",
        f"tags.`{PREFIX}step` = '{step}'",
        f"params.`run.seed` = '{seed}'",
    )
    tags = ((run, ours(run.data.tags)) for run in found)
    return next((run for run, given in tags if fingerprint.items() <= given.items() and "pruned" not in given), None)


def trial_runs(study: str, trial: int) -> list[Run]:
    """The runs of a trial of a search, in every experiment, the newest first."""
    tags = {"study": study, "trial": trial}
    return _search(experiments(EVERY), *(f"tags.`{PREFIX}{name}` = '{value}'" for name, value in tags.items()))


def unfinished_runs(experiments: Collection[str]) -> list[Run]:
    """The runs of these experiments that have not finished: open, killed or failed, the newest first."""
    return [run for run in _search(experiments, "attributes.status != 'FINISHED'") if not _is_this_command(run)]


def has_runs(experiments: Collection[str]) -> bool:
    """Whether these experiments have any run."""
    return not all(map(_is_this_command, _search(experiments, max_results=2)))


def _is_this_command(run: Run) -> bool:
    """Whether it is the run that `mlflow run` opened for this command."""
    return run.info.run_id == os.environ.get("MLFLOW_RUN_ID")


def _search(experiments: Collection[str], *conditions: str, max_results: int = 50_000) -> list[Run]:
    if not experiments:  # MLflow would look in the current one
        return []
    return mlflow.search_runs(
        list(experiments),
        filter_string=" and ".join(conditions),
        order_by=["attributes.start_time DESC"],
        max_results=max_results,
        output_format="list",
    )
