"""The tracking store: connect to it with short timeouts, and close runs whose process is gone."""

import contextlib
import hashlib
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import mlflow
from filelock import FileLock
from mlflow.entities import Experiment, Run
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.mlflow_tags import (
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_PROJECT_ENTRY_POINT,
    MLFLOW_RUN_NAME,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
)
from platformdirs import user_cache_path

from drilldown import process
from drilldown.errors import DrilldownError, ParameterError, StoreError
from drilldown.learning.checkpoint import FOLDER_VARIABLE
from drilldown.messages import one_line, without_password
from drilldown.steps import ROOT, STEP_NAMES
from drilldown.tracking import database, lease
from drilldown.tracking.lease import Lease
from drilldown.tracking.tags import ours, prefixed

EXPERIMENT = "mnist-drilldown"  # unless MLFLOW_EXPERIMENT_NAME, MLFLOW_EXPERIMENT_ID or `mlflow run` says otherwise
DESCRIPTION = """\
Runs of drilldown, a model lifecycle from a first baseline to a registered champion.

- The tag `drilldown.kind` says what a run is: `train`, `repeat`, `tune`, `all`, `compare`, `register`, `promote`,
  `rollback`, `close`, `relocate`, `predict`, `status`, `draw`, or `resume` for the run that MLflow opens when
  another one is resumed.
- To see only trainings, search for `tags.drilldown.kind = 'train'`.
- To see only those that passed the gate, search for `tags.drilldown.gate = 'passed'`.
- The trainings of `repeat`, `tune` and `all` are nested in their run.
- Registered models are in the model registry, one for each dataset. The version with the alias `champion` is served.
"""
SHORT_TIMEOUTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}  # seconds
OPEN = ("RUNNING", "SCHEDULED")  # the states of a run that has not ended
TAKEOVER_SECONDS = 5  # a process that `mlflow run` starts holds its liveness lock sooner


def quiet_mlflow() -> None:
    """Show MLflow's warnings, but not its reports of progress."""
    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs the traceback of what it raises
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # the artifacts are small and many
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # `invocation` prints the run's page


def connect() -> None:
    """Open the tracking store, select the experiment, and close the runs whose process is gone.

    Raises: StoreError when the store does not answer.
    """
    _prepare()
    with answering():
        if file := sqlite_file():
            database.ensure(Path(file))
        close_abandoned()
    _select_experiment()


def connect_to_read() -> None:
    """Open the tracking store without writing to it, if there is one (see `exists`).

    Raises: StoreError when the store does not answer.
    """
    _prepare()
    with answering():
        if exists():
            mlflow.search_experiments(max_results=1)


def _prepare() -> None:
    _hide_password()
    # Artifacts come through the server: by default, MLflow sends clients to the object store, which they may not reach.
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    _defer_signals_during_queries()


def _hide_password() -> None:
    """Move user and password from the server's address to MLflow's variables: addresses are printed and kept."""
    uri = urlsplit(mlflow.get_tracking_uri())
    if uri.scheme in ("http", "https") and "@" in uri.netloc:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(uri.username or "")
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(uri.password or "")
        mlflow.set_tracking_uri(urlunsplit(uri._replace(netloc=uri.netloc.rpartition("@")[2])))


def exists() -> bool:
    """Whether there is a store. MLflow would create a database that does not exist, and finish an incomplete one.

    Raises: StoreError when the database is damaged, or stays locked.
    """
    file = sqlite_file()
    with answering():
        return not file or database.is_complete(Path(file))


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Wait only seconds for the store. Raises: StoreError, which explains why it does not open."""
    try:
        with short_timeouts():
            yield
    except DrilldownError:
        raise
    except Exception as error:  # MLflow's, SQLAlchemy's, SQLite's: whatever it is, the store does not open
        uri = without_password(mlflow.get_tracking_uri())
        problem = explain(error) if _is_refusal(error) else f"the store there does not answer ({explain(error)})"
        raise StoreError(f"MLFLOW_TRACKING_URI is {uri!r}: {problem}") from error


def _is_refusal(error: Exception) -> bool:
    """Whether the server does not accept user and password."""
    return isinstance(error, MlflowException) and error.get_http_status_code() == HTTPStatus.UNAUTHORIZED


def _defer_signals_during_queries() -> None:
    # A query that a signal cuts off keeps SQLite's file locked while its traceback lives, also against closing the run.
    from sqlalchemy import event
    from sqlalchemy.pool import Pool

    for name, listener in (("checkout", _defer_signals), ("checkin", _allow_signals)):
        if not event.contains(Pool, name, listener):
            event.listen(Pool, name, listener)


def _defer_signals(connection: object, record: object, proxy: object) -> None:
    process.defer_signals(id(record))


def _allow_signals(connection: object, record: object) -> None:
    process.allow_signals(id(record))


def _select_experiment() -> None:
    """Select the experiment of this project, unless the user or `mlflow run` selected one."""
    selected = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")
    if not any(map(os.environ.get, selected)):
        with store_lock("experiment"):  # if two processes create it at once, MLflow raises an error in one
            selected_now = mlflow.set_experiment(EXPERIMENT)
            if not sqlite_file():  # if two machines create it at once, MLflow selects it in one only
                mlflow.set_experiment(experiment_id=selected_now.experiment_id)


def current_experiment() -> Experiment | None:
    """The experiment that this command's runs go into; None if it does not exist yet."""
    client = mlflow.MlflowClient()
    run = mlflow.active_run()
    if run_id := run.info.run_id if run else os.environ.get("MLFLOW_RUN_ID"):
        return client.get_experiment(client.get_run(run_id).info.experiment_id)
    experiment_id, name = map(os.environ.get, ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME"))
    if experiment_id and not name:
        return client.get_experiment(experiment_id)
    return client.get_experiment_by_name(name or EXPERIMENT)


def describe_experiment(experiment_id: str) -> None:
    """Describe an experiment that has no description yet; what a user wrote, or deleted, stays."""
    client = mlflow.MlflowClient()

    def describe() -> None:
        if MLFLOW_RUN_NOTE not in client.get_experiment(experiment_id).tags:
            client.set_experiment_tag(experiment_id, MLFLOW_RUN_NOTE, DESCRIPTION)

    beside_others(describe)


def beside_others(write: Callable[[], object]) -> None:
    """Write what other processes write, too; a second time if one of them, on any machine, wrote it at the same moment.

    MLflow looks for a row and then adds it: if another process adds it in between, the database refuses the second one.
    """
    try:
        write()
    except MlflowException as error:
        if error.error_code != "BAD_REQUEST":  # MLflow's name for what a database refuses
            raise
        write()


def explain(error: Exception) -> str:
    """Say what is wrong with the store: of a database error, where and why, without the SQL statement."""
    if _is_refusal(error):
        user = os.environ.get("MLFLOW_TRACKING_USERNAME")
        who = f"user {user!r} with this password" if user else "who gives no user and password"
        return f"the server refuses {who} (MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD)"
    cause: BaseException | None = error
    while cause and not hasattr(cause, "orig"):  # SQLAlchemy's error holds the database's own
        cause = cause.__cause__ or cause.__context__
    uri = without_password(mlflow.get_tracking_uri())
    return f"{uri}: {getattr(cause, 'orig', '')}" if cause else str(error)


def store_lock(name: str) -> contextlib.AbstractContextManager[object]:
    """Lock a part of the store against the other processes of this machine.

    For a store on a server, the lock covers the processes that were started in this folder.
    """
    if file := sqlite_file():
        return FileLock(f"{file}.{name}.lock")
    server = hashlib.sha256(mlflow.get_tracking_uri().encode()).hexdigest()[:16]  # the address may hold a password
    try:
        return FileLock(process.lock_folder() / f"{server}.{name}.lock")
    except OSError:
        return contextlib.nullcontext()  # nothing can be written here


def checkpoints() -> Path:
    """The folder for the training states of the store's runs: where the next process finds them, from any checkout.

    That is the folder in DRILLDOWN_CHECKPOINTS, or else one beside the database, or else one in the user's cache.
    """
    if given := os.environ.get(FOLDER_VARIABLE):
        return Path(given).expanduser().absolute()
    file = sqlite_file()
    folder = Path(file).absolute().parent if file else user_cache_path("drilldown")
    folder /= "checkpoints"
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def champion_lock(model: str) -> contextlib.AbstractContextManager[Lease]:
    """Lock a registered model's champion against everybody who uses this store, on any machine."""
    return _local_lock(model) if sqlite_file() else lease.hold(model)


@contextlib.contextmanager
def _local_lock(model: str) -> Iterator[Lease]:
    with store_lock(model):  # it has no end
        yield Lease(model)


def local_path(address: str | None) -> Path | None:
    """The path of an address of files on this machine; None if they are somewhere else."""
    if not address or urlsplit(address).scheme not in ("", "file"):
        return None
    return Path(local_file_uri_to_path(address) if address.startswith("file:") else address)


def sqlite_file() -> str | None:
    """The store's database file; None for a server, and for another database."""
    from sqlalchemy.engine import make_url  # it takes a while

    uri = mlflow.get_tracking_uri()
    return make_url(uri).database if uri.startswith("sqlite:") else None  # the URI escapes spaces and umlauts


@contextlib.contextmanager
def short_timeouts() -> Iterator[None]:
    """Wait seconds for a server that does not answer, instead of the minutes that a training waits."""
    before = {name: os.environ.get(name) for name in SHORT_TIMEOUTS}
    os.environ.update(SHORT_TIMEOUTS)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def close_abandoned() -> None:
    """Close the runs whose process is gone; leave those that are alive, or on another machine."""
    running = mlflow.search_runs(
        filter_string="attributes.status = 'RUNNING'", search_all_experiments=True, output_format="list"
    )
    for run in filter(is_abandoned, running):
        with contextlib.suppress(MlflowException):  # somebody deleted it meanwhile
            close_run(run.info.run_id, "KILLED", "its process is gone: it was killed, or the machine went down")


def is_abandoned(run: Run, *, keep: bool = False) -> bool:
    """Whether the process of an open run is gone; False where this process cannot know.

    Unless `keep`, the trace that the process left is removed: the caller closes the run.
    """
    tags = ours(run.data.tags)
    if lock := tags.get("process"):
        return process.is_gone(lock, keep=keep)
    # `mlflow run` opened the run, but no training process has taken it over. If that process starts after the run was
    # closed here, because its environment took long to build, it opens the run again.
    is_ours = tags.get(MLFLOW_SOURCE_TYPE) == "PROJECT" and tags[MLFLOW_SOURCE_NAME] == _project_source()
    is_late = time.time() - run.info.start_time / 1000 > TAKEOVER_SECONDS
    is_here = sqlite_file() or (process.LIVENESS_FOLDER / run.info.run_id).exists()
    return bool(is_ours and is_late and is_here) and process.is_gone(process.lock_name(run.info.run_id), keep=keep)


def _project_source() -> str:
    """The source name that `mlflow run` gives to the runs of this project; MLflow has no public function for it."""
    from mlflow.tracking._tracking_service.utils import _get_git_url_if_present

    return str(_get_git_url_if_present(str(ROOT)))


def find_run(run_id: str, refusal: str) -> Run:
    """The run with the id that the user gave. Raises: ParameterError, which begins with `refusal`, if there is none."""
    try:
        return mlflow.get_run(run_id)
    except MlflowException as error:
        raise ParameterError(f"{refusal}the store says: {error.message}") from None


def close_by_hand(run_id: str) -> list[str]:
    """Close an open run, and the open runs nested in it, whose machine is gone; returns the names of those closed.

    Raises: ParameterError when there is no such open run, or when its process lives.
    """
    refusal = f"run is {run_id!r}: it takes the id of a run that is open though its process is gone, and "
    client, found = mlflow.MlflowClient(), find_run(run_id, refusal)
    if found.info.status not in OPEN:
        raise ParameterError(f"{refusal}that run is {found.info.status}")
    nested = client.search_runs(
        [found.info.experiment_id], f"attributes.status = 'RUNNING' and tags.`{MLFLOW_PARENT_RUN_ID}` = '{run_id}'"
    )
    runs = [found, *nested]
    for run in runs:
        lock = ours(run.data.tags).get("process")
        if lock and not process.is_elsewhere(lock) and not process.is_gone(lock, keep=True):
            raise ParameterError(f"{refusal}the process of {run.info.run_name!r} lives on this machine: end it first")
    for run in runs:
        lock = ours(run.data.tags).get("process", "")
        where = f"its process was on {machine}" if (machine := lock.partition(":")[0]) else "it has no process"
        close_run(run.info.run_id, "KILLED", f"closed by hand on {platform.node()}; {where}")
    return [str(run.info.run_name) for run in runs]


def close_run(run_id: str, status: str, error: str) -> None:
    """End a run whose process is gone, unless it ended by itself."""
    client = mlflow.MlflowClient()
    if client.get_run(run_id).info.status in OPEN:
        client.set_terminated(run_id, status)
        _set_error(client, run_id, error)


def note_error(message: str, run_id: str | None = None) -> None:
    """Keep the message on the run, or on the one that `mlflow run` opened and nobody has taken over yet."""
    if run_id := run_id or os.environ.get("MLFLOW_RUN_ID"):
        with contextlib.suppress(Exception), short_timeouts():  # the store itself may be what failed
            if exists():
                _set_error(mlflow.MlflowClient(), run_id, one_line(message))


def _set_error(client: mlflow.MlflowClient, run_id: str, message: str) -> None:
    given = client.get_run(run_id).data.tags
    for name, value in prefixed({"error": message, **_first_name(given)}).items():
        client.set_tag(run_id, name, value)


def _first_name(tags: Mapping[str, str]) -> dict[str, str]:
    """Name and kind of a run that `mlflow run` opened, and that failed before a command gave it a name."""
    entry_point = tags.get(MLFLOW_PROJECT_ENTRY_POINT)
    if entry_point is None or "kind" in ours(tags):
        return {}
    return {MLFLOW_RUN_NAME: entry_point, "kind": "train" if entry_point in (*STEP_NAMES, "main") else entry_point}
