"""A search as an Optuna study: which trial comes next, and what became of each. Several commands may share one."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.exceptions import MlflowException
from tqdm import tqdm

from drilldown.errors import StoreError, TuneError
from drilldown.experiments.nested import Outcome
from drilldown.experiments.space import Space
from drilldown.learning.recipe import Goal
from drilldown.messages import one_line
from drilldown.options import TrainOptions, TuneOptions
from drilldown.reporting.statistics import summarize
from drilldown.steps import Step
from drilldown.tracking import runs, search, store
from drilldown.tracking.tags import ours
from drilldown.training import run_name

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
    from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError, NoSuchModuleError) as error:
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
    step: Step
    options: TrainOptions  # of every training
    tune_options: TuneOptions
    goal: Goal
    driver: str  # the id of this command's run
    other: str = ""  # an earlier study of the step, and in what it differs
    is_new: bool = False
    refused: int = 0  # in succession
    lengths: dict[str, int] = field(default_factory=dict)  # epochs of each training, by its name
    trials: dict[str, int] = field(default_factory=dict)  # the trial of each
    running: dict[int, Trial] = field(default_factory=dict)
    outcomes: dict[int, list[Outcome]] = field(default_factory=dict)
    reported: dict[int, int] = field(default_factory=dict)  # the last epoch of each

    def trainings(self) -> Iterator[tuple[str, TrainOptions]]:
        """The trainings of the next trials, until there are as many trials as there shall be."""
        while trial := self.ask():
            try:
                wanted = self.space.apply(self.options, trial.params)
                epochs = wanted.recipe(self.step.recipe).epochs
                network = self.step.network(**wanted.network_fields)
            except Exception as error:  # the space allows what the recipe or the network does not
                self._end(trial, "FAIL", error=one_line(f"{type(error).__name__}: {error}"))
                continue
            size = sum(parameter.numel() for parameter in network.parameters())
            trial.set_user_attr("parameters", size)
            if (most := self.goal.max_parameters) is not None:
                trial.set_constraint("parameters", size - most)
                if size > most:
                    self._refuse(trial, f"{size:,} parameters are more than max_parameters={most:,}")
                    continue
            for seed in range(self.options.seed, self.options.seed + self.tune_options.seeds_per_trial):
                name = run_name(self.step.name, seed, trial.number)
                self.lengths[name], self.trials[name] = epochs, trial.number
                yield self.step.name, replace(wanted, seed=seed, study=self.study.study_name, trial=trial.number)

    def ask(self) -> Trial | None:
        """The next trial; None if there are as many as there shall be."""
        with store.store_lock(FILE):  # two commands must not both ask for the last one
            if len(self.counted()) >= self.tune_options.trials:
                return None
            trial = self.study.ask(dict(self.space.distributions))
            trial.set_user_attr("driver", self.driver)
        self.running[trial.number], self.outcomes[trial.number] = trial, []
        return trial

    def counted(self) -> list[FrozenTrial]:
        """The trials so far, without those that were refused, and those that were lost and asked for again."""
        trials = self.study.get_trials(deepcopy=False)
        return [
            trial
            for trial in trials
            if trial.state.name != "WAITING" and not {"refused", "lost"} & self.facts(trial).keys()
        ]

    def facts(self, trial: FrozenTrial) -> dict[str, Any]:
        """What is known of a trial besides its values: its runs and their seconds, or why it has none."""
        return trial.user_attrs | self.study.user_attrs.get(f"trial.{trial.number}", {})

    def state(self, trial: FrozenTrial) -> str:
        """What became of a trial, in a word."""
        facts = self.facts(trial)
        return next((word for word in ("refused", "lost") if word in facts), trial.state.name.lower())

    def line(self, trial: FrozenTrial) -> str:
        """A trial in one line, for the screen."""
        facts, values = self.facts(trial), ", ".join(f"{name} {short(value)}" for name, value in trial.params.items())
        what = f"{trial.value:.2f} %" if trial.state.name == "COMPLETE" else self.state(trial)
        reason = f"after epoch {facts['epochs']}" if "epochs" in facts else facts.get("error", "")
        seconds = f"{facts['seconds']:.0f} s" if "seconds" in facts else ""
        return f"trial {trial.number}: {'  '.join(filter(None, [what, reason, seconds, values]))}"

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
            if trial.params != self.space.own and trial.should_prune():  # the step's own recipe is trained to its end
                runs.ask_to_stop(run.info.run_id, f"{type(self.study.pruner).__name__} of trial {number}")

    def tell(self, outcome: Outcome) -> None:
        """Tell of one training; its trial ends with the last of its trainings."""
        number = outcome.trial
        assert number is not None
        told, trial = self.outcomes[number], self.running[number]
        told.append(outcome)
        if len(told) < self.tune_options.seeds_per_trial:
            return
        self.refused, facts = 0, _facts(told)
        epochs = self.lengths[run_name(self.step.name, outcome.seed, number)]
        if failed := next((one.error for one in told if one.error), None):
            self._end(trial, "FAIL", **facts, error=failed)
        elif any(len(one.accuracies) < epochs for one in told):
            self._end(trial, "PRUNED", **facts, epochs=len(told[0].accuracies))
        else:
            self._end(trial, "COMPLETE", _value(told, self.goal), **facts)

    def _refuse(self, trial: Trial, reason: str) -> None:
        self.refused += 1
        if self.refused > MAX_REFUSED:
            raise TuneError(f"{self.refused} trials in succession cannot be trained, the last one because {reason}")
        self._end(trial, "PRUNED", refused=reason)

    def _end(self, trial: Trial, state: str, value: float | None = None, **facts: object) -> None:
        from optuna.trial import TrialState

        for name, fact in facts.items():
            trial.set_user_attr(name, fact)
        self.study.tell(trial, value, TrialState[state], skip_if_finished=True)
        del self.running[trial.number]
        if "refused" not in facts:
            tqdm.write(self.line(self.study.get_trials(deepcopy=False)[trial.number]))


def short(value: object) -> str:
    """A value for a table."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def open_search(
    step: Step,
    space: Space,
    goal: Goal,
    options: TrainOptions,
    tune_options: TuneOptions,
    *,
    storage: str,
    identity: Mapping[str, str],
    dataset: str,
    driver: str,
    jobs: int,
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
    name = f"{step.name}-{dataset}-{hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]}"
    with store.store_lock(FILE):  # the tables are created by one command, and lost trials are settled once
        found = optuna.storages.RDBStorage(
            url.render_as_string(hide_password=False), engine_kwargs={"connect_args": limits}
        )
        others = [
            summary
            for summary in optuna.get_all_study_summaries(found)
            if summary.study_name != name and summary.user_attrs.get("step") == [step.name, dataset]
        ]
        study = optuna.create_study(
            storage=found,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
            pruner=_pruner(tune_options.pruner, options.recipe(step.recipe).epochs),
        )
        is_new = not study.get_trials(deepcopy=False)
        if is_new:
            study.set_user_attr("step", [step.name, dataset])
            study.set_user_attr("identity", dict(identity))
            study.enqueue_trial(dict(space.own))
        drivers = sum(key.startswith("driver.") for key in study.user_attrs)
        study.set_user_attr(f"driver.{driver}", drivers)
        # A command that goes on must not draw the numbers of the one before again.
        study.sampler = optuna.samplers.TPESampler(seed=options.seed + 1000 * drivers, constant_liar=jobs > 1)
        _settle(study, tune_options.seeds_per_trial, goal)
    other = max(others, key=lambda summary: summary.datetime_start or datetime.min, default=None)
    difference = ""
    if other:
        theirs = other.user_attrs.get("identity", {})
        changed = sorted(key for key in identity if theirs.get(key) != identity[key])
        difference = f"{other.study_name} differs in {', '.join(changed)}"
    return Search(study, space, step, options, tune_options, goal, driver, difference, is_new)


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
            study.tell(trial.number, _value(outcomes, goal), skip_if_finished=True)
        else:
            study.set_user_attr(f"trial.{trial.number}", {"lost": "the command that trained it was stopped"})
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
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
