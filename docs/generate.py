"""Write the generated parts of README.md and docs/*.md from results/, and docs/digits/two.json: `make docs`.

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`. NAME is a key of PARTS; arguments may follow.
With --check nothing is written; the exit code is 1 when a part is stale, and each stale file is named.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for benchmarks, which is not installed

import click

from benchmarks.target import by_the_studys_epoch, holds_from
from drilldown.experiments import records
from drilldown.experiments.records import GOAL
from drilldown.inference.framing import read_image
from drilldown.reporting import report
from drilldown.reporting.statistics import format_spread, summarize
from drilldown.steps import ROOT, STEP_NAMES
from drilldown.tracking import store

RESULTS = ROOT / "results"
REQUEST = ROOT / "docs" / "digits" / "two.json"
FILES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), REQUEST)
PART = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end -->)", flags=re.S)


def read(name: str) -> Any:
    """A file of results/."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def seeds(name: str) -> str:
    """A record's seeds, one a column."""
    runs = read(name)["runs"]
    summaries = [summarize(run["test_accuracy"], GOAL) for run in runs]
    rows = {
        "final": [f"{summary.final_accuracy:.2f}" for summary in summaries],
        "lowest of the last five": [f"{summary.min_accuracy_last_k:.2f}" for summary in summaries],
        "holds from epoch": [str(holds_from(run["test_accuracy"], GOAL.accuracy) or "–") for run in runs],
    }
    numbers = [str(run["seed"]) for run in runs]
    return report.table([{"seed": row} | dict(zip(numbers, cells, strict=True)) for row, cells in rows.items()])


def outcomes(files: Mapping[str, str]) -> str:
    """Records of ten seeds side by side: what they are, by the name of their file."""
    rows = []
    for name, what in files.items():
        record = read(name)
        figures = records.figures(record)
        held = [epoch for run in record["runs"] if (epoch := holds_from(run["test_accuracy"], GOAL.accuracy))]
        rows.append(
            {
                "what": what,
                "record": f"`{name}.json`",
                "parameters": figures["parameters"],
                "final": figures["final"],
                "lowest of the last five": figures["min_last_k"],
                "holds from epoch": f"{mean(held):.1f}" if len(held) == len(record["runs"]) else "–",
                "gate passed": f"{records.num_passed(record)} of {figures['seeds']} seeds",
            }
        )
    return report.table(rows)


CHOICES = {
    "step4-lr-0.3": "dense 3×3 convolutions, peak learning rate 0.3",
    "step4-dense": "the same, peak learning rate 0.15",
    "step4-averaged-statistics": "separable convolutions after the pool",
    "step4-torch": "the same, batch statistics taken again for the averaged weights",
}
ENGINES = {
    "step4-torch": "torch's kernels",
    "step4-first-loops": "compiled kernels, first version",
    "step4": "compiled kernels, second version",
}
SMALLEST = {"step4-separable-32": "separable, 32 channels"}


def search() -> str:
    """The candidates of the search for step 4, the best first: percent of the slice, mean ± standard deviation."""
    kept = read("step4-search")
    runs = defaultdict(list)
    for line in map(json.loads, (RESULTS / "step4-search.jsonl").read_text().splitlines()):
        runs[line["candidate"], line.get("views", "one view")].append(line)
    means = {key: mean(line["validation_accuracy"][-1] for line in found) for key, found in runs.items()}
    rows = []
    for (name, views), found in sorted(runs.items(), key=lambda item: means[item[0]], reverse=True):
        candidate = kept["candidates"][name]
        changes = [
            f"{field} {value}" if isinstance(value, str) else f"{field} {value:g}"
            for field, value in candidate["recipe"].items()
        ]
        rows.append(
            {
                "candidate": name if views == "one view" else f"{name}, {views}",
                "network": candidate["network"],
                "parameters": f"{found[0]['parameters']:,}",
                "recipe, where it differs": ", ".join(changes) or "–",
                "final": format_spread([line["validation_accuracy"][-1] for line in found]),
                "lowest of the last five": format_spread([min(line["validation_accuracy"][-5:]) for line in found]),
                "seeds": len(found),
                "s an epoch": f"{median(second for line in found for second in line['seconds']):.1f}",
            }
        )
    return report.table(rows)


def listed(versions: Mapping[str, str]) -> str:
    """Packages with their versions, in a line."""
    return ", ".join(f"{package} {version}" for package, version in versions.items())


def measured() -> str:
    """Where and with what each part of the benchmark was measured."""
    parts: dict[str, list[str]] = {}
    for part, facts in read("benchmark")["measured"].items():
        parts.setdefault(f"{facts['machine']}, {listed(facts['versions'])}", []).append(part)
    return "".join(f"Measured on {facts} ({', '.join(names)}).\n" for facts, names in parts.items())


def epoch() -> str:
    """An epoch of ours against an epoch of the notebook's."""
    kept = read("benchmark")
    ours, *baselines = kept["epoch_seconds"]
    speedups = {
        name: [theirs / mine for mine, theirs in zip(kept["epoch_seconds"][ours], seconds, strict=True)]
        for name, seconds in kept["epoch_seconds"].items()
    }
    rows = [
        {
            "training loop": name,
            "seconds an epoch": f"{median(kept['epoch_seconds'][name]):.1f}",
            "drilldown is faster by": times(speedups[name]) if name in baselines else "–",
        }
        for name in kept["epoch_seconds"]
    ]
    share = kept["share_of_matrix_product_rate"]["median"]
    rate = kept["matrix_product_gflops"]["median"]
    return (
        f"{report.table(rows)}\n{repeats(len(speedups[ours]))} The machine multiplies matrices at {rate:.0f} GFLOP/s; "
        + (f"drilldown trains at {share:.0%} of that rate.\n")
    )


def times(ratios: Iterable[float]) -> str:
    """The median of ratios, and each of them."""
    ratios = list(ratios)
    return f"{median(ratios):.2f} times ({', '.join(f'{ratio:.2f}' for ratio in ratios)})"


def repeats(number: int) -> str:
    return f"Medians of {number} measurements; in parentheses, each of them."


def target() -> str:
    """Time to the target: each seed, and the ratios."""
    kept = read("benchmark")
    found, by_study = kept["time_to_target"], by_the_studys_epoch(kept["time_to_target"], GOAL.accuracy)

    def cell(run: Mapping[str, Any]) -> str:
        if not run["epoch"]:
            return f"below the target in the last of {len(run['test_accuracy'])} epochs"
        return f"{run['seconds_to_target']:.1f} s, from epoch {run['epoch']}"

    rows, ratios = [], iter(by_study)
    for ours, theirs in zip(found["drilldown"], found["notebook"], strict=True):
        both = ours["epoch"] and theirs["epoch"]
        rows.append(
            {
                "seed": ours["seed"],
                "drilldown": cell(ours),
                "notebook": cell(theirs),
                "sooner by": f"{theirs['seconds_to_target'] / ours['seconds_to_target']:.2f} times" if both else "–",
                "against seven notebook epochs": f"{next(ratios):.2f} times" if ours["epoch"] and by_study else "–",
            }
        )
    each = [run["seconds_to_target"] / run["epoch"] for run in found["drilldown"] if run["epoch"]]
    return (
        f"{report.table(rows)}\nMedian: {kept['time_to_target_speedup']['median']:.2f} times sooner than the "
        f"notebook's runs, {median(by_study):.2f} times sooner than seven of their epochs. An epoch of step 4 takes "
        f"{mean(each):.1f} s of training.\n"
    )


START_UP = {
    "help_seconds": "`python -m drilldown --help`",
    "refused_parameter_seconds": "a refused parameter",
    "cpu_seconds_until_first_epoch": "CPU time until the first epoch",
    "cpu_seconds_of_packages_alone": "CPU time of PyTorch, MLflow and a run alone",
}


def overhead() -> str:
    """What a run takes besides training, and how soon commands start; of an older commit, too, if it was measured."""
    kept = read("benchmark")
    columns = {"seconds": kept}
    if other := kept.get("other_checkout"):
        columns[f"seconds, commit {(other['commit'] or '?')[:7]}"] = other
    rows: list[dict[str, object]] = [
        {"part of a run": part}
        | {column: f"{found['overhead_seconds']['parts'][part]:.1f}" for column, found in columns.items()}
        for part in kept["overhead_seconds"]["parts"]
    ]
    total = {column: f"**{found['overhead_seconds']['median']:.1f}**" for column, found in columns.items()}
    tables = [report.table([*rows, {"part of a run": "**all**"} | total])]
    if "start_up" in kept:
        tables.append(
            report.table(
                [
                    {"start-up": words}
                    | {column: f"{found['start_up'][name]['median']:.2f}" for column, found in columns.items()}
                    for name, words in START_UP.items()
                ]
            )
        )
    runs = ", ".join(f"{seconds:.1f}" for seconds in kept["overhead_seconds"]["repeats"])
    tables.append(f"Medians of {len(kept['overhead_seconds']['repeats'])} runs ({runs} s).\n")
    return "\n".join(tables)


def busy() -> str:
    """Seconds of an epoch by how idle threads wait, on a quiet machine and beside a busy process."""
    kept = read("benchmark")["spinning"]
    rows = [
        {"idle threads wait": name}
        | {f"seconds an epoch, {load}": f"{median(seconds):.2f}" for load, seconds in loads.items()}
        | {"busy to quiet": times(busy / quiet for quiet, busy in zip(loads["quiet"], loads["busy"], strict=True))}
        for name, loads in kept["epoch_seconds"].items()
    ]
    quiet = f"On the quiet machine: {times(kept['quiet_to_default_quiet']['repeats'])} libgomp's default."
    return f"{report.table(rows)}\n{kept['images']:,} images an epoch. {quiet}\n"


def gpu() -> str:
    """Training on a CUDA device: each step alone, then many seeds side by side."""
    kept = read("benchmark-gpu")
    rows = [
        {
            "step": name,
            "an epoch without graphs": f"{found['eager_epoch_seconds']:.2f} s",
            "an epoch": f"{median(found['epoch_seconds']):.2f} s",
            "epochs": len(found["epoch_seconds"]),
            "all epochs": f"{sum(found['epoch_seconds']):.1f} s",
            "with evaluation": f"{found['total_seconds']:.1f} s",
            "test accuracy (%)": f"{found['test_accuracy'][-1]:.2f}",
        }
        for name, found in kept["steps"].items()
    ]
    together = kept["side_by_side"]
    count = len(together["test_accuracy"])
    alone = kept["steps"][together["step"]]["total_seconds"]
    finals = [accuracies[-1] for accuracies in together["test_accuracy"]]
    return (
        f"Measured on one {kept['card']}, {listed(kept['versions'])}.\n\n{report.table(rows)}\n"
        f"Side by side, {together['at_a_time']} at a time, {count} seeds of {together['step']} took "
        f"{together['seconds']:.1f} s, {together['seconds'] / count:.1f} s each; one alone takes {alone:.1f} s. "
        f"Their test accuracies are {format_spread(finals)} %.\n"
    )


def cluster() -> str:
    """Eight short seeds by one worker, two workers and two processes; how many metric rows a second a server takes."""
    kept = read("cluster")
    trained = [
        {"eight seeds, three epochs each": way, "seconds": f"{median(seconds):.0f}"}
        for way, seconds in kept["seconds"].items()
    ]
    taken = [
        {"clients": clients, "metric rows a second": f"{rows:,.0f}"} for clients, rows in kept["rows_a_second"].items()
    ]
    return (
        f"Measured on {kept['machine']}, {listed(kept['versions'])}.\n\n{report.table(trained)}\n"
        f"Two workers are {kept['speed_up']:.2f} times as fast as one. They take {1 + kept['cost']:.2f} times as long "
        f"as `jobs=2` without a cluster.\n\n{report.table(taken)}"
    )


def serving() -> str:
    """Images a second, by way and batch size."""
    rows = [
        {"way": way}
        | {
            f"images/s in calls of {size}": f"{int(size) * calls['calls_a_second']['median']:,.0f}"
            for size, calls in batches.items()
        }
        for way, batches in read("benchmark")["serving"].items()
    ]
    return report.table(rows)


def framing() -> str:
    """Milliseconds to frame a picture, by what made it."""
    rows = [
        {
            "pictures of 1,000 pixels": f"{camera}, {found['pictures']}",
            "decode alone (ms)": f"{found['decode']:.1f}",
            "decode and frame (ms)": f"{found['both']:.1f}",
            "slowest (ms)": f"{found['slowest']:.1f}",
        }
        for camera, found in read("benchmark")["framing"].items()
    ]
    return report.table(rows)


def written() -> str:
    """Accuracy on MNIST's test images as they are, and written out as files."""
    kept = read("written")
    rows: Sequence[Mapping[str, object]] = [
        {"images": name, "accuracy (%)": f"{accuracy:.2f}"} for name, accuracy in kept["accuracy"].items()
    ]
    return f"{report.table(rows)}\n{kept['images']:,} images; `results/written.json`.\n"


def real() -> str:
    """Accuracy on pictures that the project draws and photographs itself, by what they are."""
    kept = read("real")
    rows = [
        {
            "": part,
            "pictures": value,
            "count": found["pictures"],
            "right (%)": f"{100 * found['right'] / found['pictures']:.1f}",
            "95 % interval": f"{100 * found['low']:.1f} to {100 * found['high']:.1f}",
            "refused": found["refused"],
            "sure": found["sure"],
            "of these right": found["sure_right"],
        }
        for part, values in kept["kinds"].items()
        for value, found in values.items()
    ]
    return f"{report.table(rows)}\n{kept['pictures']:,} pictures, seed {kept['seed']}; `results/real.json`.\n"


def others() -> str:
    """What becomes of pictures that are not one digit."""
    rows = [
        {
            "": kind,
            "pictures": value,
            "count": found["pictures"],
            "%": f"{100 * found['right'] / found['pictures']:.1f}",
            "95 % interval": f"{100 * found['low']:.1f} to {100 * found['high']:.1f}",
        }
        for kind, values in read("real")["others"].items()
        for value, found in values.items()
    ]
    return report.table(rows)


PARTS: dict[str, Callable[..., str]] = {
    "steps": lambda: records.table(STEP_NAMES),
    "results": lambda: records.full_table(STEP_NAMES),
    "seeds": seeds,
    "pass_rate": lambda: f"Step 4: {records.consistency(read('step4'))}.\n",
    "choices": lambda: outcomes(CHOICES),
    "engines": lambda: outcomes(ENGINES),
    "smallest": lambda: outcomes(SMALLEST),
    "search": search,
    "measured": measured,
    "epoch": epoch,
    "target": target,
    "overhead": overhead,
    "busy": busy,
    "gpu": gpu,
    "cluster": cluster,
    "serving": serving,
    "framing": framing,
    "written": written,
    "real": real,
    "others": others,
}


def generated(text: str) -> str:
    """The text with each of its parts as results/ have it now."""

    def part(match: re.Match[str]) -> str:
        name, *arguments = match[2].split()
        return f"{match[1]}\n{PARTS[name](*arguments)}\n{match[3]}"

    return PART.sub(part, text)


def request() -> str:
    """A request to the served model: the picture beside it, as the model sees it, a row of pixels on each line."""
    rows = read_image(REQUEST.with_suffix(".png")).tolist()
    return '{"instances": [[\n' + ",\n".join(map(json.dumps, rows)) + "\n]]}\n"


@click.command()
@click.option("--check", is_flag=True, help="write nothing; fail when a part is stale")
def main(check: bool) -> None:
    """Write the generated parts of README.md and docs/*.md from results/."""
    store.quiet_mlflow()
    stale = []
    for file in FILES:
        before = file.read_text() if file.exists() else ""
        after = request() if file == REQUEST else generated(before)
        if after != before:
            stale.append(file.name)
            if not check:
                file.write_text(after)
    for name in stale:
        click.echo(f"{name}: {'stale, run make docs' if check else 'written'}")
    sys.exit(bool(check and stale))


if __name__ == "__main__":
    main()
