"""A reader follows the README from the top in a fresh clone, then the pages of docs/: every command block, in order.

`adapt` holds all that the test changes: trainings are on the digits, and all but the first are short. The programs of
the README's first training, prediction and server start as users start them, the others warm (tests/support/warm).
"""

import contextlib
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from drilldown.steps import ROOT
from tests.support.programs import wait_for
from tests.support.project import Project

pytestmark = pytest.mark.slow

PAGES = ("README.md", "docs/cli.md", "docs/inference.md", "docs/promotion.md", "docs/scaling.md", "docs/search.md")
BLOCKS = [
    pytest.param(page, block, id=f"{Path(page).stem}: {block.splitlines()[0][:50]}")
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), flags=re.S)
]
SERVERS = {
    "make ui": 5000,
    "make serve": 5001,
    "mlflow server": 5002,
    "make draw": 5004,
}  # they run until they are stopped
COLD = ("make step4", "make predict")
SEARCH = "--env-manager local -P step=step2 -P dataset=digits -P epochs=1 -P trials=1 -P confirm=0"
SHORT = "-P dataset=digits -P epochs=1"
REGISTERED = "-P dataset=digits -P epochs=5 -P target=0"  # the fewest epochs that can pass the gate


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A fresh clone, with the environment that runs this test; nothing has been trained."""
    project = Project(tmp_path_factory.mktemp("documented"))
    project.link_environment()
    del project.environment["MLFLOW_EXPERIMENT_NAME"]
    return project


@pytest.fixture(scope="module")
def servers():
    """The servers that blocks have started, by port; they are stopped at the end."""
    started = {}
    yield started
    for process in started.values():
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def adapt(block: str) -> str:
    """Change the block so that it can be run within a test."""
    block = re.sub(r"^make (test|all)\b", r"make --dry-run \1", block, flags=re.M)  # test_side_by_side runs them all
    block = re.sub(r"^mlflow server\b", "mlflow server --workers 1", block, flags=re.M)
    block = re.sub(r"^make ui$", 'make ui ARGS="--workers 1"', block, flags=re.M)
    # The first training is whole, but on the digits; so the champion is digits-cnn.
    block = re.sub(r"^make step4$", 'make step4 ARGS="-P dataset=digits"', block, flags=re.M)
    block = re.sub(r"^make serve$", "make serve MODEL=digits-cnn", block, flags=re.M)
    block = re.sub(r"^make draw$", 'make draw ARGS="-P model=mnist-cnn"', block, flags=re.M)
    block = re.sub(r"^(make predict .*)$", r'\1 ARGS="-P model=models:/mnist-cnn@champion"', block, flags=re.M)
    block = re.sub(r"^(.* -e predict .*)$", r"\1 -P model=models:/mnist-cnn@champion", block, flags=re.M)
    block = re.sub(r"^(.* -e (promote|rollback) .*)$", r"\1 -P model=mnist-cnn", block, flags=re.M)
    block = block.replace("mnist-cnn", "digits-cnn")
    # The others are short; those of step 4 are registered, as promote needs versions.
    block = re.sub(r"^(.* -e step4 .*)$", rf"\1 {REGISTERED}", block, flags=re.M)
    block = re.sub(r"^(.* -e (step[^4]|repeat) .*)$", rf"\1 {SHORT}", block, flags=re.M)
    block = re.sub(r'^(make (step3|repeat) ARGS=".*)"$', rf'\1 {SHORT}"', block, flags=re.M)
    block = re.sub(r"^(.* -e tune) .*$", rf"\1 --experiment-name mnist-drilldown {SEARCH}", block, flags=re.M)
    block = re.sub(r"^(python -m drilldown step\d .*) --epochs \d+$", r"\1 --epochs 1", block, flags=re.M)
    return block.replace("-P seeds=10", "-P seeds=1").replace("-P dataset=digits -P seed=7", "-P seed=7")


@pytest.mark.parametrize(("page", "block"), BLOCKS)
def test_a_block(page, block, project, servers):
    port = next((port for command, port in SERVERS.items() if re.search(f"^{command}", block, flags=re.M)), None)
    if port in servers and len(block.splitlines()) == 1:  # another page has started it
        return
    log = project.folder / "block.log"
    is_first = page == "README.md" and block.startswith(COLD)
    start = project.cold() if is_first else contextlib.nullcontext()
    with start, log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", adapt(block)],
            cwd=project.folder,
            env=project.environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    if port:
        servers[port] = process
        wait_for(port, process)
    else:
        assert process.wait(timeout=300) == 0, log.read_text()[-3000:]
    if block.startswith("make step4\n"):
        serve, predict = "make serve MODEL=digits-cnn", "make predict IMAGES=docs/digits"  # as adapt() has them
        model = "models:/digits-cnn@champion"
        assert f"next:   {serve}, or {predict} ARGS='-P model={model}'\n" in log.read_text()
    if "--data @docs/digits/two.json" in block:
        (probabilities,) = json.loads(log.read_text())["predictions"]
        assert np.argmax(probabilities) == 2
        assert sum(probabilities) == pytest.approx(1, abs=1e-4)


def test_all_runs_are_in_the_named_experiment(project):
    client = project.client()
    counts = {found.name: len(client.search_runs([found.experiment_id])) for found in client.search_experiments()}
    assert counts.pop("Default") == 0
    assert list(counts) == ["mnist-drilldown"]


def test_without_mnist_the_literal_commands_say_which_champion_there_is(project):
    """What the README's reader meets who had no network, and trained the digits."""
    done = project.command("make", "serve")
    assert done.returncode != 0
    assert done.stderr.splitlines()[0] == (
        "error: mnist-cnn has no champion; digits-cnn has one: make serve MODEL=digits-cnn; to train one: "
        "make step4 ARGS='-P dataset=mnist'"
    )


def test_make_alone_lists_every_target(project):
    alone, by_name = project.command("make"), project.command("make", "help")
    assert alone.stdout == by_name.stdout
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, flags=re.M)[1].split()) - {"$(RUNS)", "help", "store"}
    targets |= set(re.search(r"^RUNS := \$\(STEPS\) (.*)$", makefile, flags=re.M)[1].split())
    assert {"serve", "compare", "promote"} <= targets
    assert {line.split()[1] for line in alone.stdout.splitlines()} == targets | {"step1"}


def test_the_documented_answer_is_a_two():
    page = (ROOT / "docs" / "inference.md").read_text()
    (answer,) = re.findall(r"```text\n(\{\"predictions\".*?)```", page, flags=re.S)
    (probabilities,) = json.loads(answer)["predictions"]
    assert len(probabilities) == 10
    assert np.argmax(probabilities) == 2
    assert sum(probabilities) == pytest.approx(1, abs=1e-4)


def test_the_blocks_are_found():
    commands = [parameters.values[1] for parameters in BLOCKS]
    assert len(commands) >= 15
    started = {
        port for command in commands for start, port in SERVERS.items() if re.search(f"^{start}", command, flags=re.M)
    }
    assert started == {*SERVERS.values()}
