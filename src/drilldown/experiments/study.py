"""A search as an Optuna study: which trial comes next, and what became of each. Several commands may share one."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.exceptions import MlflowException

from drilldown.errors import ParameterError, StoreError
from drilldown.experiments.nested import Outcome
from drilldown.experiments.space import Space
from drilldown.learning.recipe import Goal
from drilldown.messages import one_line
from drilldown.reporting.statistics import summarize
from drilldown.tracking import runs, search, store
from drilldown.tracking.tags import ours

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.pruners import BasePruner
    from optuna.trial import FrozenTrial

FILE = "studies.db"  # beside the store's own database
DRIVERLESS_SECONDS = 60  # a trial without a command that asked for it is being asked for, or was lost then
MAX_REFUSED = 200  # trials in succession that have too many parameters
WARM_UP_EPOCHS = 3  # in which the median pruner ends no trial
SPLIT = "validation"  # the test images decide nothing


@contextlib.contextmanager
def answering(storage: str) -> Iterator[None]:
    """Explain in one line what is wrong with the storage of the studies."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError, ImportError) as error:
        cause = error.__cause__ or error
        reason = one_line(str(getattr(cause, "orig", None) or cause))
        raise StoreError(f"storage is {one_line(storage)!r}: it does not answer ({reason})") from error


def default_storage() -> str:
    """The address of the studies' own database: beside the store's file, or else in this folder."""
    from sqlalchemy import URL

    file = Path(store.sqlite_file() or "mlflow.db").absolute().with_name(FILE)
    return URL.create("sqlite", database=str(file)).render_as_string()


def quiet_optuna() -> None:
    """Show Optuna's warnings, but not its reports of progress."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass
class Search:
    """A study with all that a command needs to ask for its trials and to tell of them."""

    study: Study
    space: Space
    trials: int  # how many there shall be at the end
    driver: str  # the id of this command's run
    seeds: int  # for each trial
    goal: Goal
    is_new: bool
    other: str = ""  # an earlier study of the step, and in what it differs
    refused: int = 0  # in succession
    running: dict[int, Trial] = field(default_factory=dict)
    outcomes: dict[int, list[Outcome]] = field(default_factory=dict)
    reported: dict[int, int] = field(default_factory=dict)  # the last epoch of each

    def ask(self) -> Trial | None:
        """The next trial; None if there are as many as there shall be."""
        with store.store_lock(FILE):  # two commands must not both ask for the last one
            if len(self.counted()) >= self.trials:
                return None
            trial = self.study.ask(dict(self.space.distributions))
            trial.set_user_attr("driver", self.driver)
        self.running[trial.number], self.outcomes[trial.number] = trial, []
        return trial

    def counted(self) -> list[FrozenTrial]:
        """The trials so far, without those that were refused, and those that were lost and asked for again."""
        given = self.study.get_trials(deepcopy=False)
        return [
            trial
            for trial in given
            if trial.state.name != "WAITING" and not {"refused", "lost"} & self.facts(trial).keys()
        ]

    def facts(self, trial: FrozenTrial) -> dict[str, Any]:
        """What is known of a trial besides its values: its runs and their seconds, or why it has none."""
        return trial.user_attrs | self.study.user_attrs.get(f"trial.{trial.number}", {})

    def refuse(self, trial: Trial, reason: str) -> None:
        """Tell that the trial cannot be trained: it has too many parameters."""
        from optuna.trial import TrialState

        self.refused += 1
        if self.refused > MAX_REFUSED:
            raise ParameterError(
                f"{self.refused} trials in succession cannot be trained, the last one because {reason}"
            )
        self._end(trial.number, TrialState.PRUNED, refused=reason)

    def fail(self, number: int, reason: str) -> None:
        """Tell that the trial has failed."""
        from optuna.trial import TrialState

        self._end(number, TrialState.FAIL, error=reason)

    def watch(self, number: int) -> None:
        """Report the accuracies of a trial, and ask its training to stop if the study's pruner says so."""
        trial = self.running.get(number)
        if trial is None:
            return
        for run in search.trial_runs(self.study.study_name, number)[:1]:
            for entry in mlflow.MlflowClient().get_metric_history(run.info.run_id, f"{SPLIT}_accuracy"):
                if entry.step > self.reported.get(number, 0):
                    trial.report(entry.value, entry.step)
                    self.reported[number] = entry.step
            if number and trial.should_prune():  # trial 0 is the step's own recipe
                runs.ask_to_stop(run.info.run_id, f"{type(self.study.pruner).__name__} of trial {number}")

    def tell(self, outcome: Outcome, epochs: int) -> FrozenTrial | None:
        """Tell of one training of a trial; returns the trial once all of its trainings are over."""
        from optuna.trial import TrialState

        number = outcome.trial
        assert number is not None
        told = self.outcomes[number]
        told.append(outcome)
        if len(told) < self.seeds:
            return None
        facts = _facts(told)
        if failed := next((one.error for one in told if one.error), None):
            self._end(number, TrialState.FAIL, **facts, error=failed)
        elif any(len(one.accuracies) < epochs for one in told):
            self._end(number, TrialState.PRUNED, **facts, epochs=len(told[0].accuracies))
        else:
            self._end(number, TrialState.COMPLETE, _value(told, self.goal), **facts)
        self.refused = 0
        return self.study.get_trials(deepcopy=False)[number]

    def _end(self, number: int, state: Any, value: float | None = None, **facts: object) -> None:
        trial = self.running.pop(number)
        for name, fact in facts.items():
            trial.set_user_attr(name, fact)
        self.study.tell(trial, value, state, skip_if_finished=True)


def open_search(
    step: str,
    storage: str,
    identity: Mapping[str, str],
    space: Space,
    *,
    dataset: str,
    trials: int,
    driver: str,
    seed: int,
    seeds: int,
    goal: Goal,
    jobs: int,
    pruner: str,
    epochs: int,
) -> Search:
    """Open the study with this identity, or begin it with the step's own values as trial 0.

    Trials of commands that are gone are settled first: what their runs came to is told, and what was lost is asked
    for again.
    """
    import optuna
    from sqlalchemy import make_url

    url = make_url(storage)
    limits = {"timeout": 60} if url.drivername.startswith("sqlite") else {"connect_timeout": 10}
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")  # the driver that is installed
    name = f"{step}-{dataset}-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]}"
    with store.store_lock(FILE):  # the tables are created by one command, and lost trials are settled once
        found = optuna.storages.RDBStorage(
            url.render_as_string(hide_password=False), engine_kwargs={"connect_args": limits}
        )
        others = [
            summary
            for summary in optuna.get_all_study_summaries(found)
            if summary.study_name != name and summary.user_attrs.get("step") == [step, dataset]
        ]
        study = optuna.create_study(
            storage=found,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=_pruner(pruner, epochs),
        )
        is_new = not study.get_trials(deepcopy=False)
        if is_new:
            study.set_user_attr("step", [step, dataset])
            study.set_user_attr("identity", dict(identity))
            study.enqueue_trial(dict(space.own))
        drivers = sum(key.startswith("driver.") for key in study.user_attrs)
        study.set_user_attr(f"driver.{driver}", drivers)
        # A command that goes on must not draw the numbers of the one before again.
        study.sampler = optuna.samplers.TPESampler(seed=seed + 1000 * drivers, constant_liar=jobs > 1)
        _settle(study, seeds, goal)
    other = max(others, key=lambda summary: summary.datetime_start or datetime.min, default=None)
    difference = ""
    if other:
        theirs = other.user_attrs.get("identity", {})
        changed = sorted(key for key in identity if theirs.get(key) != identity[key])
        difference = f"{other.study_name} differs in {', '.join(changed)}"
    return Search(study, space, trials, driver, seeds, goal, is_new, difference)


def _pruner(name: str, epochs: int) -> BasePruner:
    from optuna import pruners

    makers: dict[str, Callable[[], BasePruner]] = {
        "none": pruners.NopPruner,
        "hyperband": lambda: pruners.HyperbandPruner(min_resource=1, max_resource=epochs),
        "median": lambda: pruners.MedianPruner(n_warmup_steps=min(WARM_UP_EPOCHS, epochs // 3)),
    }
    return makers[name]()


def _settle(study: Study, seeds: int, goal: Goal) -> None:
    """Tell of the trials whose command is gone: of those that it could not tell of, and of those that are lost."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _is_alive(trial):
            continue
        found = [run for run in search.trial_runs(study.study_name, trial.number) if run.info.status == "FINISHED"]
        whole = [run for run in found if "pruned" not in ours(run.data.tags)]
        outcomes = [Outcome.from_run("", int(run.data.params["run.seed"]), run.info.run_id, SPLIT) for run in whole]
        if len(outcomes) == seeds:
            study.set_user_attr(f"trial.{trial.number}", _facts(outcomes))
            study.tell(trial.number, _value(outcomes, goal))
        else:
            study.set_user_attr(f"trial.{trial.number}", {"lost": "the command that trained it was stopped"})
            study.tell(trial.number, state=TrialState.FAIL)
            study.enqueue_trial(trial.params)


def _is_alive(trial: FrozenTrial) -> bool:
    """Whether the command that asked for the trial may still tell of it."""
    if driver := trial.user_attrs.get("driver"):
        try:
            return bool(mlflow.get_run(driver).info.status == "RUNNING")
        except MlflowException:  # it is of another store
            return True
    assert trial.datetime_start
    return datetime.now() - trial.datetime_start < timedelta(seconds=DRIVERLESS_SECONDS)


def _facts(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What is kept of the runs of a trial."""
    return {"runs": [one.run_id for one in outcomes], "seconds": sum(one.seconds or 0 for one in outcomes)}


def _value(outcomes: Sequence[Outcome], goal: Goal) -> float:
    """What the search makes as large as it can: the lowest of the last accuracies, its mean over the seeds."""
    return mean(summarize(one.accuracies, goal).min_accuracy_last_k for one in outcomes)
