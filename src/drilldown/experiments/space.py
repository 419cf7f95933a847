"""What a search may change: distributions of fields of the recipe and of arguments of the network."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from drilldown.errors import StepError
from drilldown.learning.recipe import Recipe
from drilldown.options import TrainOptions
from drilldown.steps import Step

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

FIXED = ("epochs", "batch_size", "lr")  # a user who gives one of them fixes it
WARM_UP = ("one-cycle", "quadratic", "cubic")  # schedules that begin with one


@dataclass(frozen=True)
class Space:
    """The distributions of a search, and the step's own values, which lie in them."""

    distributions: Mapping[str, BaseDistribution]
    own: Mapping[str, Any]

    def apply(self, options: TrainOptions, values: Mapping[str, Any]) -> TrainOptions:
        """The options with these values."""
        fields = {name: value for name, value in values.items() if name in Recipe.__dataclass_fields__}
        network = {name: value for name, value in values.items() if name not in fields}
        decided = {name: fields.pop(name) for name in FIXED if name in fields}
        return replace(options, recipe_fields=fields, network_fields=network, **decided)

    def as_text(self) -> str:
        """The distributions in a form that identifies them."""
        from optuna.distributions import distribution_to_json

        return "\n".join(f"{name} {distribution_to_json(self.distributions[name])}" for name in sorted(self.own))


def find_space(step: Step, options: TrainOptions) -> Space:
    """The space that the step declares, or else the default one, without what the user has fixed.

    Raises: StepError when the declared space does not fit the step.
    """
    recipe = options.recipe(step.recipe)
    declared = step.space or default_space(recipe)
    fixed = {name for name in FIXED if getattr(options, name) is not None}
    distributions = {name: found for name, found in declared.items() if name not in fixed}
    if not distributions:
        raise StepError(
            f"SPACE of steps/{step.name}.py: nothing is left to search, because {', '.join(fixed)} is given"
        )
    own = {name: _own(step, recipe, name, distribution) for name, distribution in distributions.items()}
    return Space(distributions, own)


def default_space(recipe: Recipe) -> Mapping[str, BaseDistribution]:
    """Learning rate, weight decay, averaging of the weights, augmentation and, if there is one, the warm-up.

    Each range is widened where the recipe's own value lies outside.
    """
    from optuna.distributions import FloatDistribution

    ranges = {"weight_decay": (0.0, 2e-3), "ema_epochs": (0.0, 2.0), "rotation": (0.0, 15.0), "translate": (0.0, 0.05)}
    if recipe.schedule in WARM_UP:
        ranges["warmup_fraction"] = (0.05, 0.5)
    own = asdict(recipe)
    return {"lr": FloatDistribution(recipe.lr / 10, min(recipe.lr * 10, max(recipe.lr, 1.0)), log=True)} | {
        name: FloatDistribution(min(low, own[name]), max(high, own[name])) for name, (low, high) in ranges.items()
    }


def _own(step: Step, recipe: Recipe, name: str, distribution: object) -> Any:
    """The step's own value of a field of its recipe, or of an argument of its network."""
    from optuna.distributions import BaseDistribution
    from optuna.trial import create_trial

    where = f"SPACE of steps/{step.name}.py"
    if not isinstance(distribution, BaseDistribution):
        raise StepError(f"{where}: {name} is {distribution!r}: it takes one of Optuna's distributions")
    fields, arguments = asdict(recipe), inspect.signature(step.network).parameters
    if name not in fields and (name not in arguments or arguments[name].default is inspect.Parameter.empty):
        raise StepError(
            f"{where}: {name} is no field of Recipe, and no argument of Network with a default: it takes one of "
            f"{', '.join([*fields, *arguments])}"
        )
    own = fields[name] if name in fields else arguments[name].default
    try:
        create_trial(params={name: own}, distributions={name: distribution}, value=0.0)
    except ValueError:  # trial 0 is the step's own recipe
        raise StepError(
            f"{where}: {name} is {own!r} in the step itself: its distribution takes a range with it"
        ) from None
    return own
