"""What users give: the options of the command line, with their types and bounds, and `TrainOptions`."""

from __future__ import annotations

import contextlib
import os
import reprlib
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from drilldown.choices import DATASET_HINT, DATASETS, DEVICES, ENGINES, dataset_name, dataset_path
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
    recipe_fields: Mapping[str, Any] = field(default_factory=dict)  # other fields of the recipe that are changed
    network_fields: Mapping[str, Any] = field(default_factory=dict)  # arguments of the step's network
    study: str = ""  # the search that the training belongs to
    trial: int | None = None  # its number there

    def recipe(self, recipe: Recipe) -> Recipe:
        """The step's recipe with the user's values in it."""
        given = {name: getattr(self, name) for name in ("epochs", "batch_size", "lr")}
        changed = {name: value for name, value in given.items() if value is not None}
        return replace(recipe, **{**self.recipe_fields, **changed})

    def goal(self, target: Target, dataset: Dataset) -> Goal:
        """What a model must reach on this dataset: the user's accuracy, or else the step's, or else the dataset's.

        Raises: ParameterError when there is none of them.
        """
        candidates = (self.target, target.accuracy, dataset.target_accuracy)
        accuracy = next((candidate for candidate in candidates if candidate is not None), None)
        if accuracy is None:
            raise ParameterError(
                f"target is not given: for {dataset.name}, data of your own, it takes the accuracy to reach in "
                "percent, as in target=90"
            )
        return target.resolve(accuracy)


@dataclass(frozen=True)
class TuneOptions:
    """What a search takes from the user, besides what its trainings take."""

    trials: int = 20
    seeds_per_trial: int = 1
    max_parameters: int | None = None  # None: the step's
    pruner: str = "none"
    confirm: int = 3
    confirm_seeds: int = 8
    storage: str = ""


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


class Jobs(Number):
    """A number of processes; "auto" becomes None."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float | None:
        try:
            return None if value == "auto" else super().convert(value, param, ctx)
        except ParameterError as error:
            raise ParameterError(str(error).replace("it takes ", "it takes auto, or ", 1)) from None


class DatasetType(click.types.StringParamType):
    """One of the datasets' words, or the path of data of the user's own, which becomes absolute."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in DATASETS or (value == "" and param and value == param.default):
            return str(value)
        path = dataset_path(value)
        if not value.strip() or not os.path.exists(path):  # noqa: PTH110 (Path.exists raises errors)
            missing = f"; there is no {path}" if value.strip() else ""
            raise ParameterError(f"dataset is {reprlib.repr(value)}: it takes {DATASET_HINT}{missing}")
        return str(path)


class DatasetName(click.types.StringParamType):
    """The name of a dataset that runs were trained on; a path stands for the name that its data has."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not (name := dataset_name(value)):
            raise ParameterError(f"dataset is {reprlib.repr(value)}: it takes auto, or the name of a dataset")
        return name


class Option(click.Option):
    """An option whose value is one printable line, since every value may end in an error line, a tag or the history."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        refusal = f"{self.name} is {reprlib.repr(value)}: it takes "
        longest = MAX_TEXT if isinstance(self.type, click.types.StringParamType) else MAX_WORD
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
    type=Number(optional=False, **BOUNDS["seed"]),
    help="seed of all random numbers",
)
reuse_option = option(
    "reuse",
    default="true",
    type=click.BOOL,
    help="reuse finished runs of the same training",
)
experiment_option = option(
    "experiment",
    help="where to look for runs; all: in every experiment  [default: the experiment of this command]",
)
jobs_option = option(
    "jobs",
    default="auto",
    type=Jobs(whole=True, low=1),
    help="how many processes train; auto: as many as the cores, or the memory of the GPU, carry",
)
cluster_options = combine(
    option("cluster", help="address of a Dask scheduler whose workers train, as in tcp://host:8786  [default: none]"),
    option(
        "gpus",
        default="0",
        type=Number(whole=True, optional=False, low=0, high=1),
        help="how many GPUs a training needs of a worker of the cluster",
    ),
)
validation_option = option(
    "validation",
    default="0",
    type=Number(whole=True, optional=False, low=0, high=999_999),  # `hold_out` knows how many images there are
    help="measure on this many training images instead of the test images; registers nothing",
)
training_options = combine(
    option("dataset", default="auto", type=DatasetType(), help=f"what to train on: {DATASET_HINT}"),
    option("data_dir", help="folder that holds MNIST  [default: the user's cache folder]"),
    option("epochs", type=Number(**BOUNDS["epochs"]), help="passes over the training images  [default: the recipe's]"),
    option("batch_size", type=Number(**BOUNDS["batch_size"]), help="images per update  [default: the recipe's]"),
    option("lr", type=Number(**BOUNDS["lr"]), help="learning rate, or its peak  [default: the recipe's]"),
    option("device", default="auto", type=click.Choice(DEVICES), help="where to compute"),
    option("engine", default="auto", type=click.Choice(ENGINES), help="what computes the training passes on a CPU"),
    option("threads", type=Number(**BOUNDS["threads"]), help="CPU threads  [default: all cores]"),
    option(
        "target",
        type=Number(**BOUNDS["target"]),
        help="accuracy in percent  [default: the step's, or else the dataset's]",
    ),
)
