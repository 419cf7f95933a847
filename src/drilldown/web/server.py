"""The page with the endpoint that reads pictures, and where it is."""

import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.staticfiles import StaticFiles

from drilldown.errors import PredictError
from drilldown.inference import endpoint
from drilldown.inference.current import Champion, CurrentChampion
from drilldown.inference.reader import Answer
from drilldown.web.gatekeeper import Gatekeeper, own_names


def create_app(current: CurrentChampion, host: str = "127.0.0.1") -> FastAPI:
    """Make the page and its endpoint `read`, for a server that listens on that host."""
    app = FastAPI(title="drilldown", openapi_url=None)  # its pages of documentation take scripts from elsewhere

    @app.get("/read")
    def who_answers() -> dict[str, Any]:
        return introduce(current.get())

    def read(pictures: Sequence[bytes], several: bool) -> tuple[list[Answer], dict[str, Any]]:
        champion = current.get()
        return list(champion.readers[several].read(pictures)), introduce(champion)

    @app.exception_handler(PredictError)
    def no_champion(request: Request, error: PredictError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 503)

    endpoint.add(app, read)
    app.mount("/", StaticFiles(packages=[("drilldown.web", "static")], html=True))
    app.add_middleware(Gatekeeper, names=own_names(host))
    return app


def introduce(champion: Champion) -> dict[str, Any]:
    """Who answers, the names of its classes, and how much may be sent."""
    return {
        "model": {"name": champion.name, "version": champion.version},
        "names": champion.readers[False].names,
        "max_bytes": endpoint.MAX_BYTES,
    }


def page_address(listening: socket.socket, host: str) -> str:
    """The page's address; where the server listens on every address of this machine, it has the machine's name."""
    address, port = listening.getsockname()[:2]
    name = socket.gethostname() if ip_address(address).is_unspecified else host
    return f"http://{f'[{name}]' if ':' in name else name}:{port}"


def is_local(listening: socket.socket) -> bool:
    """Whether only this machine reaches the server."""
    return ip_address(listening.getsockname()[0]).is_loopback
