"""Every command block of the README is run, in its order, in a copy of the project.

Training is on the digits, and short; `make test` is this very run. What the test changes stands in `adapted` alone.
"""

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from conftest import ROOT, Project

from benchmarks import target
from benchmarks.programs import wait_for

pytestmark = pytest.mark.slow

BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
SERVERS = {"mlflow ui": 5000, "make serve": 5001, "mlflow server": 5002}  # commands that go on until they are stopped


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project, set up, with a champion named as MNIST's: the digits' stands in for it."""
    project = Project(tmp_path_factory.mktemp("readme"))
    shutil.copytree(ROOT / "docs", project.folder / "docs", dirs_exist_ok=True)
    (project.folder / ".venv").mkdir()  # set up already: by the environment that runs this test
    for entry in ("bin", "lib", "pyvenv.cfg"):
        (project.folder / ".venv" / entry).symlink_to(Path(sys.prefix) / entry)
    (project.folder / ".venv" / ".installed").touch()
    project.environment["ARGS"] = "-P dataset=digits"
    trained = project.command("make", "step4")
    assert trained.returncode == 0, trained.stderr
    mlflow.set_tracking_uri(project.tracking_uri)
    client = mlflow.MlflowClient()
    champion = client.get_model_version_by_alias("digits-cnn", "champion")
    client.create_registered_model("mnist-cnn")
    client.create_model_version("mnist-cnn", champion.source, champion.run_id)
    client.set_registered_model_alias("mnist-cnn", "champion", "1")
    return project


@pytest.fixture(scope="module")
def servers():
    """The servers that blocks have started; they are stopped at the end."""
    started = []
    yield started
    for process in started:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def adapted(block: str) -> str:
    """The block as it can be run within a test."""
    block = re.sub(r"^make (test|all)\b", r"make --dry-run \1", block, flags=re.M)  # test_side_by_side runs them all
    block = re.sub(r"^(mlflow (ui|server))\b", r"\1 --workers 1", block, flags=re.M)
    block = re.sub(r'^(make step3 ARGS=".*)"$', r'\1 -P epochs=2"', block, flags=re.M)
    block = re.sub(r"^make (step\d)$", r'make \1 ARGS="-P dataset=digits"', block, flags=re.M)
    block = block.replace("-P seeds=10", "-P seeds=2")
    block = re.sub(r"^(.*mlflow run \. -e (promote|rollback) .*)$", r"\1 -P model=digits-cnn", block, flags=re.M)
    return re.sub(r"^(.*mlflow run \. -e (step\d|repeat) .*)$", r"\1 -P dataset=digits -P epochs=2", block, flags=re.M)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0][:50])
def test_a_block(block, project, servers):
    server = next((command for command in SERVERS if block.startswith(command)), None)
    log = project.folder / "block.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", adapted(block)],
            cwd=project.folder,
            env={name: value for name, value in project.environment.items() if name != "ARGS"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    if server:
        servers.append(process)
        wait_for(SERVERS[server], process)
    else:
        assert process.wait(timeout=300) == 0, log.read_text()[-3000:]


def test_the_blocks_are_found():
    assert len(BLOCKS) >= 9
    assert [command for command in SERVERS if any(block.startswith(command) for block in BLOCKS)] == list(SERVERS)


def test_every_picture_is_there():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / "README.md").read_text())
    assert pictures
    for picture in pictures:
        assert Path(ROOT / picture).is_file(), picture


def test_the_benchmark_is_the_kept_one():
    kept = json.loads((ROOT / "results" / "benchmark.json").read_text())
    text = " ".join((ROOT / "README.md").read_text().split())
    assert f"{kept['epoch_speedup']['median']:.1f} times as fast as one that loads its images in the training" in text
    assert f"{kept['epoch_speedup_to_the_slower']['median']:.1f} times as fast as one with two workers" in text
    assert f"it holds {kept['time_to_target_speedup']['median']:.2f} times sooner" in text
    by_the_study = target.by_the_studys_epoch(kept["time_to_target"], 99.4)
    assert f"would be {statistics.median(by_the_study):.2f} times" in text
    assert f"All that is not training takes about {kept['overhead_seconds']['median']:.0f} s of a run" in text
    for way, batch, words in (
        ("pyfunc", 1, "answers {} single images a second through pyfunc"),
        ("PyTorch", 1, "({} in plain PyTorch)"),
        ("pyfunc", 64, "in batches of 64 {} images a second"),
        ("PyTorch", 64, "images a second ({});"),
        ("HTTP", 1, "over HTTP it answers {} requests of one image a second"),
        ("HTTP", 64, "and {} images a second in batches of 64"),
    ):
        rate = batch * kept["serving"][way][str(batch)]["calls_a_second"]["median"]
        assert words.format(f"{rate:,.0f}") in text


def test_the_written_files_are_the_kept_ones():
    kept = json.loads((ROOT / "results" / "written.json").read_text())
    found = kept["accuracy"]
    text = " ".join((ROOT / "README.md").read_text().split())
    assert kept["images"] == 10_000
    assert f"are recognised in {found['as files']:.2f} % of the cases" in text
    assert f"that has {found['as they are']:.2f} % on the images as they are" in text
    assert found["as files"] >= 0.99 * found["as they are"]
