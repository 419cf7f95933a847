"""The state of the store in words: registered models with their champions, and unfinished runs; it only reads."""

import contextlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

import mlflow
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from drilldown.errors import ParameterError
from drilldown.learning import checkpoint
from drilldown.registry.champion import Change, champion_history, versions
from drilldown.reporting.report import columns
from drilldown.tracking import invocation, lease, runs, search, store
from drilldown.tracking.resume import checkpoints
from drilldown.tracking.tags import ours

MAX_VERSIONS = 10  # of a model: the newest, and those with an alias


def overview(model: str, experiments: Mapping[str, str]) -> str:
    """The registered models, and the unfinished runs of these experiments (names by ids).

    Args:
        model: the name of one registered model, or "all".

    Raises: ParameterError when there is no such registered model.
    """
    models = _models(model)
    where = ", ".join(experiments.values()) or "an experiment that does not exist yet"
    if not models and not search.has_runs(experiments):
        return f"{where}: {nothing_yet()}"
    unfinished = search.unfinished_runs(experiments)
    in_progress = [run for run in unfinished if run.info.status == "RUNNING" and not store.is_abandoned(run, keep=True)]
    stopped = (run for run in unfinished if run not in in_progress and checkpoint.exists(checkpoints(run)))
    parts = [part for found in models for part in _model(found)]
    parts = parts or ["no registered model yet: a run that passes the gate registers one"]
    parts.append(_table(f"runs in progress in {where}", map(_progress, in_progress)))
    parts.append(_table("interrupted trainings, and how to resume them", map(_resumable, stopped)))
    return "\n\n".join(parts)


def nothing_yet() -> str:
    """What to do first, in an empty store."""
    return f"no run and no registered model yet; train a step first: {invocation.command('step4')}"


def _models(name: str) -> list[RegisteredModel]:
    models = mlflow.search_registered_models(order_by=["name ASC"])
    found = [model for model in models if not lease.is_lock(model.name)]
    chosen = [model for model in found if name in ("all", model.name)]
    if name != "all" and not chosen:
        existing = ", ".join(model.name for model in found) or "none"
        raise ParameterError(f"model is {name!r}: it takes all, or a registered model of this store: {existing}")
    return chosen


def _model(model: RegisteredModel) -> list[str]:
    """Its versions, how to load the champion, and the champion's history."""
    found, history = versions(model.name), champion_history(model.name)
    named = {str(version) for version in model.aliases.values()}
    newest = sorted(found, key=int, reverse=True)
    shown = [version for place, version in enumerate(newest) if place < MAX_VERSIONS or version in named]
    rows = (_version(found[version], model.aliases, history) for version in shown)
    lines = [_table(f"registered model {model.name}", rows)]
    if len(shown) < len(newest):
        lines.append(f"… and {len(newest) - len(shown)} older versions")
    if "champion" in model.aliases:
        lines.append(f'load the champion: mlflow.pyfunc.load_model("models:/{model.name}@champion")')
    return ["\n".join(lines), _table(f"changes of the champion of {model.name}", map(_change, history))]


def _version(version: ModelVersion, aliases: Mapping[str, str], history: Iterable[Change]) -> dict[str, object]:
    tags, number = ours(version.tags), str(version.version)
    roles = [alias for alias, named in sorted(aliases.items()) if str(named) == number]
    made = [change for change in history if change.made and change.after == number]
    since, by = _utc(version.creation_timestamp), _user(version)
    if made and "champion" in roles:
        since, by = _short(made[-1].at), made[-1].by
    elif made:
        roles.append("earlier champion")
    return {
        "version": number,
        "role": " and ".join(roles) or "–",
        "test accuracy (%)": f"{float(tags['test_accuracy']):.2f}" if "test_accuracy" in tags else "–",
        "parameters": f"{int(tags['parameters']):,}" if "parameters" in tags else "–",
        "step": tags.get("step", "–"),
        "since (UTC)": since,
        "by": by,
    }


def _user(version: ModelVersion) -> str:
    """Who trained the version; "–" if its run is deleted, or if it was registered without one."""
    with contextlib.suppress(MlflowException):
        if version.run_id:
            return str(mlflow.get_run(version.run_id).data.tags.get("mlflow.user", "–"))
    return "–"


def _change(change: Change) -> dict[str, object]:
    return {
        "when (UTC)": _short(change.at),
        "change": change.kind if change.made else f"{change.kind}, never made",
        "from": change.before or "none",
        "to": change.after,
        "by": change.by,
        "why": change.why,
    }


def _progress(run: Run) -> dict[str, object]:
    return {
        "run": run.info.run_name,
        "epoch": _epoch(run),
        "started (UTC)": _utc(run.info.start_time),
        "id": run.info.run_id,
    }


def _resumable(run: Run) -> dict[str, object]:
    return {
        "run": run.info.run_name,
        "epoch": _epoch(run),
        "command": invocation.command(ours(run.data.tags)["step"], resume=run.info.run_id),
    }


def _epoch(run: Run) -> str:
    epochs = run.data.params.get("recipe.epochs")
    return f"{max(runs.logged_epochs(run.info.run_id), default=0)} of {epochs}" if epochs else "–"


def _table(title: str, rows: Iterable[dict[str, object]]) -> str:
    """A table with its title; its rows are indented."""
    lines = columns(found).splitlines() if (found := list(rows)) else ["none"]
    return "\n".join([title, *(f"  {line}" for line in lines)])


def _short(time: str) -> str:
    """A time of the history, ISO 8601 in UTC, to the minute."""
    return time[:16].replace("T", " ")


def _utc(milliseconds: int) -> str:
    return _short(datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat())
