"""What a run's figures depend on: code, recipe, data, package versions, engine."""

import ast
import functools
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from drilldown.learning.data import Dataset
from drilldown.learning.recipe import Goal, Recipe
from drilldown.steps import ROOT

PACKAGE = Path(__file__).parents[1]
WEIGHT_PACKAGES = ("engine", "learning")  # the code that makes the weights
# Modules there that do not change the weights of a tracked training; the data's digest covers what own_data.py reads.
NO_INFLUENCE = ("calibration.py", "download.py", "files.py", "mapped.py", "own_data.py", "side_by_side.py")


def fingerprint(
    step: str,
    *,
    recipe: Recipe,
    goal: Goal,
    dataset: Dataset,
    seed: int,
    device: torch.device,
    engine: str,
    network: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, str]:
    """Identify a training, as tags: of two runs that agree in all of them, the second can reuse the first.

    `network` has the arguments of the network, where they are not its defaults. The machine and the number of threads
    are left out: they change the last bits of a run, not its meaning.
    """
    parts = {
        "step": step,
        "dataset": dataset.name,  # its models are registered by it
        "recipe": asdict(recipe),
        "target": asdict(goal),
        "seed": seed,
        "split": [dataset.split, len(dataset.test_images)],
        "device": device.type,
        "engine": engine,
    } | ({"network": dict(network)} if network else {})
    return {
        "code.digest": _code_digest_once(step),
        "dataset.digest": dataset.digest,
        "recipe.digest": hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32],
        **{f"versions.{name}": version for name, version in versions().items()},
    }


def code_digest(step: str) -> str:
    """Hash the code that makes the weights, without comments and docstrings: the step's file, `engine`, `learning`."""
    digest = hashlib.sha256()
    files = {f"{step}.py": ROOT / "steps" / f"{step}.py"}
    for package in WEIGHT_PACKAGES:
        for file in sorted((PACKAGE / package).rglob("*.py")):
            if file.name not in NO_INFLUENCE:
                files[file.relative_to(PACKAGE).as_posix()] = file
    for name, file in files.items():
        tree = ast.parse(file.read_text())
        tree.body = [node for node in tree.body if not _is_space(node)]
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
                ast.get_docstring(node, clean=False) is not None
            ):
                node.body = node.body[1:]
        digest.update(f"{name}\n{ast.dump(tree)}".encode())
    return digest.hexdigest()[:32]


def _is_space(node: ast.stmt) -> bool:
    """Whether it declares what `tune` may change, or imports Optuna for that."""
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == "SPACE" for target in node.targets)
    return isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optuna")


# A process that trains one run after the other keeps the code that it started with, whatever happens to the files.
_code_digest_once = functools.cache(code_digest)


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that the figures depend on."""
    packages = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "numba", "mlflow")}
    return {"python": platform.python_version(), **packages}
