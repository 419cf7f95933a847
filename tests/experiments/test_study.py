"""A search as a study: what it asks for, what it is told, and who shares it."""

import sqlite3
from dataclasses import replace
from itertools import islice

import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState
from torch import nn

from drilldown.errors import StoreError, TuneError
from drilldown.experiments import study
from drilldown.experiments.nested import Outcome
from drilldown.experiments.space import Space
from drilldown.learning.recipe import Goal, Recipe, Target
from drilldown.options import TrainOptions, TuneOptions
from drilldown.steps import Step
from drilldown.tracking.tags import PREFIX, ours
from tests.support.concurrency import at_once

SPACE = Space({"lr": FloatDistribution(0.01, 1, log=True), "width": IntDistribution(1, 9)}, {"lr": 0.15, "width": 4})
GOAL = Goal(accuracy=90, last=2, max_parameters=200)
STEP = Step("step4", lambda width: nn.Linear(10, width), Recipe(lr=0.15), Target(), "")
IDENTITY = {"code.digest": "c0de", "dataset.digest": "da7a"}


@pytest.fixture
def search(store, tmp_path):
    """Opens the study, in the name of a driver: by default one with a run of its own."""

    def open_search(driver=None, identity=IDENTITY, storage="", epochs=3, jobs=1, goal=GOAL, step=STEP, **given):
        driver = driver or store.create_run("0").info.run_id
        found = study.open_search(
            step,
            SPACE,
            goal,
            TrainOptions(epochs=epochs),
            TuneOptions(**{"trials": 4} | given),
            storage=storage or study.default_storage(),
            identity=identity,
            dataset="digits",
            driver=driver,
            jobs=jobs,
        )
        opened.append(found)
        return found

    opened = []
    study.quiet_optuna()
    yield open_search
    for found in opened:
        found.study._storage._backend.engine.dispose()


def ask(search):
    """The trial of the next training."""
    _, options = next(search.trainings(), (None, None))
    return options and search.running[options.trial]


@pytest.fixture
def train(store):
    """Logs the run of a trial, as its process would; returns the outcome."""

    def train_trial(search, trial, *accuracies, status="FINISHED", pruned=False, seed=0):
        tags = {"study": search.study.study_name, "trial": trial.number, "step": "step4"}
        tags |= {"pruned": "yes"} if pruned else {}
        run_id = store.create_run("0", tags={f"{PREFIX}{name}": str(value) for name, value in tags.items()}).info.run_id
        store.log_param(run_id, "run.seed", seed)
        for epoch, accuracy in enumerate(accuracies, start=1):
            store.log_metric(run_id, "validation_accuracy", accuracy, step=epoch)
        if status != "RUNNING":
            store.set_terminated(run_id, status)
        return Outcome("step4", seed, run_id, accuracies=accuracies, trial=trial.number, seconds=1.0)

    return train_trial


def state(search):
    return {trial.number: trial.state.name for trial in search.study.trials}


def test_the_step_itself_is_trial_0_and_a_study_that_is_opened_again_goes_on(search, train):
    first = search()
    own = ask(first)
    assert (own.number, own.params, first.is_new) == (0, {"lr": 0.15, "width": 4}, True)
    first.tell(train(first, own, 50.0, 70.0, 60.0))
    told = first.study.trials[0]
    assert (told.state, told.value) == (TrialState.COMPLETE, 60.0)  # the lowest of the last two
    assert first.facts(told)["seconds"] == 1.0
    assert first.line(told) == "trial 0: 60.00 %  1 s  lr 0.15, width 4"
    again = search(trials=2)
    assert not again.is_new
    assert ask(again).number == 1
    assert ask(again) is None
    assert state(first) == {0: "COMPLETE", 1: "RUNNING"}


def test_a_failure_is_told_and_counts_and_a_stopped_training_is_pruned(search, train, capsys):
    found = search(seeds_per_trial=2)
    trainings = found.trainings()

    def both():
        (_, first), (_, second) = islice(trainings, 2)
        assert (first.seed, second.seed, first.trial, second.trial) == (0, 1, first.trial, first.trial)
        return found.running[first.trial]

    trial = both()
    found.tell(Outcome("step4", 0, "run", error="training diverged", trial=0))
    assert state(found) == {0: "RUNNING"}  # the second seed is not known yet
    found.tell(train(found, trial, 50.0, 60.0, 70.0, seed=1))
    whole = both()
    for seed, last in ((0, 60.0), (1, 64.0)):
        found.tell(train(found, whole, 50.0, last, 90.0, seed=seed))
    short = both()
    for seed in (0, 1):
        found.tell(train(found, short, 50.0, pruned=True, seed=seed))
    assert state(found) == {0: "FAIL", 1: "COMPLETE", 2: "PRUNED"}
    assert found.study.trials[1].value == 62.0  # the mean over the seeds
    assert len(found.counted()) == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("trial 0: fail  training diverged  1 s  lr 0.15")
    assert lines[2].startswith("trial 2: pruned  after epoch 1  2 s  lr ")


@pytest.mark.slow
def test_a_trial_with_too_many_parameters_is_not_counted_but_many_in_succession_end_the_search(search, monkeypatch):
    small = replace(GOAL, max_parameters=30)
    found = search(goal=small, trials=1)
    trial = ask(found)
    assert trial.params["width"] <= 2
    refused = [one for one in found.study.trials if one.state == TrialState.PRUNED]
    assert refused
    assert all(one.params["width"] > 2 for one in refused)
    assert found.facts(refused[0])["refused"] == "44 parameters are more than max_parameters=30"
    assert len(found.counted()) == 1
    monkeypatch.setattr(study, "MAX_REFUSED", 0)
    with pytest.raises(TuneError, match="^1 trials in succession cannot be trained, the last one because 44"):
        ask(search(goal=small, identity={"code.digest": "other"}))


def test_a_trial_that_the_space_should_not_allow_fails_alone(search):
    found = search(step=replace(STEP, network=lambda width: nn.Linear(10, 1 / (width - 4))))
    ask(found)
    assert state(found) == {0: "FAIL", 1: "FAIL", 2: "FAIL", 3: "FAIL"}
    assert "ZeroDivisionError" in found.facts(found.study.trials[0])["error"]


@pytest.mark.slow
def test_trials_of_a_killed_command_are_settled_what_it_could_not_tell_of_is_told_and_the_rest_is_asked_again(
    search, train, store
):
    killed = search()
    finished, lost, pruned = (ask(killed) for _ in range(3))
    train(killed, finished, 50.0, 80.0, 70.0)
    train(killed, lost, 50.0, status="KILLED")
    train(killed, pruned, 50.0, pruned=True)
    still_alive = search()
    assert set(state(still_alive).values()) == {"RUNNING"}
    store.set_terminated(killed.driver, "KILLED")
    again = search()
    assert state(again) == {0: "COMPLETE", 1: "FAIL", 2: "FAIL", 3: "WAITING", 4: "WAITING"}
    assert again.study.trials[0].value == 70.0
    assert again.facts(again.study.trials[0])["runs"] != []
    assert len(again.counted()) == 1
    assert [ask(again).params for _ in range(2)] == [lost.params, pruned.params]
    assert ask(again).params not in (lost.params, pruned.params)
    assert ask(again) is None  # four count
    search()
    assert [trial.state.name for trial in again.study.trials].count("WAITING") == 0  # settled once


def test_a_trial_that_nobody_is_named_for_is_lost_after_a_while(search, monkeypatch):
    found = search()
    found.study.ask(dict(SPACE.distributions))  # killed before it could say who asks
    search()
    assert state(found) == {0: "RUNNING"}
    monkeypatch.setattr(study, "DRIVERLESS_SECONDS", 0)
    search()
    assert state(found) == {0: "FAIL", 1: "WAITING"}


@pytest.mark.slow
def test_a_command_that_goes_on_draws_other_numbers_and_a_first_one_always_the_same(search):
    def drawn(found, count):
        return [ask(found).params["lr"] for _ in range(count)]

    first, other = search(trials=99), search(trials=99, identity={"code.digest": "other"})
    ours_, same = drawn(first, 4), drawn(other, 4)
    assert ours_ == same
    assert not set(drawn(search(trials=99), 3)) & set(ours_)


@pytest.mark.slow
def test_two_commands_at_once_share_a_study_and_ask_for_no_trial_twice(search, train):
    searches = []
    at_once(*[lambda: searches.append(search(trials=9))] * 2)
    asked = []

    def drive(found):
        while trial := ask(found):
            asked.append(trial.number)
            found.tell(train(found, trial, 50.0, 60.0, 70.0))

    at_once(*[lambda found=found: drive(found) for found in searches])
    assert sorted(asked) == list(range(9))
    assert sorted(found.is_new for found in searches) == [False, True]
    assert set(state(searches[0]).values()) == {"COMPLETE"}
    assert [trial.params for trial in searches[0].study.trials].count({"lr": 0.15, "width": 4}) == 1


def test_other_code_begins_a_study_of_its_own_and_says_in_what_the_earlier_one_differs(search):
    older = search()
    newer = search(identity=IDENTITY | {"code.digest": "newer"})
    assert newer.is_new
    assert newer.other == f"{older.study.study_name} differs in code.digest"
    assert search().other  # nothing is lost: the older code finds its study again
    assert not search().is_new
    assert older.study.study_name.startswith("step4-digits-")


@pytest.mark.slow
def test_a_pruner_asks_a_trial_that_is_behind_to_stop_but_never_the_step_itself(search, train, store):
    found = search(trials=9, pruner="median", epochs=9)

    def watched(*accuracies):
        trial = ask(found)
        outcome = train(found, trial, *accuracies)
        found.watch(trial.number)
        found.watch(trial.number)  # no epoch is reported twice
        found.tell(outcome)
        return "stop" in ours(store.get_run(outcome.run_id).data.tags)

    assert not watched(*[10.0] * 9)  # the step itself: what all others are compared with
    for accuracy in (90.0, 91.0, 92.0, 93.0, 94.0):
        assert not watched(*[accuracy] * 9)
    assert not watched(*[95.0] * 4)
    assert not watched(10.0, 10.0)  # too early to say
    assert watched(10.0, 10.0, 10.0, 10.0)


def test_a_storage_that_does_not_answer_is_explained_in_one_line(search, tmp_path):
    gone = f"sqlite:///{tmp_path}/nowhere/studies.db"
    with (
        pytest.raises(StoreError, match=r"^storage is 'sqlite:///.*nowhere/studies.db': it does not answer \(.*open"),
        study.answering(gone),
    ):
        search(storage=gone)
    (tmp_path / "text.db").write_text("no database at all, " * 100)
    text = f"sqlite:///{tmp_path}/text.db"
    with pytest.raises(StoreError, match=r"it does not answer \(.*not a database\)"), study.answering(text):
        search(storage=text)
    with pytest.raises(StoreError, match="it does not answer") as refused, study.answering("nonsense://a:secret@b/c"):
        search(storage="nonsense://a:secret@b/c")
    assert "secret" not in str(refused.value)


def test_a_storage_that_goes_away_while_a_trial_trains_is_explained(search, train):
    found = search()
    trial = ask(found)
    with sqlite3.connect(study.FILE) as database:
        database.execute("DROP TABLE trial_values")
    with (
        pytest.raises(StoreError, match="it does not answer .*no such table"),
        study.answering(study.default_storage()),
    ):
        found.tell(train(found, trial, 50.0, 60.0, 70.0))
