"""An HTTP server: open the port, and serve an app until Ctrl-C."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from errno import EACCES, EADDRINUSE

import uvicorn
from fastapi import FastAPI

from drilldown import process
from drilldown.errors import ParameterError

MAX_CONNECTIONS = 64
END_SECONDS = 3  # for the answers under way at the end


class Server(uvicorn.Server):
    """A server that ends in order upon the signals that end this program; then the program goes on."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals until this process ends: upon Ctrl-C, `mlflow run` sends one more."""
        for number in process.SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self.handle_exit)
        yield


def listen(host: str, port: int) -> socket.socket:
    """Open the port. Raises: ParameterError when it is taken, or when the host is not this machine's."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, UnicodeError) as error:  # UnicodeError: of a name that cannot be one
        number = getattr(error, "errno", None) or 0
        reason = os.strerror(number) if number > 0 else getattr(error, "strerror", error)  # Python adds to its own
        if number in (EADDRINUSE, EACCES):
            raise ParameterError(f"port is {port}: it takes one that is free on {host} ({reason})") from error
        raise ParameterError(f"host is {host!r}: it takes an address of this machine ({reason})") from error


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Serve the app until a signal."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="none",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=END_SECONDS,
    )
    Server(config).run(sockets=[listening])
