"""The server of a registered model: MLflow's own, with the endpoint for pictures beside it."""

import socket
from collections.abc import Mapping, Sequence

import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from mlflow.pyfunc import scoring_server

from drilldown.errors import ParameterError
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
    app.include_router(endpoint.make_router(read))

    @app.exception_handler(HTTPException)
    def explain(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    return app


def run(app: FastAPI, port: int) -> None:
    """Serve the app on the loopback until a signal. Raises: ParameterError when the port is taken."""
    try:
        listening = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise ParameterError(f"port is {port}: it takes one that is free ({error.strerror})") from error
    with listening:
        uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none")).run(sockets=[listening])
