"""`make bench`: measure this project, and the notebook's way to train beside it.

The figures go to results/benchmark.json. Each part notes the machine, the versions and the code it was measured with,
because parts may be measured on different days.
"""

import json
import os
from functools import partial
from pathlib import Path

import click
import torch

from benchmarks import busy, epoch, framing, gpu, overhead, serving, target
from benchmarks.errors import one_line_errors
from drilldown.hardware import processor_name
from drilldown.steps import ROOT
from drilldown.tracking import store
from drilldown.tracking.provenance import code_digest, versions

PARTS = {
    "epoch": epoch.measure,
    "busy": busy.measure,
    "target": target.measure,
    "overhead": overhead.measure,
    "serving": serving.measure,
    "framing": framing.measure,
}
RESULT = ROOT / "results" / "benchmark.json"


@click.command()
@click.option(
    "--part",
    "parts",
    type=click.Choice((*PARTS, "gpu")),
    multiple=True,
    help="only this part  [default: all but gpu, which writes results/benchmark-gpu.json]",
)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="of each measurement")
@click.option(
    "--checkout",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    help="another checkout, whose overhead is measured in turn with this one's",
)
@click.option("--keep/--no-keep", default=True, show_default=True, help="write results/benchmark.json")
def main(parts: tuple[str, ...], repeats: int, checkout: Path | None, keep: bool) -> None:
    """Time an epoch, quiet and beside a busy process, training to the target, a run's overhead, answers, framing."""
    machine = processor_name(torch.device("cpu"))
    click.echo(f"{machine}, load {os.getloadavg()[0]:.1f}: the figures are valid only if nothing else runs")
    measures = PARTS | {"overhead": partial(overhead.measure, checkout=checkout)}
    for part in parts or PARTS:
        click.echo(f"{part}:")
        if part == "gpu":
            gpu.write_figures(gpu.measure(), keep)
            continue
        with one_line_errors():
            measured = measures[part](repeats)
        if keep:
            kept = json.loads(RESULT.read_text()) if RESULT.exists() else {}
            facts = {"machine": machine, "versions": versions(), "code": code_digest("step4")}
            kept |= measured | {"measured": kept.get("measured", {}) | {part: facts}}
            RESULT.write_text(json.dumps(kept, indent=1) + "\n")
            click.echo(f"written to {RESULT}")


if __name__ == "__main__":
    store.quiet_mlflow()
    main()
