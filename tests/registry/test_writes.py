"""Writes to the registry: none is refused by the limits of a database, and one that fails leaves no false statement."""

import contextlib
import sqlite3

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from drilldown.errors import ParameterError
from drilldown.registry import registry
from drilldown.registry.champion import champion_history, get_champion
from drilldown.registry.promotion import Candidate
from drilldown.tracking import runs
from drilldown.tracking.tags import ours

WRITES = (
    "set_model_version_tag",
    "update_model_version",
    "set_registered_model_tag",
    "set_registered_model_alias",
)


@pytest.fixture
def new_model(store, digits, monkeypatch):
    """Create a registered model with two versions; the second one is better."""
    labels = digits.test_labels.numpy()
    answers = {"1": np.where(np.arange(len(labels)) < 50, labels, (labels + 1) % 10), "2": labels}

    def verify(wanted, dataset, verifier):
        return [Candidate(str(version.version), 1000, answers[str(version.version)]) for version in wanted]

    def create(name):
        store.create_registered_model(name)
        for _ in answers:
            store.create_model_version(name, "file:///nowhere")
        return name

    monkeypatch.setattr(registry, "verify", verify)
    return create


def check_statements(store, model):
    """Whatever is said about a version or a change is so."""
    champion = get_champion(model)
    made = [change.after for change in champion_history(model) if change.made]
    assert made[-1:] == ([str(champion.version)] if champion else [])
    for version in store.search_model_versions(f"name = '{model}'"):
        said, is_champion = ours(version.tags).get("promotion.promoted"), champion.version == version.version
        assert said is None or (said == "True") >= is_champion  # a former champion was promoted, too
        assert not (said == "True" and str(version.version) not in made)
        assert not (version.description or "").startswith("Promoted") or str(version.version) in made
        assert not ((version.description or "").startswith("Not promoted") and is_champion)


@pytest.mark.fault(
    "a write to the registry that fails",
    "each write of a promotion in turn, also one that overrules an earlier decision",
    "nothing false is said of any version; done again, it succeeds",
)
@pytest.mark.parametrize("force", [False, True])
def test_a_promotion_that_fails_at_any_write(store, new_model, digits, monkeypatch, force, record_property):
    left = 1000

    def failing(write):
        def fail(client, *given, **named):
            nonlocal left
            left -= 1
            if left < 0:
                raise MlflowException("the connection is lost")
            return write(client, *given, **named)

        return fail

    for name in WRITES:
        monkeypatch.setattr(MlflowClient, name, failing(getattr(MlflowClient, name)))
    for number in range(20):
        model, left = new_model(f"model{number}-cnn"), 1000
        registry.promote(model, "2" if force else "1", digits, why="the first")
        if force:
            assert not registry.promote(model, "1", digits, why="it is worse").champion
        left, wanted = number, "1" if force else "2"
        try:
            registry.promote(model, wanted, digits, why="it is better", force=force)
        except MlflowException:
            left = 1000
            check_statements(store, model)
            assert registry.promote(model, wanted, digits, why="again", force=force).champion
            check_statements(store, model)
            assert ours(get_champion(model).tags)["promotion.promoted"] == "True"
        else:
            break
    record_property("times", number)
    assert number == (8 if force else 6)  # it needs so many writes
    check_statements(store, model)


@pytest.mark.fault(
    "a database that limits lengths", "PostgreSQL's limit of a tag, and a reason of 1,000 emoji", "it is kept whole"
)
def test_a_long_reason_fits_into_every_database(new_model, digits, tmp_path):
    model = new_model("digits-cnn")
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        for event in ("INSERT", "UPDATE"):
            database.execute(
                f"CREATE TRIGGER limit_{event} BEFORE {event} ON registered_model_tags WHEN length(NEW.value) > 5000 "
                "BEGIN SELECT RAISE(ABORT, 'value too long for type character varying(5000)'); END"
            )
    for why in ("🎉" * 1_000, '"\\' * 500):
        registry.promote(model, "1", digits, why=why, force=True)
        registry.promote(model, "2", digits, why=why, force=True)
        assert champion_history(model)[-1].why.startswith(why)
    before = len(champion_history(model))
    for change in (
        lambda: registry.promote(model, "1", digits, why="x" * 5_000, force=True),
        lambda: registry.roll_back(model, digits, why="x" * 5_000),
    ):
        with pytest.raises(ParameterError, match=r"why is 'xxx.*xxx': it takes at most 3,000 characters, as stored"):
            change()
    assert len(champion_history(model)) == before


def test_more_reused_runs_than_a_tag_holds_are_counted(store):
    ids = [f"{number:032x}" for number in range(400)]
    with runs.run("repeat", {"kind": "repeat"}) as run_id:
        runs.note_reused(ids)
    said = ours(store.get_run(run_id).data.tags)["reused"]
    assert len(said) <= 5_000
    *shown, _, _, more, _ = said.split()
    assert shown == ids[: len(shown)]
    assert len(shown) + int(more) == 400
