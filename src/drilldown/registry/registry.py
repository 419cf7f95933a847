"""The registry's operations: register a model, promote it to champion, roll back."""

import contextlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models.model import ModelInfo
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from drilldown.errors import ChampionError, ParameterError, RegistryError
from drilldown.learning.data import Dataset
from drilldown.registry import description, integrity, promotion
from drilldown.registry.champion import (
    champion_history,
    check_why,
    dataset_of,
    find_model,
    get_champion,
    model_name,
    permitted,
    previous_champion,
    project_models,
    set_champion,
    versions,
)
from drilldown.registry.promotion import Candidate
from drilldown.registry.verify import Verifier, verify
from drilldown.reporting.gate import Verdict
from drilldown.reporting.report import columns
from drilldown.tracking.lease import Lease
from drilldown.tracking.store import champion_lock
from drilldown.tracking.tags import PREFIX, ours, packed, prefixed

MAX_REASON = 1_000  # characters of a decision in the champion's history


@dataclass(frozen=True)
class Registration:
    """The result of a registration, a promotion or a rollback."""

    name: str
    version: str
    champion: bool
    reason: str
    details: str = ""  # the comparison with the champion in tables, for the screen


def dataset_location(name: str, version: str | None = None) -> str:
    """Return what `data.load` takes to load the data that a version, or else the previous champion, was measured on.

    `version` is a number or "challenger".

    Raises: ParameterError when there is no such registered model or version, RegistryError when there is no previous
    champion.
    """
    if name != model_name(dataset_of(name)) or find_model(name) is None:
        there = ", ".join(sorted(model.name for model in project_models()))
        models = f"as {there}" if there else "and there is none yet: a run that passes the gate registers one"
        raise ParameterError(f"model is {name!r}: it takes a registered model, {models}")
    chosen = _get(name, version) if version is not None else _previous(name, get_champion(name))
    return ours(chosen.tags).get("dataset.location", dataset_of(name))


def register(
    model: ModelInfo | LoggedModel,
    run_id: str,
    step: str,
    verdict: Verdict,
    accuracy: float,
    dataset: Dataset,
    verifier: Verifier | None = None,
    more_tags: Mapping[str, str] | None = None,
) -> Registration:
    """Register a model as challenger, and promote it if it beats the champion (see `promote`).

    A model that is registered already keeps its version. If the champion itself fails its checks, nothing can be
    compared, and it stays champion. `accuracy` is the model's on the test images, in percent; `more_tags` are for the
    version.

    Raises: ValueError when the model did not pass the gate; VerificationError when the model, loaded again, does not
    have that accuracy: it stays challenger; PermissionMissingError when the user may not change the registered model.
    """
    if not verdict.passed:
        raise ValueError(f"only a model that passed the gate is registered, and this one did not: {verdict.reasons}")
    client = MlflowClient()
    name = model_name(dataset.name)
    with tempfile.TemporaryDirectory() as folder:
        copy = mlflow.artifacts.download_artifacts(model.model_uri, dst_path=folder)
        files = {integrity.TAG: integrity.digest(copy), integrity.FILES: json.dumps(integrity.names(copy))}
    tags = {
        "step": step,
        "dataset.digest": dataset.digest,
        "dataset.location": dataset.location,
        "parameters": f"{verdict.metrics['parameters']:.0f}",
        "min_accuracy_last_k": repr(verdict.metrics["min_accuracy_last_k"]),
        "test_accuracy": repr(accuracy),
    }
    more = dict(more_tags or {})
    with permitted(name), champion_lock(name):  # MLflow fails when two processes set an alias that does not exist yet
        found = _find(client, name, model.model_uri, run_id)
        found = found or _create(client, dataset.name, model, run_id, {**tags, **more}, files)
        version, known = str(found.version), ours(found.tags)
        is_new = "verified" not in known  # or its registration was interrupted
        wanted = {**tags, **more} if is_new else more
        _tag_version(client, name, version, {key: wanted[key] for key in wanted if known.get(key) != wanted[key]})
        if is_new:
            client.set_registered_model_alias(name, "challenger", version)
    try:
        return promote(name, version, dataset, why=f"{step} passed the gate", verifier=verifier)
    except ChampionError as error:
        return Registration(name, version, False, str(error))


def _find(client: MlflowClient, name: str, model_uri: str, run_id: str) -> ModelVersion | None:
    # By the run, too: a run that was resumed after its registration exports the same model again.
    found = (version for version in versions(name).values() if version.source == model_uri or version.run_id == run_id)
    return next(found, None)


def _create(
    client: MlflowClient,
    dataset: str,
    model: ModelInfo | LoggedModel,
    run_id: str,
    tags: Mapping[str, str],
    files: Mapping[str, str],
) -> ModelVersion:
    name = model_name(dataset)
    try:
        client.create_registered_model(name, description=description.of_model(name, dataset))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    digests = {"dataset.digest": tags["dataset.digest"], **files}
    others = {name: value for name, value in tags.items() if name not in digests}
    tags = prefixed(others | packed("fingerprint", digests))
    # With its tags from the first moment: no version of ours is ever without them.
    version = client.create_model_version(name, model.model_uri, run_id, tags=tags, model_id=model.model_id)
    link = [{"name": name, "version": version.version}]  # as mlflow.register_model does: the model's page shows it
    client.set_logged_model_tags(model.model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(link)})
    return version


def promote(
    name: str, version: str, dataset: Dataset, *, why: str, force: bool = False, verifier: Verifier | None = None
) -> Registration:
    """Make a version of a registered model, a number or "challenger", the champion, if it deserves it.

    A fresh process predicts the test images with the version and with the champion; `promotion.decide` compares them,
    and the result is kept on the version. If the champion changes meanwhile, the version is compared with the new one.
    `force` overrules that comparison, but no other check.

    Raises: ParameterError when there is no such version, RegistryError when it was measured on other data,
    VerificationError when it does not have the accuracy that was logged, ChampionError when the champion fails these
    checks.
    """
    check_why(why)
    challenger = _get(name, version)
    version = str(challenger.version)
    verified: dict[str, Candidate] = {}
    with started(verifier) as verifier:
        while True:
            champion = get_champion(name)
            if champion and champion.version == challenger.version:
                verify([challenger], dataset, verifier)
                _complete(challenger)
                return Registration(name, version, True, "it is the champion already")
            comparison = _compare(challenger, champion, dataset, verifier, verified)
            with permitted(name), champion_lock(name) as lease:  # two challengers must not both beat the same champion
                if _number(get_champion(name)) == _number(champion):
                    if comparison.error and not force:
                        raise comparison.error
                    return _conclude(name, challenger, champion, dataset, comparison, lease, why=why, force=force)


@dataclass(frozen=True)
class _Comparison:
    """A challenger and a champion, or the error of a champion that fails its checks."""

    candidate: Candidate
    rival: Candidate | None
    decision: promotion.Decision
    error: ChampionError | None = None


def _compare(
    challenger: ModelVersion,
    champion: ModelVersion | None,
    dataset: Dataset,
    verifier: Verifier,
    verified: dict[str, Candidate],
) -> _Comparison:
    """Compare two versions; `verified` keeps what was verified before.

    Raises: RegistryError when the challenger fails its checks.
    """

    def check(*wanted: ModelVersion) -> None:
        missing = [version for version in wanted if str(version.version) not in verified]
        verified.update({found.version: found for found in verify(missing, dataset, verifier)} if missing else {})

    number = str(challenger.version)
    if champion is None:
        check(challenger)
        return _Comparison(verified[number], None, promotion.FIRST)
    try:
        check(challenger, champion)
    except RegistryError as error:
        check(challenger)  # raises if the challenger is to blame
        refusal = ChampionError(f"version {champion.version} stays champion, uncompared: {error}")
        refusal.__cause__ = error
        return _Comparison(verified[number], None, promotion.Decision(False, f"not compared: {error}"), refusal)
    candidate, rival = verified[number], verified[str(champion.version)]
    return _Comparison(candidate, rival, promotion.decide(candidate, rival, dataset.test_labels.numpy()))


def _conclude(
    name: str,
    challenger: ModelVersion,
    champion: ModelVersion | None,
    dataset: Dataset,
    comparison: _Comparison,
    lease: Lease,
    *,
    why: str,
    force: bool,
) -> Registration:
    """Keep the comparison on the challenger's version, and make it the champion if it deserves it."""
    client, version, labels = MlflowClient(), str(challenger.version), dataset.test_labels.numpy()
    candidate, rival, decision = comparison.candidate, comparison.rival, comparison.decision
    _tag_version(client, name, version, {"verified": "true"})
    promoted = decision.promoted or force
    forced = "by force, though " if promoted and not decision.promoted else ""
    reason, tables = forced + decision.reason, promotion.tables(candidate, rival, labels, decision)
    result = asdict(decision) | {"promoted": promoted, "reason": reason}
    result = {f"promotion.{key}": value for key, value in result.items()}
    # In this order, a failure at any of the writes leaves nothing that is not true.
    if promoted:
        _withdraw(client, challenger)
        set_champion(name, champion, version, "promotion", f"{why}; {reason[:MAX_REASON]}", lease)
    _tag_version(client, name, version, packed("promotion", result))
    client.update_model_version(name, version, description.of_version(candidate, rival, labels, decision, promoted))
    return Registration(name, version, promoted, reason, "\n\n".join(map(columns, tables)))


def _withdraw(client: MlflowClient, version: ModelVersion) -> None:
    """Empty what was decided about a version before: to remove it, a user would need more permissions."""
    if f"{PREFIX}promotion" in version.tags:
        _tag_version(client, version.name, str(version.version), packed("promotion", {}))
    if version.description:
        client.update_model_version(version.name, version.version, "")


def _complete(champion: ModelVersion) -> None:
    """Say on a champion that it was promoted, and why, if its promotion was stopped before that was written."""
    if "promotion.promoted" in ours(champion.tags):
        return
    name, version = champion.name, str(champion.version)
    change = next(reversed(champion_history(name)), None)
    if change and change.after == version:  # else it became champion in MLflow's UI
        result = {"promotion.promoted": True, "promotion.reason": change.why}
        with permitted(name):
            _tag_version(MlflowClient(), name, version, packed("promotion", result))


def roll_back(name: str, dataset: Dataset, *, why: str, verifier: Verifier | None = None) -> Registration:
    """Make the previous champion of a registered model the champion again, after a fresh process has verified it.

    Raises: RegistryError when there is no previous champion, or when it was measured on other data; VerificationError
    when it does not have the accuracy that was logged.
    """
    check_why(why)
    with started(verifier) as verifier:
        while True:
            champion = get_champion(name)
            previous = _previous(name, champion)
            verify([previous], dataset, verifier)
            version = str(previous.version)
            with permitted(name), champion_lock(name) as lease:
                if _number(get_champion(name)) == _number(champion):
                    set_champion(name, champion, version, "rollback", why, lease)
                    break
    return Registration(name, version, True, f"it was champion before; the champion was {_number(champion)}")


def _previous(name: str, champion: ModelVersion | None) -> ModelVersion:
    """The champion before this one. Raises RegistryError when there is none."""
    if not versions(name):
        raise RegistryError(f"{name} has no version: a run that passes the gate registers one")
    if previous := previous_champion(name, champion):
        return previous
    raise RegistryError(f"{name} has no earlier champion to go back to: the champion is {_number(champion)}")


def _number(champion: ModelVersion | None) -> str:
    return f"version {champion.version}" if champion else "none"


def started(given: Verifier | None) -> contextlib.AbstractContextManager[Verifier]:
    """The caller's verifier, which the caller ends, or a new one."""
    return contextlib.nullcontext(given) if given else Verifier()


def _get(name: str, version: str) -> ModelVersion:
    """The version with this number; "challenger" is the one with that alias."""
    found = versions(name)
    existing = ", ".join(sorted(found, key=int)) or "none"
    if version == "challenger" and found:
        alias = MlflowClient().get_registered_model(name).aliases.get("challenger")
        if alias is None:
            raise ParameterError(f"version is 'challenger': {name} has no challenger; its versions are {existing}")
        version = str(alias)
    if version not in found:
        raise ParameterError(f"version is {version!r}: it takes a version of {name}, which has {existing}")
    return found[version]


def _tag_version(client: MlflowClient, name: str, version: str, tags: Mapping[str, str]) -> None:
    for key, value in prefixed(tags).items():
        client.set_model_version_tag(name, version, key, value)
