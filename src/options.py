"""The parameters that users give, as click options: their names, defaults and bounds."""

import contextlib

import click

from src.learning import data, train
from src.learning.recipe import check

DEFAULTS = {"seed": 0, "dataset": "auto", "validation": 0, "device": "auto"}  # of every other: the recipe's, or all


class Number(click.ParamType):
    """A number within bounds; where it may be empty, None stands for the default."""

    def __init__(self, *, whole: bool = False, empty: bool = True, **bounds: float):
        self.name = "whole number" if whole else "number"
        self.whole, self.empty, self.bounds = whole, empty, bounds

    def convert(self, value, param, ctx):
        if value is None or (value == "" and self.empty):
            return None
        with contextlib.suppress(ValueError):  # check() says what is wrong with it
            value = int(value) if self.whole else float(value)
        check(param.name, value, whole=self.whole, **self.bounds)
        return value


def option(name: str, *, default: str = "", help: str, **settings):
    """An option by the name that `mlflow run -P` knows it by."""
    if not settings.get("required"):
        settings |= {"default": default, "show_default": bool(default)}
    return click.option(f"--{name}", name, help=help, **settings)


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
    type=Number(whole=True, empty=False, low=0),
    help="training images to measure on, in place of the test images",
)


def training_options(command):
    """The parameters of everything that trains."""
    for decorate in (
        option("target", type=Number(low=0, high=100), help="accuracy in percent  [default: the dataset's]"),
        option("threads", type=Number(whole=True, low=1, high=1024), help="CPU threads  [default: all cores]"),
        option("device", default=DEFAULTS["device"], type=click.Choice(train.DEVICES), help="where to compute"),
        option("lr", type=Number(above=0), help="(peak) learning rate  [default: the recipe's]"),
        option("batch_size", type=Number(whole=True, low=1), help="images an update  [default: the recipe's]"),
        option(
            "epochs", type=Number(whole=True, low=1), help="passes over the training images  [default: the recipe's]"
        ),
        option("data_dir", help="where MNIST is kept  [default: the user's cache folder]"),
        option("dataset", default=DEFAULTS["dataset"], type=click.Choice(data.DATASETS), help="what to train on"),
    ):
        command = decorate(command)
    return command
