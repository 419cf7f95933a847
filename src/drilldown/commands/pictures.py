"""Read pictures by a registered model: image files, requests to a server, what is drawn on a page."""

from __future__ import annotations

import contextlib
import os
import shlex
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from tqdm import tqdm

from drilldown import process, training
from drilldown.choices import DATASETS
from drilldown.commands.command import on_a_store
from drilldown.errors import ParameterError, PredictError, RegistryError
from drilldown.inference import predict
from drilldown.inference.files import find_images
from drilldown.inference.framing import thumbnail
from drilldown.inference.reader import Answer, Reader
from drilldown.messages import printable
from drilldown.registry.champion import dataset_of, explain_no_champion, get_champion
from drilldown.reporting import plots
from drilldown.tracking import invocation, runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_SHEET = 80  # answers on the contact sheet of a prediction


@on_a_store
def predict_images(images: str, model: str, several: bool, labels: str, recursive: bool) -> None:
    """Classify image files by a registered model, and log the answers."""
    files, left_out = find_images(images, recursive)
    with runs.run("predict", {"kind": "predict"}) as run_id:
        loaded, lineage = predict.load(model)
        reader = Reader(loaded, several=several)
        if several and labels:
            raise ParameterError(f"labels is {labels!r}: it takes nothing with several=true, as a file has one label")
        known = predict.read_labels(labels, files, reader.classes or predict.DIGITS) if labels else []
        reading = reader.read(files)
        answers = list(tqdm(reading, total=len(files), unit="image", desc="predicting", leave=False, disable=None))
        answered = [answer for answer in answers if answer.refusal is None]
        refused = {answer.source: answer.refusal for answer in answers if answer.refusal is not None}
        refused |= {printable(str(folder)): reason for folder, reason in left_out.items()}
        metrics: dict[str, float] = {
            "predicted": len(answered),
            "refused": len(refused),
            "unsure": sum(answer.unsure for answer in answered),
        }
        name = lineage.get("model.name")
        answered_by = f"{name} version {lineage['model.version']}" if name else model
        details = f"{answered_by}, run {run_id[:8]}"
        figures = {"contact_sheet.png": _contact_sheet(files, answers, details)}
        if known:
            compared, confidences, right = predict.compare(answers, dict(zip(map(str, files), known, strict=True)))
            metrics |= compared
            caption = plots.Caption("calibration of the answers", f"{len(right):,} labelled pictures, {details}")
            figures["calibration.png"] = plots.reliability(confidences, right, caption)
        runs.log_predictions([answer.as_row() for answer in answers], refused, metrics, figures, lineage)
        if answered:
            click.echo(predict.table(answered))
        for file, reason in refused.items():
            click.echo(f"{file}  left out: {reason}", err=True)
        if known:
            click.echo(predict.accuracy_line(metrics))
        if not answered:
            raise PredictError("none of the files has a digit that could be read")
        training.say(invocation.next_steps((*figures, "predictions.csv")))


def _contact_sheet(files: Sequence[Path], answers: Sequence[Answer], details: str) -> Figure:
    """The first pictures, what the model saw of them, and the answers."""
    paths = {printable(str(file)): file for file in files}
    shown = answers[:MAX_SHEET]
    cells = [
        plots.Cell(
            thumbnail(paths[answer.source], plots.CELL),
            answer.framed,
            f"{Path(answer.source).name}\n{textwrap.fill(answer.in_words(), plots.CELL_TEXT)}",
            "refused" if answer.refusal else "unsure" if answer.unsure else "",
        )
        for answer in shown
    ]
    return plots.answers(
        cells, plots.Caption(f"{len(shown)} of {len(answers):,} answers: picture, and what the model saw", details)
    )


@on_a_store
def serve(model: str, port: int) -> None:
    """Serve the champion over HTTP until Ctrl-C: MLflow's own server, with the endpoint for pictures beside it."""
    from drilldown.inference import http, serving

    if get_champion(model) is None:
        raise RegistryError(explain_no_champion(model, invocation.serve_command))
    app = serving.create_app(f"models:/{model}@champion")
    with http.listen("127.0.0.1", port) as listening:
        click.echo(f"serving {model} on http://127.0.0.1:{port} until Ctrl-C")
        if dataset_of(model) in DATASETS:  # the request holds a digit
            for path, kind, name in (("invocations", "application/json", "two.json"), ("read", "image/png", "two.png")):
                request = shlex.quote(f"@{os.path.relpath(training.IMAGES / name)}")
                header = f"--header 'Content-Type: {kind}' --data-binary {request}"
                click.echo(f"ask it: curl --silent http://127.0.0.1:{port}/{path} {header}")
        http.serve(app, listening)


@on_a_store
def draw(model: str, host: str, port: int) -> None:
    """Serve the page to draw on until Ctrl-C; under `mlflow run`, its run says so."""
    from drilldown.inference import http
    from drilldown.inference.current import CurrentChampion
    from drilldown.web import server

    with runs.run("draw", {"kind": "draw"}) if process.OPENED_RUN else contextlib.nullcontext():
        if get_champion(model) is None:
            raise RegistryError(explain_no_champion(model, lambda other: invocation.command("draw", model=other)))
        champion = CurrentChampion(model)
        with http.listen(host, port) as listening:
            page, version = server.page_address(listening, host), champion.get().version
            click.echo(f"draw on {page} until Ctrl-C; {model} version {version} answers")
            if not server.is_local(listening):
                click.echo(f"warning: whoever reaches port {port} of this machine may use the page", err=True)
            http.serve(server.create_app(champion, host), listening)
