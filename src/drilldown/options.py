"""What users give: the options of the command line, with their types and bounds, and `TrainOptions`."""

from __future__ import annotations

import contextlib
import reprlib
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from drilldown.choices import DATASETS, DEVICES, ENGINES
from drilldown.errors import ParameterError, check
from drilldown.learning.recipe import BOUNDS, Goal, Recipe, Target

if TYPE_CHECKING:
    from drilldown.learning.data import Dataset

MAX_TEXT = 1_000  # characters; MLflow cuts a message at 8,000, and a message may repeat the text several times
MAX_WORD = 100  # characters of a value that is not free text
MAX_COUNT = 9_999  # of a whole number without bounds of its own
CONTROL_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}  # Unicode: control characters, surrogates, line and paragraph separators
Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class TrainOptions:
    """What a training takes from the user; None stands for the recipe's, the dataset's or the machine's own value."""

    seed: int = 0
    dataset: str = "auto"
    data_dir: str = ""
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    validation: int = 0
    device: str = "auto"
    engine: str = "auto"
    threads: int | None = None
    target: float | None = None

    def recipe(self, recipe: Recipe) -> Recipe:
        """The step's recipe with the user's values in it."""
        given = {name: getattr(self, name) for name in ("epochs", "batch_size", "lr")}
        return replace(recipe, **{name: value for name, value in given.items() if value is not None})

    def goal(self, target: Target, dataset: Dataset) -> Goal:
        """What a model must reach on this dataset."""
        return target.resolve(dataset.target_accuracy if self.target is None else self.target)

    def arguments(self) -> list[str]:
        """The same options as arguments of the command line."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return [part for name, value in values.items() for part in (f"--{name}", "" if value is None else str(value))]


class Number(click.ParamType):
    """A number within bounds. An empty value becomes None, the default, where `optional`."""

    def __init__(self, *, whole: bool = False, optional: bool = True, **bounds: float):
        self.name = "whole number" if whole else "number"
        self.whole, self.optional = whole, optional
        self.bounds = {"high": MAX_COUNT} | bounds if whole else bounds

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float | None:
        if value is None or (value == "" and self.optional):
            return None
        with contextlib.suppress(ValueError):  # check() says what is wrong with the text
            value = int(value) if self.whole else float(value)
        check(str(param and param.name), value, whole=self.whole, **self.bounds)
        return value


class Option(click.Option):
    """An option whose value is one printable line, since every value may end in an error line, a tag or the history."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        refusal = f"{self.name} is {reprlib.repr(value)}: it takes "
        longest = MAX_TEXT if self.type is click.STRING else MAX_WORD
        if isinstance(value, str) and (
            len(value) > longest or CONTROL_CATEGORIES & {*map(unicodedata.category, value)}
        ):
            raise ParameterError(f"{refusal}at most {longest:,} characters, and no line ends or control characters")
        converted = super().type_cast_value(ctx, value)  # the option's own type has the better message
        if isinstance(value, str) and not value.strip() and (self.required or value != self.default):
            raise ParameterError(f"{refusal}a {self.type.name} that is not empty")
        return converted


def option(name: str, *, default: str = "", help: str, **settings: Any) -> Callable[[Command], Command]:
    """Declare an option under the name that `mlflow run -P` uses for it."""
    if not settings.get("required"):
        settings |= {"default": default, "show_default": bool(default)}
    return click.option(f"--{name}", name, cls=Option, help=help, **settings)


def combine(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Make one decorator of several options; the help lists them in this order."""

    def decorate(command: Command) -> Command:
        for declare in reversed(options):
            command = declare(command)
        return command

    return decorate


seed_option = option(
    "seed",
    default="0",
    type=Number(whole=True, optional=False, low=0, high=2**32 - 1),
    help="seed of all random numbers",
)
reuse_option = option(
    "reuse",
    default="true",
    type=click.BOOL,
    help="reuse finished runs with the same code, versions, data, recipe, target, engine and seed",
)
experiment_option = option(
    "experiment",
    help="where to look for runs; all: in every experiment  [default: the experiment of this command]",
)
validation_option = option(
    "validation",
    default="0",
    type=Number(whole=True, optional=False, low=0, high=59_999),  # one less than MNIST's training images
    help="measure on this many training images instead of the test images; registers nothing",
)
training_options = combine(
    option("dataset", default="auto", type=click.Choice(DATASETS), help="what to train on"),
    option("data_dir", help="folder that holds MNIST  [default: the user's cache folder]"),
    option("epochs", type=Number(**BOUNDS["epochs"]), help="passes over the training images  [default: the recipe's]"),
    option("batch_size", type=Number(**BOUNDS["batch_size"]), help="images per update  [default: the recipe's]"),
    option("lr", type=Number(**BOUNDS["lr"]), help="learning rate, or its peak  [default: the recipe's]"),
    option("device", default="auto", type=click.Choice(DEVICES), help="where to compute"),
    option("engine", default="auto", type=click.Choice(ENGINES), help="what computes the training passes on a CPU"),
    option("threads", type=Number(whole=True, low=1, high=1024), help="CPU threads  [default: all cores]"),
    option("target", type=Number(**BOUNDS["target"]), help="accuracy in percent  [default: the dataset's]"),
)
