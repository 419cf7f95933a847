"""The names of this project's tags in MLflow: they begin with `drilldown.`, apart from everybody else's."""

from collections.abc import Mapping

PREFIX = "drilldown."


def prefixed(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as they are written; MLflow's own keep their names."""
    return {name if name.startswith("mlflow.") else f"{PREFIX}{name}": value for name, value in tags.items()}


def ours(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as they are read, by their names without the prefix. Version 0.1.0 wrote none; its tags are read too."""
    return dict(tags) | {name.removeprefix(PREFIX): value for name, value in tags.items() if name.startswith(PREFIX)}
