"""Registration, verification, promotion and rollback in a real registry."""

import getpass
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pytest
from conftest import SMALL_RECIPE, at_once, train_small, watch_turns
from mlflow import MlflowClient
from test_tracking import track

from src.learning.recipe import ParameterError
from src.lifecycle import registry, verify

pytestmark = pytest.mark.slow


@pytest.fixture
def tracked(store, trained, digits):
    return track(trained, digits)


@pytest.fixture
def near(monkeypatch):
    """The models are asked in this process: a fresh one takes seconds to start, and other tests have it."""
    monkeypatch.setattr(
        registry,
        "ask",
        lambda models, images: np.stack([verify.answers(verify.load(model), images) for model in models]),
    )


def aliases(store):
    return {alias: str(version) for alias, version in store.get_registered_model("digits-cnn").aliases.items()}


def register(tracked, digits, parameters=1000):
    """Register a tracked run's model, as if it had passed the gate with that many parameters."""
    run_id, verdict, model, evaluation = tracked
    verdict = replace(verdict, passed=True, metrics={**verdict.metrics, "parameters": parameters})
    return registry.register(model, run_id, "small", verdict, evaluation, digits)


def state(store):
    """All that the registry holds, but for the times."""
    model = store.get_registered_model("digits-cnn")
    versions = store.search_model_versions("name = 'digits-cnn'")
    return (model.tags, aliases(store)), {
        str(version.version): (version.tags, version.description, version.source) for version in versions
    }


def trail():
    return [(change.kind, change.before, change.after) for change in registry.trail("digits-cnn") if change.made]


def test_the_first_becomes_champion_and_twice_is_once(store, tracked, trained, digits):
    run_id, _, model, evaluation = tracked
    first = register(tracked, digits)
    assert (first.name, first.version, first.champion) == ("digits-cnn", "1", True)
    version = store.get_model_version_by_alias("digits-cnn", "champion")
    assert (version.run_id, version.source) == (run_id, model.model_uri)
    assert aliases(store) == {"challenger": "1", "champion": "1"}
    expected = {
        "step": "small", "dataset.digest": digits.digest, "parameters": "1000", "verified": "true",
        "streak_accuracy": repr(min(row["test_accuracy"] for row in trained.history[-5:])),
        "test_accuracy": repr(evaluation.accuracy), "promotion.promoted": "True",
    }  # fmt: skip
    assert version.tags.items() >= expected.items()
    (change,) = registry.trail("digits-cnn")
    assert (change.kind, change.before, change.after) == ("promotion", None, "1")
    assert (change.by, change.why) == (getpass.getuser(), "small passed the gate; there was no champion")

    before = state(store)
    again = register(tracked, digits)
    assert (again.version, again.champion) == ("1", True)
    assert registry.promote("1", digits, why="once more").reason == "it is the champion already"
    assert state(store) == before


def test_from_champion_to_champion_and_back(store, near, trained, digits):
    weak = train_small(digits, replace(SMALL_RECIPE, epochs=1))
    register(track(weak, digits), digits, parameters=1000)
    better = register(track(trained, digits), digits, parameters=2000)
    assert better.champion
    assert better.reason.startswith("significantly better than version 1 (alone right on ")
    version = store.get_model_version("digits-cnn", "2")
    alone, rival, p = (float(version.tags[f"promotion.{name}"]) for name in ("challenger_alone", "champion_alone", "p"))
    accuracy, weaker = (float(store.get_model_version("digits-cnn", n).tags["test_accuracy"]) for n in ("2", "1"))
    assert alone - rival == pytest.approx((accuracy - weaker) / 100 * len(digits.test_labels))
    assert p < 0.05
    assert version.description.startswith("**Promoted**: significantly better than version 1")
    assert f"| version 2 right | {version.tags['promotion.both_right']} | {alone:.0f} |" in version.description

    same = register(track(trained, digits), digits, parameters=2000)  # no better and no smaller
    assert not same.champion
    assert "not significantly better than version 2 (alone right on 0 images, the champion on 0" in same.reason
    assert aliases(store) == {"challenger": "3", "champion": "2"}
    smaller = register(track(trained, digits), digits, parameters=1999)
    assert smaller.champion
    assert "and smaller: 1,999 parameters to 2,000" in smaller.reason
    by_hand = registry.promote("1", digits, why="an experiment")
    assert not by_hand.champion
    assert "significantly worse than version 4" in by_hand.reason
    assert aliases(store)["champion"] == "4"
    forced = registry.promote("1", digits, why="an experiment", force=True)
    assert forced.champion
    assert registry.trail("digits-cnn")[-1].why.startswith(
        "an experiment; by force, though significantly worse than version 4"
    )
    version = store.get_model_version("digits-cnn", "1")
    assert version.description.startswith("**Promoted by force**: significantly worse than version 4")
    assert version.tags["promotion.promoted"] == "True"
    assert trail() == [
        ("promotion", None, "1"),
        ("promotion", "1", "2"),
        ("promotion", "2", "4"),
        ("promotion", "4", "1"),
    ]

    for version in ("4", "2", "1"):  # back through all of them
        assert registry.roll_back(digits, why="regretted").version == version
        assert aliases(store)["champion"] == version
    with pytest.raises(registry.RegistryError, match="digits-cnn has no earlier champion to go back to: .* version 1"):
        registry.roll_back(digits, why="regretted")
    assert trail()[-3:] == [("rollback", "1", "4"), ("rollback", "4", "2"), ("rollback", "2", "1")]


def test_rollback_passes_over_what_is_gone_and_what_was_never_done(store, near, tracked, trained, digits, monkeypatch):
    register(tracked, digits, parameters=1000)
    register(track(trained, digits), digits, parameters=900)
    register(track(trained, digits), digits, parameters=800)
    with monkeypatch.context() as patch:  # a process that is killed between the trail and the alias
        patch.setattr(MlflowClient, "set_registered_model_alias", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception, match="killed"):
            registry.roll_back(digits, why="regretted")
    assert aliases(store)["champion"] == "3"
    assert trail()[-1] == ("promotion", "2", "3")
    assert str(registry.trail("digits-cnn")[-1]).endswith("regretted (announced, and never made)")
    store.delete_model_version("digits-cnn", "2")
    assert registry.roll_back(digits, why="regretted").version == "1"
    assert trail()[-1] == ("rollback", "3", "1")
    assert len(trail()) == 4  # version 2 is gone, its time as champion is not
    with pytest.raises(registry.RegistryError, match="no earlier champion"):
        registry.roll_back(digits, why="regretted")

    store.set_registered_model_alias("digits-cnn", "champion", "3")  # by other means, as in MLflow's UI
    registry.promote("1", digits, why="by hand", force=True)
    assert [change.made for change in registry.trail("digits-cnn")] == [True, True, True, False, True, True]
    assert registry.roll_back(digits, why="regretted").version == "3"
    store.delete_model_version("digits-cnn", "3")  # the champion itself
    assert aliases(store).get("champion") is None
    assert registry.roll_back(digits, why="lost").version == "1"
    assert aliases(store)["champion"] == "1"


def test_a_rollback_never_ends_where_it_began(store, near, tracked, trained, digits):
    register(tracked, digits, parameters=1000)
    register(track(trained, digits), digits, parameters=900)
    registry.promote("1", digits, why="by hand", force=True)
    assert register(tracked, digits).version == "1"  # registered before: it is not the challenger again
    assert aliases(store) == {"challenger": "2", "champion": "1"}
    store.delete_model_version("digits-cnn", "2")
    with pytest.raises(registry.RegistryError, match="no earlier champion to go back to: the champion is version 1"):
        registry.roll_back(digits, why="regretted")


def test_nothing_to_roll_back_to(store, digits):
    with pytest.raises(
        registry.RegistryError, match="digits-cnn has no version yet: a run that passes the gate registers"
    ):
        registry.roll_back(digits, why="regretted")
    with pytest.raises(ParameterError, match="version is '1': it takes a version of digits-cnn, which has none"):
        registry.promote("1", digits, why="by hand")


def test_what_does_not_answer_as_it_should_is_not_promoted(store, tracked, trained, digits):
    run_id, verdict, model, evaluation = tracked
    doctored = replace(evaluation, probabilities=evaluation.probabilities.roll(1, dims=1))
    with pytest.raises(registry.VerificationError, match=r"has \d+\.\d\d % when reloaded, and had .* when logged"):
        registry.register(model, run_id, "small", verdict, doctored, digits)
    assert aliases(store) == {"challenger": "1"}
    assert "verified" not in store.get_model_version("digits-cnn", "1").tags

    register(tracked, digits)  # the same model, with its true figures
    assert aliases(store)["champion"] == "1"
    with pytest.raises(ParameterError, match="version is '7': it takes a version of digits-cnn, which has 1"):
        registry.promote("7", digits, why="by hand")
    other = replace(digits, digest="0ther")
    with pytest.raises(registry.RegistryError, match="digits-cnn version 1 was measured on other data than this"):
        registry.verify([store.get_model_version("digits-cnn", "1")], other)
    rival = track(trained, digits)
    refused = registry.register(rival[2], rival[0], "small", rival[1], rival[3], other)
    assert not refused.champion
    assert refused.reason.startswith(
        "version 1 stays champion, uncompared: digits-cnn version 1 was measured on other data than this"
    )

    folder = mlflow.artifacts.download_artifacts(model.model_uri)
    (Path(folder) / "data" / "model.pt2").write_bytes(b"damaged")
    refused = register(track(trained, digits), digits, parameters=1)
    assert not refused.champion
    assert "uncompared: digits-cnn version 1 was altered: the SHA-256 of its files is " in refused.reason
    assert aliases(store) == {"challenger": "3", "champion": "1"}
    forced = registry.promote("3", digits, why="the champion is damaged", force=True)
    assert forced.reason.startswith("by force, though not compared: digits-cnn version 1 was altered")
    assert aliases(store) == {"challenger": "3", "champion": "3"}
    with pytest.raises(registry.VerificationError, match="digits-cnn version 1 was altered"):
        registry.roll_back(digits, why="regretted")
    assert aliases(store)["champion"] == "3"


def test_a_registration_that_was_cut_off_is_finished_by_the_same_run(
    store, near, tracked, trained, digits, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(registry, "promote", lambda *_, **__: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception, match="killed"):
            register(tracked, digits)
    store.delete_model_version_tag("digits-cnn", "1", "parameters")
    with pytest.raises(registry.RegistryError, match="version 1 was not registered to the end: it has no parameters"):
        registry.promote("1", digits, why="by hand")
    run_id, verdict, _, evaluation = tracked
    exported_again = track(trained, digits)[2]
    again = registry.register(exported_again, run_id, "small", verdict, evaluation, digits)
    assert (again.version, again.champion) == ("1", True)
    assert len(store.search_model_versions("name = 'digits-cnn'")) == 1


@pytest.mark.parametrize(("owner", "call"), [(registry, "ask"), (MlflowClient, "set_registered_model_alias")])
def test_two_challengers_at_a_time_take_turns(store, tracked, trained, digits, monkeypatch, owner, call):
    """Each is registered alone, and compared with the champion that the other has left, as the trail shows."""
    asked = []

    def ask(models, images):
        asked.append(models)
        return np.stack([verify.answers(verify.load(model), images) for model in models])

    monkeypatch.setattr(registry, "ask", ask)
    together, met = watch_turns(monkeypatch, owner, call)
    both = [tracked, track(trained, digits)]
    at_once(*(partial(register, one, digits) for one in both))
    assert together.broken
    assert not met.is_set()
    assert [len(models) for models in asked] == [1, 2]
    assert len(trail()) == 1


def test_what_needs_a_pickle_is_not_promoted(store, digits):
    class Pickled(mlflow.pyfunc.PythonModel):
        def predict(self, model_input: list[str]) -> list[str]:
            return model_input

    with mlflow.start_run():
        model = mlflow.pyfunc.log_model(name="model", python_model=Pickled(), pip_requirements=[])
    store.create_registered_model("digits-cnn")
    version = store.create_model_version("digits-cnn", model.model_uri)
    for key, value in {"dataset.digest": digits.digest, "parameters": "1", "test_accuracy": "10.0"}.items():
        store.set_model_version_tag("digits-cnn", version.version, key, value)
    unchecked = pytest.warns(UserWarning, match="version 1 has no model.digest: whether its files were altered")
    with unchecked, pytest.raises(registry.VerificationError, match="(?i)pickle"):
        registry.promote(str(version.version), digits, why="by hand")
    assert aliases(store) == {}


def test_what_failed_the_gate_is_never_registered(store, tracked, digits):
    run_id, verdict, model, evaluation = tracked
    with pytest.raises(ValueError, match="only a model that passed the gate"):
        registry.register(model, run_id, "small", replace(verdict, passed=False), evaluation, digits)
    assert list(store.search_registered_models()) == []
