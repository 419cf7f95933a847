"""The parameters that users give, as click options: their names, defaults and bounds."""

import contextlib
import reprlib
import unicodedata

import click

from src.learning import data, train
from src.learning.recipe import BOUNDS, ParameterError, check

DEFAULTS = {"seed": 0, "dataset": "auto", "validation": 0, "device": "auto"}  # of every other: the recipe's, or all
LONGEST = 1_000  # characters of a text; MLflow cuts a message at 8,000, and the text may be in it several times
LONGEST_WORD = 100  # characters of everything else
MOST = 9_999  # of whatever is counted, unless its own bounds say otherwise
CONTROL = {"Cc", "Cs", "Zl", "Zp"}  # Unicode's categories of control characters, halves of characters, line ends


class Number(click.ParamType):
    """A number within bounds; where it may be empty, None stands for the default."""

    def __init__(self, *, whole: bool = False, empty: bool = True, **bounds: float):
        self.name = "whole number" if whole else "number"
        self.whole, self.empty = whole, empty
        self.bounds = {"high": MOST} | bounds if whole else bounds

    def convert(self, value, param, ctx):
        if value is None or (value == "" and self.empty):
            return None
        with contextlib.suppress(ValueError):  # check() says what is wrong with it
            value = int(value) if self.whole else float(value)
        check(param.name, value, whole=self.whole, **self.bounds)
        return value


class Option(click.Option):
    """An option whose value is one line that can be stored and shown, and is left empty only where that is its default.

    Whatever its type takes: every value ends in an error line, in a tag, or in the audit trail.
    """

    def type_cast_value(self, ctx, value):
        refusal = f"{self.name} is {reprlib.repr(value)}: it takes "
        longest = LONGEST if self.type is click.STRING else LONGEST_WORD
        if isinstance(value, str) and (len(value) > longest or CONTROL & {*map(unicodedata.category, value)}):
            raise ParameterError(f"{refusal}at most {longest:,} characters, and no line ends or control characters")
        converted = super().type_cast_value(ctx, value)  # a type that knows better says what it takes
        if isinstance(value, str) and not value.strip() and (self.required or value != self.default):
            raise ParameterError(f"{refusal}a {self.type.name} that is not empty")
        return converted


def option(name: str, *, default: str = "", help: str, **settings):
    """An option by the name that `mlflow run -P` knows it by."""
    if not settings.get("required"):
        settings |= {"default": default, "show_default": bool(default)}
    return click.option(f"--{name}", name, cls=Option, help=help, **settings)


seed_option = option(
    "seed",
    default=str(DEFAULTS["seed"]),
    type=Number(whole=True, empty=False, low=0, high=2**32 - 1),
    help="of all randomness",
)
reuse_option = option(
    "reuse", default="true", type=click.BOOL, help="take finished runs of the same code, recipe, data and seed"
)
validation_option = option(
    "validation",
    default=str(DEFAULTS["validation"]),
    type=Number(whole=True, empty=False, low=0, high=59_999),  # one less than MNIST has
    help="training images to measure on, in place of the test images",
)


def training_options(command):
    """The parameters of everything that trains."""
    for decorate in (
        option("target", type=Number(**BOUNDS["target"]), help="accuracy in percent  [default: the dataset's]"),
        option("threads", type=Number(whole=True, low=1, high=1024), help="CPU threads  [default: all cores]"),
        option("device", default=DEFAULTS["device"], type=click.Choice(train.DEVICES), help="where to compute"),
        option("lr", type=Number(**BOUNDS["lr"]), help="(peak) learning rate  [default: the recipe's]"),
        option("batch_size", type=Number(**BOUNDS["batch_size"]), help="images an update  [default: the recipe's]"),
        option(
            "epochs", type=Number(**BOUNDS["epochs"]), help="passes over the training images  [default: the recipe's]"
        ),
        option("data_dir", help="where MNIST is kept  [default: the user's cache folder]"),
        option("dataset", default=DEFAULTS["dataset"], type=click.Choice(data.DATASETS), help="what to train on"),
    ):
        command = decorate(command)
    return command
