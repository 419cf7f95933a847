"""The nested runs of a command: which are reused, where the others are trained, and by how many processes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any

import click
import torch
from tqdm import tqdm

from drilldown import hardware, training
from drilldown.engine import accelerate
from drilldown.errors import ParameterError
from drilldown.experiments import nested
from drilldown.experiments.progress import Progress
from drilldown.learning import side_by_side
from drilldown.learning.data import Dataset
from drilldown.learning.recipe import Goal
from drilldown.options import TrainOptions
from drilldown.steps import load_step
from drilldown.tracking import runs, search

if TYPE_CHECKING:
    from drilldown.experiments.cluster import Cluster


@dataclass(frozen=True)
class NestedRuns:
    """What the nested runs of a command have in common."""

    parent: str  # the id of the command's run
    dataset: Dataset
    options: TrainOptions  # of all trainings; each has a seed and fields of its own
    jobs: int | None  # processes that train; None stands for as many as this machine, or the cluster, carries
    cluster: Cluster | None  # whose workers train, in place of processes of this machine

    @property
    def device(self) -> torch.device:
        """The device that trains; workers of a cluster may have one that this machine lacks."""
        asked = self.options.device
        return torch.device(self.cluster.device(asked)) if self.cluster else hardware.select_device(asked)

    def decide(self, trainings: int) -> tuple[int | None, dict[str, Any]]:
        """How many processes train that many runs, and the options that are decided here, once for all of them.

        On a cluster, None stands for as many as its workers can do, and each worker decides how many threads it takes.
        """
        jobs, threads, device = self.jobs, self.options.threads, self.device
        if not self.cluster:
            jobs = max(1, min(jobs or hardware.max_jobs(device), trainings))
            threads = threads or max(1, hardware.cores() // jobs)
        return jobs, {"dataset": self.dataset.location, "device": device.type, "threads": threads}

    def train(
        self,
        trainings: Sequence[tuple[str, TrainOptions]],
        *,
        quiet: bool,
        reuse_from: Collection[str],
        register: bool = False,
    ) -> Iterator[nested.Outcome]:
        """Train each (step, options) in a run nested in the parent, or reuse a finished one; print a line for each.

        Args:
            trainings: their options differ from the common ones in the seed, the trial and fields of the recipe.
            quiet: whether what the processes print is kept back.
            reuse_from: the ids of the experiments whose finished runs may be reused.
            register: whether models that pass the gate are registered.
        """
        dataset, options, device = self.dataset, self.options, self.device
        goals: dict[str, Goal] = {}
        lengths: dict[str, int] = {}  # in epochs
        missing, reused = [], []
        for name, wanted in trainings:
            seed = wanted.seed
            try:
                step = load_step(name)
                network = step.network(**wanted.network_fields)
                engine = accelerate(network, engine=options.engine, device=device).engine
            except ParameterError:  # of the user, for all steps
                raise
            except Exception as error:  # a broken step must not stop the others
                outcome = nested.Outcome(name, seed, "", error=f"{type(error).__name__}: {error}", trial=wanted.trial)
                click.echo(nested.outcome_line(outcome, None))
                yield outcome
                continue
            goal = goals[name] = options.goal(step.target, dataset)
            fingerprint = training.find_fingerprint(step, wanted, dataset, device, engine)
            if found := search.find_reusable(reuse_from, name, seed, fingerprint):
                run_id = found.info.run_id
                outcome = nested.Outcome.from_run(name, seed, run_id, dataset.split, reused=True, trial=wanted.trial)
                reused.append(run_id)
                click.echo(nested.outcome_line(outcome, goal))
                yield outcome
            else:
                missing.append((name, wanted))
                lengths[training.run_name(name, seed, wanted.trial)] = wanted.recipe(step.recipe).epochs
        runs.note_reused(reused)
        together = 1
        if not self.cluster and device.type == "cuda" and len({name for name, _ in missing}) == 1:
            together = side_by_side.AT_A_TIME
        jobs, decided = self.decide(ceil(len(missing) / together))
        with Progress(lengths) as progress:
            for outcome in nested.train(
                [(name, replace(wanted, **decided)) for name, wanted in missing],
                jobs=jobs,
                parent=self.parent,
                dataset=dataset,
                progress=progress,
                together=together,
                register=register,
                quiet=quiet,
                cluster=self.cluster,
            ):
                tqdm.write(nested.outcome_line(outcome, goals[outcome.step]))
                yield outcome
