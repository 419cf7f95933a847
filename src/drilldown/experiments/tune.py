"""What a search came to: its tables, its page, and its lines on the screen."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from drilldown.experiments import confirm
from drilldown.experiments.confirm import Confirmation
from drilldown.experiments.progress import Progress
from drilldown.experiments.study import Search, short
from drilldown.reporting.report import columns

if TYPE_CHECKING:
    import pandas as pd
    from optuna import Study
    from optuna.trial import FrozenTrial

SHOWN = 10  # trials on the screen
OBJECTIVE = "lowest of the last (%)"
MIN_IMPORTANCE = 4  # finished trials; fewer say nothing about importance
PICTURES = {
    "history": "The best trial so far. Each point is a trial.",
    "importances": "How much of the differences between the trials goes with each value (PED-ANOVA).",
    "slices": "The trials by each value that was searched.",
    "pareto": "Accuracy against parameters: no trial is both smaller and better than those on the front.",
}


class SearchProgress(Progress):
    """Progress that, with a pruner, lets the search look at a trial after each of its epochs."""

    def __init__(self, search: Search, total: int):
        super().__init__(search.lengths, total)
        self.search = search

    def epoch(self, name: str, epoch: int) -> None:
        super().epoch(name, epoch)
        if 0 < epoch < self.epochs[name] and self.search.tune_options.pruner != "none":
            self.search.watch(self.search.trials[name])


def number_of_parameters(trial: FrozenTrial) -> int | None:
    """The size of a trial's network; None if it could not be built."""
    found = trial.user_attrs.get("parameters")
    return None if found is None else int(found)


def finished(search: Search) -> list[FrozenTrial]:
    """The trials that were trained to their end, the best first."""
    trials = [trial for trial in search.study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    return sorted(trials, key=lambda trial: (-(trial.value or 0), trial.number))


def candidates(search: Search, count: int) -> list[FrozenTrial]:
    """The best trials that differ from the step's own recipe and from each other."""
    found: list[FrozenTrial] = []
    for trial in finished(search):
        if trial.params != search.space.own and all(trial.params != other.params for other in found):
            found.append(trial)
    return found[:count]


def rows(search: Search, trials: Sequence[FrozenTrial]) -> list[dict[str, str]]:
    """Trials as a table of words."""
    return [
        {
            "trial": f"{trial.number}{' (own)' if trial.params == search.space.own else ''}",
            OBJECTIVE: f"{trial.value:.2f}" if trial.state.name == "COMPLETE" else search.state(trial),
            "parameters": f"{number_of_parameters(trial) or '–':,}" if number_of_parameters(trial) else "–",
            **{name: short(value) for name, value in trial.params.items()},
        }
        for trial in trials
    ]


def numbers(search: Search) -> pd.DataFrame:
    """Every trial with all that is known of it, as numbers."""
    import pandas as pd

    found = []
    for trial in search.study.get_trials(deepcopy=False):
        facts = search.facts(trial)
        found.append(
            {"trial": trial.number, "state": search.state(trial)}
            | {"value": trial.value if trial.state.name == "COMPLETE" else None}
            | {"parameters": number_of_parameters(trial), "seconds": facts.get("seconds")}
            | dict(trial.params)
            | {"runs": " ".join(facts.get("runs", ())), "reason": facts.get("error") or facts.get("refused") or ""}
        )
    return pd.DataFrame(found)


def pareto(search: Search) -> tuple[Study, list[FrozenTrial]]:
    """A study of two aims, few parameters and a high accuracy, with the finished trials; and its front."""
    import optuna
    from optuna.trial import create_trial

    both = optuna.create_study(directions=["minimize", "maximize"])
    front: dict[tuple[float, ...], FrozenTrial] = {}
    trials = finished(search)
    both.add_trials(
        [
            create_trial(
                params=trial.params,
                distributions=trial.distributions,
                values=[number_of_parameters(trial) or 0, trial.value or 0.0],
            )
            for trial in trials
        ]
    )
    for found in both.best_trials:  # of several that are equal, the first
        front.setdefault(tuple(found.values), trials[found.number])
    return both, [front[key] for key in sorted(front)]


def metrics(search: Search) -> dict[str, float]:
    """The search in figures."""
    trials = search.study.get_trials(deepcopy=False)
    states = [search.state(trial) for trial in trials]
    found: dict[str, float] = {
        f"trials_{word}": states.count(word) for word in ("complete", "pruned", "fail", "refused")
    }
    if ranked := finished(search):
        found["best_validation_min_accuracy_last_k"] = ranked[0].value or 0.0
    return found


def pictures(search: Search, both: Study) -> dict[str, str]:
    """Optuna's own plots as PNG pictures in base64, by name."""
    import matplotlib
    from matplotlib import pyplot as plt
    from optuna.exceptions import ExperimentalWarning
    from optuna.visualization import matplotlib as plots

    trials = finished(search)
    drawn = {
        "history": lambda: plots.plot_optimization_history(search.study, target_name=OBJECTIVE),
        "slices": lambda: plots.plot_slice(search.study, target_name=OBJECTIVE),
        "pareto": lambda: plots.plot_pareto_front(both, target_names=["parameters", OBJECTIVE]),
    }
    if len(trials) >= MIN_IMPORTANCE and len({trial.value for trial in trials}) > 1:
        drawn["importances"] = lambda: plots.plot_param_importances(search.study, target_name=OBJECTIVE)
    found = {}
    with warnings.catch_warnings(), matplotlib.rc_context():  # the plots set a style
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)  # Matplotlib's, of a slice with a single value
        plt.switch_backend("agg")
        for name in PICTURES:
            if name in drawn:
                drawn[name]()
                for axes in plt.gcf().axes:  # the figures below the slices would overlap
                    axes.tick_params(axis="x", which="both", labelrotation=90 if name == "slices" else 0)
                png = io.BytesIO()
                plt.gcf().savefig(png, format="png", dpi=110, bbox_inches="tight")
                plt.close("all")
                found[name] = base64.b64encode(png.getvalue()).decode()
    return found


def page(search: Search, confirmations: Sequence[Confirmation], facts: Mapping[str, str]) -> str:
    """The search as one HTML page that needs no other file."""
    from jinja2 import Environment, FileSystemLoader

    both, front = pareto(search)
    template = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True).get_template("tune.html")
    order = finished(search)
    others = [trial for trial in search.study.get_trials(deepcopy=False) if trial not in order]
    tables = {
        "Confirmation": [found.row() for found in confirmations],
        "Parameters against accuracy": rows(search, front),
        "All trials": rows(search, [*order, *others]),
    }
    return template.render(
        title=f"Search {search.study.study_name}",
        facts=facts,
        verdict=confirm.verdict(confirmations) if confirmations else "",
        tables={heading: found for heading, found in tables.items() if found},
        pictures=pictures(search, both),
        words=PICTURES,
    )


def screen(search: Search) -> str:
    """The best trials, and those on the front of parameters against accuracy."""
    _, front = pareto(search)
    ranked = finished(search)
    lines = [columns(rows(search, ranked[:SHOWN]))]
    if len(ranked) > SHOWN:
        lines.append(f"… and {len(ranked) - SHOWN} more in trials.csv")
    if len({number_of_parameters(trial) for trial in ranked}) > 1:
        lines += ["parameters against accuracy:", columns(rows(search, front))]
    return "\n".join(lines)
