"""Registration, verification and promotion in a real registry."""

from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from test_tracking import track

from src.lifecycle import registry

pytestmark = pytest.mark.slow


@pytest.fixture
def tracked(store, trained, digits):
    return track(trained, digits)


def aliases(store):
    return {alias: str(version) for alias, version in store.get_registered_model("digits-cnn").aliases.items()}


def register(tracked, digits, streak=None, model=None):
    run_id, verdict, logged, evaluation = tracked
    if streak is not None:
        verdict = replace(verdict, metrics={**verdict.metrics, "streak_accuracy": streak})
    return registry.register(model or logged, run_id, "small", verdict, evaluation, digits)


def test_from_challenger_to_champion_and_what_stays_challenger(store, tracked, trained, digits):
    run_id, _, model, evaluation = tracked
    first = register(tracked, digits, streak=95.0)
    assert (first.name, first.version, first.champion) == ("digits-cnn", "1", True)
    version = store.get_model_version_by_alias("digits-cnn", "champion")
    assert (version.run_id, version.source) == (run_id, model.model_uri)
    assert version.tags == {
        "step": "small",
        "dataset.digest": digits.digest,
        "parameters": str(trained.classifier.parameters_count),
        "streak_accuracy": "95.0",
        "test_accuracy": repr(evaluation.accuracy),
        "verified": "true",
    }

    # the same model again: the same version
    again = register(tracked, digits, streak=95.0)
    assert (again.version, again.champion) == ("1", True)
    assert len(store.search_model_versions("name = 'digits-cnn'")) == 1

    # a lower streak stays challenger
    worse = track(trained, digits)
    second = register(worse, digits, streak=94.0)
    assert (second.version, second.champion) == ("2", False)
    assert "version 1 stays champion: its streak accuracy is 95.00 %, the challenger's 94.00 %" in second.reason
    assert aliases(store) == {"challenger": "2", "champion": "1"}


def test_a_model_that_does_not_answer_as_logged_is_not_promoted(store, tracked, digits):
    run_id, verdict, model, evaluation = tracked
    doctored = replace(evaluation, probabilities=evaluation.probabilities.roll(1, dims=1))
    with pytest.raises(registry.VerificationError, match=r"has \d+\.\d\d % when reloaded, and had .* when logged"):
        registry.register(model, run_id, "small", verdict, doctored, digits)
    assert aliases(store) == {"challenger": "1"}
    assert "verified" not in store.get_model_version("digits-cnn", "1").tags


def test_a_model_that_cannot_be_loaded_is_not_promoted(store, tracked, digits):
    model = tracked[2]
    folder = mlflow.artifacts.download_artifacts(model.model_uri)
    (Path(folder) / "data" / "model.pt2").write_bytes(b"damaged")
    with pytest.raises(registry.VerificationError, match="cannot be loaded by a fresh process"):
        register(tracked, digits)
    assert aliases(store) == {"challenger": "1"}


def test_what_failed_the_gate_is_never_registered(store, tracked, digits):
    run_id, verdict, model, evaluation = tracked
    with pytest.raises(ValueError, match="only a model that passed the gate"):
        registry.register(model, run_id, "small", replace(verdict, passed=False), evaluation, digits)
    assert list(store.search_registered_models()) == []
