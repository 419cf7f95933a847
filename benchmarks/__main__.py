"""`make bench`: this project against the notebook's way, in one run; the figures are kept in results/benchmark.json.

A part is measured in one run, and says of which code it is; parts may be of different days.
"""

import json
import os
from pathlib import Path

import click
import torch

from benchmarks import epoch, overhead, serving, target
from benchmarks.errors import in_one_line
from src.lifecycle import store
from src.lifecycle.provenance import code_digest, machine, versions

PARTS = {"epoch": epoch.measure, "target": target.measure, "overhead": overhead.measure, "serving": serving.measure}
RESULT = Path(__file__).parents[1] / "results" / "benchmark.json"


@click.command()
@click.option("--part", "parts", type=click.Choice(tuple(PARTS)), multiple=True, help="this part alone  [default: all]")
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="of each measurement")
@click.option("--keep/--no-keep", default=True, show_default=True, help="write results/benchmark.json")
def main(parts: tuple[str, ...], repeats: int, keep: bool) -> None:
    """Time an epoch, the way to the target (half an hour), what is not training, and answers; some minutes each."""
    click.echo(f"{machine(torch.device('cpu'))}, load {os.getloadavg()[0]:.1f}: other work beside this one spoils it")
    for part in parts or PARTS:
        click.echo(f"{part}:")
        with in_one_line():
            measured = PARTS[part](repeats)
        if keep:
            kept = json.loads(RESULT.read_text()) if RESULT.exists() else {}
            of = {"machine": machine(torch.device("cpu")), "versions": versions(), "code": code_digest("step4")}
            kept |= measured | {"measured": kept.get("measured", {}) | {part: of}}
            RESULT.write_text(json.dumps(kept, indent=1) + "\n")
            click.echo(f"kept in {RESULT}")


if __name__ == "__main__":
    store.hush()
    main()
