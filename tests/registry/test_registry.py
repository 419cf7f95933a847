"""Registration, verification, promotion and rollback in a real registry."""

import getpass
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from drilldown.errors import ParameterError, RegistryError, VerificationError
from drilldown.inference import predict
from drilldown.registry import registry
from drilldown.registry.champion import champion_history, explain_no_champion, get_champion, set_champion
from drilldown.registry.verify import Verifier, verify
from drilldown.tracking import export
from drilldown.tracking.tags import PACKED, PREFIX, ours
from tests.support.concurrency import at_once, watch_turns
from tests.support.networks import SMALL_RECIPE, train_small
from tests.support.programs import free_port
from tests.support.registered import aliases, log_as_before, predict_in_process, register, verify_in_process
from tests.support.tracked import track

pytestmark = pytest.mark.slow


@pytest.fixture
def tracked(store, trained, digits):
    return track(trained, digits)


@pytest.fixture
def in_process(monkeypatch):
    verify_in_process(monkeypatch)


def state(store):
    """Everything in the registry, except times."""
    model = store.get_registered_model("digits-cnn")
    versions = store.search_model_versions("name = 'digits-cnn'")
    return (model.tags, aliases(store)), {
        str(version.version): (version.tags, version.description, version.source) for version in versions
    }


def changes():
    """The changes of the champion that were made."""
    history = champion_history("digits-cnn")
    return [(change.kind, change.before, change.after) for change in history if change.made]


def tags_of(store, version):
    """The tags of a version of digits-cnn, without our prefix."""
    return ours(store.get_model_version("digits-cnn", version).tags)


def test_the_first_model_becomes_champion_and_registering_is_idempotent(store, in_process, tracked, trained, digits):
    run_id, _, model, evaluation = tracked
    first = register(tracked, digits)
    assert (first.name, first.version, first.champion) == ("digits-cnn", "1", True)
    version = store.get_model_version_by_alias("digits-cnn", "champion")
    assert (version.run_id, version.source) == (run_id, model.model_uri)
    assert json.loads(store.get_logged_model(model.model_id).tags["mlflow.modelVersions"]) == [
        {"name": "digits-cnn", "version": version.version}
    ]
    assert aliases(store) == {"challenger": "1", "champion": "1"}
    expected = {
        "step": "small", "dataset.digest": digits.digest, "parameters": "1000", "verified": "true",
        "min_accuracy_last_k": repr(min(row.eval_accuracy for row in trained.history[-5:])),
        "test_accuracy": repr(evaluation.accuracy), "promotion.promoted": "True",
    }  # fmt: skip
    assert ours(version.tags).items() >= expected.items()
    assert all(tag.startswith(PREFIX) for tag in version.tags)
    assert (
        'mlflow.pyfunc.load_model("models:/digits-cnn@champion")'
        in store.get_registered_model("digits-cnn").description
    )
    (change,) = champion_history("digits-cnn")
    assert (change.kind, change.before, change.after) == ("promotion", None, "1")
    assert (change.by, change.why) == (getpass.getuser(), "small passed the gate; there was no champion before")

    before = state(store)
    again = register(tracked, digits)
    assert (again.version, again.champion) == ("1", True)
    assert registry.promote("digits-cnn", "1", digits, why="once more").reason == "it is the champion already"
    assert state(store) == before


def test_promotions_and_rollbacks(store, in_process, trained, digits):
    weak = train_small(digits, replace(SMALL_RECIPE, epochs=1))
    register(track(weak, digits), digits, parameters=1000)
    better = register(track(trained, digits), digits, parameters=2000)
    assert better.champion
    assert better.reason.startswith("significantly better than version 1 (alone right on ")
    version = store.get_model_version("digits-cnn", "2")
    tags = tags_of(store, "2")
    alone, rival, p = (float(tags[f"promotion.{name}"]) for name in ("challenger_alone", "champion_alone", "p"))
    accuracy, weaker = (float(tags_of(store, number)["test_accuracy"]) for number in ("2", "1"))
    assert alone - rival == pytest.approx((accuracy - weaker) / 100 * len(digits.test_labels))
    assert p < 0.05
    assert version.description.startswith("Promoted: significantly better than version 1")
    both = int(tags["promotion.both_right"])
    assert f"both classify correctly: {both}; only version 2: {alone:.0f}; only version 1: {rival:.0f}; " in (
        version.description
    )

    store.update_registered_model("digits-cnn", "my own words")
    same = register(track(trained, digits), digits, parameters=2000)  # neither better nor smaller
    assert store.get_registered_model("digits-cnn").description == "my own words"
    assert not same.champion
    assert "not significantly better than version 2 (alone right on 0 images, the champion on 0" in same.reason
    assert aliases(store) == {"challenger": "3", "champion": "2"}
    smaller = register(track(trained, digits), digits, parameters=1999)
    assert smaller.champion
    assert "and smaller: 1,999 parameters to 2,000" in smaller.reason
    by_hand = registry.promote("digits-cnn", "1", digits, why="an experiment")
    assert not by_hand.champion
    assert "significantly worse than version 4" in by_hand.reason
    assert aliases(store)["champion"] == "4"
    forced = registry.promote("digits-cnn", "1", digits, why="an experiment", force=True)
    assert forced.champion
    assert champion_history("digits-cnn")[-1].why.startswith(
        "an experiment; by force, though significantly worse than version 4"
    )
    version = store.get_model_version("digits-cnn", "1")
    assert version.description.startswith("Promoted by force: significantly worse than version 4")
    assert tags_of(store, "1")["promotion.promoted"] == "True"
    assert changes() == [
        ("promotion", None, "1"),
        ("promotion", "1", "2"),
        ("promotion", "2", "4"),
        ("promotion", "4", "1"),
    ]

    for version in ("4", "2", "1"):  # back through all of them
        assert registry.roll_back("digits-cnn", digits, why="regretted").version == version
        assert aliases(store)["champion"] == version
    with pytest.raises(RegistryError, match="digits-cnn has no earlier champion to go back to: .* version 1"):
        registry.roll_back("digits-cnn", digits, why="regretted")
    assert changes()[-3:] == [("rollback", "1", "4"), ("rollback", "4", "2"), ("rollback", "2", "1")]


def test_rollback_skips_deleted_versions_and_unmade_changes(store, in_process, tracked, trained, digits, monkeypatch):
    register(tracked, digits, parameters=1000)
    register(track(trained, digits), digits, parameters=900)
    register(track(trained, digits), digits, parameters=800)
    with monkeypatch.context() as patch:  # the process is killed after the announcement, before the alias moves
        patch.setattr(MlflowClient, "set_registered_model_alias", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception, match="killed"):
            registry.roll_back("digits-cnn", digits, why="regretted")
    assert aliases(store)["champion"] == "3"
    assert changes()[-1] == ("promotion", "2", "3")
    assert str(champion_history("digits-cnn")[-1]).endswith("regretted (announced, and never made)")
    store.delete_model_version("digits-cnn", "2")
    assert registry.roll_back("digits-cnn", digits, why="regretted").version == "1"
    assert changes()[-1] == ("rollback", "3", "1")
    assert len(changes()) == 4  # version 2 is deleted, its history is not
    with pytest.raises(RegistryError, match="no earlier champion"):
        registry.roll_back("digits-cnn", digits, why="regretted")

    store.set_registered_model_alias("digits-cnn", "champion", "3")  # by other means, as in MLflow's UI
    registry.promote("digits-cnn", "1", digits, why="by hand", force=True)
    assert [change.made for change in champion_history("digits-cnn")] == [True, True, True, False, True, True]
    assert registry.roll_back("digits-cnn", digits, why="regretted").version == "3"
    store.delete_model_version("digits-cnn", "3")  # the champion itself
    assert aliases(store).get("champion") is None
    assert registry.roll_back("digits-cnn", digits, why="lost").version == "1"
    assert aliases(store)["champion"] == "1"


def test_rollback_never_returns_to_the_current_champion(store, in_process, tracked, trained, digits):
    register(tracked, digits, parameters=1000)
    register(track(trained, digits), digits, parameters=900)
    registry.promote("digits-cnn", "1", digits, why="by hand", force=True)
    assert register(tracked, digits).version == "1"  # registered before, so it does not become challenger again
    assert aliases(store) == {"challenger": "2", "champion": "1"}
    store.delete_model_version("digits-cnn", "2")
    with pytest.raises(RegistryError, match="no earlier champion to go back to: the champion is version 1"):
        registry.roll_back("digits-cnn", digits, why="regretted")


def test_rollback_and_promotion_without_versions(store, digits):
    with pytest.raises(RegistryError, match="digits-cnn has no version: a run that passes the gate registers one"):
        registry.roll_back("digits-cnn", digits, why="regretted")
    with pytest.raises(ParameterError, match="version is '1': it takes a version of digits-cnn, which has none"):
        registry.promote("digits-cnn", "1", digits, why="by hand")


def measured_on(store, name, *locations):
    """Register versions that were measured on data at these locations."""
    store.create_registered_model(name)
    for location in locations:
        store.create_model_version(name, "file:///nowhere", tags={f"{PREFIX}dataset.location": location})


def test_the_data_of_a_version_is_where_that_version_says(store):
    measured_on(store, "fashion-cnn", "/first", "/second", "/third")
    store.set_registered_model_alias("fashion-cnn", "challenger", "2")
    assert registry.dataset_location("fashion-cnn", "1") == "/first"
    assert registry.dataset_location("fashion-cnn", "challenger") == "/second"
    with pytest.raises(RegistryError, match="fashion-cnn has no earlier champion to go back to: the champion is none"):
        registry.dataset_location("fashion-cnn")
    set_champion("fashion-cnn", None, "1", "promotion", "a test")
    set_champion("fashion-cnn", store.get_model_version("fashion-cnn", "1"), "3", "promotion", "a test")
    assert registry.dataset_location("fashion-cnn") == "/first"


def test_a_model_that_is_not_there_is_refused(store):
    nothing = "it takes a registered model, and there is none yet: a run that passes the gate registers one"
    with pytest.raises(ParameterError, match=f"^model is 'mnist-cnn': {nothing}$"):
        registry.dataset_location("mnist-cnn")
    for number in range(101):  # a page of the store's answer has 100
        store.create_registered_model(f"{number:03}-cnn")
    measured_on(store, "houses", "/houses")
    there = "it takes a registered model, as 000-cnn, .*, 100-cnn$"
    for name in ("mnist-cnn", "000", "houses", "", "-cnn", "a/b-cnn", "' or 1=1 ---cnn"):
        with pytest.raises(ParameterError, match=f"^model is {re.escape(repr(name))}: {there}"):
            registry.dataset_location(name, "1")


def test_a_store_that_does_not_answer_is_no_missing_model(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(MlflowException, match="failed with exception"):
        registry.dataset_location("digits-cnn")


def test_the_champion_of_one_model_among_many(store):
    for number in range(102):
        store.create_registered_model(f"{number:03}-cnn")
        store.create_model_version(f"{number:03}-cnn", "file:///nowhere")
    store.set_registered_model_alias("000-cnn", "champion", "1")
    for number in range(1, 102):  # the others changed later
        store.update_registered_model(f"{number:03}-cnn", "changed")
    champion = get_champion("000-cnn")
    assert champion is not None
    assert str(champion.version) == "1"
    assert [get_champion(name) for name in ("001-cnn", "missing-cnn", "", "a/b")] == [None] * 4
    assert explain_no_champion("001-cnn", str.upper).startswith("001-cnn has no champion; 000-cnn has one: 000-CNN; ")


def test_the_challenger_is_promoted_by_its_alias(store, in_process, tracked, trained, digits):
    missing = "version is 'challenger': it takes a version of digits-cnn, which has none"
    with pytest.raises(ParameterError, match=missing):
        registry.promote("digits-cnn", "challenger", digits, why="by hand")
    register(tracked, digits, parameters=1000)
    assert registry.promote("digits-cnn", "challenger", digits, why="by hand").reason == "it is the champion already"
    register(track(trained, digits), digits, parameters=2000)
    done = registry.promote("digits-cnn", "challenger", digits, why="by hand", force=True)
    assert (done.version, done.champion) == ("2", True)
    assert aliases(store) == {"challenger": "2", "champion": "2"}
    assert changes()[-1] == ("promotion", "1", "2")
    store.delete_registered_model_alias("digits-cnn", "challenger")
    with pytest.raises(ParameterError, match="digits-cnn has no challenger; its versions are 1, 2"):
        registry.promote("digits-cnn", "challenger", digits, why="by hand")


def test_only_verified_models_are_promoted(store, in_process, tracked, trained, digits):
    run_id, verdict, model, evaluation = tracked
    doctored = replace(evaluation, probabilities=evaluation.probabilities.roll(1, dims=1))
    with pytest.raises(VerificationError, match=r"has \d+\.\d\d % when reloaded, and had .* when logged"):
        registry.register(model, run_id, "small", verdict, doctored.accuracy, digits)
    assert aliases(store) == {"challenger": "1"}
    assert "verified" not in tags_of(store, "1")

    register(tracked, digits)  # the same model, with its true figures
    assert aliases(store)["champion"] == "1"
    with pytest.raises(ParameterError, match="version is '7': it takes a version of digits-cnn, which has 1"):
        registry.promote("digits-cnn", "7", digits, why="by hand")
    other = replace(digits, digest="0ther")
    with pytest.raises(RegistryError, match="digits-cnn version 1 was measured on other data than this"):
        verify([store.get_model_version("digits-cnn", "1")], other, Verifier())
    rival = track(trained, digits)
    refused = registry.register(rival[2], rival[0], "small", rival[1], rival[3].accuracy, other)
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
    forced = registry.promote("digits-cnn", "3", digits, why="the champion is damaged", force=True)
    assert forced.reason.startswith("by force, though not compared: digits-cnn version 1 was altered")
    assert aliases(store) == {"challenger": "3", "champion": "3"}
    with pytest.raises(VerificationError, match="digits-cnn version 1 was altered"):
        registry.roll_back("digits-cnn", digits, why="regretted")
    assert aliases(store)["champion"] == "3"


def test_an_interrupted_registration_is_finished_by_the_same_run(
    store, in_process, tracked, trained, digits, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(registry, "promote", lambda *_, **__: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception, match="killed"):
            register(tracked, digits)
    store.delete_model_version_tag("digits-cnn", "1", f"{PREFIX}parameters")
    with pytest.raises(RegistryError, match="version 1 was not registered to the end: it has no parameters"):
        registry.promote("digits-cnn", "1", digits, why="by hand")
    run_id, verdict, _, evaluation = tracked
    exported_again = track(trained, digits)[2]
    again = registry.register(exported_again, run_id, "small", verdict, evaluation.accuracy, digits)
    assert (again.version, again.champion) == ("1", True)
    assert len(store.search_model_versions("name = 'digits-cnn'")) == 1


def test_two_challengers_are_verified_at_the_same_time_and_the_second_is_compared_with_the_first(
    store, in_process, tracked, trained, digits, monkeypatch
):
    compared = []

    def predict(verifier, models, images):
        compared.append([model.name for model in models])
        return predict_in_process(models, images)

    monkeypatch.setattr(Verifier, "predict", predict)
    _, met = watch_turns(monkeypatch, Verifier, "predict")
    at_once(*(partial(register, one, digits) for one in (tracked, track(trained, digits))))
    assert met.is_set()  # both were verifying
    (change,) = changes()
    winner = change[2]
    assert sorted(compared[:2]) == [["digits-cnn version 1"], ["digits-cnn version 2"]]
    assert compared[2:] == [[f"digits-cnn version {winner}"]]  # the other one has been verified already
    loser = {"1": "2", "2": "1"}[winner]
    assert f"not significantly better than version {winner}" in tags_of(store, loser)["promotion.reason"]


def test_two_challengers_change_the_aliases_one_after_the_other(
    store, in_process, tracked, trained, digits, monkeypatch
):
    together, met = watch_turns(monkeypatch, MlflowClient, "set_registered_model_alias")
    at_once(*(partial(register, one, digits) for one in (tracked, track(trained, digits))))
    assert together.broken
    assert not met.is_set()
    assert len(changes()) == 1


@pytest.fixture
def overtaken(monkeypatch):
    """Let another process make a version the champion while this one verifies for the first time."""

    def overtake(version):
        def verify_slowly(*given):
            monkeypatch.setattr(registry, "verify", verify)
            found = verify(*given)
            set_champion("digits-cnn", get_champion("digits-cnn"), version, "promotion", "by another process")
            return found

        monkeypatch.setattr(registry, "verify", verify_slowly)

    return overtake


def test_a_champion_that_changes_meanwhile_is_compared_again(store, in_process, tracked, trained, digits, overtaken):
    for parameters in (1000, 900):
        register(track(trained, digits), digits, parameters=parameters)
    third = track(trained, digits)
    overtaken("1")
    done = register(third, digits, parameters=950)  # larger than version 2, smaller than version 1
    assert done.champion
    assert done.reason.startswith("not significantly worse than version 1 ")
    assert changes()[-2:] == [("promotion", "2", "1"), ("promotion", "1", "3")]


def test_a_rollback_goes_back_from_the_champion_of_now(store, in_process, trained, digits, overtaken):
    for parameters in (1000, 900, 800):
        register(track(trained, digits), digits, parameters=parameters)
    overtaken("1")
    done = registry.roll_back("digits-cnn", digits, why="regretted")
    assert done.version == "3"
    assert changes()[-2:] == [("promotion", "3", "1"), ("rollback", "1", "3")]


def test_the_caller_may_start_the_verifier_early(store, warm_start, tracked, digits):
    with Verifier() as verifier:
        verifier.start()
        process = verifier._process
        run_id, verdict, model, evaluation = tracked
        done = registry.register(
            model, run_id, "small", replace(verdict, passed=True), evaluation.accuracy, digits, verifier
        )
        assert done.champion
        assert verifier._process is process  # the caller ends it
        assert process.poll() is None


def test_versions_and_history_of_the_first_edition(store, in_process, trained, digits):
    """Version 0.1.0 wrote its tags without a prefix, and the key figure under another name."""
    register(track(trained, digits), digits, parameters=1000)
    register(track(trained, digits), digits, parameters=900)
    for version in ("1", "2"):
        tags = store.get_model_version("digits-cnn", version).tags
        for tag in tags:
            store.delete_model_version_tag("digits-cnn", version, tag)
        for tag, value in ours(tags).items():
            if tag not in tags and tag not in PACKED:
                old_tag = tag.replace("min_accuracy_last_k", "streak_accuracy")
                store.set_model_version_tag("digits-cnn", version, old_tag, value)
    for tag, value in store.get_registered_model("digits-cnn").tags.items():
        store.delete_registered_model_tag("digits-cnn", tag)
        store.set_registered_model_tag("digits-cnn", tag.removeprefix(PREFIX), value)
    before = state(store)
    assert PREFIX not in str(before)

    first_edition = [("promotion", None, "1"), ("promotion", "1", "2")]
    assert changes() == first_edition
    (candidate,) = verify([store.get_model_version("digits-cnn", "1")], digits, Verifier())
    assert (candidate.version, candidate.parameters) == ("1", 1000)
    assert registry.promote("digits-cnn", "2", digits, why="once more").reason == "it is the champion already"
    assert state(store) == before
    assert registry.roll_back("digits-cnn", digits, why="regretted").version == "1"
    assert registry.promote("digits-cnn", "2", digits, why="after all").champion
    assert changes() == [*first_edition, ("rollback", "2", "1"), ("promotion", "1", "2")]
    assert register(track(trained, digits), digits, parameters=800).champion
    assert [version for _, _, version in changes()] == ["1", "2", "1", "2", "3"]
    version = store.get_model_version("digits-cnn", "2")
    assert ours(version.tags)["promotion.promoted"] == "True"


def test_models_of_earlier_versions_are_compared_promoted_and_predict(store, in_process, trained, digits, monkeypatch):
    """Where there is a CUDA device, too; there, they load only with the device that they were exported on."""
    with monkeypatch.context() as before:
        before.setattr(export, "log_model", log_as_before)
        earlier = track(trained, digits)
    later = track(trained, digits)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert register(earlier, digits, parameters=1000).champion
    with pytest.raises(MlflowException, match="can't be loaded on 'cuda' device"):
        mlflow.pyfunc.load_model("models:/digits-cnn/1")
    done = register(later, digits, parameters=900)
    assert (done.champion, "fewer" in done.reason or "smaller" in done.reason) == (True, True), done.reason
    assert registry.roll_back("digits-cnn", digits, why="a test").champion
    assert aliases(store)["champion"] == "1"
    assert registry.promote("digits-cnn", "2", digits, why="a test").champion
    images = digits.test_images.numpy()
    old, new = (predict.load(f"models:/digits-cnn/{version}")[0].predict(images) for version in (1, 2))
    np.testing.assert_allclose(old, new, atol=1e-6)


def test_a_model_that_predicts_other_classes_than_the_network_is_not_promoted(
    store, in_process, tracked, digits, monkeypatch
):
    """The accuracy does not show it: one wrong answer becomes another wrong answer."""

    def predict(verifier, models, images):
        (row,) = predict_in_process(models, images)
        mistake = int((row != digits.test_labels.numpy()).argmax())
        row[mistake] = min({0, 1, 2} - {row[mistake], int(digits.test_labels[mistake])})
        return row[None]

    monkeypatch.setattr(Verifier, "predict", predict)
    with pytest.raises(VerificationError, match="digits-cnn version 1 predicts other classes for some images"):
        register(tracked, digits)
    assert aliases(store) == {"challenger": "1"}


def test_a_model_that_needs_pickle_is_not_promoted(store, warm_start, digits):
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
    with unchecked, pytest.raises(VerificationError, match="(?i)pickle"):
        registry.promote("digits-cnn", str(version.version), digits, why="by hand")
    assert aliases(store) == {}


def test_a_model_that_failed_the_gate_is_never_registered(store, tracked, digits):
    run_id, verdict, model, evaluation = tracked
    with pytest.raises(ValueError, match="only a model that passed the gate"):
        registry.register(model, run_id, "small", replace(verdict, passed=False), evaluation.accuracy, digits)
    assert list(store.search_registered_models()) == []
