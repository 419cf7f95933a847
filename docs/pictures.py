"""Take the pictures of README.md and docs/ again: `python docs/pictures.py [NAME...]`.

`seeds` and `steps` show the records in results/. The others show the store, so train first: step 4 on MNIST, and all
steps on one dataset. Pages are taken by a headless Chromium.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests.support, which is not installed

import click
import mlflow
from mlflow.entities import Run
from PIL import Image, ImageChops

from drilldown.experiments import compare, records
from drilldown.reporting import plots
from drilldown.steps import ROOT, STEP_NAMES, load_step
from drilldown.tracking import pages, search, store
from drilldown.tracking.tags import ours
from tests.support.browser import draw, open_page
from tests.support.programs import server

FOLDER = ROOT / "docs" / "images"
MARGIN = 20  # pixels below a page's last line
SETTLE = 1000  # milliseconds after a page has loaded: what is drawn comes to rest
# Of MLflow's page, 1720 pixels wide: without its menu and its assistant.
MAIN_PANEL = (205, 8, 1268, 2005)
RUNS_PANEL = (205, 8, 1268, 577)
VERSION_PANEL = (205, 8, 1268, 410)


def seeds(file: Path) -> None:
    """The accuracies of step 4's seeds."""
    record = recorded("step4")
    curves = {run["seed"]: run["test_accuracy"] for run in record["runs"]}
    caption = plots.Caption(
        f"step4: {len(curves)} seeds, gate passed by {records.num_passed(record)}",
        f"{records.figures(record)['final']} % of the mnist test images, results/step4.json",
    )
    plots.seeds(curves, records.GOAL.accuracy, caption).savefig(file)


def steps(file: Path) -> None:
    """The comparison page, of the recorded runs."""
    entries = {name: recorded_entry(name) for name in STEP_NAMES}
    table, notes = compare.rows(entries, "mnist"), compare.notes(entries, "mnist", {})
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "compare.html"
        caption = compare.caption(entries, "mnist", "recorded in results/")
        page.write_text(compare.page(table, notes, compare.figure(entries, caption), caption))
        take(page.as_uri(), file, width=1500, height=2400)


def recorded(name: str) -> records.Record:
    if (record := records.read(name)) is None:
        raise click.ClickException(f"results/{name}.json is missing: python -m drilldown record --step {name}")
    return record


def recorded_entry(name: str) -> compare.Entry:
    """A step's record as the comparison takes it."""
    record = recorded(name)
    leaves = (layer for layer in load_step(name).network().modules() if not [*layer.children()])
    return compare.Entry(
        step=name,
        record=record,
        goal=records.GOAL,
        passed=records.num_passed(record),
        layers=Counter(type(layer).__name__ for layer in leaves),
        machines=frozenset([record["machine"]]),
        left_out=0,
    )


def curves(file: Path) -> None:
    """Accuracy and loss of a run of step 4, from its artifacts."""
    download(newest("step4", "mnist"), "curves.png", file)


def contact_sheet(file: Path) -> None:
    """What the champion sees of the files in docs/digits: a prediction, run now."""
    command = [sys.executable, "-m", "drilldown", "predict", "--images", "docs/digits"]
    environment = os.environ | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "PYTHONPATH": "src"}
    subprocess.run(command, env=environment, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    runs = mlflow.search_runs(
        filter_string="attributes.run_name = 'predict' and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
        search_all_experiments=True,
        output_format="list",
    )
    download(runs[0], "contact_sheet.png", file)


def mlflow_compare(file: Path) -> None:
    """MLflow's compare page, with a run of each step on MNIST, or on the digits where a step has none on MNIST."""
    has_all = all(search.finished_runs(search.experiments("all"), step=name, dataset="mnist") for name in STEP_NAMES)
    runs = [newest(name, "mnist" if has_all else "digits") for name in STEP_NAMES]
    ids = quote("[" + ",".join(f'"{run.info.run_id}"' for run in runs) + "]")
    experiments = quote("[" + ",".join(f'"{number}"' for number in {run.info.experiment_id for run in runs}) + "]")
    page = f"compare-runs?runs={ids}&experiments={experiments}"
    take_page(page, file, until="final_test_accuracy", height=2100, box=MAIN_PANEL)


def mlflow_runs(file: Path) -> None:
    """MLflow's page with the runs of this project's experiment."""
    experiment = mlflow.get_experiment_by_name(store.EXPERIMENT)
    if experiment is None:
        raise click.ClickException(f"no experiment {store.EXPERIMENT}: make step4")
    page = f"experiments/{experiment.experiment_id}/runs{pages.VIEW}"
    take_page(page, file, until="Duration", height=700, box=RUNS_PANEL)


def mlflow_version(file: Path) -> None:
    """MLflow's page of the newest version that was compared with a champion."""
    compared = [
        version
        for version in mlflow.search_model_versions(order_by=["creation_timestamp DESC"])
        if ours(version.tags).get("promotion.p", "None") != "None"
    ]
    if not compared:
        raise click.ClickException("no version was compared with a champion: make repeat")
    path = f"models/{compared[0].name}/versions/{compared[0].version}{pages.VIEW}"
    take_page(path, file, until="Aliases", height=700, box=VERSION_PANEL)


def take_page(path: str, file: Path, *, until: str, height: int, box: tuple[int, int, int, int]) -> None:
    """Take a picture of one of MLflow's pages, once it shows a text."""
    command = ["mlflow", "ui", "--workers", "1", "--backend-store-uri", mlflow.get_tracking_uri()]
    with server(command, os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}) as port:
        take(f"http://127.0.0.1:{port}/#/{path}", file, width=1720, height=height, box=box, until=until)


def newest(step: str, dataset: str) -> Run:
    """The newest finished run of the step on the dataset."""
    found = search.finished_runs(search.experiments("all"), step=step, dataset=dataset)
    if not found:
        raise click.ClickException(f"no finished run of {step} on {dataset}: make {step} ARGS='-P dataset={dataset}'")
    return found[0]


def download(run: Run, artifact: str, file: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(mlflow.MlflowClient().download_artifacts(run.info.run_id, artifact, folder), file)


def take(
    address: str,
    file: Path,
    width: int,
    height: int,
    box: tuple[int, int, int, int] | None = None,
    until: str | None = None,
) -> None:
    """Take a picture of a page once its scripts have run: of this box, or of everything above the blank rest."""
    with open_page(address, width, height, until) as page:
        page.wait_for_timeout(SETTLE)
        page.screenshot(path=file)
    picture = Image.open(file).convert("RGB")
    if box is None:
        blank = Image.new("RGB", picture.size, picture.getpixel((0, height - 1)))
        *_, end = ImageChops.difference(picture, blank).getbbox() or (height,)
        box = (0, 0, width, min(height, end + MARGIN))
    picture.crop(box).save(file, optimize=True)


def page_to_draw_on(file: Path) -> None:
    """The page to draw on, in a window."""
    take_drawing(file, 5, width=960, height=620)


def page_to_draw_on_phone(file: Path) -> None:
    """The page to draw on, on a phone, in the dark."""
    phone = {"color_scheme": "dark", "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
    take_drawing(file, 3, width=375, height=720, **phone)


def take_drawing(file: Path, digit: int, **window: Any) -> None:
    """Take a picture of the page to draw on, with a digit that was drawn there and the champion's answer."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "PYTHONPATH": str(ROOT / "src")}
    with (
        server([sys.executable, "-m", "drilldown", "draw"], environment) as port,
        open_page(f"http://127.0.0.1:{port}/", **window) as page,
    ):
        draw(page, digit)
        page.locator("#bars .first").wait_for()
        page.wait_for_timeout(SETTLE)
        page.screenshot(path=file)
    Image.open(file).convert("RGB").save(file, optimize=True)


PICTURES: dict[str, Callable[[Path], None]] = {
    "seeds": seeds,
    "steps": steps,
    "curves": curves,
    "contact_sheet": contact_sheet,
    "mlflow_compare": mlflow_compare,
    "mlflow_runs": mlflow_runs,
    "mlflow_version": mlflow_version,
    "draw": page_to_draw_on,
    "draw_phone": page_to_draw_on_phone,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(PICTURES)), metavar="[NAME]...")
def main(names: tuple[str, ...]) -> None:
    """Take the pictures NAME of docs/images again; all of them by default."""
    store.quiet_mlflow()
    store.connect()
    for name in names or PICTURES:
        file = FOLDER / f"{name}.png"
        try:
            PICTURES[name](file)
        except FileNotFoundError as error:  # no browser
            raise click.ClickException(str(error)) from None
        click.echo(f"{file.relative_to(ROOT)}: taken")


if __name__ == "__main__":
    main()
