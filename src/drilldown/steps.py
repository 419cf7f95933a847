"""The steps: found as files in the steps folder of the checkout, and loaded by name."""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from drilldown.errors import StepError
from drilldown.learning.recipe import Recipe, Target

if TYPE_CHECKING:
    from torch import nn

ROOT = Path(__file__).parents[2]  # the checkout
FOLDER = ROOT / "steps"
STEP_NAMES = tuple(sorted(file.stem for file in FOLDER.glob("*.py")))


@dataclass(frozen=True)
class Step:
    """What a step's file declares."""

    name: str
    network: "Callable[..., nn.Module]"
    recipe: Recipe
    target: Target
    docstring: str
    space: Mapping[str, Any] = field(default_factory=dict)  # Optuna's distributions, by what `tune` changes


def load_step(name: str) -> Step:
    """Load a step from its file, from any working directory; a file that cannot be imported raises its own error.

    Raises StepError when there is no such file, or when it does not declare what a step consists of.
    """
    if not (FOLDER / f"{name}.py").is_file():
        raise StepError(f"step is {name!r}: it takes one of {', '.join(STEP_NAMES)}")
    module = _import(name)
    for attribute, is_declared, example in (
        ("Network", callable, "class Network(nn.Module)"),
        ("RECIPE", lambda value: isinstance(value, Recipe), "RECIPE = Recipe(epochs=15)"),
        ("TARGET", lambda value: isinstance(value, Target), "TARGET = Target()"),
    ):
        if not is_declared(getattr(module, attribute, None)):
            raise StepError(f"steps/{name}.py declares no {attribute}: a step has one, as in {example}")
    return Step(name, module.Network, module.RECIPE, module.TARGET, module.__doc__ or "", getattr(module, "SPACE", {}))


def _import(name: str) -> ModuleType:
    module_name = f"steps.{name}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module
