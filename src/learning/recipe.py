"""What a step asks for: how it trains (`Recipe`) and what its model must reach (`Target`)."""

import math
import reprlib
from dataclasses import dataclass
from typing import Literal, get_args


class ParameterError(ValueError):
    """A parameter has a value that it does not take; the message names all three."""


BOUNDS = {
    "epochs": {"whole": True, "low": 1, "high": 9_999},  # a saved state has four digits for its epoch
    "batch_size": {"whole": True, "low": 1, "high": 60_000},  # all of MNIST at once
    "lr": {"above": 0},
    "target": {"low": 0, "high": 100},
}  # of what users may give, too

Schedule = Literal["constant", "step", "one-cycle", "quadratic", "cubic"]


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with momentum on cross-entropy.

    Raises ParameterError, naming the field, when a value makes no sense.
    """

    epochs: int = 20
    batch_size: int = 128  # images an update
    lr: float = 0.01  # learning rate; the peak of a schedule that climbs
    schedule: Schedule = "constant"  # one-cycle: Smith and Topin, 2017; quadratic, cubic: it falls by that power
    rise: float = 0.2  # share of the updates in which one-cycle, quadratic and cubic climb to their peak
    step_epochs: int = 6  # the step schedule divides the learning rate by ten this often
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    averaging: float = 0.0  # memory of the weights' exponential moving average, in epochs; 0: none
    rotation: float = 0.0  # degrees, uniform in ±
    shift: float = 0.0  # share of the width and height, uniform in ±
    scale: float = 0.0  # share of the size, uniform in ±

    def __post_init__(self):
        if self.schedule not in get_args(Schedule):
            takes = ", ".join(get_args(Schedule))
            raise ParameterError(f"schedule is {self.schedule!r}: it takes one of {takes}")
        for field in ("epochs", "batch_size", "lr"):
            check(field, getattr(self, field), **BOUNDS[field])
        check("step_epochs", self.step_epochs, whole=True, low=1)
        for field in ("weight_decay", "averaging", "rotation"):
            check(field, getattr(self, field), low=0)
        for field in ("momentum", "label_smoothing", "shift", "scale"):
            check(field, getattr(self, field), low=0, below=1)
        check("rise", self.rise, above=0, below=1)


@dataclass(frozen=True)
class Target:
    """What a model must reach to be registered.

    `accuracy` is a percentage of the test images; None stands for the dataset's own target.
    """

    accuracy: float | None = None
    last: int = 5  # this many epochs, up to the last one, must all reach it
    max_epochs: int | None = None
    max_parameters: int | None = None

    def __post_init__(self):
        if self.accuracy is not None:
            check("target", self.accuracy, **BOUNDS["target"])
        for field in ("last", "max_epochs", "max_parameters"):
            if getattr(self, field) is not None:
                check(field, getattr(self, field), whole=True, low=1)


def check(field, value, *, whole=False, low=-math.inf, high=math.inf, above=-math.inf, below=math.inf):
    """Raise ParameterError unless `value` is a number in [low, high] and in (above, below): never NaN, nor infinite."""
    kind = int if whole else (int, float)
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if not (is_number and low <= value <= high and above < value < below):
        bounds = [
            f"{words} {bound:,}"
            for words, bound in [("at least", low), ("at most", high), ("above", above), ("below", below)]
            if math.isfinite(bound)
        ]
        kind_name = "a whole number" if whole else "a number"
        raise ParameterError(f"{field} is {reprlib.repr(value)}: it takes {kind_name} {' and '.join(bounds)}".rstrip())
