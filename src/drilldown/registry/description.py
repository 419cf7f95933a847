"""Descriptions of registered models and their versions, in Markdown for MLflow's pages; pure."""

import numpy as np

from drilldown.registry.promotion import Candidate, Decision

MAX_LENGTH = 5_000  # characters of a description; SQLite takes more, other databases do not


def of_model(name: str, dataset: str) -> str:
    """What the registered model is, and how to use it."""
    return f"""\
Classifies images of the dataset `{dataset}`. drilldown registers a version for each training that passes its gate.

- Input: images as uint8 (N, 28, 28), white on black, pixels from 0 to 255; other scales are refused
- Output: probabilities as float32 (N, 10)
- Load it: `mlflow.pyfunc.load_model("models:/{name}@champion")`
- `champion`: the version to use. Its files and its accuracy were checked in a fresh process.
- `challenger`: the newest version. It becomes champion if it is significantly better, or as good and smaller.
- `python -m drilldown status` shows all versions, and who made which of them champion, when and why.
"""


def of_version(
    candidate: Candidate, champion: Candidate | None, labels: np.ndarray, decision: Decision, promoted: bool
) -> str:
    """The decision about a version, with its figures and the champion's; `promoted` differs from it if forced.

    A list: MLflow's page shows the cells of a table without space between them. `labels` are the true classes (N,).
    """
    verdict = "Not promoted" if not promoted else "Promoted" if decision.promoted else "Promoted by force"
    models = [model for model in (candidate, champion) if model]
    lines = [f"Version {model.version}: {_figures(model, labels)}" for model in models]
    if champion:
        lines.append(
            f"Test images that both classify correctly: {decision.both_right:,}; only version {candidate.version}: "
            f"{decision.challenger_alone:,}; only version {champion.version}: {decision.champion_alone:,}; "
            f"neither: {decision.both_wrong:,}"
        )
    lines += [f"Wrong answers of version {model.version} by true class: {_wrong(model, labels)}" for model in models]
    text = "\n".join([f"{verdict}: {decision.reason}.\n", *(f"- {line}" for line in lines)])
    return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 2]} …"


def _figures(model: Candidate, labels: np.ndarray) -> str:
    right = int((model.predictions == labels).sum())
    return (
        f"{100 * right / len(labels):.2f} % accuracy, {right:,} of {len(labels):,} test images; "
        f"{model.parameters:,} parameters"
    )


def _wrong(model: Candidate, labels: np.ndarray) -> str:
    counts = enumerate(model.wrong_by_class(labels))
    return ", ".join(f"{count} × {label}" for label, count in counts if count) or "none"
