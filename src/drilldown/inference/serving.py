"""The server of a registered model: MLflow's own, with the endpoint for pictures beside it."""

from collections.abc import Mapping, Sequence

from fastapi import FastAPI
from mlflow.pyfunc import scoring_server

from drilldown.inference import endpoint, predict
from drilldown.inference.reader import Answer, Reader


def create_app(model_uri: str) -> FastAPI:
    """Load a model, and make the server with `invocations`, as MLflow's, and `read`, which takes pictures."""
    model, lineage = predict.load(model_uri)
    named = "model.name" in lineage
    besides = {"model": {"name": lineage["model.name"], "version": lineage["model.version"]}} if named else {}
    readers = {several: Reader(model, several=several) for several in (False, True)}

    def read(pictures: Sequence[bytes], several: bool) -> tuple[list[Answer], Mapping[str, object]]:
        return list(readers[several].read(pictures)), besides

    app: FastAPI = scoring_server.init(model)
    endpoint.add(app, read)
    return app
