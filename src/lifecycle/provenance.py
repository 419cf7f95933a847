"""What a run's figures depend on: code, recipe, data, versions, machine."""

import ast
import contextlib
import hashlib
import importlib.metadata
import json
import platform
from dataclasses import asdict
from pathlib import Path

import torch

from src.learning.data import Dataset
from src.learning.recipe import Recipe, Target
from src.learning.train import cores

ROOT = Path(__file__).parents[2]


def fingerprint(
    step: str, *, recipe: Recipe, target: Target, dataset: Dataset, seed: int, device: torch.device
) -> dict[str, str]:
    """What tells one training from another, as tags: two runs that agree in all of them need not both be made.

    The machine and its number of threads are not part of it: they change the last bits of a run, not its meaning.
    """
    parts = {
        "step": step,
        "recipe": asdict(recipe),
        "target": asdict(target),
        "seed": seed,
        "split": [dataset.split, len(dataset.test_images)],
        "device": device.type,
    }
    return {
        "code.digest": code_digest(step),
        "dataset.digest": dataset.digest,
        "recipe.digest": hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32],
        **{f"versions.{name}": version for name, version in versions().items()},
    }


def code_digest(step: str) -> str:
    """Of the code that makes the weights: the step's file and src/learning, without comments and docstrings."""
    digest = hashlib.sha256()
    for file in (ROOT / "steps" / f"{step}.py", *sorted((ROOT / "src" / "learning").glob("*.py"))):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:32]


def versions() -> dict[str, str]:
    """Those that the figures depend on."""
    packages = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "numba", "mlflow")}
    return {"python": platform.python_version(), **packages}


def machine(device: torch.device) -> str:
    """The processor in words, as "2 × AMD EPYC" or "NVIDIA H100"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{cores()} × {model}"
