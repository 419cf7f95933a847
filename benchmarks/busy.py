"""One epoch of step 4 on a quiet machine, and beside one busy process, by how OpenMP's idle threads wait.

Threads that spin while they wait take a core from the threads that they wait for. Each epoch runs in a new process; the
settings take turns. The weights must be the same with every setting.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from statistics import median
from unittest.mock import patch

import click

from benchmarks.epoch import first_images, in_new_process
from drilldown.hardware import SPIN_COUNT
from drilldown.learning import train
from drilldown.steps import load_step

VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
SETTINGS = {
    "this project": {"GOMP_SPINCOUNT": str(SPIN_COUNT)},
    "libgomp's default": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
}


def measure(repeats: int, images: int = 20_000) -> dict:
    """Time epochs with each setting in turn, quiet and beside a busy process, and print them."""
    seconds = {name: {"quiet": [], "busy": []} for name in SETTINGS}
    digests = set()
    for repeat in range(1, repeats + 1):
        for load, company in (("quiet", nullcontext), ("busy", busy_process)):
            for name, variables in SETTINGS.items():
                with company(), environment(variables):
                    elapsed, digest = in_new_process(time_epoch, images)
                seconds[name][load].append(elapsed)
                digests.add(digest)
                click.echo(f"  repeat {repeat}, {load}: {name:18} {elapsed:6.2f} s")
    if len(digests) > 1:
        raise click.ClickException(f"the weights depend on the setting: {len(digests)} digests")
    click.echo("the weights are the same with every setting")
    ours, default = seconds["this project"], seconds["libgomp's default"]
    ratios = {
        "busy_to_quiet": ratio(ours["busy"], ours["quiet"]),
        "default_busy_to_quiet": ratio(default["busy"], default["quiet"]),
        "quiet_to_default_quiet": ratio(ours["quiet"], default["quiet"]),
    }
    click.echo(f"beside a busy process: {ratios['busy_to_quiet']['median']:.2f} times the quiet epoch")
    click.echo(f"  by libgomp's default: {ratios['default_busy_to_quiet']['median']:.2f} times")
    click.echo(f"quiet: {ratios['quiet_to_default_quiet']['median']:.2f} times libgomp's default")
    return {"spinning": {"epoch_seconds": seconds, "images": images} | ratios}


def ratio(numerators: list[float], denominators: list[float]) -> dict:
    """Return the ratio of each repeat, and their median."""
    repeats = [top / bottom for top, bottom in zip(numerators, denominators, strict=True)]
    return {"median": median(repeats), "repeats": repeats}


def time_epoch(images: int) -> tuple[float, str]:
    """Train step 4 for one epoch; return its seconds, and a digest of the weights."""
    step, dataset = load_step("step4"), first_images(images)
    device = train.prepare(0, "cpu")
    state = train.init_state(step.network(), step.recipe, dataset, 0, device)
    row = next(train.fit(state, step.recipe, dataset))
    weights = hashlib.sha256()
    for tensor in state.classifier.state_dict().values():
        weights.update(tensor.numpy().tobytes())
    return len(dataset.train_images) / row.images_per_second, weights.hexdigest()


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set these variables for the processes that are started meanwhile, and none of the others in VARIABLES."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    with patch.dict(os.environ, kept | dict(variables), clear=True):
        yield


@contextmanager
def busy_process() -> Iterator[None]:
    """Keep one core busy with another process."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()
