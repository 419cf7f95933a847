"""The registered models, their versions and champions, and the history of a champion's changes."""

import contextlib
import getpass
import json
import os
import reprlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from drilldown.choices import DATASETS
from drilldown.errors import ParameterError, PermissionMissingError
from drilldown.tracking import invocation
from drilldown.tracking.lease import Lease
from drilldown.tracking.store import sqlite_file
from drilldown.tracking.tags import PREFIX, ours, prefixed

SUFFIX = "-cnn"  # of the registered models of this project, after the dataset's name
MAX_ENTRY = 5_000  # characters of a tag of a registered model; SQLite takes more, other databases do not
MAX_BESIDE = 2_000  # of them for what is stored beside the user's reason
HISTORY = "champion/"  # the history is kept in tags of the registered model; their names begin so


@dataclass(frozen=True)
class Change:
    """An entry of the champion's history: the alias `champion` moved from one version to another."""

    at: str  # UTC, ISO 8601
    by: str
    kind: str  # promotion or rollback
    before: str | None
    after: str
    why: str
    made: bool = False  # the entry is written before the alias moves, and confirmed afterwards

    def stored(self) -> str:
        """The text that is stored."""
        return _json(asdict(self))

    def __str__(self) -> str:
        unmade = "" if self.made else " (announced, and never made)"
        return f"{self.at}  {self.kind}  {self.before or 'none'} → {self.after}  by {self.by}: {self.why}{unmade}"


def missing_permission(name: str) -> str | None:
    """Say which permission the user lacks to register a version and to change the champion; None if it is not known.

    Only a server keeps permissions. It is asked to remove a tag that is not there, which changes nothing.
    """
    if sqlite_file():
        return None
    try:
        with permitted(name):
            MlflowClient().delete_registered_model_tag(name, f"{PREFIX}none")
    except PermissionMissingError as error:
        return str(error)
    except MlflowException:  # as there is no such model yet: whoever creates it may change it
        return None
    return None


@contextlib.contextmanager
def permitted(name: str) -> Iterator[None]:
    """Raise PermissionMissingError when the server refuses to change the registered model."""
    try:
        yield
    except MlflowException as error:
        if error.get_http_status_code() != HTTPStatus.FORBIDDEN:
            raise
        user = os.environ.get("MLFLOW_TRACKING_USERNAME", "this user")
        raise PermissionMissingError(
            f"{user} lacks the permission EDIT on the registered model {name}, which its owner or an administrator of "
            "the server can give"
        ) from error


def check_why(why: str) -> None:
    """Raise ParameterError when a reason is too long to be stored by every database."""
    most = MAX_ENTRY - MAX_BESIDE
    if len(_json(why)) > most:
        raise ParameterError(f"why is {reprlib.repr(why)}: it takes at most {most:,} characters, as stored")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)  # of one emoji, escapes would make twelve characters


def model_name(dataset: str) -> str:
    """The registered model for that dataset; models of different datasets are never compared."""
    return f"{dataset}{SUFFIX}"


def dataset_of(model: str) -> str:
    """The dataset that the registered model is for."""
    return model.removesuffix(SUFFIX)


def project_models() -> list[RegisteredModel]:
    """The registered models of this project; the one that changed last comes first."""
    models = mlflow.search_registered_models(order_by=["last_updated_timestamp DESC"])
    return [model for model in models if model.name.endswith(SUFFIX)]


def find_model(name: str) -> RegisteredModel | None:
    """The registered model of that name, if there is one."""
    try:
        return MlflowClient().get_registered_model(name)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model, or no name
            return None
        raise


def explain_no_champion(name: str, choose: Callable[[str], str]) -> str:
    """Say that the model has no champion, which model has one, and how to get one; `choose` says how to take another.

    Only models of this project are offered.
    """
    others = [other.name for other in project_models() if "champion" in other.aliases]
    there = "".join(f"{other} has one: {choose(other)}; " for other in others[:1])
    dataset = dataset_of(name)
    wanted = {"dataset": dataset} if dataset in DATASETS else {"dataset": "PATH", "target": "PERCENT"}
    return f"{name} has no champion; {there}to train one: {invocation.command('step4', **wanted)}"


def get_champion(name: str) -> ModelVersion | None:
    """The version with the alias `champion`, if there is one."""
    model = find_model(name)
    version = model.aliases.get("champion") if model else None
    return MlflowClient().get_model_version(name, version) if version else None


def versions(name: str) -> dict[str, ModelVersion]:
    """All versions of the registered model, by number."""
    return {str(version.version): version for version in MlflowClient().search_model_versions(f"name = '{name}'")}


def set_champion(
    name: str, champion: ModelVersion | None, version: str, kind: str, why: str, lease: Lease | None = None
) -> None:
    """Move the alias from the champion to a version, and write an entry into the history.

    The entry is written before and confirmed afterwards. It is a tag of the registered model, so it outlives both
    versions. Raises: StoreError when the lease of the champion's lock has expired.
    """
    client = MlflowClient()
    now = datetime.now(UTC)
    before = str(champion.version) if champion else None
    change = Change(now.isoformat(timespec="seconds"), _user(), kind, before, version, why)
    (tag,) = prefixed({f"{HISTORY}{now:%Y%m%dT%H%M%S.%f}": ""})
    announced, confirmed = change.stored(), replace(change, made=True).stored()
    client.set_registered_model_tag(name, tag, announced)
    if lease:
        lease.confirm()
    client.set_registered_model_alias(name, "champion", version)
    client.set_registered_model_tag(name, tag, confirmed)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in containers
        return "unknown"


def champion_history(name: str) -> list[Change]:
    """Every change of the champion, the oldest first, including those that were announced but never made."""
    model = MlflowClient().get_registered_model(name)
    tags = ours(model.tags)
    changes = [Change(**json.loads(tags[key])) for key in sorted(tags) if key.startswith(HISTORY)]
    # A change whose process was killed before it confirmed was made if the next change starts where this one led.
    champions_after = [*(change.before for change in changes[1:]), str(model.aliases.get("champion"))]
    return [
        replace(change, made=change.made or change.after == champion)
        for change, champion in zip(changes, champions_after, strict=False)
    ]


def previous_champion(name: str, champion: ModelVersion | None) -> ModelVersion | None:
    """The last champion before this one that still exists and was not rolled back."""
    champions: list[str] = []
    for change in champion_history(name):
        if change.before and champions[-1:] != [change.before]:
            champions.append(change.before)  # it became champion by other means, as in MLflow's UI
        if change.kind == "rollback":
            _cut(champions, change.after)
        champions.append(change.after)
    current = str(champion.version) if champion else None
    _cut(champions, current)
    existing = versions(name)
    return next(
        (existing[version] for version in reversed(champions) if version in existing and version != current), None
    )


def _cut(champions: list[str], version: str | None) -> None:
    """Remove the version's last appearance, and everything after it."""
    if version in champions:
        while champions.pop() != version:
            pass
