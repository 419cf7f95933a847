"""Imports run downwards only, as pyproject.toml says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from drilldown.steps import ROOT


def lint(folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache", ROOT / "pyproject.toml"],
        env=os.environ | {"PYTHONPATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(ROOT / "src" / "drilldown", tmp_path / "drilldown", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_imports_run_downwards(copy):
    done = lint(copy)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("learning/train.py", "import drilldown.tracking.store"),
        ("learning/train.py", "import mlflow"),
        ("engine/dispatch.py", "from mlflow import MlflowClient"),
        ("experiments/records.py", "from drilldown import commands"),
        ("learning/train.py", "from drilldown import fit"),  # the package's own names are for users
        ("newcomer.py", ""),  # a module that no layer names
    ],
)
def test_an_import_upwards_is_found(copy, file, line):
    with (copy / "drilldown" / file).open("a") as source:
        source.write(f"\n{line}\n")
    assert lint(copy).returncode != 0
