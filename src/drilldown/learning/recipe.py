"""What a step declares: how its network is trained (`Recipe`) and what the model must reach (`Target`)."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from drilldown.errors import ParameterError, check

Schedule = Literal["constant", "step", "one-cycle", "quadratic", "cubic"]

# The values that users may give, too.
BOUNDS: dict[str, dict[str, Any]] = {
    "epochs": {"whole": True, "low": 1, "high": 9_999},  # the name of a saved state has four digits for its epoch
    "batch_size": {"whole": True, "low": 1, "high": 60_000},  # all of MNIST at once
    "lr": {"above": 0},
    "target": {"low": 0, "high": 100},
    "seed": {"whole": True, "low": 0, "high": 2**32 - 1},
    "threads": {"whole": True, "low": 1, "high": 1024},
}


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: SGD with momentum on cross-entropy.

    Raises ParameterError, which names the field, for a value out of its bounds.
    """

    epochs: int = 20
    batch_size: int = 128
    lr: float = 0.01  # learning rate; the peak, if the schedule has a warm-up
    schedule: Schedule = "constant"  # one-cycle: Smith and Topin, 2017; quadratic, cubic: decay by that power
    warmup_fraction: float = 0.2  # share of the updates in which one-cycle, quadratic and cubic rise to the peak
    lr_step_epochs: int = 6  # epochs after which the step schedule divides the learning rate by ten, again and again
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    ema_epochs: float = 0.0  # time constant of the exponential moving average of the weights, in epochs; 0: no average
    rotation: float = 0.0  # degrees, uniform in ±
    translate: float = 0.0  # share of the width and height, uniform in ±
    scale: float = 0.0  # share of the size, uniform in ±

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            takes = ", ".join(get_args(Schedule))
            raise ParameterError(f"schedule is {self.schedule!r}: it takes one of {takes}")
        for field in ("epochs", "batch_size", "lr"):
            check(field, getattr(self, field), **BOUNDS[field])
        check("lr_step_epochs", self.lr_step_epochs, whole=True, low=1)
        for field in ("weight_decay", "ema_epochs", "rotation"):
            check(field, getattr(self, field), low=0)
        for field in ("momentum", "label_smoothing", "translate", "scale"):
            check(field, getattr(self, field), low=0, below=1)
        check("warmup_fraction", self.warmup_fraction, above=0, below=1)


@dataclass(frozen=True)
class Goal:
    """What a run is judged by: a step's target with its accuracy decided."""

    accuracy: float  # percent of the test images
    last: int = 5  # this many epochs, up to the last one, must all reach the accuracy
    max_epochs: int | None = None
    max_parameters: int | None = None

    def __post_init__(self) -> None:
        check("target", self.accuracy, **BOUNDS["target"])
        _check_limits(self)


@dataclass(frozen=True)
class Target:
    """What a model must reach to be registered, as a step declares it; the fields are those of `Goal`."""

    accuracy: float | None = None  # None: the dataset's own target
    last: int = 5
    max_epochs: int | None = None
    max_parameters: int | None = None

    def __post_init__(self) -> None:
        if self.accuracy is not None:
            check("target", self.accuracy, **BOUNDS["target"])
        _check_limits(self)

    def resolve(self, accuracy: float) -> Goal:
        """Return the goal with this accuracy and the limits of the target."""
        return Goal(**asdict(self) | {"accuracy": accuracy})


def _check_limits(limits: Goal | Target) -> None:
    check("last", limits.last, whole=True, low=1)
    for field in ("max_epochs", "max_parameters"):
        if getattr(limits, field) is not None:
            check(field, getattr(limits, field), whole=True, low=1)
