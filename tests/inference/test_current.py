"""The champion of now: how often it is looked up, and what a store that does not answer changes."""

import threading
import time
from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException

from drilldown.errors import ParameterError, PredictError
from drilldown.inference import current
from tests.support.concurrency import at_once
from tests.support.pictures import Brightest


@pytest.fixture
def registry(monkeypatch):
    """A registry whose champion is version 1; it counts the looks and the loads."""
    found = SimpleNamespace(version="1", creation_timestamp=1, looks=0, loads=[], error=None)

    def get_champion(name):
        found.looks += 1
        if found.error:
            raise found.error
        return found if found.version else None

    def load(uri):
        found.loads.append(uri)
        if uri.endswith("/3"):
            raise PredictError("version 3 was\naltered")
        return Brightest(), {}

    monkeypatch.setattr(current, "get_champion", get_champion)
    monkeypatch.setattr(current.predict, "load", load)
    return found


def test_a_store_that_fails_while_the_next_champion_is_loaded_changes_nothing(registry, monkeypatch):
    monkeypatch.setattr(current, "LOOK_SECONDS", 0.0)
    champion = current.CurrentChampion("digits-cnn")
    assert champion.get().version == "1"

    def fail(uri):
        raise ParameterError("model is …") from MlflowException("no answer")

    with monkeypatch.context() as failing:
        failing.setattr(current.predict, "load", fail)
        registry.version = "2"
        assert champion.get().version == "1"
    assert champion.get().version == "2"


def test_many_threads_look_once_a_second_and_load_once(registry, monkeypatch):
    champion = current.CurrentChampion("digits-cnn")
    at_once(*[champion.get] * 20)
    assert (registry.looks, registry.loads) == (1, ["models:/digits-cnn/1"])
    monkeypatch.setattr(current, "LOOK_SECONDS", 0.05)
    registry.version = "2"
    time.sleep(0.1)
    at_once(*[champion.get] * 20)
    assert champion.get().version == "2"
    assert registry.loads == ["models:/digits-cnn/1", "models:/digits-cnn/2"]
    assert registry.looks <= 4


def test_a_model_that_was_deleted_and_created_again_is_loaded(registry, monkeypatch):
    monkeypatch.setattr(current, "LOOK_SECONDS", 0.0)
    champion = current.CurrentChampion("digits-cnn")
    registry.creation_timestamp = 2
    champion.get()
    assert len(registry.loads) == 2


def test_nothing_answers_for_a_champion_that_is_altered_or_gone(registry, monkeypatch):
    monkeypatch.setattr(current, "LOOK_SECONDS", 0.0)
    champion = current.CurrentChampion("digits-cnn")
    for version, message in (("3", "version 3 was altered"), ("", "digits-cnn has no champion")):
        registry.version = version
        with pytest.raises(PredictError, match=f"^{message}$"):
            champion.get()
    registry.version = "1"
    assert champion.get().version == "1"
    registry.version = "3"
    with pytest.raises(PredictError):
        current.CurrentChampion("digits-cnn")


def test_a_store_that_does_not_answer_changes_nothing(registry, monkeypatch):
    monkeypatch.setattr(current, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(current, "WAIT_SECONDS", 0.05)
    champion = current.CurrentChampion("digits-cnn")
    registry.error = MlflowException("no answer")
    assert champion.get().version == "1"
    hanging = threading.Event()
    monkeypatch.setattr(current, "get_champion", lambda name: hanging.wait(10) and None)
    started = time.monotonic()
    assert champion.get().version == "1"
    assert champion.get().version == "1"  # the look still goes on
    assert time.monotonic() - started < 2
    hanging.set()
