"""How the user started this command: lines that start another command in the same way, and where its run is shown."""

from __future__ import annotations

import functools
import os
import shlex
import tempfile
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from urllib.parse import urlparse

import mlflow
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_PARENT_RUN_ID, MLFLOW_PROJECT_ENV, MLFLOW_SOURCE_NAME

from drilldown import process
from drilldown.choices import DEFAULT_MODEL
from drilldown.messages import CREDENTIALS, without_password
from drilldown.steps import ROOT
from drilldown.tracking import pages
from drilldown.tracking.store import EXPERIMENT, local_path, sqlite_file

STARTER = "DRILLDOWN_STARTER"  # the variable in which the Makefile and `repeat` say how the user started them
SERVE_PORT = 5001
MAX_COMMANDS, OR = 115, ", or "  # characters of the commands on one line; what stands between them


def next_steps(files: Sequence[str], commands: Sequence[str] = (), model: str | None = None) -> str:
    """Where the active run is shown, what it made, and what can follow: at most four lines for the screen.

    Nothing for a nested run: its parent says it. `model` is a registered model with a champion.
    """
    run = mlflow.active_run()
    if run is None or MLFLOW_PARENT_RUN_ID in run.data.tags:
        return ""
    lines = [f"run:    {_page(run)}"]
    if files and (folder := _folder(run)):
        lines.append(f"files:  {folder}: {', '.join(files)}")
    if model:
        lines.append(f"load:   mlflow.pyfunc.load_model('models:/{model}@champion')")
    if commands:
        lengths = accumulate(len(line) + len(OR) for line in commands)
        count = max(1, sum(length <= MAX_COMMANDS for length in lengths))
        lines.append(f"next:   {OR.join(commands[:count])}")
    return "\n".join(lines)


def starter() -> str:
    """How the user started this process: "make", "python", or the environment manager of `mlflow run`."""
    if given := os.environ.get(STARTER):
        return given
    if not process.OPENED_RUN:
        return "python"
    return _environment_manager(process.OPENED_RUN)


@functools.cache  # a command prints several lines, and the run keeps its tag
def _environment_manager(run_id: str) -> str:
    return str(mlflow.get_run(run_id).data.tags.get(MLFLOW_PROJECT_ENV, "local"))  # MLflow sets no tag for local


@functools.cache
def _git_address() -> str | None:
    """The address that `mlflow run` cloned, with its commit, if this project is such a clone: it is soon deleted."""
    is_clone = ROOT.parent == Path(tempfile.gettempdir()) and ROOT.name.startswith(tempfile.gettempprefix())
    if not is_clone or not process.OPENED_RUN:
        return None
    tags = mlflow.get_run(process.OPENED_RUN).data.tags
    address, commit = CREDENTIALS.sub("", tags.get(MLFLOW_SOURCE_NAME, "")), tags.get(MLFLOW_GIT_COMMIT)
    if not address or not commit or Path(address).exists():
        return None
    return f"{shlex.quote(address)} --version {commit}"


def command(entry_point: str, **parameters: object) -> str:
    """A line for the shell that starts an entry point as this command was started, in the same store and experiment."""
    how = starter()
    if how == "python":
        return _line("python -m drilldown", entry_point, argument(**parameters))
    if how == "make":
        images = _make_variable("IMAGES", str(parameters.pop("images"))) if "images" in parameters else ""
        return _line("make", entry_point, images, argument(**parameters))
    project = _git_address() or ("." if _is_here() else shlex.quote(str(ROOT)))
    experiment = _experiment("Default")
    named = f"--experiment-name {shlex.quote(experiment)}" if experiment else ""
    words = ("mlflow run", project, "-e", entry_point, "--env-manager", how, named, argument(**parameters))
    return _line(*words, experiment=False)


def argument(**parameters: object) -> str:
    """The parameters as they are given to a command that is started as this one was."""
    how, pairs = starter(), parameters.items()
    if how == "python":
        return shlex.join(part for name, value in pairs for part in (f"--{name}", str(value)))
    given = shlex.join(part for name, value in pairs for part in ("-P", f"{name}={value}"))
    return _make_variable("ARGS", given) if given and how == "make" else given


def serve_command(model: str) -> str:
    """A line for the shell that serves the model's champion."""
    how, is_default = starter(), model == DEFAULT_MODEL
    if how == "make":
        return _line("make serve", "" if is_default else _make_variable("MODEL", model), experiment=False)
    if how == "python":
        return _line(
            "python -m drilldown serve", "" if is_default else f"--model {shlex.quote(model)}", experiment=False
        )
    uri = shlex.quote(f"models:/{model}@champion")
    return _line(f"mlflow models serve --model-uri {uri} --env-manager local --port {SERVE_PORT}", experiment=False)


def _make_variable(name: str, value: str) -> str:
    """An argument of make that sets a variable; in its values, make takes $$ for a dollar sign."""
    return f"{name}={shlex.quote(value.replace('$', '$$'))}"


def _page(run: Run) -> str:
    """The address of the run's page in MLflow's UI, and what starts the UI unless the store is a server."""
    uri, ids = mlflow.get_tracking_uri(), (run.info.experiment_id, run.info.run_id)
    if _is_server(uri):
        return pages.run_page(*ids, without_password(uri).rstrip("/"))
    store = "" if _is_here() else f"--backend-store-uri {shlex.quote(_address())}"
    if starter() == "make":
        ui = f"make ui {_make_variable('ARGS', store)}" if store else "make ui"
    else:
        ui = f"mlflow ui {store}".strip()
    return f"{pages.run_page(*ids)} (served by {ui})"


def _folder(run: Run) -> str | None:
    """The folder with the run's files; None if they lie on a server."""
    path = local_path(run.info.artifact_uri)
    if path is None:
        return None
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _line(*words: str, experiment: bool = True) -> str:
    """The words as one line, after the variables that lead to this store and, if asked, to this experiment."""
    settings = {} if _is_here() else {"MLFLOW_TRACKING_URI": _address()}
    if registry := os.environ.get("MLFLOW_REGISTRY_URI"):
        settings["MLFLOW_REGISTRY_URI"] = without_password(registry) if _is_server(registry) else registry
    if experiment and (name := _experiment(EXPERIMENT)):
        settings["MLFLOW_EXPERIMENT_NAME"] = name
    variables = [f"{name}={shlex.quote(value)}" for name, value in settings.items()]
    return " ".join(filter(None, [*variables, *words]))


def _is_here() -> bool:
    """Whether the store is MLflow's default one in the working directory."""
    file = sqlite_file()
    return file is not None and Path(file).resolve() == (Path.cwd() / "mlflow.db").resolve()


def _address() -> str:
    """The store's address, without a password; a server's is in a variable, a database's is the user's to write."""
    uri = mlflow.get_tracking_uri()
    if _is_server(uri):
        return without_password(uri)
    return CREDENTIALS.sub(lambda found: "USER:PASSWORD@" if found[0].endswith("@") else "PASSWORD", uri)


def _is_server(uri: str) -> bool:
    return urlparse(uri).scheme in ("http", "https")


def _experiment(default: str) -> str | None:
    """The name of the active run's experiment, if a command without a name would take another one."""
    run = mlflow.active_run()
    if run is None:
        return None
    name = str(mlflow.MlflowClient().get_experiment(run.info.experiment_id).name)
    return name if name != default or os.environ.get("MLFLOW_EXPERIMENT_NAME", name) != name else None
