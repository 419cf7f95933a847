"""The model of a finished run is registered later, with all checks."""

from dataclasses import replace

import numpy as np
import pytest

from drilldown.errors import ParameterError, RegistryError, VerificationError
from drilldown.registry import finished
from drilldown.tracking.tags import PREFIX, ours
from tests.support.registered import aliases, register, verify_in_process
from tests.support.tracked import track

pytestmark = pytest.mark.slow
CONSISTENCY = {"consistency": "10/10", "pass_rate": "1.0000", "pass_rate_low": "0.7225", "pass_rate_high": "1.0000"}


@pytest.fixture
def tracked(store, trained, digits, monkeypatch):
    verify_in_process(monkeypatch)
    tracked = track(trained, digits)
    assert tracked[1].passed
    return tracked


def test_a_finished_run_is_registered_as_if_it_had_done_that_itself(store, tracked, trained, digits):
    run_id, _, model, evaluation = tracked
    done = finished.register_run(run_id, digits, CONSISTENCY)
    assert (done.name, done.version, done.champion) == ("digits-cnn", "1", True)
    version = store.get_model_version("digits-cnn", "1")
    assert (version.run_id, version.source) == (run_id, model.model_uri)
    tags = ours(version.tags)
    assert tags.items() >= CONSISTENCY.items()
    assert (tags["verified"], tags["test_accuracy"]) == ("true", repr(evaluation.accuracy))

    itself = track(trained, digits)
    register(itself, digits, parameters=trained.classifier.num_parameters)
    by_itself = ours(store.get_model_version("digits-cnn", "2").tags)
    differ = {"promotion", "fingerprint", *CONSISTENCY}
    assert {tag for tag in tags if tags[tag] != by_itself.get(tag) and not tag.startswith((PREFIX, "promotion."))} <= (
        differ | {"model.digest"}
    )

    again = finished.register_run(itself[0], digits, CONSISTENCY)  # it has a version, which gets the tags
    assert (again.version, again.champion) == ("2", False)
    assert ours(store.get_model_version("digits-cnn", "2").tags).items() >= CONSISTENCY.items()
    assert aliases(store) == {"challenger": "2", "champion": "1"}


def test_a_run_without_a_model_to_register_is_refused(store, tracked, digits):
    run_id, _, model, _ = tracked
    takes = "it takes the id of a finished training that passed the gate, and"
    with pytest.raises(ParameterError, match=f"^run is 'nonsense': {takes} the store says: "):
        finished.register_run("nonsense", digits)
    other = store.create_run("0").info.run_id
    with pytest.raises(ParameterError, match="and that is no training$"):
        finished.register_run(other, digits)
    store.set_tag(other, f"{PREFIX}step", "step4")
    with pytest.raises(ParameterError, match="and that run is RUNNING$"):
        finished.register_run(other, digits)
    with pytest.raises(RegistryError, match="was trained on other data than this: its dataset digest is "):
        finished.register_run(run_id, replace(digits, digest="0ther"))
    store.log_metric(run_id, "test_accuracy", 1.0, step=5)  # what is logged later counts
    with pytest.raises(RegistryError, match=r"did not pass the gate: 1.00 % in epoch "):
        finished.register_run(run_id, digits)
    store.set_tag(run_id, f"{PREFIX}gate", "failed")
    with pytest.raises(ParameterError, match="and that run did not: the last 5 epochs are all at or above"):
        finished.register_run(run_id, digits)
    store.set_tag(run_id, f"{PREFIX}gate", "passed")
    store.delete_logged_model(model.model_id)
    assert list(store.search_registered_models()) == []


def test_a_model_that_answers_otherwise_than_its_run_is_not_registered(store, tracked, digits, monkeypatch):
    run_id, _, model, _ = tracked
    monkeypatch.setattr(
        "drilldown.registry.verify.Verifier.predict",
        lambda verifier, models, images: np.zeros((len(models), len(images)), int),
    )
    with pytest.raises(VerificationError, match=r"the model of run .* has 10\.00 % when reloaded, and had 9"):
        finished.register_run(run_id, digits)
    store.delete_logged_model(model.model_id)
    with pytest.raises(RegistryError, match=f"^run {run_id} has no model: it was deleted$"):
        finished.register_run(run_id, digits)
    assert list(store.search_registered_models()) == []
