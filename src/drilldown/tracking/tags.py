"""The names of this project's tags in MLflow: they begin with `drilldown.`, apart from everybody else's."""

import json
from collections.abc import Mapping

PREFIX = "drilldown."
# Tags that hold many values as JSON: what only programs read must not bury what people read.
PACKED = ("fingerprint", "promotion")


def prefixed(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as they are written; MLflow's own keep their names."""
    return {name if name.startswith("mlflow.") else f"{PREFIX}{name}": value for name, value in tags.items()}


def packed(name: str, values: Mapping[str, object]) -> dict[str, str]:
    """One tag of PACKED with all the values, as it is handed to `prefixed`."""
    assert name in PACKED
    return {name: json.dumps({key: str(value) for key, value in values.items()}, sort_keys=True)}


def ours(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as they are read: by their names without the prefix, and with the values of the packed ones.

    Version 0.1.0 wrote no prefix, and before 0.2.0 nothing was packed; such tags are read too.
    """
    read = dict(tags)
    for name in PACKED:
        read |= json.loads(tags.get(f"{PREFIX}{name}", "{}"))
    return read | {name.removeprefix(PREFIX): value for name, value in tags.items() if name.startswith(PREFIX)}
