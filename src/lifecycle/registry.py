"""From a model that passed the gate to the champion and back: register, verify, promote, roll back."""

import getpass
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models.model import ModelInfo

from src.learning.data import Dataset
from src.learning.evaluate import Evaluation, percent
from src.learning.recipe import ParameterError
from src.lifecycle import integrity, promotion, store
from src.lifecycle.gate import Verdict

VERIFIER = Path(__file__).with_name("verify.py")
TRAIL = "champion/"  # tags of the registered model that begin so are its audit trail


class RegistryError(Exception):
    """The registry is not as it must be for what was asked."""


class VerificationError(RegistryError):
    """A registered model is not what was registered, or does not answer as it did when it was logged."""


class ChampionError(RegistryError):
    """Nothing can be compared with the champion as it is."""


@dataclass(frozen=True)
class Registration:
    """What became of a version."""

    name: str
    version: str
    champion: bool
    reason: str
    details: str = ""  # the comparison with the champion, as Markdown


@dataclass(frozen=True)
class Change:
    """An entry of the audit trail: the alias `champion` went from one version to another."""

    at: str  # UTC, ISO 8601
    by: str
    kind: str  # promotion or rollback
    before: str | None
    after: str
    why: str
    made: bool = False  # it was announced, and then made

    def __str__(self) -> str:
        unmade = "" if self.made else " (announced, and never made)"
        return f"{self.at}  {self.kind}  {self.before or 'none'} → {self.after}  by {self.by}: {self.why}{unmade}"


def model_name(dataset: str) -> str:
    """Models of different datasets are never mixed."""
    return f"{dataset}-cnn"


def register(
    model: ModelInfo, run_id: str, step: str, verdict: Verdict, evaluation: Evaluation, dataset: Dataset
) -> Registration:
    """Register a model as challenger, and promote it if it beats the champion (see `promote`).

    Registering the same model again finds the version that it has, and changes nothing of what was completed.

    A champion that nothing can be compared with stays champion.

    Raises: ValueError when the verdict is not a pass; VerificationError when the model, read back, does not answer as
    it did; it stays challenger.
    """
    if not verdict.passed:
        raise ValueError(f"only a model that passed the gate is registered, and this one did not: {verdict.reasons}")
    client = MlflowClient()
    name = model_name(dataset.name)
    tags = {
        "step": step,
        "dataset.digest": dataset.digest,
        "parameters": f"{verdict.metrics['parameters']:.0f}",
        "streak_accuracy": repr(verdict.metrics["streak_accuracy"]),
        "test_accuracy": repr(evaluation.accuracy),
    }
    with store.turn(name):  # MLflow fails where two set an alias that is not there yet
        found = _find(client, name, model.model_uri, run_id) or _create(client, name, model, run_id, tags)
        version = str(found.version)
        if "verified" not in found.tags:  # it may have been registered before, and not to the end
            for key, value in tags.items():
                if found.tags.get(key) != value:
                    client.set_model_version_tag(name, version, key, value)
            client.set_registered_model_alias(name, "challenger", version)
    try:
        return promote(version, dataset, why=f"{step} passed the gate")
    except ChampionError as error:
        return Registration(name, version, False, str(error))


def _find(client: MlflowClient, name: str, model_uri: str, run_id: str) -> ModelVersion | None:
    # A run that was resumed after it had registered exports its model, the same one, once more.
    found = (model for model in _versions(client, name).values() if model_uri == model.source or run_id == model.run_id)
    return next(found, None)


def _create(client: MlflowClient, name: str, model: ModelInfo, run_id: str, tags: Mapping[str, str]) -> ModelVersion:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    with tempfile.TemporaryDirectory() as folder:
        copy = mlflow.artifacts.download_artifacts(model.model_uri, dst_path=folder)
        tags = {**tags, integrity.TAG: integrity.digest(copy)}  # at once: no version of ours is ever without them
    return client.create_model_version(name, model.model_uri, run_id, tags=tags, model_id=model.model_id)


def promote(version: str, dataset: Dataset, *, why: str, force: bool = False) -> Registration:
    """Make a version of the dataset's model its champion, if it deserves it.

    Both it and the champion are asked about all test images by a fresh process; what came out decides, as
    `promotion.decide` says, and is kept on the version. `force` overrules the comparison, and no other check.

    Raises: ParameterError when there is no such version, RegistryError when it was measured on other data,
    VerificationError when it does not have the accuracy it was logged with, ChampionError when it is the champion that
    fails in this way.
    """
    client, name = MlflowClient(), model_name(dataset.name)
    with store.turn(name):  # two challengers must not both beat the same champion
        challenger, champion = _get(client, name, version), get_champion(name)
        if champion and champion.version == challenger.version:
            return Registration(name, version, True, "it is the champion already")
        labels, rival = dataset.test_labels.numpy(), None
        if champion is None:
            (candidate,), decision = verify([challenger], dataset), promotion.FIRST
        else:
            try:
                candidate, rival = verify([challenger, champion], dataset)
                decision = promotion.decide(candidate, rival, labels)
            except RegistryError as error:
                (candidate,) = verify([challenger], dataset)  # if it is to blame, this says so
                if not force:
                    raise ChampionError(f"version {champion.version} stays champion, uncompared: {error}") from error
                decision = promotion.Decision(False, f"not compared: {error}")
        client.set_model_version_tag(name, version, "verified", "true")
        promoted = decision.promoted or force
        forced = "by force, though " if promoted and not decision.promoted else ""
        reason, details = forced + decision.reason, promotion.markdown(candidate, rival, labels, decision, promoted)
        for key, value in (asdict(decision) | {"promoted": promoted, "reason": reason}).items():
            client.set_model_version_tag(name, version, f"promotion.{key}", str(value))
        client.update_model_version(name, version, details)
        if promoted:
            _set_champion(client, name, champion, version, "promotion", f"{why}; {reason}")
    return Registration(name, version, promoted, reason, details)


def roll_back(dataset: Dataset, *, why: str) -> Registration:
    """Make the champion before the champion again, once a fresh process has verified it.

    Raises: RegistryError when there was none before, or when it was measured on other data; VerificationError when it
    does not answer as it did.
    """
    client, name = MlflowClient(), model_name(dataset.name)
    if not client.search_registered_models(f"name = '{name}'"):
        raise RegistryError(f"{name} has no version yet: a run that passes the gate registers one")
    with store.turn(name):
        champion = get_champion(name)
        current = f"version {champion.version}" if champion else "none"
        before = _champion_before(client, name, champion)
        if before is None:
            raise RegistryError(f"{name} has no earlier champion to go back to: the champion is {current}")
        verify([before], dataset)
        version = str(before.version)
        _set_champion(client, name, champion, version, "rollback", why)
    return Registration(name, version, True, f"it was champion before; the champion was {current}")


def verify(versions: list[ModelVersion], dataset: Dataset) -> list[promotion.Candidate]:
    """Ask the versions about the whole test set in a fresh process that cannot import this project, nor read a pickle.

    Raises: VerificationError unless each has the files that were registered, and exactly the accuracy (percent) that it
    was logged with; RegistryError when one was measured on other data, or its registration was cut off.
    """
    for model in versions:
        for tag in ("dataset.digest", "parameters", "test_accuracy"):
            if tag not in model.tags:
                raise RegistryError(
                    f"{model.name} version {model.version} was not registered to the end: it has no {tag}"
                )
        if (digest := model.tags["dataset.digest"]) != dataset.digest:
            raise RegistryError(
                f"{model.name} version {model.version} was measured on other data than this: its dataset digest is "
                f"{digest}, that of {dataset.name} is {dataset.digest}"
            )
    with tempfile.TemporaryDirectory() as folder:
        copies = [Path(folder) / f"{model.name} version {model.version}" for model in versions]
        for model, copy in zip(versions, copies, strict=True):
            copy.mkdir()
            try:
                integrity.fetch(model, copy)
            except integrity.AlteredError as error:
                raise VerificationError(str(error)) from error
        predictions, labels = ask(copies, dataset.test_images.numpy()), dataset.test_labels.numpy()
    for model, copy, row in zip(versions, copies, predictions, strict=True):
        found, logged = percent((row == labels).sum(), len(labels)), float(model.tags["test_accuracy"])
        if found != logged:
            raise VerificationError(f"{copy.name} has {found:.2f} % when reloaded, and had {logged:.2f} % when logged")
    return [
        promotion.Candidate(str(model.version), int(model.tags["parameters"]), row)
        for model, row in zip(versions, predictions, strict=True)
    ]


def ask(models: list[Path], images: np.ndarray) -> np.ndarray:
    """The digits (models, N) that the models in these folders say of uint8 images (N, 28, 28), in a fresh process.

    Raises VerificationError when it cannot load one of them.
    """
    with tempfile.TemporaryDirectory() as folder:
        questions, answers = Path(folder) / "images.npy", Path(folder) / "answers.npy"
        np.save(questions, images)
        # -I: neither this folder nor PYTHONPATH is searched for modules
        command = [sys.executable, "-I", str(VERIFIER), str(questions), str(answers), *models]
        settings = {
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "MLFLOW_DEFAULT_PREDICTION_DEVICE": "cpu",  # the models are exported there
        }
        done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines()[-1:] or [f"the verifying process ended with {done.returncode}"]
            raise VerificationError(said[0])
        return np.load(answers)


def get_champion(name: str) -> ModelVersion | None:
    """The version that the alias `champion` stands for now, if there is one."""
    client = MlflowClient()
    version = client.get_registered_model(name).aliases.get("champion")
    return client.get_model_version(name, version) if version else None


def _versions(client: MlflowClient, name: str) -> dict[str, ModelVersion]:
    return {str(model.version): model for model in client.search_model_versions(f"name = '{name}'")}


def _get(client: MlflowClient, name: str, version: str) -> ModelVersion:
    found = _versions(client, name)
    if version not in found:
        has = ", ".join(sorted(found, key=int)) or "none"
        raise ParameterError(f"version is {version!r}: it takes a version of {name}, which has {has}")
    return found[version]


def _set_champion(
    client: MlflowClient, name: str, champion: ModelVersion | None, version: str, kind: str, why: str
) -> None:
    """Change the alias, and leave a trace that outlives both versions: announced before, confirmed after."""
    now = datetime.now(UTC)
    before = str(champion.version) if champion else None
    change = Change(now.isoformat(timespec="seconds"), _user(), kind, before, version, why)
    tag = f"{TRAIL}{now:%Y%m%dT%H%M%S.%f}"
    client.set_registered_model_tag(name, tag, json.dumps(asdict(change)))
    client.set_registered_model_alias(name, "champion", version)
    client.set_registered_model_tag(name, tag, json.dumps(asdict(replace(change, made=True))))


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as containers have them
        return "unknown"


def trail(name: str) -> list[Change]:
    """Every change of the champion, the oldest first; also those that were announced and, it seems, never made."""
    model = MlflowClient().get_registered_model(name)
    changes = [Change(**json.loads(model.tags[key])) for key in sorted(model.tags) if key.startswith(TRAIL)]
    # Killed before it was confirmed, a change was made all the same when what came next began where it had led.
    states = [*(change.before for change in changes[1:]), str(model.aliases.get("champion"))]
    return [
        replace(change, made=change.made or change.after == state)
        for change, state in zip(changes, states, strict=False)
    ]


def _champion_before(client: MlflowClient, name: str, champion: ModelVersion | None) -> ModelVersion | None:
    line = []  # of champions that were not rolled back
    for change in trail(name):
        if change.before and line[-1:] != [change.before]:
            line.append(change.before)  # it became champion by other means
        if change.kind == "rollback":
            _cut(line, change.after)
        line.append(change.after)
    current = champion and str(champion.version)
    _cut(line, current)
    alive = _versions(client, name)
    return next((alive[version] for version in reversed(line) if version in alive and version != current), None)


def _cut(line: list[str], version: str | None) -> None:
    """Take the version's last appearance, and what followed it, from the line."""
    if version in line:
        while line.pop() != version:
            pass
